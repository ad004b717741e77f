//! Whether this node's proxying is healthy: what load balancers and kubelets ask on `:10256`.
//!
//! [`Health`] takes what the agent does (a change is queued, a sync is done) and what its Node
//! object says; the answers are kube-proxy's (`/livez`, `/healthz`; KEP-3836). The clock is the
//! caller's.

pub mod checks;
mod server;

pub use server::serve;

use crate::model::Node;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// For how long a change may wait for a sync; twice kube-proxy's sync period.
const TIMEOUT: SignedDuration = SignedDuration::from_secs(60);

/// The health of this node's proxying; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The oldest change that no sync has followed.
    queued: Option<Timestamp>,
    synced: Option<Timestamp>,
    /// Whether load balancers may use the node; `None` until its Node object was seen.
    eligible: Option<bool>,
}

/// An answer: a status code and a JSON body.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// 200 or 503.
    pub code: u16,
    /// The body.
    pub body: Body,
}

/// The body of an answer, with kube-proxy's field names.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// Now, if healthy; else the last sync, if there was one.
    pub last_updated: Option<Timestamp>,
    /// Now.
    pub current_time: Timestamp,
    /// Whether no change has waited for too long.
    pub healthy: bool,
    /// The same for each family. Both are written in one sync, so they never differ.
    pub status: BTreeMap<&'static str, FamilyStatus>,
    /// Whether load balancers may use the node; only on `/healthz`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
}

/// The health of one family.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyStatus {
    /// As in [`Body`].
    pub last_updated: Option<Timestamp>,
    /// As in [`Body`].
    pub healthy: bool,
}

impl Health {
    /// A change that a sync must follow has come.
    pub fn queued(&self, now: Timestamp) {
        self.state().queued.get_or_insert(now);
    }

    /// A sync has succeeded.
    pub fn synced(&self, now: Timestamp) {
        let mut state = self.state();
        state.queued = None;
        state.synced = Some(now);
    }

    /// The Node object is as given. That it is gone changes nothing: a Node that is deleted
    /// has had a deletionTimestamp, and one that is missed is no reason to move traffic.
    pub fn node(&self, node: Option<&Node>) {
        if let Some(node) = node {
            self.state().eligible = Some(!node.deleting && !node.to_be_deleted);
        }
    }

    /// Whether the proxying itself is healthy; what `healthCheckNodePort` answers report, too.
    pub fn is_healthy(&self, now: Timestamp) -> bool {
        self.livez(now).body.healthy
    }

    /// Whether the agent is alive: 503 if a change has waited for a minute.
    pub fn livez(&self, now: Timestamp) -> Report {
        let state = self.state();
        let healthy = state.queued.is_none_or(|queued| now.duration_since(queued) < TIMEOUT);
        let last_updated = if healthy { Some(now) } else { state.synced };
        let family = FamilyStatus { last_updated, healthy };
        let status = BTreeMap::from([("IPv4", family), ("IPv6", family)]);
        let body = Body { last_updated, current_time: now, healthy, status, node_eligible: None };
        Report { code: code(healthy), body }
    }

    /// Whether load balancers should send traffic here: as [`Health::livez`], and 503 if the
    /// Node was never seen, is being deleted, or is about to be. A cordon has no effect.
    pub fn healthz(&self, now: Timestamp) -> Report {
        let mut report = self.livez(now);
        let eligible = self.state().eligible.unwrap_or(false);
        report.body.node_eligible = Some(eligible);
        report.code = code(report.body.healthy && eligible);
        report
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each method leaves a whole state behind, whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn code(healthy: bool) -> u16 {
    if healthy { 200 } else { 503 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    /// Scenario 101.
    #[test]
    fn change_that_waits_a_minute_is_unhealthy_until_the_next_sync() {
        let health = Health::default();
        assert_eq!(health.livez(at(0)).code, 200, "idle from the start");
        health.queued(at(0));
        health.queued(at(50));
        assert_eq!(health.livez(at(59)).code, 200);
        assert_eq!(health.livez(at(60)).code, 503, "the oldest change counts");
        health.synced(at(61));
        assert_eq!(health.livez(at(3600)).code, 200, "idle is healthy");
        health.queued(at(4000));
        let stuck = health.livez(at(4060));
        assert_eq!((stuck.code, stuck.body.last_updated), (503, Some(at(61))));
        assert!(!health.is_healthy(at(4060)));
    }

    /// Scenarios 102 to 104.
    #[test]
    fn node_decides_healthz_and_never_livez() {
        let node = |deleting, to_be_deleted| Node { deleting, to_be_deleted, ..Node::default() };
        let health = Health::default();
        assert_eq!(health.healthz(at(0)).code, 503, "the Node was never seen");
        let cases = [(false, false, 200), (true, false, 503), (false, true, 503)];
        for (deleting, tainted, code) in cases {
            health.node(Some(&node(deleting, tainted)));
            assert_eq!(health.healthz(at(0)).code, code);
            assert_eq!(health.livez(at(0)).code, 200);
        }
        health.node(None);
        assert_eq!(health.healthz(at(0)).code, 503, "its deletion does not clear the state");
        health.node(Some(&node(false, false)));
        health.node(None);
        assert_eq!(health.healthz(at(0)).code, 200);
    }

    #[test]
    fn bodies_have_the_names_of_kube_proxy() {
        let health = Health::default();
        health.node(Some(&Node::default()));
        let family = |time: &str| serde_json::json!({ "lastUpdated": time, "healthy": true });
        let time = at(0).to_string();
        let mut expected = serde_json::json!({
            "lastUpdated": time,
            "currentTime": time,
            "healthy": true,
            "status": { "IPv4": family(&time), "IPv6": family(&time) },
        });
        assert_eq!(serde_json::to_value(health.livez(at(0)).body).unwrap(), expected);
        expected["nodeEligible"] = true.into();
        assert_eq!(serde_json::to_value(health.healthz(at(0)).body).unwrap(), expected);
    }
}
