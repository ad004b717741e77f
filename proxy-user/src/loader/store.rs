//! The maps of services, as `apply` writes them: slots and backends through mapped memory,
//! frontends in batches.

use super::LoadError;
use super::filter::SharedFilter;
use super::nat::SharedNat;
use super::sys::{self, BatchError, MappedArray};
use crate::apply::{FULL, NameStore, NatStore, Store, StoreError};
use crate::nat::{NatStep, OutputRows};
use crate::netfilter::NetfilterError;
use crate::tables::Prefix;
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::dns::{NameKey, NameValue, Zone};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendId, BackendState, Slot};
use proxy_ebpf::source::Source;
use proxy_ebpf::{Addr, End, maps};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

/// The maps of services.
pub struct MapStore {
    frontends: MapData,
    services: MapData,
    source_ranges: LpmTrie<MapData, Source, u32>,
    affinity: MapData,
    counters: PerCpuArray<MapData, ServiceCounters>,
    slots: MappedArray<Slot>,
    backends: MappedArray<BackendState>,
    addr_filter: SharedFilter,
    nat: SharedNat,
    dns_names: MapData,
    dns_values: MappedArray<NameValue>,
    dns_records: MappedArray<Addr>,
    dns_zone: MappedArray<Zone>,
    cpus: usize,
}

impl MapStore {
    /// Takes the maps out of `ebpf`.
    pub(super) fn new(
        ebpf: &mut Ebpf,
        addr_filter: SharedFilter,
        nat: SharedNat,
    ) -> Result<Self, LoadError> {
        let mut take = |name: &str| match ebpf.take_map(name) {
            Some(
                Map::Array(map)
                | Map::HashMap(map)
                | Map::LruHashMap(map)
                | Map::LpmTrie(map)
                | Map::PerCpuArray(map),
            ) => Ok(map),
            _ => Err(LoadError::Missing(name.to_owned())),
        };
        let source_ranges = Map::LpmTrie(take("source_ranges")?);
        let mapped = |e| LoadError::Kernel("map arrays of the kernel into memory", e);
        let counters = Map::PerCpuArray(take("service_counters")?);
        let cpus = nr_cpus().map_err(|(_, e)| LoadError::Kernel("count the CPUs", e))?;
        Ok(Self {
            frontends: take("frontends")?,
            services: take("services")?,
            source_ranges: source_ranges
                .try_into()
                .map_err(|e| LoadError::Map("source_ranges", e))?,
            affinity: take("affinity")?,
            counters: counters.try_into().map_err(|e| LoadError::Map("service_counters", e))?,
            slots: MappedArray::new(take("slots")?.fd().as_fd(), maps::SLOTS).map_err(mapped)?,
            backends: MappedArray::new(take("backends")?.fd().as_fd(), maps::BACKENDS)
                .map_err(mapped)?,
            addr_filter,
            nat,
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
        let ids = (0..maps::BACKENDS).map(BackendId).filter(used).collect();
        // Few of so many are read again.
        self.backends.unmap();
        ids
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

    fn source_ranges(&self) -> Result<Vec<(ServiceId, Prefix)>, StoreError> {
        let range = |key: Key<Source>| {
            let Source { service, addr } = key.data();
            (service, Prefix { addr, bits: key.prefix_len().saturating_sub(Source::SERVICE_BITS) })
        };
        let ranges = self.source_ranges.keys().map(|key| key.map(range));
        ranges.collect::<Result<_, _>>().map_err(|e| map_error("source_ranges", "read", &e))
    }

    fn put_source_range(&mut self, service: ServiceId, range: Prefix) -> Result<(), StoreError> {
        let put = self.source_ranges.insert(&key(service, range), 1, 0);
        put.map_err(|e| map_error("source_ranges", "write", &e))
    }

    fn remove_source_range(&mut self, service: ServiceId, range: Prefix) -> Result<(), StoreError> {
        match self.source_ranges.remove(&key(service, range)) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result.map_err(|e| map_error("source_ranges", "remove a row from", &e)),
        }
    }

    fn forget_clients(&mut self, services: &BTreeSet<ServiceId>) -> Result<(), StoreError> {
        let map = self.affinity.fd().as_fd();
        let known: Vec<(AffinityKey, AffinityRecord)> =
            sys::entries(map).map_err(|e| error("affinity", "read", &e))?;
        let keys = known.iter().map(|(key, _)| *key);
        let keys: Vec<_> = keys.filter(|key| services.contains(&key.service())).collect();
        let mut failed = each_batch(map, &keys, sys::delete_batch).into_iter();
        match failed.find(|(_, e)| e.kind() != io::ErrorKind::NotFound) {
            Some((_, e)) => Err(error("affinity", "remove a row from", &e)),
            None => Ok(()),
        }
    }

    /// Whoever reads the frontends repairs the filter of their addresses.
    fn frontends(&mut self) -> Result<(Vec<(FrontendKey, FrontendValue)>, u64), StoreError> {
        let frontends: Vec<(FrontendKey, FrontendValue)> =
            sys::entries(self.frontends.fd().as_fd())
                .map_err(|e| error("frontends", "read", &e))?;
        let served = frontends.iter().map(|(key, _)| key.addr);
        let repaired = self.addr_filter.lock().retain(served);
        Ok((frontends, repaired))
    }

    fn put_frontends(
        &mut self,
        rows: &[(FrontendKey, FrontendValue)],
    ) -> Vec<(FrontendKey, StoreError)> {
        let mut filter = self.addr_filter.lock();
        rows.iter().for_each(|(key, _)| filter.add(key.addr));
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

impl NatStore for MapStore {
    fn refill_backends(&mut self, backends: &[(BackendId, End)]) -> Result<(), StoreError> {
        self.nat.lock().refill_backends(backends).map_err(|e| nat_error("fill", &e))
    }

    fn refill_output(&mut self, rows: &OutputRows) -> Result<(), StoreError> {
        self.nat.lock().refill_output(rows).map_err(|e| nat_error("fill", &e))
    }

    fn write_nat(&mut self, step: &NatStep) -> Result<(), StoreError> {
        self.nat.lock().commit(step).map_err(|e| nat_error("write", &e))
    }
}

fn nat_error(action: &'static str, error: &NetfilterError) -> StoreError {
    let reason = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    StoreError { map: "nftables", action, reason }
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

fn key(service: ServiceId, range: Prefix) -> Key<Source> {
    Key::new(Source::SERVICE_BITS + range.bits, Source { service, addr: range.addr })
}

fn map_error(map: &'static str, action: &'static str, cause: &MapError) -> StoreError {
    match cause {
        MapError::SyscallError(cause) => error(map, action, &cause.io_error),
        other => StoreError { map, action, reason: other.to_string() },
    }
}

fn error(map: &'static str, action: &'static str, error: &io::Error) -> StoreError {
    let reason = match error.raw_os_error() {
        // A trie says ENOSPC, a hash E2BIG.
        Some(libc::E2BIG | libc::ENOSPC) => FULL.to_owned(),
        _ => error.to_string(),
    };
    StoreError { map, action, reason }
}
