//! Contests: tells the owner of a Service, by an Event, that another Service has its addresses.
//!
//! Takes who has begun or ceased to lose from the planner, gives notices, each Service's once in a
//! while and a few at a time: a tenant may make thousands of Services that lose. Beyond that the
//! warnings of the status say it.

use crate::model::{Notice, ObjectName};
use crate::plan::Planner;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Why, as the Event says it.
const REASON: &str = "AddressConflict";
/// How many Services are told between two ticks.
const AT_ONCE: usize = 5;
/// For how long a Service that was told is not told again: as long as Events are kept.
const QUIET: Duration = Duration::from_secs(3600);

/// Who is to be told, and who has been.
pub(super) struct Contests {
    notices: mpsc::Sender<Notice>,
    waiting: BTreeSet<ObjectName>,
    /// Invariant: those told within `QUIET`, at most `AT_ONCE` for each tick of it.
    told: BTreeMap<ObjectName, Instant>,
    allowed: usize,
}

impl Contests {
    pub(super) fn new(notices: mpsc::Sender<Notice>) -> Self {
        Self { notices, waiting: BTreeSet::new(), told: BTreeMap::new(), allowed: AT_ONCE }
    }

    /// Lets more Services be told; to be called every few seconds.
    pub(super) fn tick(&mut self, now: Instant) {
        self.allowed = AT_ONCE;
        self.told.retain(|_, told| now.duration_since(*told) < QUIET);
    }

    /// Tells the Services that have begun to lose, as far as it is allowed now.
    pub(super) fn update(&mut self, planner: &mut Planner) {
        for name in planner.take_contest_changes() {
            if self.told.contains_key(&name) || planner.contest(&name).is_none() {
                self.waiting.remove(&name);
            } else {
                self.waiting.insert(name);
            }
        }
        while self.allowed > 0
            && let Some(service) = self.waiting.pop_first()
        {
            let Some(message) = planner.contest(&service) else { continue };
            let notice =
                Notice { service: service.clone(), reason: REASON, message, of_node: false };
            if self.notices.try_send(notice).is_err() {
                self.waiting.insert(service);
                return;
            }
            self.allowed -= 1;
            self.told.insert(service, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Touched, World, examples};
    use std::net::IpAddr;

    /// Lets `count` Services claim the address of one that is older.
    fn contest(planner: &mut Planner, world: &mut World, count: u8) {
        let mut touched = Touched::default();
        for last in 0..count {
            let mut service = examples::service(&format!("s{last}"), [10, 96, 0, last]);
            service.created = last.into();
            service.external_ips = vec![IpAddr::from([192, 0, 2, 8])];
            touched.merge(world.apply(Change::Service(Box::new(service))));
        }
        let _ = planner.update(world, &touched);
    }

    fn told(notices: &mut mpsc::Receiver<Notice>) -> Vec<String> {
        std::iter::from_fn(|| notices.try_recv().ok())
            .map(|notice| {
                assert_eq!((notice.reason, notice.of_node), (REASON, false));
                assert!(notice.message.contains("192.0.2.8:80/TCP"), "{}", notice.message);
                notice.service.name.to_string()
            })
            .collect()
    }

    #[test]
    fn a_service_that_loses_is_told_once_and_others_wait_for_their_turn() {
        let (send, mut notices) = mpsc::channel(64);
        let (mut planner, mut world) = (Planner::new("node-a"), World::default());
        let mut contests = Contests::new(send);
        contest(&mut planner, &mut world, 9);
        contests.update(&mut planner);
        assert_eq!(told(&mut notices), ["s1", "s2", "s3", "s4", "s5"]);
        contests.update(&mut planner);
        assert_eq!(told(&mut notices), [""; 0]);
        contests.tick(Instant::now());
        contests.update(&mut planner);
        assert_eq!(told(&mut notices), ["s6", "s7", "s8"]);

        for last in [2, 3] {
            let touched = world.apply(Change::ServiceGone(examples::name(&format!("s{last}"))));
            let _ = planner.update(&world, &touched);
        }
        contest(&mut planner, &mut world, 9);
        contests.update(&mut planner);
        assert_eq!(told(&mut notices), [""; 0], "within the hour");
        contests.tick(Instant::now() + QUIET);
        let touched = world.apply(Change::ServiceGone(examples::name("s2")));
        let _ = planner.update(&world, &touched);
        contest(&mut planner, &mut world, 9);
        contests.update(&mut planner);
        assert_eq!(told(&mut notices), ["s2"]);
    }

    #[test]
    fn a_notice_that_nobody_takes_yet_waits_while_the_service_loses() {
        let (send, mut notices) = mpsc::channel(1);
        let (mut planner, mut world) = (Planner::new("node-a"), World::default());
        let mut contests = Contests::new(send);
        contest(&mut planner, &mut world, 4);
        contests.update(&mut planner);
        let touched = world.apply(Change::ServiceGone(examples::name("s2")));
        let _ = planner.update(&world, &touched);
        assert_eq!(told(&mut notices), ["s1"]);
        contests.update(&mut planner);
        assert_eq!(told(&mut notices), ["s3"]);
    }
}
