//! Backends: which endpoints a service port has, and which of them get new connections.
//!
//! A pure function of the slices, the port and the place. It reads conditions and hints; traffic
//! policies choose between its two sets elsewhere.

use super::service::Place;
use crate::model::{Endpoint, Placement, Slice};
use crate::tables::{BackendRow, Family, ServiceRow};
use proxy_ebpf::Port;
use proxy_ebpf::slot::BackendFlags;
use std::sync::Arc;

/// The most backends that one set may hold; a range of that size can still be written anew
/// beside the old one several times over.
pub(super) const MAX_BACKENDS: usize = 65_000;

/// An endpoint of a service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    row: BackendRow,
    endpoint: &'a Endpoint,
    local: bool,
}

impl Candidate<'_> {
    fn is_ready(&self) -> bool {
        self.endpoint.conditions.ready
    }

    /// Whether the endpoint is a last resort: it terminates and still serves (KEP-1669).
    fn is_draining(&self) -> bool {
        let conditions = self.endpoint.conditions;
        conditions.serving && conditions.terminating
    }

    fn serves(&self) -> bool {
        self.is_ready() || self.is_draining()
    }

    /// What is known of it, whatever the sets.
    fn flags(&self) -> BackendFlags {
        let mut flags = BackendFlags::SERVING;
        if self.is_ready() {
            flags = flags.with(BackendFlags::READY);
        }
        if self.local {
            flags = flags.with(BackendFlags::LOCAL);
        }
        flags
    }
}

/// Slices, and the number that a service port has in each.
pub(super) type Targets<'a> = [(&'a Slice, Port)];

/// The endpoints in `family` at `targets`, in the order of the slices, usable or not, by address
/// and port.
///
/// Of several records of one address and port, a running one wins over a terminating one, because
/// an address may be given to a new pod while the old one's record lingers; then ready over
/// unready and serving over not; the order of the slices' names decides the rest.
pub(super) fn endpoints<'a>(
    targets: &Targets<'a>,
    family: Family,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for &(slice, port) in targets {
        for endpoint in &slice.endpoints {
            let row = BackendRow { addr: endpoint.addr.into(), port };
            if Family::of(row.addr) == family {
                let local = endpoint.placement.node.as_deref() == Some(node);
                candidates.push(Candidate { row, endpoint, local });
            }
        }
    }
    candidates.sort_by_key(|candidate| {
        let conditions = candidate.endpoint.conditions;
        (candidate.row, conditions.terminating, !conditions.ready, !conditions.serving)
    });
    candidates.dedup_by_key(|candidate| candidate.row);
    candidates
}

/// The row of `endpoints`, without affinity, and how many of them do not fit into the cluster
/// set. Whoever has no policy `Local` wants no local set.
///
/// Both sets fall back to endpoints that terminate but serve, each by itself. Hints narrow the
/// cluster set, and neither the local set nor a set that fell back.
pub(super) fn choose(
    endpoints: &[Candidate<'_>],
    place: Place<'_>,
    wants_local: bool,
) -> (ServiceRow, usize) {
    let cluster = narrow(ready_or_draining(endpoints, |_| true), place);
    let local = ready_or_draining(endpoints, |candidate| wants_local && candidate.local);
    let in_set = |set: &[Candidate<'_>], candidate: &Candidate<'_>, flag| {
        let set = &set[..set.len().min(MAX_BACKENDS)];
        match set.binary_search_by_key(&candidate.row, |other| other.row) {
            Ok(_) => flag,
            Err(_) => BackendFlags::NONE,
        }
    };
    let flags = |candidate: &Candidate<'_>| {
        candidate
            .flags()
            .with(in_set(&cluster, candidate, BackendFlags::IN_CLUSTER_SET))
            .with(in_set(&local, candidate, BackendFlags::IN_LOCAL_SET))
    };
    let serving = endpoints.iter().filter(|candidate| candidate.serves());
    let all = serving.map(|candidate| (candidate.row, flags(candidate))).collect();
    let row = ServiceRow { all, ..ServiceRow::default() };
    (row, cluster.len().saturating_sub(MAX_BACKENDS))
}

/// The ready ones among those that `admits` admits; if there is none, the draining ones.
fn ready_or_draining<'a>(
    endpoints: &[Candidate<'a>],
    admits: impl Fn(&Candidate<'_>) -> bool,
) -> Vec<Candidate<'a>> {
    let admitted = || endpoints.iter().filter(|candidate| admits(candidate)).copied();
    let ready: Vec<_> = admitted().filter(Candidate::is_ready).collect();
    if ready.is_empty() { admitted().filter(Candidate::is_draining).collect() } else { ready }
}

/// Keeps those that hint at this node, else at this zone, else all (KEP-2433, KEP-3015).
///
/// A level of hints counts only if every endpoint has a hint of that level and one hints here:
/// with less, the hints are stale, and following them could overload few endpoints or reach none.
fn narrow<'a>(endpoints: Vec<Candidate<'a>>, place: Place<'_>) -> Vec<Candidate<'a>> {
    let level = |hints: fn(&Placement) -> &[Arc<str>], here: Option<&str>| {
        let here = here?;
        if endpoints.iter().any(|c| !c.is_ready() || hints(&c.endpoint.placement).is_empty()) {
            return None;
        }
        let hinted: Vec<_> = endpoints
            .iter()
            .filter(|c| hints(&c.endpoint.placement).iter().any(|hint| **hint == *here))
            .copied()
            .collect();
        (!hinted.is_empty()).then_some(hinted)
    };
    level(|placement| &placement.node_hints, Some(place.node))
        .or_else(|| level(|placement| &placement.zone_hints, place.zone))
        .unwrap_or(endpoints)
}
