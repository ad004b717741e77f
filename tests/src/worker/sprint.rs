//! Sprints, in a thread of its own on the first CPU: blocking sockets where there is one at a
//! time, epoll where there are many.

mod batch;
mod knock;
mod many;
mod names;
mod one;
mod server;

pub(super) use server::serve;

use super::latency::Histogram;
use crate::sprint::{Deed, NameSprint, Sprint, SprintReport};
use crate::traffic::Failure;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// How long a reply may take before it counts as a failure.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs a sprint to its end.
pub(super) async fn run(sprint: Sprint) -> Result<SprintReport, Failure> {
    on_its_thread(move || run_here(&sprint)).await
}

/// Runs a sprint of DNS queries to its end.
pub(super) async fn run_names(sprint: NameSprint) -> Result<SprintReport, Failure> {
    let ran = move || {
        stay_on(Side::Client);
        names::run(&sprint).map_err(|error| Failure::from_io("ask for names", &error))
    };
    on_its_thread(ran).await
}

async fn on_its_thread(
    run: impl FnOnce() -> Result<SprintReport, Failure> + Send + 'static,
) -> Result<SprintReport, Failure> {
    let running = tokio::task::spawn_blocking(move || {
        // On a thread of its own: the affinity ends with it.
        thread::scope(|scope| scope.spawn(run).join())
    });
    let ran = running.await.map_err(Failure::lab)?;
    ran.unwrap_or_else(|_| Err(Failure::lab("the thread of a sprint panicked")))
}

fn run_here(sprint: &Sprint) -> Result<SprintReport, Failure> {
    stay_on(Side::Client);
    let mut tally = Tally::new(sprint);
    let ran = match sprint.deed {
        Deed::Connect | Deed::ConnectInOrder if sprint.concurrency > 1 => many::connect(&mut tally),
        Deed::Request if sprint.concurrency > 1 => many::request(&mut tally),
        Deed::Connect | Deed::ConnectInOrder => one::connect(&mut tally),
        Deed::Knock => knock::knock(&mut tally),
        Deed::Request => one::request(&mut tally),
        Deed::Stream => one::stream(&mut tally),
        Deed::NewDatagram => one::new_datagram(&mut tally),
        Deed::Datagram => one::datagram(&mut tally),
        Deed::Flood => one::flood(&mut tally),
    };
    match ran {
        Ok(()) => Ok(tally.report()),
        Err(error) => Err(Failure::from_io(&format!("{:?}", sprint.deed), &error)),
    }
}

/// A sprint under way.
struct Tally<'a> {
    sprint: &'a Sprint,
    started: Instant,
    ended: Option<Instant>,
    latency: Histogram,
    report: SprintReport,
    /// Answers by the server's id, which is small.
    backends: Vec<u64>,
    random: u64,
}

impl<'a> Tally<'a> {
    fn new(sprint: &'a Sprint) -> Self {
        let started = Instant::now();
        // A seed of its own for each sprint, and never zero: sprints that go the same way would
        // look like a choice that is not fair.
        let random = RandomState::new().hash_one(0) | 1;
        let (latency, report) = (Histogram::default(), SprintReport::default());
        Self { sprint, started, ended: None, latency, report, backends: vec![0; 1024], random }
    }

    fn is_over(&self) -> bool {
        self.started.elapsed() >= self.sprint.duration
    }

    /// A target, at random.
    fn target(&mut self) -> SocketAddr {
        let targets = &self.sprint.targets;
        // Xorshift: fair enough to choose among ten, and cheap.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        targets[((self.random >> 32) as usize * targets.len()) >> 32]
    }

    /// The server with the id that `reply` begins with has answered. After the end it counts only
    /// as a choice.
    fn answered(&mut self, reply: &[u8], took: Duration) -> io::Result<()> {
        let id = reply.first_chunk().map(|id| u16::from_le_bytes(*id));
        let count = id.and_then(|id| self.backends.get_mut(usize::from(id)));
        *count.ok_or_else(|| io::Error::other("a reply that names no server"))? += 1;
        if self.ended.is_none() {
            self.latency.add(took);
            self.report.count += 1;
        }
        Ok(())
    }

    /// Counts a failure. One that comes again and again ends the sprint.
    fn failed(&mut self, error: io::Error) -> io::Result<()> {
        self.report.failed += 1;
        let failure = Failure::from_io(&format!("{:?}", self.sprint.deed), &error);
        let _ = self.report.failure.get_or_insert(failure);
        if self.report.failed > 1000 + self.report.count { Err(error) } else { Ok(()) }
    }

    fn report(self) -> SprintReport {
        let elapsed = self.ended.map_or_else(|| self.started.elapsed(), |at| at - self.started);
        let answers = self.backends.iter().enumerate().filter(|(_, count)| **count > 0);
        let backends = answers.map(|(id, count)| (id as u16, *count)).collect();
        SprintReport { elapsed, backends, latency: self.latency.latency(), ..self.report }
    }
}

/// Who a thread works for.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// Keeps the calling thread on its side's CPUs: the first for clients, the others for servers.
/// A machine with one CPU has one side, and a kernel that refuses leaves it to the scheduler.
fn stay_on(side: Side) {
    let count = thread::available_parallelism().map_or(1, usize::from);
    let mut cpus = CpuSet::new();
    match side {
        _ if count == 1 => return,
        Side::Client => cpus.set(0),
        Side::Server => (1..count).for_each(|cpu| cpus.set(cpu)),
    }
    let _ = sched_setaffinity(None, &cpus);
}
