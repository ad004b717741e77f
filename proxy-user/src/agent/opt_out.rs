//! Pods that opt out of the socket path: from the UIDs that the source names to the cgroups that
//! the programs know.
//!
//! A pod is known some time before its cgroup is there, and its processes come after that; so a
//! cgroup that is missing is looked for again soon, and less often the longer it is not there.

use super::report::chain;
use crate::loader::{Dataplane, cgroups};
use crate::model::Warning;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How soon a missing cgroup is looked for again; twice as long after each further time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// How long is waited at most.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The pods that opt out.
#[derive(Default)]
pub(super) struct OptOut {
    /// `None` before a source has said so: then the programs know what they knew.
    uids: Option<BTreeSet<Arc<str>>>,
    /// When missing cgroups are looked for again.
    pub(super) next_search: Option<Instant>,
    wait: Duration,
}

impl OptOut {
    /// The pods are those with these `uids` from now on.
    pub(super) fn set(&mut self, uids: BTreeSet<Arc<str>>) {
        if self.uids.as_ref() != Some(&uids) {
            self.uids = Some(uids);
            self.wait = FIRST_WAIT;
            self.next_search = Some(Instant::now());
        }
    }

    /// Tells the programs which cgroups opt out, as far as they are there.
    pub(super) fn search(&mut self, dataplane: &mut Dataplane, root: &Path) -> Vec<Warning> {
        self.next_search = None;
        let Some(uids) = &self.uids else { return Vec::new() };
        let found: BTreeMap<_, _> = cgroups::of_pods(root, uids.iter().map(|uid| &**uid));
        if found.len() < uids.len() {
            self.next_search = Some(Instant::now() + self.wait);
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
        match dataplane.write_opted_out(&found.into_values().collect()) {
            Ok(()) => Vec::new(),
            Err(error) => {
                let subject = "pods with shunt.dev/socket-path: off".to_owned();
                vec![Warning { subject, message: chain(&error) }]
            }
        }
    }
}
