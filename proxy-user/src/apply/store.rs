//! The store: the maps, as far as apply reads and writes them.

use super::NatStore;
use crate::tables::Prefix;
use proxy_ebpf::Addr;
use proxy_ebpf::dns::{NameKey, NameValue, Zone};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::service::{ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendId, BackendState, Slot};
use std::collections::BTreeSet;

/// The maps of services, as far as apply writes them: the edge that tests replace.
pub trait Store: NameStore + NatStore {
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
    /// All source ranges of all services.
    fn source_ranges(&self) -> Result<Vec<(ServiceId, Prefix)>, StoreError>;
    /// Opens a service's restricted frontends to a range.
    fn put_source_range(&mut self, service: ServiceId, range: Prefix) -> Result<(), StoreError>;
    /// Closes them to it.
    fn remove_source_range(&mut self, service: ServiceId, range: Prefix) -> Result<(), StoreError>;
    /// Removes what is remembered of the clients of services.
    fn forget_clients(&mut self, services: &BTreeSet<ServiceId>) -> Result<(), StoreError>;
    /// All frontends that the map holds. What lies before them is repaired, so that programs find
    /// them; how much had to be is the number.
    fn frontends(&mut self) -> Result<(Vec<(FrontendKey, FrontendValue)>, u64), StoreError>;
    /// Writes frontends; returns those that could not be written, and why.
    fn put_frontends(
        &mut self,
        rows: &[(FrontendKey, FrontendValue)],
    ) -> Vec<(FrontendKey, StoreError)>;
    /// Removes frontends; returns those that could not be removed, and why.
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Vec<(FrontendKey, StoreError)>;
}

/// The maps of names, as far as apply writes them.
pub trait NameStore {
    /// All names that the map holds, and their numbers.
    fn names(&self) -> Result<Vec<(NameKey, u32)>, StoreError>;
    /// Writes names; returns those that could not be written, and why.
    fn put_names(&mut self, rows: &[(NameKey, u32)]) -> Vec<(NameKey, StoreError)>;
    /// Removes names; returns those that could not be removed, and why.
    fn remove_names(&mut self, keys: &[NameKey]) -> Vec<(NameKey, StoreError)>;
    /// The value under a name's number.
    fn value(&self, number: u32) -> NameValue;
    /// Writes the value under a name's number, in one word.
    fn write_value(&mut self, number: u32, value: NameValue);
    /// Element `index` of the records.
    fn record(&self, index: u32) -> Addr;
    /// Writes `records` from `index` on; nothing names these elements.
    fn write_records(&mut self, index: u32, records: &[Addr]);
    /// The zone.
    fn zone(&self) -> Zone;
    /// Writes the zone, each of its words at once; what is written before is seen before.
    fn write_zone(&mut self, zone: &Zone);
    /// Returns after every program that was running at the call has ended.
    fn wait(&self) -> Result<(), StoreError>;
}

/// A map that could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("map `{map}`: cannot {action}: {reason}")]
pub struct StoreError {
    /// The map's name.
    pub map: &'static str,
    /// What was attempted.
    pub action: &'static str,
    /// What the kernel said; [`FULL`] if there is no room.
    pub reason: String,
}

/// What is said of a map that has no room.
pub const FULL: &str = "the map is full";

impl StoreError {
    /// Whether the map has no room.
    pub fn is_full(&self) -> bool {
        self.reason == FULL
    }
}
