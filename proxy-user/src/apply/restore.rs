//! Restore: what the last agent left in the maps becomes the state that deltas are applied to.
//!
//! So ids stay, unchanged services are not written, and what went while no agent ran is found
//! and removed.

use super::names::Names;
use super::nat::Nat;
use super::place::{info, slots, states};
use super::pool::{IdPool, RangePool};
use super::unwritten::Unwritten;
use super::{Applier, ApplyError, Departed, Placed, Quarantine, Store, StoreError};
use crate::tables::{BackendRow, Family, Prefix, ServiceKey, ServicePortName, TableDelta, Tables};
use crate::tree::pack;
use proxy_ebpf::frontend::FrontendKey;
use proxy_ebpf::maps;
use proxy_ebpf::service::{ServiceId, ServiceInfo, unpadded};
use proxy_ebpf::slot::{BackendState, RangeHeader, Slot};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

impl<S: Store> Applier<S> {
    /// Adopts what the maps of `store` hold. Rows that contradict themselves are removed; the
    /// next [`Applier::apply_all`] makes them again.
    pub fn restore(mut store: S) -> Result<Self, StoreError> {
        let mut texts = BTreeSet::new();
        let names: BTreeMap<ServiceId, ServiceKey> =
            store.services()?.into_iter().map(|(id, info)| (id, key(&info, &mut texts))).collect();
        let mut services: BTreeMap<ServiceKey, Placed> = BTreeMap::new();
        let mut frontends = HashMap::new();
        let mut stray = Vec::new();
        for (frontend, value) in store.frontends()?.0 {
            let header = RangeHeader::from_slot(&store.slot(value.range()));
            let placed = names.get(&header.service).and_then(|key| {
                if !services.contains_key(key) {
                    services.insert(key.clone(), service_at(value.range(), &header)?);
                }
                services.get_mut(key).map(|placed| (key, placed))
            });
            match placed {
                Some((key, placed))
                    if placed.range == value.range() && value.tag() == frontend.tag() =>
                {
                    placed.add_frontend(frontend);
                    frontends.insert(frontend, (key.clone(), value));
                }
                _ => stray.push(frontend),
            }
        }
        if let Some((_, error)) = store.remove_frontends(&stray).pop() {
            return Err(error);
        }
        for (id, key) in &names {
            if services.get(key).is_none_or(|placed| placed.id != *id) {
                store.remove_service(*id)?;
            }
        }

        let name_tables = Names::restore(&mut store)?;
        let ranges: BTreeMap<u32, u32> = services.values().map(|p| (p.range, p.len)).collect();
        let service_ids: BTreeSet<u32> = services.values().map(|placed| placed.id.0).collect();
        let backend_ids: BTreeSet<u32> = services
            .values()
            .flat_map(|p| slots_of(&store, p).map(|slot| slot.backend.0))
            .collect();
        for id in store.backends() {
            if !backend_ids.contains(&id.0) {
                store.write_backend(id, BackendState::default());
            }
        }
        let mut applier = Self {
            store,
            services,
            frontends,
            service_ids: IdPool::new(maps::SERVICES, &service_ids),
            backend_ids: IdPool::new(maps::BACKENDS, &backend_ids),
            ranges: RangePool::new(maps::SLOTS, &ranges),
            quarantine: Quarantine::default(),
            nat: Nat::unknown(),
            departed: Departed::default(),
            held: Quarantine::default(),
            affinity_ended: BTreeMap::new(),
            names: name_tables,
            unwritten: Unwritten::default(),
            has_room: false,
            frontends_left: 0,
            vacated: BTreeSet::new(),
            passing: Vec::new(),
            writes: 0,
        };
        applier.find_source_ranges()?;
        Ok(applier)
    }

    /// Brings the maps to exactly `tables`, from whatever was applied before.
    pub fn apply_all(&mut self, tables: &Tables) -> Vec<ApplyError> {
        let (services, frontends) = (all(&tables.services), all(&tables.frontends));
        let names = self.names.replaced_by(all(&tables.names));
        let mut delta = TableDelta { services, frontends, names };
        for key in self.services.keys() {
            delta.services.entry(key.clone()).or_insert(None);
        }
        let known: BTreeSet<FrontendKey> = self.frontends.keys().copied().collect();
        for key in known {
            delta.frontends.entry(key).or_insert(None);
        }
        drop(self.unwritten.take());
        let errors = self.apply(delta);
        pack(&mut self.services);
        errors
    }

    /// Reads the backends of a restored service, if they are not read yet. All of them at once
    /// would be most of the memory of a restart, while the tables come to hold them too.
    pub(super) fn recall(&self, placed: &mut Placed) {
        if placed.len <= 1 || !placed.ids.is_empty() {
            return;
        }
        let row = |slot: Slot| BackendRow { addr: slot.addr, port: slot.port };
        let slots = slots_of(&self.store, placed);
        let known: BTreeMap<_, _> =
            slots.map(|slot| (row(slot), (slot.flags, slot.backend))).collect();
        placed.backends = known.iter().map(|(backend, (flags, _))| (*backend, *flags)).collect();
        placed.ids = known.into_values().map(|(_, id)| id).collect();
    }

    /// Finds what someone else has changed in the maps and brings them to `tables` again, which
    /// are those that were applied last. Returns how many rows were wrong, and what could not be
    /// repaired.
    pub fn heal(&mut self, tables: &Tables) -> Result<(u64, Vec<ApplyError>), StoreError> {
        let before = self.writes;
        let (actual, repaired) = self.store.frontends()?;
        self.writes += repaired;
        let actual: HashMap<FrontendKey, _> = actual.into_iter().collect();
        let mut strange: Vec<FrontendKey> =
            actual.keys().filter(|key| !self.frontends.contains_key(key)).copied().collect();
        strange.sort_unstable();
        self.writes += strange.len() as u64;
        if let Some((_, error)) = self.store.remove_frontends(&strange).pop() {
            return Err(error);
        }
        // What is forgotten here differs from what is wanted, and so is written again.
        self.frontends.retain(|key, (_, value)| actual.get(key) == Some(value));

        let named = self.store.services()?;
        let names: HashMap<ServiceId, &ServiceInfo> =
            named.iter().map(|(id, info)| (*id, info)).collect();
        for (key, placed) in &self.services {
            if let Some(info) = info(key)
                && names.get(&placed.id) != Some(&&info)
            {
                self.writes += 1;
                self.store.put_service(placed.id, &info)?;
            }
        }
        self.find_source_ranges()?;
        let mut delta = self.drifted(tables);
        let (store, quarantine) = (&mut self.store, &mut self.quarantine);
        let (strange, names) = self.names.drifted(store, &tables.names, quarantine)?;
        self.writes += strange;
        delta.names = names;
        let errors = self.apply(delta);
        Ok((self.writes - before, errors))
    }

    /// Takes note of the source ranges as they are, and closes those of no service.
    fn find_source_ranges(&mut self) -> Result<(), StoreError> {
        let mut actual: BTreeMap<ServiceId, BTreeSet<Prefix>> = BTreeMap::new();
        for (service, range) in self.store.source_ranges()? {
            actual.entry(service).or_default().insert(range);
        }
        for placed in self.services.values_mut() {
            placed.source_ranges = actual.remove(&placed.id).unwrap_or_default();
        }
        for (service, ranges) in actual {
            for range in ranges {
                self.writes += 1;
                self.store.remove_source_range(service, range)?;
            }
        }
        Ok(())
    }

    /// The rows of `tables` that the maps do not hold.
    fn drifted(&self, tables: &Tables) -> TableDelta {
        let mut delta = TableDelta::default();
        for (key, row) in &tables.services {
            let holds = self.services.get(key).is_some_and(|placed| {
                let mut states = placed.ids.iter().zip(states(placed.id, row));
                placed.source_ranges == row.source_ranges
                    && placed.backends == row.all
                    && self.holds(placed, &slots(placed.id, row, &placed.ids))
                    && states.all(|(id, state)| self.store.backend(*id) == state)
            });
            if !holds {
                delta.services.insert(key.clone(), Some(Arc::clone(row)));
            }
        }
        for (key, row) in &tables.frontends {
            if !self.frontends.contains_key(key) {
                delta.frontends.insert(*key, Some(row.clone()));
            }
        }
        delta
    }
}

/// The step that adds all of `rows`.
fn all<K: Ord + Clone, V: Clone>(rows: &BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
    rows.iter().map(|(key, row)| (key.clone(), Some(row.clone()))).collect()
}

/// The slots of a service that is placed.
pub(super) fn slots_of<S: Store>(store: &S, placed: &Placed) -> impl Iterator<Item = Slot> {
    (placed.range + 1..placed.range + placed.len).map(|index| store.slot(index))
}

/// The service whose range is at `start`, unless that is none.
fn service_at(start: u32, header: &RangeHeader) -> Option<Placed> {
    let sum = u64::from(header.cluster) + u64::from(header.local) + u64::from(header.draining);
    let len = u32::try_from(sum + 1).ok()?;
    if start == 0 || start.checked_add(len)? > maps::SLOTS {
        return None;
    }
    Some(Placed {
        id: header.service,
        range: start,
        len,
        affinity: header.affinity_seconds != 0,
        ..Placed::default()
    })
}

/// The names of a service. `texts` has those that many share.
fn key(info: &ServiceInfo, texts: &mut BTreeSet<Arc<str>>) -> ServiceKey {
    let mut shared = |text: &str| {
        texts.get(text).cloned().unwrap_or_else(|| {
            let text = Arc::from(text);
            texts.insert(Arc::clone(&text));
            text
        })
    };
    let port = ServicePortName {
        namespace: shared(unpadded(&info.namespace)),
        name: unpadded(&info.name).into(),
        port: shared(unpadded(&info.port_name)),
        proto: info.proto,
    };
    ServiceKey { port: port.into(), family: if info.family == 4 { Family::V4 } else { Family::V6 } }
}
