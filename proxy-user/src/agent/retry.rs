//! What comes after a pass: trying again what the maps did not take, and freeing what was replaced
//! once nobody reads it.

use super::Agent;
use crate::apply::Quarantine;
use crate::loader::sys;
use crate::tables::TableDelta;
use std::time::Duration;
use tokio::time::Instant;

/// How soon rows are tried again that the maps did not take; it doubles each time.
pub(super) const FIRST_DELAY: Duration = Duration::from_secs(1);
/// How long that takes at most.
const LAST_DELAY: Duration = Duration::from_secs(60);

impl Agent {
    /// Lets what the maps did not take be tried again.
    pub(super) fn schedule_retry(&mut self) {
        if self.applier.unwritten() == 0 {
            self.next_retry = None;
            self.retry_delay = FIRST_DELAY;
        } else {
            self.next_retry.get_or_insert(Instant::now() + self.retry_delay);
        }
    }

    /// Tries again what the maps did not take, for no other reason than time.
    pub(super) fn retry(&mut self) {
        self.next_retry = None;
        self.retry_delay = LAST_DELAY.min(self.retry_delay * 2);
        self.applier.retry();
        self.judge();
        self.reclaim();
    }

    /// Lets what was replaced wait for its last readers, apart from this task.
    pub(super) fn reclaim(&mut self) {
        if self.reclaim.is_some() {
            return;
        }
        let quarantine = self.applier.take_quarantine();
        if !quarantine.is_empty() {
            self.reclaim = Some(tokio::task::spawn_blocking(move || {
                sys::wait_for_programs().is_ok().then_some(quarantine)
            }));
        }
    }

    /// Frees what has no readers any more. If the kernel cannot tell, nothing is freed.
    pub(super) fn release(&mut self, quarantine: Option<Quarantine>) {
        match quarantine {
            Some(quarantine) => self.applier.release(quarantine),
            None => tracing::warn!("the kernel cannot tell when programs have ended; slots leak"),
        }
        if self.applier.may_fit() {
            self.applier.apply(TableDelta::default());
            self.judge();
        }
        self.reclaim();
    }
}
