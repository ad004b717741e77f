//! Claims: who gets a frontend that several Services ask for.
//!
//! Whose ClusterIP it is comes first: the cluster gave the address to one Service, and whoever
//! may write `externalIPs` or a status must not take it (docs/decisions/0005). Otherwise the
//! Service with the oldest creationTimestamp does, then the first by namespace and name, so that
//! every node decides alike and a newcomer takes nothing away. The others get a warning; when the
//! owner goes, the next one follows.

use super::{is_of, object};
use crate::model::{ObjectName, Warning};
use crate::tables::{FrontendRow, ServiceKey, describe};
use crate::tree::pack;
use proxy_ebpf::frontend::FrontendKey;
use std::collections::{BTreeMap, BTreeSet};

/// All claims on all frontends.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Invariant: sorted by seniority, no entry empty, at most one claim of each Service.
    by_frontend: BTreeMap<FrontendKey, Vec<Claim>>,
    /// Invariant: names exactly the claims of `by_frontend`.
    by_service: BTreeMap<ObjectName, Box<[FrontendKey]>>,
    /// Invariant: the frontends with more than one claim.
    contested: BTreeSet<FrontendKey>,
}

#[derive(Debug)]
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

    /// Says that `owner` has the frontend `key`, and why.
    fn warning(&self, key: &FrontendKey, owner: &Self) -> Warning {
        let reason = if owner.row.flags.is_cluster_ip() && !self.row.flags.is_cluster_ip() {
            "has it as its ClusterIP"
        } else if owner.created < self.created {
            "is older"
        } else {
            "is as old, and first by name"
        };
        Warning {
            subject: format!("Service {}", object(&self.row.service)),
            message: format!(
                "{} goes to Service {}, which asks for it too and {}: take it out of one of the two",
                describe(key),
                object(&owner.row.service),
                reason,
            ),
        }
    }
}

impl Claims {
    /// Replaces the claims of the Service `name`, and adds the frontends whose claims it changed
    /// to `affected`.
    pub(super) fn replace(
        &mut self,
        name: &ObjectName,
        created: i64,
        frontends: BTreeMap<FrontendKey, FrontendRow>,
        affected: &mut BTreeSet<FrontendKey>,
    ) {
        if self.holds(name, created, &frontends) {
            return;
        }
        for key in self.by_service.remove(name).unwrap_or_default() {
            affected.insert(key);
            if let Some(claims) = self.by_frontend.get_mut(&key) {
                claims.retain(|claim| !is_of(&claim.row.service, name));
                self.settle(key);
            }
        }
        if frontends.is_empty() {
            return;
        }
        self.by_service.insert(name.clone(), frontends.keys().copied().collect());
        for (key, row) in frontends {
            affected.insert(key);
            let claim = Claim { created, row };
            // Nearly every frontend has one claim; a growing vector would reserve four.
            let claims = self.by_frontend.entry(key).or_insert_with(|| Vec::with_capacity(1));
            let index = claims.partition_point(|other| other.seniority() < claim.seniority());
            claims.insert(index, claim);
            self.settle(key);
        }
    }

    /// Whether the Service `name` claims just `frontends` already.
    fn holds(
        &self,
        name: &ObjectName,
        created: i64,
        frontends: &BTreeMap<FrontendKey, FrontendRow>,
    ) -> bool {
        let known = self.by_service.get(name).map_or(&[][..], |keys| keys);
        let is_held = |(key, row): (&FrontendKey, &FrontendRow)| {
            let mut claims = self.by_frontend.get(key).into_iter().flatten();
            claims.any(|claim| claim.created == created && claim.row == *row)
        };
        known.iter().eq(frontends.keys()) && frontends.iter().all(is_held)
    }

    /// Restores the invariants about how many claims `key` has.
    fn settle(&mut self, key: FrontendKey) {
        let count = self.by_frontend.get(&key).map_or(0, Vec::len);
        if count == 0 {
            self.by_frontend.remove(&key);
        }
        if count > 1 {
            self.contested.insert(key);
        } else {
            self.contested.remove(&key);
        }
    }

    /// Makes the memory small after many claims.
    pub(super) fn pack(&mut self) {
        pack(&mut self.by_frontend);
        pack(&mut self.by_service);
    }

    /// Whether nobody claims anything, and nothing remembers that anyone did.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_frontend.is_empty() && self.by_service.is_empty() && self.contested.is_empty()
    }

    /// The row of the Service that gets the frontend.
    pub(super) fn owner(&self, key: &FrontendKey) -> Option<&FrontendRow> {
        self.by_frontend.get(key)?.first().map(|claim| &claim.row)
    }

    /// A warning for each claim that another one has beaten.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        let contests = self.contested.iter().filter_map(|key| {
            let (owner, losers) = self.by_frontend.get(key)?.split_first()?;
            Some(losers.iter().map(move |loser| loser.warning(key, owner)))
        });
        contests.flatten()
    }
}
