//! The maps of NAT: every backend by its id, and what the node's own packets find.
//!
//! A backend is in the map before any frontend leads to it, and goes when no program can choose
//! it any more, as ranges of slots do. At the start, after a failure, and after a change by
//! somebody else, the maps are filled anew.

use super::{Applier, ApplyError, Departed, Placed, Store, StoreError};
use crate::nat::{NatStep, OutputKey, OutputRows, OutputTarget, SHARES, family_of, share_number};
use crate::netfilter;
use crate::tables::{Family, ServiceKey};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue, Scope};
use proxy_ebpf::priority::Priority;
use proxy_ebpf::slot::{BackendFlags, BackendId};
use proxy_ebpf::{Addr, End, Proto};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is known of the maps of NAT.
#[derive(Debug, Default)]
pub(super) struct Nat {
    /// Backends of this pass, not written yet.
    pub(super) fresh: Vec<(BackendId, End)>,
    /// What the node's own packets find, by service port.
    output: BTreeMap<ServiceKey, OutputRows>,
    /// Service ports whose `output` is to be looked at.
    pub(super) touched: BTreeSet<ServiceKey>,
    /// The node's addresses at which NodePorts are reached.
    node_addrs: Vec<Addr>,
    /// Whether the node's own TCP connections find no socket hook.
    pub(super) is_for_tcp: bool,
    /// Whether the last pass could not publish.
    pub(super) is_unpublished: bool,
    /// Whether the maps may hold something else than what is known of them.
    pub(super) is_stale: bool,
    /// Ids that are in the hands of somebody who waits for the programs that may know them.
    pub(super) lent: HashMap<BackendId, End>,
}

impl Nat {
    /// Nothing is known of the maps.
    pub(super) fn unknown() -> Self {
        Self { is_stale: true, ..Self::default() }
    }
}

impl<S: Store> Applier<S> {
    /// Says that somebody else may have changed the maps of NAT. The next step fills them anew.
    pub fn doubt_nat(&mut self) {
        self.nat.is_stale = true;
    }

    /// Whether the next step fills the maps of NAT anew.
    pub fn doubts_nat(&self) -> bool {
        self.nat.is_stale
    }

    /// Lets the node's own packets find NodePorts at `addrs`, and TCP too if `is_for_tcp`, from the
    /// next step on. Returns whether that is news.
    pub fn set_output(&mut self, addrs: Vec<Addr>, is_for_tcp: bool) -> bool {
        let is_news = self.nat.node_addrs != addrs || self.nat.is_for_tcp != is_for_tcp;
        if is_news {
            self.nat.node_addrs = addrs;
            self.nat.is_for_tcp = is_for_tcp;
            self.nat.touched.extend(self.services.keys().cloned());
        }
        is_news
    }

    /// Writes the backends that frontends are about to lead to, beside `departed`, which others
    /// still lead to. If this fails, nothing may be published.
    pub(super) fn write_backends(&mut self, departed: &Departed) -> Result<(), ApplyError> {
        let fresh = std::mem::take(&mut self.nat.fresh);
        if !self.nat.is_stale {
            return self.write_nat(&NatStep { backends: fresh, ..NatStep::default() });
        }
        let placed = self.services.values();
        let placed = placed.flat_map(|placed| super::restore::slots_of(&self.store, placed));
        let mut all: Vec<(BackendId, End)> =
            placed.map(|slot| (slot.backend, End { addr: slot.addr, port: slot.port })).collect();
        all.extend(&departed.backends);
        all.extend(&self.held.backends);
        all.extend(&self.quarantine.backends);
        all.extend(self.nat.lent.iter().map(|(id, end)| (*id, *end)));
        // A backend that is in two sets has two slots.
        all.sort_unstable_by_key(|(id, _)| *id);
        all.dedup_by_key(|(id, _)| *id);
        self.writes += all.len() as u64;
        self.store.refill_backends(&all).map_err(ApplyError::Nat)
    }

    /// Brings what the node's own packets find to what the frontends now lead to.
    pub(super) fn write_output(&mut self) -> Result<(), ApplyError> {
        if self.nat.is_stale {
            self.nat.touched.extend(self.services.keys().cloned());
            self.nat.touched.extend(self.nat.output.keys().cloned());
        }
        let mut step = NatStep::default();
        let mut output = std::mem::take(&mut self.nat.output);
        for key in &self.nat.touched {
            let new = self.services.get(key).map(|placed| self.output_of(key, placed));
            let old = match new.filter(|rows| !rows.targets.is_empty()) {
                Some(new) => {
                    differ(&mut step.output, &new, output.get(key));
                    output.insert(key.clone(), new)
                }
                None => output.remove(key),
            };
            if let Some(old) = old {
                differ(&mut step.output_gone, &old, output.get(key));
            }
        }
        self.writes += (step.output.targets.len() + step.output_gone.targets.len()) as u64;
        // What fails is written anew, all of it.
        self.nat.output = output;
        self.nat.touched.clear();
        if !self.nat.is_stale {
            return self.write_nat(&step);
        }
        let mut all = OutputRows::default();
        for OutputRows { targets, shares } in self.nat.output.values() {
            all.targets.extend(targets);
            all.shares.extend(shares.iter().map(|(number, shares)| (*number, shares.clone())));
        }
        self.store.refill_output(&all).map_err(ApplyError::Nat)?;
        self.nat.is_stale = false;
        Ok(())
    }

    /// Removes backends that no program can choose any more.
    pub(super) fn remove_backends(&mut self, gone: &[(BackendId, End)]) {
        if !self.nat.is_stale {
            // What fails makes the next step fill the maps anew.
            let _told_then = self.write_nat(&NatStep { gone: gone.to_vec(), ..NatStep::default() });
        }
    }

    fn write_nat(&mut self, step: &NatStep) -> Result<(), ApplyError> {
        if step.is_empty() {
            return Ok(());
        }
        self.store.write_nat(step).map_err(|error| {
            self.nat.is_stale = true;
            ApplyError::Nat(error)
        })
    }

    /// What the node's own packets find of a service.
    ///
    /// TCP is not among it unless there is no socket hook: that refuses by itself, but leaves what
    /// is to be dropped to the rules.
    fn output_of(&self, key: &ServiceKey, placed: &Placed) -> OutputRows {
        let mut rows = OutputRows::default();
        let is_tcp = key.port.proto == Proto::TCP && !self.nat.is_for_tcp;
        for frontend in &placed.frontends {
            let Some((_, value)) = self.frontends.get(frontend) else { continue };
            let Some((target, shares)) = self.target(key, placed, *value) else { continue };
            if is_tcp && target != OutputTarget::Direct(Priority::DROP.0) {
                continue;
            }
            for end in self.ends(frontend) {
                rows.targets.insert(OutputKey { end, proto: frontend.proto }, target);
            }
            if let OutputTarget::Shared(number) = target {
                rows.shares.entry(number).or_insert(shares);
            }
        }
        rows
    }

    /// Where a frontend is reached.
    fn ends(&self, frontend: &FrontendKey) -> Vec<End> {
        let port = frontend.port;
        match frontend.scope() {
            Scope::Service => vec![End { addr: frontend.addr, port }],
            Scope::Node => {
                let of_family = |addr: &&Addr| family_of(**addr) == family_of(frontend.addr);
                let addrs = self.nat.node_addrs.iter().filter(of_family);
                addrs.map(|addr| End { addr: *addr, port }).collect()
            }
            Scope::Address => Vec::new(),
        }
    }

    /// What a frontend with `value` has for the node itself, and the shares of it.
    fn target(
        &self,
        key: &ServiceKey,
        placed: &Placed,
        value: FrontendValue,
    ) -> Option<(OutputTarget, Vec<u32>)> {
        let flags = value.flags();
        let direct = |priority: Priority| (OutputTarget::Direct(priority.0), Vec::new());
        if flags.has(FrontendFlags::RESTRICTED) && !flags.has(FrontendFlags::ADMITS_NODE) {
            return Some(direct(Priority::DROP));
        }
        let all = || placed.backends.iter().zip(placed.ids.iter());
        let local = flags.has(FrontendFlags::INTERNAL_LOCAL);
        let set = if local { BackendFlags::IN_LOCAL_SET } else { BackendFlags::IN_CLUSTER_SET };
        if !all().any(|((_, flags), _)| flags.has(BackendFlags::IN_CLUSTER_SET)) {
            return Some(direct(Priority::REFUSE));
        }
        let mut chosen: Vec<_> = all()
            .filter(|((_, flags), _)| flags.has(set))
            .map(|((row, flags), id)| {
                let end = End { addr: row.addr, port: row.port };
                let hide = !flags.has(BackendFlags::LOCAL);
                (self.rank(end), Priority::backend(*id, hide))
            })
            .collect();
        chosen.sort_unstable_by_key(|(rank, priority)| (*rank, priority.0));
        let (_, first) = match chosen.first() {
            Some(first) => *first,
            None => return Some(direct(Priority::DROP)),
        };
        // The node is one client, which a service with affinity keeps with one backend.
        if chosen.len() == 1 || placed.affinity {
            return Some(direct(first));
        }
        let shares = (0..SHARES as usize).map(|share| chosen[share % chosen.len()].1.0).collect();
        let number = share_number(placed.id.0, local, key.family.into());
        Some((OutputTarget::Shared(number), shares))
    }

    /// The place of a backend among others, which differs from node to node: the first ones have
    /// one share more than the last ones.
    fn rank(&self, end: End) -> u32 {
        let node = self.nat.node_addrs.first().map_or(0, |addr| addr.digest());
        end.digest() ^ node
    }
}

/// Adds to `step` what `rows` has and `others` has not, or otherwise.
fn differ(step: &mut OutputRows, rows: &OutputRows, others: Option<&OutputRows>) {
    let targets = rows.targets.iter();
    let differs = |key: &OutputKey, target: &OutputTarget| {
        others.and_then(|others| others.targets.get(key)) != Some(target)
    };
    step.targets.extend(targets.filter(|(key, target)| differs(key, target)));
    for (number, shares) in &rows.shares {
        if others.and_then(|others| others.shares.get(number)) != Some(shares) {
            step.shares.insert(*number, shares.clone());
        }
    }
}

impl From<Family> for netfilter::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }
}

/// The maps of NAT, as far as apply writes them.
pub trait NatStore {
    /// Makes the map of backends hold just `backends`, at once for every packet.
    fn refill_backends(&mut self, backends: &[(BackendId, End)]) -> Result<(), StoreError>;
    /// Makes what the node's own packets find just `rows`, at once for every packet.
    fn refill_output(&mut self, rows: &OutputRows) -> Result<(), StoreError>;
    /// Takes `step`. On an error a part of it may be done.
    fn write_nat(&mut self, step: &NatStep) -> Result<(), StoreError>;
}
