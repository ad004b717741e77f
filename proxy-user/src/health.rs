//! Whether this node's proxying is healthy: what load balancers and kubelets ask on `:10256`.
//!
//! [`Health`] takes what the agent does (its loop turns, a change is queued, a sync is done,
//! something fails) and what its Node object says. `/healthz` tells whether to send traffic here,
//! with kube-proxy's fields (KEP-3836); `/livez` only whether a restart would help. The clock is
//! the caller's.

pub mod checks;
mod server;
#[cfg(test)]
mod tests;

pub use server::serve;

use crate::model::{Node, Warning};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// For how long a change may wait for a sync; twice kube-proxy's sync period.
const TIMEOUT: SignedDuration = SignedDuration::from_secs(60);

/// For how long something may fail that has been well: each failure is tried again sooner, and a device that goes
/// while it is looked at has failed for a moment only.
const PATIENCE: SignedDuration = SignedDuration::from_secs(15);

/// For how long the agent's loop may not turn; longer than the largest cluster takes to be written.
const STUCK: SignedDuration = SignedDuration::from_secs(60);

/// The health of this node's proxying; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// When the agent's loop last turned; `None` before it has begun.
    turned: Option<Timestamp>,
    /// The oldest change that no sync has followed.
    queued: Option<Timestamp>,
    synced: Option<Timestamp>,
    /// Whether load balancers may use the node; `None` until its Node object was seen.
    eligible: Option<bool>,
    /// What fails, by where it comes from.
    origins: BTreeMap<&'static str, Origin>,
}

/// Where failures come from.
#[derive(Debug, Default)]
struct Origin {
    /// Whether there was a moment without any.
    was_well: bool,
    /// What fails, and since when.
    failures: BTreeMap<String, Timestamp>,
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
    /// Whether there is no problem.
    pub healthy: bool,
    /// The same for each family. Both are written in one sync, so they never differ.
    pub status: BTreeMap<&'static str, FamilyStatus>,
    /// Whether load balancers may use the node; only on `/healthz`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Why it is not healthy; not in kube-proxy's body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
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
    /// The agent's loop turns.
    pub fn turned(&self, now: Timestamp) {
        self.state().turned = Some(now);
    }

    /// A change that a sync must follow has come, or something was found that is not written.
    pub fn queued(&self, now: Timestamp) {
        self.state().queued.get_or_insert(now);
    }

    /// All that is known is written. A pass that could not write all of it is no sync.
    pub fn synced(&self, now: Timestamp) {
        let mut state = self.state();
        state.queued = None;
        state.synced = Some(now);
    }

    /// What fails at `origin` is `failures`, and nothing else; what failed before goes on failing.
    pub fn failing(&self, origin: &'static str, failures: &[Warning], now: Timestamp) {
        let mut state = self.state();
        let origin = state.origins.entry(origin).or_default();
        origin.was_well |= failures.is_empty();
        let before = std::mem::take(&mut origin.failures);
        let failure = |Warning { subject, message }: &Warning| {
            let failure = format!("{subject}: {message}");
            let since = before.get(&failure).copied().unwrap_or(now);
            (failure, since)
        };
        origin.failures = failures.iter().map(failure).collect();
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
        self.state().problems(now).is_empty()
    }

    /// Whether the agent is alive: 503 if its loop is stuck. A restart helps against nothing else,
    /// and a node that cannot be synced goes on forwarding as it is.
    pub fn livez(&self, now: Timestamp) -> Report {
        let state = self.state();
        state.report(state.stuck(now).into_iter().collect(), now)
    }

    /// Whether load balancers should send traffic here: 503 before the first sync, while a change
    /// waits for too long or a failure lasts, and if the Node was never seen, is being deleted, or
    /// is about to be. A cordon has no effect.
    pub fn healthz(&self, now: Timestamp) -> Report {
        let state = self.state();
        let mut report = state.report(state.problems(now), now);
        let eligible = state.eligible.unwrap_or(false);
        report.body.node_eligible = Some(eligible);
        report.code = code(report.body.healthy && eligible);
        report
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each method leaves a whole state behind, whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stuck(&self, now: Timestamp) -> Option<String> {
        let turned = self.turned.filter(|&turned| now.duration_since(turned) >= STUCK)?;
        Some(format!("the agent is stuck since {turned:.0}"))
    }

    fn problems(&self, now: Timestamp) -> Vec<String> {
        let mut problems: Vec<_> = self.stuck(now).into_iter().collect();
        if self.synced.is_none() {
            problems.push("not in sync yet: Services are as an earlier agent left them".to_owned());
        }
        if let Some(queued) = self.queued.filter(|&queued| now.duration_since(queued) >= TIMEOUT) {
            problems.push(format!("a change waits to be written since {queued:.0}"));
        }
        for Origin { was_well, failures } in self.origins.values() {
            // What has never been well is not ready, however young it is.
            let lasts = |since| !was_well || now.duration_since(since) >= PATIENCE;
            let lasting = failures.iter().filter(|&(_, &since)| lasts(since));
            problems
                .extend(lasting.map(|(failure, since)| format!("{failure} (since {since:.0})")));
        }
        problems
    }

    fn report(&self, problems: Vec<String>, now: Timestamp) -> Report {
        let healthy = problems.is_empty();
        let last_updated = if healthy { Some(now) } else { self.synced };
        let family = FamilyStatus { last_updated, healthy };
        let body = Body {
            last_updated,
            current_time: now,
            healthy,
            status: BTreeMap::from([("IPv4", family), ("IPv6", family)]),
            node_eligible: None,
            problems,
        };
        Report { code: code(healthy), body }
    }
}

fn code(healthy: bool) -> u16 {
    if healthy { 200 } else { 503 }
}
