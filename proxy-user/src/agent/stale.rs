//! What has to look at the node anew once services of UDP were written, or a device got its
//! programs.

use super::clock::at;
use super::report::{Problems, Report, chain};
use crate::config::AgentConfig;
use crate::metrics::Metrics;
use crate::model::Warning;
use crate::pinned::PinnedMaps;
use crate::stale::StaleEntries;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// When stale conntrack entries are looked for once more: by then, every packet has left that was
/// given a backend before the maps were written.
const AGAIN: Duration = Duration::from_secs(1);
/// How many times as long as a look has taken the next one waits, so that no burst of changes on a
/// node with a million entries takes more than a fifth of a CPU.
const PAUSE: u32 = 4;

/// Wakes them.
pub(super) struct AfterUdp {
    listeners: Arc<Notify>,
    stale: Arc<Notify>,
}

impl AfterUdp {
    /// Starts them.
    pub(super) fn spawn(
        tasks: &mut JoinSet<()>,
        report: &Report,
        config: &AgentConfig,
        metrics: &Metrics,
        maps: Arc<PinnedMaps>,
    ) -> Self {
        let after = Self { listeners: Arc::default(), stale: Arc::default() };
        report.spawn_watch_listeners(tasks, config, &after.listeners, Arc::clone(&maps));
        let mut entries = StaleEntries::new(super::node_ports(config));
        // Before anything is written.
        if let Err(error) = entries.remember(&maps) {
            tracing::warn!("which Services go now is not known: {}", chain(&error));
        }
        tasks.spawn(delete_stale(
            entries,
            Arc::clone(&after.stale),
            maps,
            metrics.clone(),
            report.problems(),
        ));
        after
    }

    /// Services of UDP were written, or may not be as they were written, or the node's devices have
    /// changed.
    pub(super) fn notify(&self) {
        self.listeners.notify_one();
        self.stale.notify_one();
    }
}

/// Deletes conntrack entries whose backend is gone, whenever `written` says so.
async fn delete_stale(
    mut entries: StaleEntries,
    written: Arc<Notify>,
    maps: Arc<PinnedMaps>,
    metrics: Metrics,
    problems: Problems,
) {
    let mut again = None;
    loop {
        tokio::select! {
            () = written.notified() => again = Some(Instant::now() + AGAIN),
            () = at(again) => again = None,
        }
        let began = Instant::now();
        let maps = Arc::clone(&maps);
        let look = tokio::task::spawn_blocking(move || {
            let (deleted, result) = entries.delete(&maps);
            (entries, deleted, result)
        });
        // A look that panics is a defect; it ends this task alone.
        let Ok((kept, deleted, result)) = look.await else { return };
        entries = kept;
        metrics.purged(deleted.v4, deleted.v6);
        let warning = |error| Warning { subject: "conntrack".to_owned(), message: chain(&error) };
        problems.set("conntrack", result.err().map(warning).into_iter().collect());
        sleep(began.elapsed() * PAUSE).await;
    }
}
