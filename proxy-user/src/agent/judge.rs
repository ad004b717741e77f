//! Whether the node is as it should be: what is written and attached, told to health and status.

use super::Agent;
use super::node::NodeUpdate;
use crate::model::Warning;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// How soon it is tried again to attach programs and to write the node's rows.
const NODE_RETRY: Duration = Duration::from_secs(5);

impl Agent {
    /// Tells whether the maps say what they should, but for the rows that they did not take, and
    /// lets these be tried again.
    ///
    /// What there is no room for is its Service's trouble: no other node would serve it, so it is
    /// no reason to send this one nothing.
    pub(super) fn judge(&mut self) {
        let now = Timestamp::now();
        self.report.apply_errors(&mut self.applier);
        self.report.written(self.applier.holds_everything(), now);
        if self.applier.lacks_only_room() {
            self.health.synced(now);
        } else {
            self.health.queued(now);
        }
        self.schedule_retry();
    }

    /// Brings devices and addresses to what is planned for the node, and again soon if that fails.
    /// Returns how much was not as it should be.
    pub(super) fn repair_node(&mut self) -> u64 {
        let NodeUpdate { repaired, warnings, failures } = self.node.update(&self.world);
        self.node_retry = (!failures.is_empty()).then(|| Instant::now() + NODE_RETRY);
        self.failing("node", warnings, failures);
        repaired
    }

    /// Tells of `failures` at `origin`, which make the node unhealthy if they last, and of
    /// `warnings`, which do not.
    pub(super) fn failing(
        &self,
        origin: &'static str,
        mut warnings: Vec<Warning>,
        failures: Vec<Warning>,
    ) {
        self.health.failing(origin, &failures, Timestamp::now());
        warnings.extend(failures);
        self.report.problem(origin, warnings);
    }
}
