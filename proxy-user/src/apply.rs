//! Apply: brings the maps to what the tables say, writing only what differs.
//!
//! Takes [`TableDelta`]s, gives out service ids, backend ids and slot ranges, and writes through
//! a [`Store`]. It decides nothing about services. Order makes every moment consistent for a
//! program that reads meanwhile:
//!
//! 1. names, states of new backends, and complete new ranges, which nothing names yet;
//! 2. frontends, one atomic word each: from here on new connections see the new backends;
//! 3. frontends that go;
//! 4. states of backends that went, so that UDP flows leave them and find the new ones;
//! 5. old ranges and ids wait in quarantine until no program can still read them.
//!
//! A row that cannot be written (a table is full) is kept and tried again at every pass; the
//! others are written all the same.

mod pool;
mod restore;

use crate::tables::{
    BackendRow, Family, FrontendRow, ServiceKey, ServiceRow, TableDelta, describe,
};
use pool::{IdPool, RangePool};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::maps;
use proxy_ebpf::service::{ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendFlags, BackendId, BackendState, RangeHeader, Slot};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The maps, as far as apply writes them: the edge that tests replace.
pub trait Store {
    /// Element `index` of the slot array.
    fn slot(&self, index: u32) -> Slot;
    /// Writes `slots` from `index` on; nothing names these elements.
    fn write_slots(&mut self, index: u32, slots: &[Slot]);
    /// Element `id` of the backend array.
    fn backend(&self, id: BackendId) -> BackendState;
    /// All backends that have a state.
    fn backends(&self) -> Vec<BackendId>;
    /// Writes one backend's state, in one word.
    fn write_backend(&mut self, id: BackendId, state: BackendState);
    /// All services that the map holds.
    fn services(&self) -> Result<Vec<(ServiceId, ServiceInfo)>, StoreError>;
    /// Writes a service's names, and zeroes its counters.
    fn put_service(&mut self, id: ServiceId, info: &ServiceInfo) -> Result<(), StoreError>;
    /// Removes a service's names.
    fn remove_service(&mut self, id: ServiceId) -> Result<(), StoreError>;
    /// All frontends that the map holds.
    fn frontends(&self) -> Result<Vec<(FrontendKey, FrontendValue)>, StoreError>;
    /// Writes frontends; returns those that could not be written, and why.
    fn put_frontends(
        &mut self,
        rows: &[(FrontendKey, FrontendValue)],
    ) -> Vec<(FrontendKey, StoreError)>;
    /// Removes frontends; returns those that could not be removed, and why.
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Vec<(FrontendKey, StoreError)>;
}

/// A map that could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("map `{map}`: cannot {action}: {reason}")]
pub struct StoreError {
    /// The map's name.
    pub map: &'static str,
    /// What was attempted.
    pub action: &'static str,
    /// What the kernel said.
    pub reason: String,
}

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
}

impl ApplyError {
    /// The service that is not served as it should be.
    pub const fn service(&self) -> &ServiceKey {
        match self {
            Self::SlotsFull(service, _)
            | Self::ServicesFull(service)
            | Self::NameTooLong(service)
            | Self::FrontendWaits(_, service)
            | Self::Frontend(_, service, _)
            | Self::Service(service, _) => service,
        }
    }
}

/// A service that has an id and a range.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    id: ServiceId,
    range: u32,
    len: u32,
    /// All serving backends, sorted by row.
    backends: Vec<(BackendRow, BackendId)>,
    frontends: BTreeSet<FrontendKey>,
}

/// What a quarantine holds: see [`Applier::take_quarantine`].
#[derive(Debug, Default)]
pub struct Quarantine {
    ranges: Vec<(u32, u32)>,
    services: Vec<ServiceId>,
    backends: Vec<BackendId>,
}

impl Quarantine {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.services.is_empty() && self.backends.is_empty()
    }
}

/// Keeps the maps of one [`Store`].
#[derive(Debug)]
pub struct Applier<S> {
    store: S,
    services: HashMap<ServiceKey, Placed>,
    frontends: HashMap<FrontendKey, (ServiceKey, FrontendValue)>,
    service_ids: IdPool,
    backend_ids: IdPool,
    ranges: RangePool,
    quarantine: Quarantine,
    /// Rows that could not be written, to be tried again.
    unwritten: TableDelta,
    /// Rows written or removed so far.
    writes: u64,
}

impl<S: Store> Applier<S> {
    /// Takes the step `delta`, and tries again what failed before. Returns what could not be
    /// written; the rest is.
    pub fn apply(&mut self, delta: TableDelta) -> Vec<ApplyError> {
        let TableDelta { services, frontends } = self.with_unwritten(delta);
        let mut errors = Vec::new();
        let mut publish = BTreeMap::new();
        let mut gone_backends = Vec::new();
        let (kept, gone): (Vec<_>, Vec<_>) =
            services.into_iter().partition(|(_, row)| row.is_some());

        for (key, row) in kept {
            let Some(row) = row else { continue };
            match self.place(&key, &row, &mut gone_backends) {
                Ok(moved) if moved => self.republish(&key, &mut publish),
                Ok(_) => {}
                Err(error) => {
                    errors.push(error);
                    self.unwritten.services.insert(key, Some(row));
                }
            }
        }
        let mut removals = Vec::new();
        for (key, row) in frontends {
            match row {
                Some(row) => self.claim(key, row, &mut publish, &mut errors),
                None => removals.push(key),
            }
        }
        self.put_frontends(publish, &mut errors);
        self.remove_frontends(removals, &mut errors);
        for id in gone_backends {
            self.store.write_backend(id, BackendState::default());
            self.quarantine.backends.push(id);
        }
        for (key, _) in gone {
            self.remove_service(&key, &mut errors);
        }
        errors
    }

    /// Takes over everything that was replaced so far. Its ids and slots are free again when it
    /// comes back to [`Applier::release`], which must be after every program that runs now has
    /// ended.
    #[must_use]
    pub fn take_quarantine(&mut self) -> Quarantine {
        std::mem::take(&mut self.quarantine)
    }

    /// Frees what no program can still read.
    pub fn release(&mut self, quarantine: Quarantine) {
        for (range, len) in quarantine.ranges {
            self.ranges.release(range, len);
        }
        for id in quarantine.services {
            self.service_ids.release(id.0);
        }
        for id in quarantine.backends {
            self.backend_ids.release(id.0);
        }
    }

    /// How many rows were written or removed so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// How many rows wait to be written.
    pub fn unwritten(&self) -> usize {
        self.unwritten.services.len() + self.unwritten.frontends.len()
    }

    fn with_unwritten(&mut self, delta: TableDelta) -> TableDelta {
        let mut all = std::mem::take(&mut self.unwritten);
        all.services.extend(delta.services);
        all.frontends.extend(delta.frontends);
        all
    }

    /// Gives the service an id and a range that holds `row`. Returns whether the range is
    /// another one than before. After an error everything is as it was.
    fn place(
        &mut self,
        key: &ServiceKey,
        row: &ServiceRow,
        gone: &mut Vec<BackendId>,
    ) -> Result<bool, ApplyError> {
        let old = self.services.remove(key);
        let placed = self.place_over(old.as_ref(), key, row);
        let Ok(Some(mut placed)) = placed else {
            if let Some(old) = old {
                self.services.insert(key.clone(), old);
            }
            return placed.map(|_| false);
        };
        if let Some(old) = old {
            let gone_rows =
                old.backends.iter().filter(|(backend, _)| !row.all.contains_key(backend));
            gone.extend(gone_rows.map(|(_, id)| *id));
            self.quarantine.ranges.push((old.range, old.len));
            placed.frontends = old.frontends;
        }
        self.services.insert(key.clone(), placed);
        Ok(true)
    }

    /// Writes `row` to a new range, unless the old one holds just that.
    fn place_over(
        &mut self,
        old: Option<&Placed>,
        key: &ServiceKey,
        row: &ServiceRow,
    ) -> Result<Option<Placed>, ApplyError> {
        let mut fresh = Vec::new();
        let Some(backends) = self.backend_ids(old, row, &mut fresh) else {
            return Err(self.give_back(key, row, fresh));
        };
        let id = match old {
            Some(placed) => placed.id,
            None => self.new_service(key)?,
        };
        let slots = slots(id, row, &backends);
        let unchanged = old.is_some_and(|placed| {
            placed.len as usize == slots.len()
                && slots.iter().zip(placed.range..).all(|(slot, at)| self.store.slot(at) == *slot)
        });
        let len = slots.len() as u32;
        let range = if unchanged { Some(0) } else { self.ranges.take(len) };
        let Some(range) = range else {
            if old.is_none() {
                self.service_ids.release(id.0);
            }
            return Err(self.give_back(key, row, fresh));
        };
        for (backend, backend_id) in &backends {
            let flags = row.all.get(backend).copied().unwrap_or_default();
            let state = BackendState::new(id, backend.addr, backend.port, flags);
            if self.store.backend(*backend_id) != state {
                self.writes += 1;
                self.store.write_backend(*backend_id, state);
            }
        }
        if unchanged {
            return Ok(None);
        }
        self.writes += 1;
        self.store.write_slots(range, &slots);
        Ok(Some(Placed { id, range, len, backends, frontends: BTreeSet::new() }))
    }

    /// The ids of the row's backends: the old one where there is one, else one from the pool,
    /// which is also noted in `fresh`. `None` if the pool is empty.
    fn backend_ids(
        &mut self,
        old: Option<&Placed>,
        row: &ServiceRow,
        fresh: &mut Vec<BackendId>,
    ) -> Option<Vec<(BackendRow, BackendId)>> {
        let old = old.map_or(&[][..], |placed| &placed.backends);
        let id = |backend: &BackendRow| {
            if let Ok(index) = old.binary_search_by_key(backend, |(row, _)| *row) {
                return Some((*backend, old[index].1));
            }
            let id = BackendId(self.backend_ids.take()?);
            fresh.push(id);
            Some((*backend, id))
        };
        row.all.keys().map(id).collect()
    }

    fn give_back(
        &mut self,
        key: &ServiceKey,
        row: &ServiceRow,
        fresh: Vec<BackendId>,
    ) -> ApplyError {
        for id in fresh {
            self.backend_ids.release(id.0);
        }
        ApplyError::SlotsFull(key.clone(), row.all.len())
    }

    fn new_service(&mut self, key: &ServiceKey) -> Result<ServiceId, ApplyError> {
        let info = info(key).ok_or_else(|| ApplyError::NameTooLong(key.clone()))?;
        let id = self.service_ids.take().ok_or_else(|| ApplyError::ServicesFull(key.clone()))?;
        match self.store.put_service(ServiceId(id), &info) {
            Ok(()) => Ok(ServiceId(id)),
            Err(error) => {
                self.service_ids.release(id);
                Err(ApplyError::Service(key.clone(), error))
            }
        }
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
            errors.push(ApplyError::FrontendWaits(key, row.service.clone()));
            self.unwritten.frontends.insert(key, Some(row));
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
        publish.retain(|key, wanted| self.frontends.get(key) != Some(wanted));
        let rows: Vec<_> = publish.iter().map(|(key, (_, value))| (*key, *value)).collect();
        for (key, error) in self.store.put_frontends(&rows) {
            // Only a new key can fail: the kernel keeps room for the update of one that is there.
            if let Some((service, value)) = publish.remove(&key) {
                errors.push(ApplyError::Frontend(key, service.clone(), error.into()));
                let row = FrontendRow { service, flags: value.flags() };
                self.unwritten.frontends.insert(key, Some(row));
            }
        }
        self.writes += publish.len() as u64;
        for (key, (service, value)) in publish {
            if let Some(placed) = self.services.get_mut(&service) {
                placed.frontends.insert(key);
            }
            let old = self.frontends.insert(key, (service.clone(), value));
            if let Some((old, _)) = old
                && old != service
                && let Some(placed) = self.services.get_mut(&old)
            {
                placed.frontends.remove(&key);
            }
        }
    }

    fn remove_frontends(&mut self, mut keys: Vec<FrontendKey>, errors: &mut Vec<ApplyError>) {
        keys.retain(|key| self.frontends.contains_key(key));
        let failed = self.store.remove_frontends(&keys);
        for (key, error) in failed {
            keys.retain(|other| *other != key);
            self.unwritten.frontends.insert(key, None);
            if let Some((service, _)) = self.frontends.get(&key) {
                errors.push(ApplyError::Frontend(key, service.clone(), error.into()));
            }
        }
        self.writes += keys.len() as u64;
        for key in keys {
            if let Some((service, _)) = self.frontends.remove(&key)
                && let Some(placed) = self.services.get_mut(&service)
            {
                placed.frontends.remove(&key);
            }
        }
    }

    /// Removes a service that no frontend names any more.
    fn remove_service(&mut self, key: &ServiceKey, errors: &mut Vec<ApplyError>) {
        let Some(placed) = self.services.get(key) else { return };
        let removed = match placed.frontends.first() {
            Some(frontend) => Err(ApplyError::FrontendWaits(*frontend, key.clone())),
            None => self
                .store
                .remove_service(placed.id)
                .map_err(|error| ApplyError::Service(key.clone(), error)),
        };
        if let Err(error) = removed {
            errors.push(error);
            self.unwritten.services.insert(key.clone(), None);
            return;
        }
        let Some(placed) = self.services.remove(key) else { return };
        self.writes += 1;
        self.quarantine.ranges.push((placed.range, placed.len));
        self.quarantine.services.push(placed.id);
        for (_, id) in placed.backends {
            self.store.write_backend(id, BackendState::default());
            self.quarantine.backends.push(id);
        }
    }
}

/// The elements of the range for `row`.
fn slots(service: ServiceId, row: &ServiceRow, backends: &[(BackendRow, BackendId)]) -> Vec<Slot> {
    let slot = |backend: &BackendRow| {
        let index = backends.binary_search_by_key(backend, |(row, _)| *row).ok()?;
        Some(Slot {
            addr: backend.addr,
            port: backend.port,
            flags: row.all.get(backend).copied().unwrap_or(BackendFlags::default()),
            backend: backends[index].1,
        })
    };
    let cluster: Vec<_> = row.cluster.iter().filter_map(slot).collect();
    let local: Vec<_> = row.local.iter().filter_map(slot).collect();
    let chosen = |backend: &&BackendRow| {
        row.cluster.binary_search(backend).is_ok() || row.local.binary_search(backend).is_ok()
    };
    let draining: Vec<_> =
        row.all.keys().filter(|backend| !chosen(backend)).filter_map(slot).collect();
    let header = RangeHeader {
        service,
        cluster: cluster.len() as u32,
        local: local.len() as u32,
        affinity_seconds: row.affinity_seconds,
        draining: draining.len() as u32,
        zero: 0,
    };
    [vec![header.to_slot()], cluster, local, draining].concat()
}

fn info(key: &ServiceKey) -> Option<ServiceInfo> {
    let port = &key.port;
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    ServiceInfo::new(&port.namespace, &port.name, &port.port, port.proto, family)
}

#[cfg(test)]
mod tests;
