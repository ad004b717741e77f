//! Apply: brings the maps to what the tables say, writing only what differs.
//!
//! Takes [`TableDelta`]s, gives out service ids, backend ids and slot ranges, and writes through
//! a [`Store`]. It decides nothing about services. Order makes every moment consistent for a
//! program that reads meanwhile:
//!
//! 1. names, states of new backends, source ranges that open, and complete new ranges of slots,
//!    which nothing names yet; new backends in the maps of NAT;
//! 2. frontends, one atomic word each: from here on new connections see the new backends;
//! 3. frontends that go;
//! 4. what the node's own packets find, as `nat` has it; states of backends that went; source
//!    ranges that close, and the clients of a service that has no affinity any more;
//! 5. names of the cluster zone, as `names` has it;
//! 6. old ranges and ids wait in quarantine until no program can still read them; then backends
//!    leave the maps of NAT.
//!
//! A row that cannot be written (a table is full) is kept, and tried again when there may be room,
//! or when somebody asks for it; the others are written all the same.

mod clients;
mod names;
mod nat;
mod place;
mod pool;
mod publish;
mod restore;
mod store;
mod unwritten;

pub use nat::NatStore;
pub use store::{FULL, NameStore, Store, StoreError};

use crate::tables::{
    BackendRow, DnsName, DnsRow, FrontendRow, Prefix, ServiceKey, ServiceRow, TableDelta, describe,
};
use names::Names;
use nat::Nat;
use pool::{IdPool, RangePool};
use proxy_ebpf::End;
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::maps;
use proxy_ebpf::service::ServiceId;
use proxy_ebpf::slot::{BackendFlags, BackendId, BackendState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use unwritten::Unwritten;

/// Something that could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The slot array has no free range that is long enough.
    #[error(
        "service {0} has {1} backends and the slot table has no room for them; its last state stays"
    )]
    SlotsFull(ServiceKey, usize),
    /// All service ids are given out.
    #[error("service {0} has no number: all {max} are in use", max = maps::SERVICES)]
    ServicesFull(ServiceKey),
    /// A name that Kubernetes would not admit.
    #[error("service {0} has a name that is longer than 63 bytes and is not served")]
    NameTooLong(ServiceKey),
    /// A frontend names a service that has no range.
    #[error("frontend {key} waits for its service {1}", key = describe(.0))]
    FrontendWaits(FrontendKey, ServiceKey),
    /// A frontend could not be written or removed.
    #[error("frontend {key} of service {1}: {2}", key = describe(.0))]
    Frontend(FrontendKey, ServiceKey, Box<StoreError>),
    /// A service's names could not be written or removed.
    #[error("service {0}: {1}")]
    Service(ServiceKey, StoreError),
    /// A service's source ranges could not be written or removed.
    #[error("source ranges of service {0}: {1}")]
    SourceRanges(ServiceKey, StoreError),
    /// The maps of NAT could not be written. Nothing is published that needs them.
    #[error("services stay as they are, since the nftables table `shunt` cannot be changed")]
    Nat(#[source] StoreError),
    /// Names could not be written or removed.
    #[error("name {first} and {others} more: {reason}; no name is denied until all are written")]
    Names {
        /// The first of them.
        first: DnsName,
        /// How many more there are.
        others: usize,
        /// What the kernel said of the first.
        reason: StoreError,
    },
    /// The zone is not one that the kernel can answer for.
    #[error(
        "the kernel does not answer for the zone {0}: it takes names of up to 62 bytes, and a DNS \
         service with up to 4 addresses"
    )]
    Zone(String),
    /// The zone cannot be changed.
    #[error("the kernel does not answer, since the zone changes and programs may still read it")]
    ZoneInUse(#[source] StoreError),
}

impl ApplyError {
    /// Whether it is the size of the tables, or of a name, that keeps a service from being served,
    /// and not that the kernel refuses to write.
    pub fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::SlotsFull(..) | Self::ServicesFull(_) | Self::NameTooLong(_) => true,
            Self::FrontendWaits(..) | Self::Zone(_) => true,
            Self::Frontend(_, _, error) => error.is_full(),
            Self::Service(_, error) | Self::SourceRanges(_, error) => error.is_full(),
            Self::Names { reason, .. } => reason.is_full(),
            Self::Nat(_) | Self::ZoneInUse(_) => false,
        }
    }

    /// The service that is not served as it should be; `None` if it is not about one.
    pub const fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Nat(_) | Self::Names { .. } | Self::Zone(_) | Self::ZoneInUse(_) => None,
            Self::SlotsFull(service, _)
            | Self::ServicesFull(service)
            | Self::NameTooLong(service)
            | Self::FrontendWaits(_, service)
            | Self::Frontend(_, service, _)
            | Self::Service(service, _)
            | Self::SourceRanges(service, _) => Some(service),
        }
    }
}

/// A service that has an id and a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Placed {
    id: ServiceId,
    range: u32,
    len: u32,
    /// All serving backends, sorted by row: those of the row that the range holds, and shared with
    /// it. Of a restored service they are in the range alone until it is placed or removed.
    backends: Arc<[(BackendRow, BackendFlags)]>,
    /// Their ids, in the same order.
    ids: Box<[BackendId]>,
    /// Those that name the service, sorted.
    frontends: Vec<FrontendKey>,
    /// Whether the service had affinity when it was last written in full.
    affinity: bool,
    /// The source ranges that are written.
    source_ranges: BTreeSet<Prefix>,
}

impl Placed {
    fn backends(&self) -> impl Iterator<Item = (&BackendRow, BackendId)> {
        self.backends.iter().map(|(backend, _)| backend).zip(self.ids.iter().copied())
    }

    /// The id of `backend`; `None` if it does not serve.
    fn backend_id(&self, backend: &BackendRow) -> Option<BackendId> {
        let index = self.backends.binary_search_by_key(backend, |(row, _)| *row).ok()?;
        Some(self.ids[index])
    }

    fn add_frontend(&mut self, key: FrontendKey) {
        if let Err(index) = self.frontends.binary_search(&key) {
            // Most have two; a vector that grows by itself would reserve four.
            self.frontends.reserve_exact(1);
            self.frontends.insert(index, key);
        }
    }

    fn remove_frontend(&mut self, key: &FrontendKey) {
        if let Ok(index) = self.frontends.binary_search(key) {
            self.frontends.remove(index);
        }
    }
}

/// What a pass has done so far, and what that asks for.
#[derive(Debug, Default)]
struct Step {
    /// Services that are placed.
    placed: Vec<(ServiceKey, Arc<ServiceRow>)>,
    /// Frontends to write.
    publish: BTreeMap<FrontendKey, (ServiceKey, FrontendValue)>,
    departed: Departed,
}

/// Backends that leave in a pass.
#[derive(Debug, Default)]
struct Departed {
    backends: Vec<(BackendId, End)>,
}

/// Ids and ranges that wait to be free again: see [`Applier::take_quarantine`].
#[derive(Debug, Default)]
pub struct Quarantine {
    ranges: Vec<(u32, u32)>,
    services: Vec<ServiceId>,
    backends: Vec<(BackendId, End)>,
    /// Numbers of names.
    names: Vec<u32>,
    /// Ranges of their records; an empty one is none.
    records: Vec<(u32, u32)>,
}

impl Quarantine {
    fn append(&mut self, mut other: Self) {
        self.ranges.append(&mut other.ranges);
        self.services.append(&mut other.services);
        self.backends.append(&mut other.backends);
        self.names.append(&mut other.names);
        self.records.append(&mut other.records);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let are_empty = self.ranges.is_empty() && self.services.is_empty();
        let names_are = self.names.is_empty() && self.records.is_empty();
        are_empty && names_are && self.backends.is_empty()
    }
}

/// Keeps the maps of one [`Store`].
#[derive(Debug)]
pub struct Applier<S> {
    store: S,
    services: BTreeMap<ServiceKey, Placed>,
    frontends: HashMap<FrontendKey, (ServiceKey, FrontendValue)>,
    service_ids: IdPool,
    backend_ids: IdPool,
    ranges: RangePool,
    quarantine: Quarantine,
    nat: Nat,
    /// What left in a pass that could not publish: programs may still choose it.
    departed: Departed,
    /// What such a pass replaced.
    held: Quarantine,
    /// Services whose clients are to be forgotten.
    affinity_ended: BTreeMap<ServiceId, ServiceKey>,
    names: Names,
    /// Rows that could not be written, to be tried again.
    unwritten: Unwritten,
    /// Whether numbers or slots have come back since services were tried again.
    has_room: bool,
    /// How many frontends have left the map since others were tried again.
    frontends_left: usize,
    /// Services that the last of their frontends has left in this pass.
    vacated: BTreeSet<ServiceKey>,
    /// What went wrong in the last pass beside `unwritten`, and is done in every pass anyway.
    passing: Vec<ApplyError>,
    /// Rows written or removed so far.
    writes: u64,
}

impl<S: Store> Applier<S> {
    /// Takes the step `delta`, and tries again what failed before and may have room now. Returns
    /// what could not be written; the rest is.
    pub fn apply(&mut self, delta: TableDelta) -> Vec<ApplyError> {
        let TableDelta { services, mut frontends, names } = self.with_unpublished(delta);
        for key in services.keys() {
            self.unwritten.forget_service(key);
        }
        for key in frontends.keys() {
            self.unwritten.forget_frontend(key);
        }
        let mut errors = Vec::new();
        let departed = std::mem::take(&mut self.departed);
        let mut step = Step { departed, ..Step::default() };
        let (kept, gone): (Vec<_>, Vec<_>) =
            services.into_iter().partition(|(_, row)| row.is_some());

        for (key, row) in kept {
            if let Some(row) = row {
                self.keep(key, row, &mut step, &mut errors);
            }
        }
        self.keep_smallest(&mut step, &mut errors);
        for (key, _) in &step.placed {
            let waiting = self.unwritten.take_waiting(key);
            let waiting = waiting.into_iter().map(|(key, row)| (key, Some(row)));
            for (key, row) in waiting {
                frontends.entry(key).or_insert(row);
            }
        }
        let mut removals = Vec::new();
        for (key, row) in frontends {
            match row {
                Some(row) => self.claim(key, row, &mut step.publish, &mut errors),
                None => removals.push(key),
            }
        }
        let gone = gone.into_iter().map(|(key, _)| key).collect();
        match self.write_backends(&step.departed) {
            Ok(()) => self.publish(step, removals, gone, &mut errors),
            Err(error) => {
                errors.push(error.clone());
                self.postpone(step, removals, gone, &error);
            }
        }
        let mut passing = Vec::new();
        self.forget_clients(&mut passing);
        let (store, quarantine) = (&mut self.store, &mut self.quarantine);
        self.writes += self.names.apply(store, names, quarantine, &mut passing);
        errors.extend(passing.iter().cloned());
        self.passing = passing;
        errors
    }

    /// Takes over everything that was replaced so far. Its ids and slots are free again when it
    /// comes back to [`Applier::release`], which must be after every program that runs now has
    /// ended.
    #[must_use]
    pub fn take_quarantine(&mut self) -> Quarantine {
        let quarantine = std::mem::take(&mut self.quarantine);
        self.nat.lent.extend(quarantine.backends.iter().copied());
        quarantine
    }

    /// Frees what no program can still read.
    pub fn release(&mut self, quarantine: Quarantine) {
        self.has_room |= !quarantine.is_empty();
        self.remove_backends(&quarantine.backends);
        self.free(quarantine);
    }

    fn free(&mut self, quarantine: Quarantine) {
        for (range, len) in quarantine.ranges {
            self.ranges.release(range, len);
        }
        for id in quarantine.services {
            self.service_ids.release(id.0);
        }
        for (id, _) in quarantine.backends {
            self.nat.lent.remove(&id);
            self.backend_ids.release(id.0);
        }
        self.names.release(quarantine.names, quarantine.records);
    }

    /// Makes the cluster zone what `row` says, `None` for no answers, until `fresh_until`
    /// nanoseconds of the monotonic clock. An agent that lives calls this again before: what
    /// nobody vouches for is left to the DNS service.
    ///
    /// To be called after the names of the zone are applied.
    pub fn write_zone(&mut self, row: Option<&DnsRow>, fresh_until: u64) -> Result<(), ApplyError> {
        self.names.write_zone(&mut self.store, row, fresh_until)
    }

    /// Whether the kernel holds all names that it should.
    pub fn has_all_names(&self) -> bool {
        self.names.unwritten() == 0
    }

    /// How many rows were written or removed so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Points all frontends of the service at its range.
    fn republish(
        &self,
        key: &ServiceKey,
        publish: &mut BTreeMap<FrontendKey, (ServiceKey, FrontendValue)>,
    ) {
        let Some(placed) = self.services.get(key) else { return };
        for frontend in &placed.frontends {
            if let Some((_, value)) = self.frontends.get(frontend) {
                let value = FrontendValue::new(frontend, placed.range, value.flags());
                publish.insert(*frontend, (key.clone(), value));
            }
        }
    }

    /// Points a frontend at the service of `row`.
    fn claim(
        &mut self,
        key: FrontendKey,
        row: FrontendRow,
        publish: &mut BTreeMap<FrontendKey, (ServiceKey, FrontendValue)>,
        errors: &mut Vec<ApplyError>,
    ) {
        let Some(placed) = self.services.get(&row.service) else {
            let error = ApplyError::FrontendWaits(key, row.service.clone());
            errors.push(error.clone());
            self.unwritten.add_frontend(key, Some(row), error);
            return;
        };
        let value = FrontendValue::new(&key, placed.range, row.flags);
        publish.insert(key, (row.service, value));
    }

    fn put_frontends(
        &mut self,
        mut publish: BTreeMap<FrontendKey, (ServiceKey, FrontendValue)>,
        errors: &mut Vec<ApplyError>,
    ) {
        publish.retain(|key, wanted| match self.frontends.get_mut(key) {
            Some(known) if known == wanted => {
                // Of equal keys, those of the last agent go: the tables have the same as `wanted`.
                known.0 = wanted.0.clone();
                false
            }
            _ => true,
        });
        let rows: Vec<_> = publish.iter().map(|(key, (_, value))| (*key, *value)).collect();
        for (key, error) in self.store.put_frontends(&rows) {
            // Only a new key can fail: the kernel keeps room for the update of one that is there.
            if let Some((service, value)) = publish.remove(&key) {
                let error = ApplyError::Frontend(key, service.clone(), error.into());
                errors.push(error.clone());
                let row = FrontendRow { service, flags: value.flags() };
                self.unwritten.add_frontend(key, Some(row), error);
            }
        }
        self.writes += publish.len() as u64;
        for (key, (service, value)) in publish {
            self.nat.touched.insert(service.clone());
            if let Some(placed) = self.services.get_mut(&service) {
                placed.add_frontend(key);
            }
            let old = self.frontends.insert(key, (service.clone(), value));
            if let Some((old, _)) = old
                && old != service
                && let Some(placed) = self.services.get_mut(&old)
            {
                placed.remove_frontend(&key);
                self.nat.touched.insert(old.clone());
                if placed.frontends.is_empty() {
                    self.vacated.insert(old);
                }
            }
        }
    }

    fn remove_frontends(&mut self, mut keys: Vec<FrontendKey>, errors: &mut Vec<ApplyError>) {
        keys.retain(|key| self.frontends.contains_key(key));
        let failed = self.store.remove_frontends(&keys);
        for (key, error) in failed {
            keys.retain(|other| *other != key);
            if let Some((service, _)) = self.frontends.get(&key) {
                let error = ApplyError::Frontend(key, service.clone(), error.into());
                errors.push(error.clone());
                self.unwritten.add_frontend(key, None, error);
            }
        }
        self.writes += keys.len() as u64;
        self.frontends_left += keys.len();
        for key in keys {
            if let Some((service, _)) = self.frontends.remove(&key)
                && let Some(placed) = self.services.get_mut(&service)
            {
                placed.remove_frontend(&key);
                self.nat.touched.insert(service.clone());
                if placed.frontends.is_empty() {
                    self.vacated.insert(service);
                }
            }
        }
    }

    /// Removes a service that no frontend names any more.
    fn remove_service(&mut self, key: &ServiceKey, errors: &mut Vec<ApplyError>) {
        self.close(key, &BTreeSet::new(), errors);
        let Some(placed) = self.services.get(key) else { return };
        let removed = match placed.frontends.first() {
            Some(frontend) => Err(ApplyError::FrontendWaits(*frontend, key.clone())),
            None => self
                .store
                .remove_service(placed.id)
                .map_err(|error| ApplyError::Service(key.clone(), error)),
        };
        if let Err(error) = removed {
            errors.push(error.clone());
            self.unwritten.add_service(key.clone(), None, error);
            return;
        }
        self.unwritten.forget_service(key);
        let Some(mut placed) = self.services.remove(key) else { return };
        self.recall(&mut placed);
        self.writes += 1;
        self.quarantine.ranges.push((placed.range, placed.len));
        self.quarantine.services.push(placed.id);
        if placed.affinity {
            self.affinity_ended.insert(placed.id, key.clone());
        }
        for (row, id) in placed.backends() {
            self.store.write_backend(id, BackendState::default());
            self.quarantine.backends.push((id, End { addr: row.addr, port: row.port }));
        }
    }
}

#[cfg(test)]
mod tests;
