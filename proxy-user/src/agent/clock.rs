//! The agent's time: the clocks that the programs share, and waiting for what may never come.

use std::future::pending;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

/// How long names are vouched for after the source was last heard of: longer than an agent takes
/// to restart, shorter than a name should be denied that has come since.
pub(super) const NAMES_GOOD: Duration = Duration::from_secs(15);

/// Until when the names in the kernel are good without another word of this agent, in nanoseconds
/// of the monotonic clock, if the source was heard of `age` ago.
pub(super) fn fresh_until(age: Duration) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
    let until = (now + NAMES_GOOD).saturating_sub(age);
    u64::try_from(until.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn ticker(period: Duration) -> Interval {
    let mut ticker = interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// Waits until `instant`; for ever if there is none.
pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        // The clock of timers ticks in milliseconds, so a sleep till now takes up to two.
        Some(instant) if instant <= Instant::now() => {}
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

/// The result of `task`, which is then taken away; waits for ever if there is none.
pub(super) async fn finished<T>(task: &mut Option<JoinHandle<Option<T>>>) -> Option<T> {
    let result = match task {
        Some(task) => task.await.ok().flatten(),
        None => pending().await,
    };
    *task = None;
    result
}
