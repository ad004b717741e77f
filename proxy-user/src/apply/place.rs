//! Placing: ids for a service and its backends, and a range of slots that holds its sets.
//!
//! Writes only where nothing reads: to a free range, to the states of backends. What is replaced
//! goes to the quarantine.

use super::{Applier, ApplyError, Departed, Placed, Quarantine, Store, udp_ends};
use crate::tables::{BackendRow, Family, ServiceKey, ServiceRow};
use proxy_ebpf::service::{ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendFlags, BackendId, BackendState, RangeHeader, Slot};

impl<S: Store> Applier<S> {
    /// Gives the service an id and a range that holds `row`. Returns whether the range is
    /// another one than before. After an error everything is as it was.
    pub(super) fn place(
        &mut self,
        key: &ServiceKey,
        row: &ServiceRow,
        departed: &mut Departed,
    ) -> Result<bool, ApplyError> {
        let old = self.services.remove(key);
        let placed = self.place_over(old.as_ref(), key, row);
        let Ok(Some(mut placed)) = placed else {
            if let Some(old) = old {
                self.services.insert(key.clone(), old);
            }
            return placed.map(|_| false);
        };
        let is_new = |row: &&BackendRow| {
            let known = |old: &Placed| old.backends.binary_search_by_key(row, |(r, _)| r).is_ok();
            !old.as_ref().is_some_and(known)
        };
        let new = row.all.iter().map(|(backend, _)| backend).filter(is_new);
        departed.returned.extend(udp_ends(key, placed.id, new));
        if let Some(old) = old {
            let gone = || old.backends.iter().filter(|(backend, _)| row.flags(backend).is_none());
            departed.backends.extend(gone().map(|(_, id)| *id));
            departed.retired.extend(udp_ends(key, old.id, gone().map(|(backend, _)| backend)));
            self.quarantine.ranges.push((old.range, old.len));
            placed.frontends = old.frontends;
            placed.affinity = old.affinity;
            placed.source_ranges = old.source_ranges;
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
        let mut taken = Quarantine::default();
        let placed = self.try_place(old, key, row, &mut taken);
        if placed.is_err() {
            self.release(taken);
        }
        placed
    }

    /// As [`Applier::place_over`]; what it takes from the pools is in `taken` too, and nothing
    /// names it if this fails.
    fn try_place(
        &mut self,
        old: Option<&Placed>,
        key: &ServiceKey,
        row: &ServiceRow,
        taken: &mut Quarantine,
    ) -> Result<Option<Placed>, ApplyError> {
        let full = || ApplyError::SlotsFull(key.clone(), row.all.len());
        let backends = self.backend_ids(old, row, taken).ok_or_else(full)?;
        let id = match old {
            Some(placed) => placed.id,
            None => self.new_service(key, taken)?,
        };
        let slots = slots(id, row, &backends);
        let unchanged = old.is_some_and(|placed| self.holds(placed, &slots));
        let len = slots.len() as u32;
        let range = if unchanged { 0 } else { self.ranges.take(len).ok_or_else(full)? };
        if old.is_none() {
            let info = info(key).ok_or_else(|| ApplyError::NameTooLong(key.clone()))?;
            if let Err(error) = self.store.put_service(id, &info) {
                taken.ranges.push((range, len));
                return Err(ApplyError::Service(key.clone(), error));
            }
        }
        for (backend, backend_id) in &backends {
            let state = state(id, row, *backend);
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
        Ok(Some(Placed { id, range, len, backends, ..Placed::default() }))
    }

    /// Whether the range of `placed` holds just `slots`.
    pub(super) fn holds(&self, placed: &Placed, slots: &[Slot]) -> bool {
        placed.len as usize == slots.len()
            && slots.iter().zip(placed.range..).all(|(slot, at)| self.store.slot(at) == *slot)
    }

    /// The ids of the row's backends: the old one where there is one, else one from the pool,
    /// which is also in `taken`. `None` if the pool is empty.
    fn backend_ids(
        &mut self,
        old: Option<&Placed>,
        row: &ServiceRow,
        taken: &mut Quarantine,
    ) -> Option<Box<[(BackendRow, BackendId)]>> {
        let old = old.map_or(&[][..], |placed| &*placed.backends);
        let mut id = |backend: &BackendRow| {
            if let Ok(index) = old.binary_search_by_key(backend, |(row, _)| *row) {
                return Some((*backend, old[index].1));
            }
            let id = BackendId(self.backend_ids.take()?);
            taken.backends.push(id);
            Some((*backend, id))
        };
        row.all.iter().map(|(backend, _)| id(backend)).collect()
    }

    fn new_service(
        &mut self,
        key: &ServiceKey,
        taken: &mut Quarantine,
    ) -> Result<ServiceId, ApplyError> {
        let id = self.service_ids.take().ok_or_else(|| ApplyError::ServicesFull(key.clone()))?;
        taken.services.push(ServiceId(id));
        Ok(ServiceId(id))
    }
}

/// The state of a backend of `row`.
pub(super) fn state(service: ServiceId, row: &ServiceRow, backend: BackendRow) -> BackendState {
    let mut flags = row.flags(&backend).unwrap_or_default();
    if row.affinity_seconds != 0 {
        let sets = [
            (&row.cluster, BackendFlags::IN_CLUSTER_SET),
            (&row.local, BackendFlags::IN_LOCAL_SET),
        ];
        for (_, flag) in sets.iter().filter(|(set, _)| set.binary_search(&backend).is_ok()) {
            flags = flags.with(*flag);
        }
    }
    BackendState::new(service, backend.addr, backend.port, flags)
}

/// The elements of the range for `row`.
pub(super) fn slots(
    service: ServiceId,
    row: &ServiceRow,
    backends: &[(BackendRow, BackendId)],
) -> Vec<Slot> {
    let slot = |backend: &BackendRow| {
        let index = backends.binary_search_by_key(backend, |(row, _)| *row).ok()?;
        Some(Slot {
            addr: backend.addr,
            port: backend.port,
            flags: row.flags(backend).unwrap_or_default(),
            backend: backends[index].1,
        })
    };
    let cluster: Vec<_> = row.cluster.iter().filter_map(slot).collect();
    let local: Vec<_> = row.local.iter().filter_map(slot).collect();
    let chosen = |backend: &&BackendRow| {
        row.cluster.binary_search(backend).is_ok() || row.local.binary_search(backend).is_ok()
    };
    let serving = row.all.iter().map(|(backend, _)| backend);
    let draining: Vec<_> = serving.filter(|backend| !chosen(backend)).filter_map(slot).collect();
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

pub(super) fn info(key: &ServiceKey) -> Option<ServiceInfo> {
    let port = &key.port;
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    ServiceInfo::new(&port.namespace, &port.name, &port.port, port.proto, family)
}
