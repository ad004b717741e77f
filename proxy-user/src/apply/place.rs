//! Placing: ids for a service and its backends, and a range of slots that holds its sets.
//!
//! Writes only where nothing reads: to a free range, to the states of backends. What is replaced
//! goes to the quarantine.

use super::{Applier, ApplyError, Departed, Placed, Quarantine, Step, Store};
use crate::tables::{BackendRow, Family, ServiceKey, ServiceRow};
use proxy_ebpf::End;
use proxy_ebpf::service::{ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendFlags, BackendId, BackendState, RangeHeader, Slot};
use std::sync::Arc;

impl<S: Store> Applier<S> {
    /// Places a service, or notes why it cannot be.
    pub(super) fn keep(
        &mut self,
        key: ServiceKey,
        row: Arc<ServiceRow>,
        step: &mut Step,
        errors: &mut Vec<ApplyError>,
    ) {
        match self.place(&key, &row, &mut step.departed) {
            Ok(moved) => {
                if moved {
                    self.republish(&key, &mut step.publish);
                }
                self.admit(&key, &row, errors);
                step.placed.push((key, row));
            }
            Err(error) => {
                errors.push(error.clone());
                self.unwritten.add_service(key, Some(row), error);
            }
        }
    }

    /// Gives the service an id and a range that holds `row`. Returns whether the range is
    /// another one than before. After an error everything is as it was.
    pub(super) fn place(
        &mut self,
        key: &ServiceKey,
        row: &ServiceRow,
        departed: &mut Departed,
    ) -> Result<bool, ApplyError> {
        let mut old = self.services.remove(key);
        if let Some(old) = &mut old {
            self.recall(old);
        }
        let placed = self.place_over(old.as_ref(), key, row);
        let Ok(Some(mut placed)) = placed else {
            if let Some(mut old) = old {
                if placed.is_ok() {
                    old.backends = Arc::clone(&row.all);
                }
                self.services.insert(key.clone(), old);
            }
            return placed.map(|_| false);
        };
        let is_new =
            |row: &BackendRow| old.as_ref().is_none_or(|old| old.backend_id(row).is_none());
        let new = placed.backends().filter(|(backend, _)| is_new(backend));
        let end = |row: &BackendRow| End { addr: row.addr, port: row.port };
        self.nat.fresh.extend(new.map(|(backend, id)| (id, end(backend))));
        if let Some(old) = old {
            let gone = old.backends().filter(|(backend, _)| placed.backend_id(backend).is_none());
            departed.backends.extend(gone.map(|(backend, id)| (id, end(backend))));
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
            self.free(taken);
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
        let ids = self.backend_ids(old, row, taken).ok_or_else(full)?;
        let id = match old {
            Some(placed) => placed.id,
            None => self.new_service(key, taken)?,
        };
        let slots = slots(id, row, &ids);
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
        for (backend_id, state) in ids.iter().zip(states(id, row)) {
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
        let backends = Arc::clone(&row.all);
        Ok(Some(Placed { id, range, len, backends, ids, ..Placed::default() }))
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
    ) -> Option<Box<[BackendId]>> {
        let mut id = |backend: &BackendRow| {
            if let Some(id) = old.and_then(|old| old.backend_id(backend)) {
                return Some(id);
            }
            let id = BackendId(self.backend_ids.take()?);
            taken.backends.push((id, End { addr: backend.addr, port: backend.port }));
            Some(id)
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

/// The states of the backends of `row`.
pub(super) fn states(service: ServiceId, row: &ServiceRow) -> impl Iterator<Item = BackendState> {
    let has_affinity = row.affinity_seconds != 0;
    row.all.iter().map(move |(backend, flags)| {
        let flags = if has_affinity { *flags } else { flags.without(BackendFlags::SETS) };
        BackendState::new(service, backend.addr, backend.port, flags)
    })
}

/// The elements of the range for `row`, whose backends have `ids`.
pub(super) fn slots(service: ServiceId, row: &ServiceRow, ids: &[BackendId]) -> Vec<Slot> {
    let chosen = |in_set: fn(BackendFlags) -> bool| {
        let chosen = row.all.iter().zip(ids).filter(move |((_, flags), _)| in_set(*flags));
        chosen.map(|((BackendRow { addr, port }, flags), &backend)| {
            let flags = flags.without(BackendFlags::SETS);
            Slot { addr: *addr, port: *port, flags, backend }
        })
    };
    let affinity_seconds = row.affinity_seconds;
    let header = |cluster: usize, local: usize, draining: usize| {
        let [cluster, local, draining] = [cluster, local, draining].map(|len| len as u32);
        RangeHeader { service, cluster, local, affinity_seconds, draining, zero: 0 }.to_slot()
    };
    // A backend is in two sets at most; drift checks do this for all of them.
    let mut slots = Vec::with_capacity(1 + 2 * row.all.len());
    slots.push(header(0, 0, 0));
    slots.extend(chosen(|flags| flags.has(BackendFlags::IN_CLUSTER_SET)));
    let local = slots.len();
    slots.extend(chosen(|flags| flags.has(BackendFlags::IN_LOCAL_SET)));
    let draining = slots.len();
    slots.extend(chosen(|flags| flags.without(BackendFlags::SETS) == flags));
    slots[0] = header(local - 1, draining - local, slots.len() - draining);
    slots
}

pub(super) fn info(key: &ServiceKey) -> Option<ServiceInfo> {
    let port = &key.port;
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    ServiceInfo::new(&port.namespace, &port.name, &port.port, port.proto, family)
}
