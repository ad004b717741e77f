//! The maps of NAT: every backend by its id, and what the node's own packets find.
//!
//! A backend is in the map before any frontend leads to it, and goes when no program can choose
//! it any more, as ranges of slots do. At the start, after a failure, and after a change by
//! somebody else, the maps are filled anew.

use super::{Applier, ApplyError, Departed, Placed, Store, StoreError};
use crate::nat::{NatStep, OutputKey, OutputRows, OutputTarget, SHARES, family_of, share_number};
use crate::netfilter;
use crate::tables::{Family, ServiceKey};
use proxy_ebpf::choose::{Caller, uses_local_set};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, Scope};
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
            let placed = self.services.get(key);
            let new = placed.map(|placed| self.output_of(key, placed, output.get(key)));
            let old = match new.filter(|rows| *rows != OutputRows::default()) {
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
        for OutputRows { targets, cluster_ips, shares } in self.nat.output.values() {
            all.targets.extend(targets);
            all.cluster_ips.extend(cluster_ips);
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

    /// What the node's own packets find of a service; `old` is what they found before.
    ///
    /// TCP is not among it unless there is no socket hook: that refuses by itself, but leaves what
    /// is to be dropped to the rules.
    fn output_of(&self, key: &ServiceKey, placed: &Placed, old: Option<&OutputRows>) -> OutputRows {
        let mut rows = OutputRows::default();
        let is_hooked = key.port.proto == Proto::TCP && !self.nat.is_for_tcp;
        for frontend in &placed.frontends {
            let Some((_, value)) = self.frontends.get(frontend) else { continue };
            if frontend.scope() == Scope::Address {
                rows.cluster_ips.insert(frontend.addr);
                continue;
            }
            let flags = value.flags();
            let (target, shares) = match refusal(placed, flags) {
                Some(refusal) if refusal == Priority::DROP || !is_hooked => {
                    (OutputTarget::Direct(refusal.0), Vec::new())
                }
                None if !is_hooked => self.target(key, placed, flags, old),
                _ => continue,
            };
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

    /// What a frontend with `flags` has for the node itself, and the shares of it.
    ///
    /// Invariant: it has some, see [`refusal`].
    fn target(
        &self,
        key: &ServiceKey,
        placed: &Placed,
        flags: FrontendFlags,
        old: Option<&OutputRows>,
    ) -> (OutputTarget, Vec<u32>) {
        let set = set(flags);
        let chosen = placed.backends.iter().zip(placed.ids.iter());
        let chosen = chosen.filter(|((_, flags), _)| flags.has(set));
        let mut chosen: Vec<_> = chosen
            .map(|((row, flags), id)| {
                let hide = !flags.has(BackendFlags::LOCAL);
                let end = End { addr: row.addr, port: row.port };
                (self.rank(end), Priority::backend(*id, hide).0)
            })
            .collect();
        chosen.sort_unstable();
        let numbers: Vec<u32> = chosen.into_iter().map(|(_, number)| number).collect();
        // The node is one client, which a service with affinity keeps with one backend.
        if numbers.len() == 1 || placed.affinity {
            let has_it = |target: &OutputTarget| match target {
                OutputTarget::Direct(number) => numbers.contains(number).then_some(*number),
                OutputTarget::Shared(_) => None,
            };
            let kept = old.and_then(|old| old.targets.values().find_map(has_it));
            return (OutputTarget::Direct(kept.unwrap_or(numbers[0])), Vec::new());
        }
        let shares = (0..SHARES as usize).map(|share| numbers[share % numbers.len()]).collect();
        let local = set == BackendFlags::IN_LOCAL_SET;
        let number = share_number(placed.id.0, local, key.family.into());
        (OutputTarget::Shared(number), shares)
    }

    /// The place of a backend among others, which differs from node to node: the first ones have
    /// one share more than the last ones.
    fn rank(&self, end: End) -> u32 {
        let node = self.nat.node_addrs.first().map_or(0, |addr| addr.digest());
        end.digest() ^ node
    }
}

/// Which set a frontend with `flags` has for the node itself.
fn set(flags: FrontendFlags) -> BackendFlags {
    if uses_local_set(flags, Caller::Internal) {
        BackendFlags::IN_LOCAL_SET
    } else {
        BackendFlags::IN_CLUSTER_SET
    }
}

/// What becomes of the node's own packets to a frontend with `flags` that has no backend for them.
fn refusal(placed: &Placed, flags: FrontendFlags) -> Option<Priority> {
    let has = |set| placed.backends.iter().any(|(_, flags)| flags.has(set));
    if flags.has(FrontendFlags::RESTRICTED) && !flags.has(FrontendFlags::ADMITS_NODE) {
        Some(Priority::DROP)
    } else if !has(BackendFlags::IN_CLUSTER_SET) {
        Some(Priority::REFUSE)
    } else {
        (!has(set(flags))).then_some(Priority::DROP)
    }
}

/// Adds to `step` what `rows` has and `others` has not, or otherwise.
fn differ(step: &mut OutputRows, rows: &OutputRows, others: Option<&OutputRows>) {
    let targets = rows.targets.iter();
    let differs = |key: &OutputKey, target: &OutputTarget| {
        others.and_then(|others| others.targets.get(key)) != Some(target)
    };
    step.targets.extend(targets.filter(|(key, target)| differs(key, target)));
    let is_new = |addr: &&Addr| others.is_none_or(|others| !others.cluster_ips.contains(*addr));
    step.cluster_ips.extend(rows.cluster_ips.iter().filter(is_new));
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
