//! The maps of services, as `apply` writes them: slots and backends through mapped memory,
//! frontends in batches.

use super::LoadError;
use super::sys::{self, BatchError, MappedArray};
use crate::apply::{NameStore, Store, StoreError};
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use proxy_ebpf::dns::{NameKey, NameValue, Zone};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendId, BackendState, Slot};
use proxy_ebpf::{Addr, maps};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

/// The maps of services.
pub struct MapStore {
    frontends: MapData,
    services: MapData,
    counters: PerCpuArray<MapData, ServiceCounters>,
    slots: MappedArray<Slot>,
    backends: MappedArray<BackendState>,
    dns_names: MapData,
    dns_values: MappedArray<NameValue>,
    dns_records: MappedArray<Addr>,
    dns_zone: MappedArray<Zone>,
    cpus: usize,
}

impl MapStore {
    /// Takes the maps out of `ebpf`.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut take = |name: &str| match ebpf.take_map(name) {
            Some(Map::Array(map) | Map::HashMap(map) | Map::PerCpuArray(map)) => Ok(map),
            _ => Err(LoadError::Missing(name.to_owned())),
        };
        let mapped = |e| LoadError::Kernel("map arrays of the kernel into memory", e);
        let counters = Map::PerCpuArray(take("service_counters")?);
        let cpus = nr_cpus().map_err(|(_, e)| LoadError::Kernel("count the CPUs", e))?;
        Ok(Self {
            frontends: take("frontends")?,
            services: take("services")?,
            counters: counters.try_into().map_err(|e| LoadError::Map("service_counters", e))?,
            slots: MappedArray::new(take("slots")?.fd().as_fd(), maps::SLOTS).map_err(mapped)?,
            backends: MappedArray::new(take("backends")?.fd().as_fd(), maps::BACKENDS)
                .map_err(mapped)?,
            dns_names: take("dns_names")?,
            dns_values: MappedArray::new(take("dns_values")?.fd().as_fd(), maps::DNS_NAMES)
                .map_err(mapped)?,
            dns_records: MappedArray::new(take("dns_records")?.fd().as_fd(), maps::DNS_RECORDS)
                .map_err(mapped)?,
            dns_zone: MappedArray::new(take("dns_zone")?.fd().as_fd(), 1).map_err(mapped)?,
            cpus,
        })
    }
}

impl Store for MapStore {
    fn slot(&self, index: u32) -> Slot {
        self.slots.get(index)
    }

    fn write_slots(&mut self, index: u32, slots: &[Slot]) {
        for (index, slot) in (index..).zip(slots) {
            self.slots.set(index, *slot);
        }
    }

    fn backend(&self, id: BackendId) -> BackendState {
        self.backends.get(id.0)
    }

    fn backends(&self) -> Vec<BackendId> {
        let used = |id: &BackendId| self.backends.get(id.0) != BackendState::default();
        (0..maps::BACKENDS).map(BackendId).filter(used).collect()
    }

    fn write_backend(&mut self, id: BackendId, state: BackendState) {
        self.backends.set(id.0, state);
    }

    fn services(&self) -> Result<Vec<(ServiceId, ServiceInfo)>, StoreError> {
        sys::entries(self.services.fd().as_fd()).map_err(|e| error("services", "read", &e))
    }

    fn put_service(&mut self, id: ServiceId, info: &ServiceInfo) -> Result<(), StoreError> {
        let zero = vec![ServiceCounters::default(); self.cpus];
        PerCpuValues::try_from(zero)
            .map_err(|e| e.to_string())
            .and_then(|zero| self.counters.set(id.0, zero, 0).map_err(|e| e.to_string()))
            .map_err(|reason| StoreError { map: "service_counters", action: "reset", reason })?;
        sys::update_batch(self.services.fd().as_fd(), &[(id, *info)])
            .map_err(|batch| error("services", "write", &batch.error))
    }

    fn remove_service(&mut self, id: ServiceId) -> Result<(), StoreError> {
        match sys::delete_batch(self.services.fd().as_fd(), &[id]) {
            Err(batch) if batch.error.kind() != io::ErrorKind::NotFound => {
                Err(error("services", "remove a row from", &batch.error))
            }
            _ => Ok(()),
        }
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, FrontendValue)>, StoreError> {
        sys::entries(self.frontends.fd().as_fd()).map_err(|e| error("frontends", "read", &e))
    }

    fn put_frontends(
        &mut self,
        rows: &[(FrontendKey, FrontendValue)],
    ) -> Vec<(FrontendKey, StoreError)> {
        each_batch(self.frontends.fd().as_fd(), rows, sys::update_batch)
            .into_iter()
            .map(|((key, _), e)| (key, error("frontends", "write", &e)))
            .collect()
    }

    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Vec<(FrontendKey, StoreError)> {
        each_batch(self.frontends.fd().as_fd(), keys, sys::delete_batch)
            .into_iter()
            .filter(|(_, e)| e.kind() != io::ErrorKind::NotFound)
            .map(|(key, e)| (key, error("frontends", "remove a row from", &e)))
            .collect()
    }
}

impl NameStore for MapStore {
    fn names(&self) -> Result<Vec<(NameKey, u32)>, StoreError> {
        sys::entries(self.dns_names.fd().as_fd()).map_err(|e| error("dns_names", "read", &e))
    }

    fn put_names(&mut self, rows: &[(NameKey, u32)]) -> Vec<(NameKey, StoreError)> {
        each_batch(self.dns_names.fd().as_fd(), rows, sys::update_batch)
            .into_iter()
            .map(|((key, _), e)| (key, error("dns_names", "write", &e)))
            .collect()
    }

    fn remove_names(&mut self, keys: &[NameKey]) -> Vec<(NameKey, StoreError)> {
        each_batch(self.dns_names.fd().as_fd(), keys, sys::delete_batch)
            .into_iter()
            .filter(|(_, e)| e.kind() != io::ErrorKind::NotFound)
            .map(|(key, e)| (key, error("dns_names", "remove a row from", &e)))
            .collect()
    }

    fn value(&self, number: u32) -> NameValue {
        self.dns_values.get(number)
    }

    fn write_value(&mut self, number: u32, value: NameValue) {
        // The records of the value are there before it is.
        fence(Ordering::Release);
        self.dns_values.set(number, value);
    }

    fn record(&self, index: u32) -> Addr {
        self.dns_records.get(index)
    }

    fn write_records(&mut self, index: u32, records: &[Addr]) {
        for (index, record) in (index..).zip(records) {
            self.dns_records.set(index, *record);
        }
    }

    fn zone(&self) -> Zone {
        self.dns_zone.get(0)
    }

    fn write_zone(&mut self, zone: &Zone) {
        fence(Ordering::Release);
        self.dns_zone.set(0, *zone);
    }

    fn wait(&self) -> Result<(), StoreError> {
        sys::wait_for_programs().map_err(|e| error("dns_zone", "wait for the readers of", &e))
    }
}

/// Does all `rows` in batches; a row that fails is left out and returned.
pub(super) fn each_batch<R: Copy>(
    map: BorrowedFd<'_>,
    mut rows: &[R],
    call: impl Fn(BorrowedFd<'_>, &[R]) -> Result<(), BatchError>,
) -> Vec<(R, io::Error)> {
    let mut failed = Vec::new();
    while !rows.is_empty() {
        let Err(BatchError { done, error }) = call(map, rows) else { break };
        let Some(row) = rows.get(done) else { break };
        failed.push((*row, error));
        rows = &rows[done + 1..];
    }
    failed
}

fn error(map: &'static str, action: &'static str, error: &io::Error) -> StoreError {
    let reason = match error.raw_os_error() {
        Some(libc::E2BIG) => "the map is full".to_owned(),
        _ => error.to_string(),
    };
    StoreError { map, action, reason }
}
