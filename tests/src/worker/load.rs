//! Loads: the same request again and again, at a rate or as fast as it goes.

use super::latency::Histogram;
use super::socket::Socket;
use crate::traffic::{Failure, Failures, Load, LoadReport, Pattern};
use futures::future::join_all;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// A load that runs, or is about to.
pub(super) struct Running {
    load: Load,
    started: Instant,
    stopped: AtomicBool,
    begun: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    report: LoadReport,
    histogram: Histogram,
}

impl Running {
    pub(super) fn new(load: Load) -> Self {
        let started = Instant::now();
        let (stopped, begun) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { load, started, stopped, begun, tally: Mutex::default() }
    }

    /// Runs the load to its end.
    pub(super) async fn run(&self) -> LoadReport {
        drop(join_all((0..self.load.concurrency).map(|_| self.ask_repeatedly())).await);
        self.report()
    }

    /// Has the load end after the requests that are under way.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What has come of it so far.
    pub(super) fn report(&self) -> LoadReport {
        let tally = self.tally();
        let latency = tally.histogram.latency();
        LoadReport { elapsed: self.started.elapsed(), latency, ..tally.report.clone() }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_repeatedly(&self) {
        let mut kept = None;
        while self.next_is_due().await {
            let started = Instant::now();
            let asked = self.ask(&mut kept, started).await;
            if let Err(failure) = asked {
                kept = None;
                self.count_failure(failure);
                // A refusal costs no time: let the others run.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits for the time of the next request; false if there is to be none.
    async fn next_is_due(&self) -> bool {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let due = self.load.per_second.map(|rate| Duration::from_secs_f64(number as f64 / rate));
        let end = self.load.duration.unwrap_or(Duration::MAX);
        if let Some(due) = due.filter(|due| *due < end) {
            sleep_until((self.started + due).into()).await;
        }
        let now = due.unwrap_or_default().max(self.started.elapsed());
        now < end && !self.stopped.load(Ordering::Relaxed)
    }

    async fn ask(&self, kept: &mut Option<Socket>, started: Instant) -> Result<(), Failure> {
        let ask = &self.load.ask;
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => Socket::open(ask).await?,
        };
        let answer = socket.exchange(socket.to(), ask.payload, ask.timeout).await?;
        self.count_answer(answer.name, started.elapsed());
        match self.load.pattern {
            Pattern::New => socket.reset(),
            Pattern::NewUntilServerCloses => socket.closed(ask.timeout).await?,
            Pattern::Keep => *kept = Some(socket),
        }
        Ok(())
    }

    fn count_answer(&self, name: &str, took: Duration) {
        let mut tally = self.tally();
        tally.histogram.add(took);
        match tally.report.backends.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(tally.report.backends.insert(name.to_owned(), 1)),
        }
    }

    fn count_failure(&self, failure: Failure) {
        let at = self.started.elapsed();
        let mut tally = self.tally();
        let failures = tally.report.failures.entry(failure.kind);
        failures.or_insert(Failures { count: 0, first: failure, at }).count += 1;
    }
}
