//! Claims: who gets a frontend that several Services ask for.
//!
//! Whose ClusterIP it is comes first: the cluster gave the address to one Service, with all ports
//! and protocols, and whoever may write `externalIPs` or a status must not take any of them
//! (docs/decisions/0005). Otherwise the Service with the oldest creationTimestamp does, then the
//! first by namespace and name, so that every node decides alike and a newcomer takes nothing
//! away. Each of the others gets one warning, however many frontends it loses; when the owner
//! goes, the next one follows.

use super::{is_of, object};
use crate::model::ObjectName;
use crate::tables::{FrontendRow, ServiceKey, describe};
use crate::tree::pack;
use proxy_ebpf::frontend::{FrontendKey, Scope};
use proxy_ebpf::{Addr, Port, Proto};
use std::collections::{BTreeMap, BTreeSet};

/// All claims on all frontends.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Invariant: sorted by seniority, no entry empty, at most one claim of each Service.
    by_frontend: BTreeMap<FrontendKey, Vec<Claim>>,
    /// Invariant: names exactly the claims of `by_frontend`.
    by_service: BTreeMap<ObjectName, Box<[FrontendKey]>>,
    /// The frontends that Services claim and do not get.
    ///
    /// Invariant: exactly the claims of `by_frontend` that are not their frontend's owner, no
    /// entry empty.
    lost: BTreeMap<ObjectName, BTreeSet<FrontendKey>>,
    /// The Services that have come into `lost` or left it since somebody asked.
    changed: BTreeSet<ObjectName>,
}

#[derive(PartialEq, Debug)]
struct Claim {
    created: i64,
    row: FrontendRow,
}

impl Claim {
    /// Orders claims: ClusterIPs first, then age, then namespace and name, with which a row's
    /// service begins.
    fn seniority(&self) -> (bool, i64, &ServiceKey) {
        (!self.row.flags.is_cluster_ip(), self.created, &self.row.service)
    }
}

impl Claims {
    /// Replaces the claims of the Service `name`, and adds the frontends that may have another
    /// owner now, or another row, to `affected`.
    pub(super) fn replace(
        &mut self,
        name: &ObjectName,
        created: i64,
        frontends: BTreeMap<FrontendKey, FrontendRow>,
        affected: &mut BTreeSet<FrontendKey>,
    ) {
        let known = self.by_service.remove(name).unwrap_or_default();
        if !frontends.is_empty() {
            self.by_service.insert(name.clone(), frontends.keys().copied().collect());
        }
        for key in known.into_iter().filter(|key| !frontends.contains_key(key)) {
            self.put(name, key, None, affected);
        }
        for (key, row) in frontends {
            self.put(name, key, Some(Claim { created, row }), affected);
        }
    }

    /// Replaces what the Service `name` claims of the frontend `key`.
    fn put(
        &mut self,
        name: &ObjectName,
        key: FrontendKey,
        claim: Option<Claim>,
        affected: &mut BTreeSet<FrontendKey>,
    ) {
        let first = |claims: &[Claim]| claims.first().map(|claim| object(&claim.row.service));
        // Nearly every frontend has one claim; a growing vector would reserve four.
        let claims = self.by_frontend.entry(key).or_insert_with(|| Vec::with_capacity(1));
        let known = claims.iter().position(|known| is_of(&known.row.service, name));
        if known.map(|index| &claims[index]) == claim.as_ref() {
            return;
        }
        let before = first(claims);
        known.map(|index| claims.remove(index));
        if let Some(claim) = claim {
            let index = claims.partition_point(|other| other.seniority() < claim.seniority());
            claims.insert(index, claim);
        }
        let after = first(claims);
        if claims.is_empty() {
            self.by_frontend.remove(&key);
        }
        affected.insert(key);
        if key.scope() == Scope::Address && before.is_some() != after.is_some() {
            for key in self.ports_of(key.addr) {
                affected.insert(key);
                if let Some(name) = self.by_frontend.get(&key).and_then(|claims| first(claims)) {
                    self.settle(&name, key);
                }
            }
        }
        // Nobody else has won or lost.
        self.settle(name, key);
        for other in [before, after].into_iter().flatten().filter(|other| other != name) {
            self.settle(&other, key);
        }
    }

    /// Restores the invariant of `lost` about the Service `name` and the frontend `key`.
    fn settle(&mut self, name: &ObjectName, key: FrontendKey) {
        let mut claims = self.by_frontend.get(&key).into_iter().flatten();
        let claimed = claims.any(|claim| is_of(&claim.row.service, name));
        if claimed && !self.owner(&key).is_some_and(|row| is_of(&row.service, name)) {
            let lost = self.lost.entry(name.clone()).or_default();
            if lost.is_empty() {
                self.changed.insert(name.clone());
            }
            lost.insert(key);
        } else if let Some(lost) = self.lost.get_mut(name) {
            lost.remove(&key);
            if lost.is_empty() {
                self.lost.remove(name);
                self.changed.insert(name.clone());
            }
        }
    }

    /// The claimed frontends at single ports of `addr`.
    fn ports_of(&self, addr: Addr) -> Vec<FrontendKey> {
        let first = FrontendKey::service(addr, Port::new(0), Proto(0));
        let keys = self.by_frontend.range(first..).map(|(key, _)| *key);
        let keys = keys.take_while(|key| key.addr == addr);
        keys.filter(|key| key.scope() == Scope::Service).collect()
    }

    /// The claim of the Service whose ClusterIP `addr` is.
    fn cluster_ip(&self, addr: Addr) -> Option<&Claim> {
        self.by_frontend.get(&FrontendKey::address(addr))?.first()
    }

    /// Makes the memory small after many claims.
    pub(super) fn pack(&mut self) {
        pack(&mut self.by_frontend);
        pack(&mut self.by_service);
    }

    /// Whether nobody claims anything, and nothing remembers that anyone did.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_frontend.is_empty() && self.by_service.is_empty() && self.lost.is_empty()
    }

    /// The row of the Service that gets the frontend; `None` also if that is a port of a ClusterIP
    /// which only other Services claim.
    pub(super) fn owner(&self, key: &FrontendKey) -> Option<&FrontendRow> {
        let Claim { row, .. } = self.by_frontend.get(key)?.first()?;
        let is_taken = key.scope() == Scope::Service
            && !row.flags.is_cluster_ip()
            && self.cluster_ip(key.addr).is_some();
        (!is_taken).then_some(row)
    }

    /// The Services that do not get all that they claim, each with a sentence about it.
    pub(super) fn contests(&self) -> impl Iterator<Item = (&ObjectName, String)> {
        self.lost.keys().filter_map(|name| Some((name, self.contest(name)?)))
    }

    /// The same of one Service.
    pub(super) fn contest(&self, name: &ObjectName) -> Option<String> {
        let lost = self.lost.get(name)?;
        let more = match lost.len() - 1 {
            0 => String::new(),
            more => format!("; so it is with {more} more of its addresses and ports"),
        };
        Some(self.loss(name, lost.first()?)? + &more)
    }

    /// The Services that have begun or ceased to lose since the last call.
    pub(super) fn take_changes(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.changed)
    }

    /// How many Services do not get all that they claim.
    pub(super) fn contest_count(&self) -> usize {
        self.lost.len()
    }

    /// Says why the Service `name` does not get the frontend `key`.
    fn loss(&self, name: &ObjectName, key: &FrontendKey) -> Option<String> {
        let claims = self.by_frontend.get(key)?;
        let own = claims.iter().find(|claim| is_of(&claim.row.service, name))?;
        let frontend = describe(key);
        if key.scope() == Scope::Service
            && !own.row.flags.is_cluster_ip()
            && let Some(owner) = self.cluster_ip(key.addr)
        {
            return Some(format!(
                "{frontend} is not served for it: {} is the ClusterIP of Service {}, with all ports \
                 and protocols; take it out of externalIPs or the load balancer's status",
                key.addr,
                object(&owner.row.service),
            ));
        }
        let owner = claims.first()?;
        let reason =
            if owner.created < own.created { "is older" } else { "is as old, and first by name" };
        Some(format!(
            "{frontend} goes to Service {}, which asks for it too and {reason}: take it out of one \
             of the two",
            object(&owner.row.service),
        ))
    }
}
