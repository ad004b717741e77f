//! Apply over maps in memory, which can be full, broken and changed by strangers.

mod clients;
mod nat;
mod unwritten;

use super::*;
use crate::nat::NatStep;
use crate::tables::{Family, ServicePortName, ServiceRow, Tables};
use proptest::prelude::*;
use proxy_ebpf::choose::{Caller, Choice, choose};
use proxy_ebpf::dns::{NameKey, NameValue, Zone};
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::service::ServiceInfo;
use proxy_ebpf::slot::{BackendFlags, RangeHeader, Slot};
use proxy_ebpf::source::Source;
use proxy_ebpf::{Addr, End, Port, Proto};

/// Maps in memory, which can be full or broken.
#[derive(Debug, Default, Clone)]
struct Fake {
    slots: BTreeMap<u32, Slot>,
    backends: BTreeMap<BackendId, BackendState>,
    services: BTreeMap<ServiceId, ServiceInfo>,
    frontends: BTreeMap<FrontendKey, FrontendValue>,
    frontend_room: Option<usize>,
    /// How many frontends were to be written.
    tried: usize,
    source_ranges: BTreeSet<(ServiceId, Prefix)>,
    source_room: Option<usize>,
    forgotten: Vec<ServiceId>,
    nat: nat::NatRows,
    nat_writes: usize,
    /// How many elements NAT still takes; with none left, it is broken.
    nat_room: Option<usize>,
    writes: usize,
    names: names::tests::Fake,
}

impl Store for Fake {
    fn slot(&self, index: u32) -> Slot {
        let zero = RangeHeader::from_slot(&empty_slot());
        self.slots.get(&index).copied().unwrap_or_else(|| zero.to_slot())
    }
    fn write_slots(&mut self, index: u32, slots: &[Slot]) {
        self.writes += 1;
        self.slots.extend((index..).zip(slots.iter().copied()));
    }
    fn backend(&self, id: BackendId) -> BackendState {
        self.backends.get(&id).copied().unwrap_or_default()
    }
    fn backends(&self) -> Vec<BackendId> {
        let known = self.backends.iter().filter(|(_, state)| **state != BackendState::default());
        known.map(|(id, _)| *id).collect()
    }
    fn write_backend(&mut self, id: BackendId, state: BackendState) {
        self.writes += 1;
        self.backends.insert(id, state);
    }
    fn services(&self) -> Result<Vec<(ServiceId, ServiceInfo)>, StoreError> {
        Ok(self.services.iter().map(|(id, info)| (*id, *info)).collect())
    }
    fn put_service(&mut self, id: ServiceId, info: &ServiceInfo) -> Result<(), StoreError> {
        self.writes += 1;
        self.services.insert(id, *info);
        Ok(())
    }
    fn remove_service(&mut self, id: ServiceId) -> Result<(), StoreError> {
        self.writes += 1;
        self.services.remove(&id);
        Ok(())
    }
    fn source_ranges(&self) -> Result<Vec<(ServiceId, Prefix)>, StoreError> {
        Ok(self.source_ranges.iter().copied().collect())
    }
    fn put_source_range(&mut self, service: ServiceId, range: Prefix) -> Result<(), StoreError> {
        self.writes += 1;
        if self.source_room.is_some_and(|room| self.source_ranges.len() >= room) {
            let reason = "the map is full".to_owned();
            return Err(StoreError { map: "source_ranges", action: "write", reason });
        }
        self.source_ranges.insert((service, range));
        Ok(())
    }
    fn remove_source_range(&mut self, service: ServiceId, range: Prefix) -> Result<(), StoreError> {
        self.writes += 1;
        self.source_ranges.remove(&(service, range));
        Ok(())
    }
    fn forget_clients(&mut self, services: &BTreeSet<ServiceId>) -> Result<(), StoreError> {
        self.forgotten.extend(services);
        Ok(())
    }
    fn frontends(&mut self) -> Result<(Vec<(FrontendKey, FrontendValue)>, u64), StoreError> {
        Ok((self.frontends.iter().map(|(key, value)| (*key, *value)).collect(), 0))
    }
    fn put_frontends(
        &mut self,
        rows: &[(FrontendKey, FrontendValue)],
    ) -> Vec<(FrontendKey, StoreError)> {
        self.tried += rows.len();
        let mut failed = Vec::new();
        for (key, value) in rows {
            let full = self.frontend_room.is_some_and(|room| self.frontends.len() >= room);
            if full && !self.frontends.contains_key(key) {
                let reason = "the map is full".to_owned();
                let error = StoreError { map: "frontends", action: "write", reason };
                failed.push((*key, error));
            } else {
                self.assert_translated(*value);
                self.writes += 1;
                self.frontends.insert(*key, *value);
            }
        }
        failed
    }
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Vec<(FrontendKey, StoreError)> {
        self.writes += keys.len();
        self.frontends.retain(|key, _| !keys.contains(key));
        Vec::new()
    }
}

impl NameStore for Fake {
    fn names(&self) -> Result<Vec<(NameKey, u32)>, StoreError> {
        self.names.names()
    }
    fn put_names(&mut self, rows: &[(NameKey, u32)]) -> Vec<(NameKey, StoreError)> {
        self.names.put_names(rows)
    }
    fn remove_names(&mut self, keys: &[NameKey]) -> Vec<(NameKey, StoreError)> {
        self.names.remove_names(keys)
    }
    fn value(&self, number: u32) -> NameValue {
        self.names.value(number)
    }
    fn write_value(&mut self, number: u32, value: NameValue) {
        self.names.write_value(number, value);
    }
    fn record(&self, index: u32) -> Addr {
        self.names.record(index)
    }
    fn write_records(&mut self, index: u32, records: &[Addr]) {
        self.names.write_records(index, records);
    }
    fn zone(&self) -> Zone {
        self.names.zone()
    }
    fn write_zone(&mut self, zone: &Zone) {
        self.names.write_zone(zone);
    }
    fn wait(&self) -> Result<(), StoreError> {
        self.names.wait()
    }
}

fn empty_slot() -> Slot {
    let (addr, port) = (Addr::default(), Port::default());
    Slot { addr, port, flags: BackendFlags::default(), backend: BackendId(0) }
}

fn addr(last: u8) -> Addr {
    std::net::IpAddr::from([10, 0, 0, last]).into()
}

fn service(name: &str) -> ServiceKey {
    let port = ServicePortName {
        namespace: "default".into(),
        name: name.into(),
        port: "".into(),
        proto: Proto::TCP,
    };
    ServiceKey { port: port.into(), family: Family::V4 }
}

fn backend(last: u8) -> BackendRow {
    BackendRow { addr: addr(last), port: Port::new(8080) }
}

fn row(cluster: &[u8], draining: &[u8]) -> ServiceRow {
    let chosen = BackendFlags::SERVING.with(BackendFlags::READY).with(BackendFlags::IN_CLUSTER_SET);
    let mut all: BTreeMap<_, _> = cluster.iter().map(|&last| (backend(last), chosen)).collect();
    all.extend(draining.iter().map(|&last| (backend(last), BackendFlags::SERVING)));
    ServiceRow { all: all.into_iter().collect(), ..ServiceRow::default() }
}

fn frontend(last: u8) -> FrontendKey {
    FrontendKey::service(addr(last), Port::new(80), Proto::TCP)
}

/// Tables with one service each, at the frontend of the given number.
fn tables(services: &[(&str, u8, &[u8])]) -> Tables {
    let mut tables = Tables::default();
    for (name, vip, cluster) in services {
        tables.services.insert(service(name), row(cluster, &[]).into());
        let row = FrontendRow { service: service(name), flags: FrontendFlags::NONE };
        tables.frontends.insert(frontend(*vip), row);
    }
    tables
}

fn applier() -> Applier<Fake> {
    Applier::restore(Fake::default()).unwrap()
}

/// What a program would read: the sets behind every frontend, by address.
fn read_back(store: &Fake) -> BTreeMap<FrontendKey, (String, FrontendFlags, Vec<BackendRow>)> {
    let read = |(key, value): (&FrontendKey, &FrontendValue)| {
        assert_eq!(value.tag(), key.tag());
        let header = RangeHeader::from_slot(&store.slot(value.range()));
        let info = store.services[&header.service];
        let slots = (1..=header.cluster).map(|offset| store.slot(value.range() + offset));
        let rows = slots.map(|slot| {
            let state = store.backend(slot.backend);
            assert!(state.serves(header.service, slot.addr, slot.port), "{slot:?}");
            BackendRow { addr: slot.addr, port: slot.port }
        });
        let name = proxy_ebpf::service::unpadded(&info.name).to_owned();
        (*key, (name, value.flags(), rows.collect()))
    };
    store.frontends.iter().map(read).collect()
}

fn wanted(tables: &Tables) -> BTreeMap<FrontendKey, (String, FrontendFlags, Vec<BackendRow>)> {
    let row = |(key, row): (&FrontendKey, &FrontendRow)| {
        let cluster = tables.services[&row.service].with(BackendFlags::IN_CLUSTER_SET);
        (*key, (row.service.port.name.to_string(), row.flags, cluster.collect()))
    };
    tables.frontends.iter().map(row).collect()
}

fn ids(applier: &Applier<Fake>, name: &str) -> BTreeMap<BackendRow, BackendId> {
    applier.services[&service(name)].backends().map(|(backend, id)| (*backend, id)).collect()
}

#[test]
fn what_is_applied_reads_back_and_a_second_time_writes_nothing() {
    let mut applier = applier();
    let tables = tables(&[("web", 1, &[11, 12]), ("api", 2, &[21]), ("empty", 3, &[])]);
    assert_eq!(applier.apply_all(&tables), []);
    assert_eq!(read_back(&applier.store), wanted(&tables));
    let (writes, counted) = (applier.store.writes, applier.writes());
    assert_eq!(applier.apply_all(&tables), []);
    assert_eq!((applier.store.writes, applier.writes()), (writes, counted));
}

#[test]
fn a_live_range_is_never_written() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 12])])), []);
    let old = applier.store.frontends[&frontend(1)];
    let before: Vec<_> = (0..3).map(|offset| applier.store.slot(old.range() + offset)).collect();
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 13])])), []);
    let after: Vec<_> = (0..3).map(|offset| applier.store.slot(old.range() + offset)).collect();
    assert_eq!(before, after, "a program may still read the old range");
    assert_ne!(applier.store.frontends[&frontend(1)].range(), old.range());
    // Even with nothing else free, it is not given out before its readers are gone.
    let quarantine = applier.take_quarantine();
    assert_eq!(quarantine.ranges, [(old.range(), 3)]);
    applier.release(quarantine);
    assert!(applier.take_quarantine().is_empty());
}

#[test]
fn a_backend_keeps_its_id_and_loses_its_state_when_it_goes() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 12])])), []);
    let before = ids(&applier, "web");
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[12, 13])])), []);
    let after = ids(&applier, "web");
    assert_eq!(before[&backend(12)], after[&backend(12)]);
    assert_ne!(before[&backend(11)], after[&backend(13)]);
    assert_eq!(applier.store.backend(before[&backend(11)]), BackendState::default());
}

/// Scenario 96.
#[test]
fn a_draining_backend_is_not_chosen_but_still_serves() {
    let mut applier = applier();
    let mut tables = tables(&[("web", 1, &[11, 12])]);
    assert_eq!(applier.apply_all(&tables), []);
    let before = ids(&applier, "web");
    tables.services.insert(service("web"), row(&[12], &[11]).into());
    assert_eq!(applier.apply_all(&tables), []);
    assert_eq!(read_back(&applier.store), wanted(&tables));
    let state = applier.store.backend(before[&backend(11)]);
    assert!(state.flags().has(BackendFlags::SERVING) && !state.flags().has(BackendFlags::READY));
    let mut restarted = Applier::restore(applier.store).unwrap();
    assert_eq!(restarted.apply_all(&tables), []);
    assert_eq!(ids(&restarted, "web"), before, "its id survives a restart too");
}

/// Scenario 108.
#[test]
fn restart_over_full_maps_writes_nothing_and_removes_what_went_meanwhile() {
    let mut first = applier();
    let world = tables(&[("web", 1, &[11, 12]), ("api", 2, &[21])]);
    assert_eq!(first.apply_all(&world), []);
    let mut second = Applier::restore(first.store.clone()).unwrap();
    let writes = second.store.writes;
    assert_eq!(second.apply_all(&world), []);
    assert_eq!(second.store.writes, writes);

    let meanwhile = tables(&[("web", 1, &[12, 13]), ("new", 5, &[51])]);
    let mut third = Applier::restore(first.store).unwrap();
    assert_eq!(third.apply_all(&meanwhile), []);
    assert_eq!(read_back(&third.store), wanted(&meanwhile));
    assert_eq!(third.store.services.len(), 2);
}

#[test]
fn a_service_can_be_renamed_at_one_frontend_without_a_gap() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&tables(&[("old", 1, &[11])])), []);
    let renamed = tables(&[("new", 1, &[12])]);
    assert_eq!(applier.apply_all(&renamed), []);
    assert_eq!(read_back(&applier.store), wanted(&renamed));
    assert_eq!(applier.services.len(), 1);
}

/// Scenario 111.
#[test]
fn healing_finds_and_undoes_what_a_stranger_did() {
    let mut applier = applier();
    let world = tables(&[("web", 1, &[11, 12]), ("api", 2, &[21])]);
    assert_eq!(applier.apply_all(&world), []);
    assert_eq!(applier.heal(&world).unwrap(), (0, vec![]));

    let range = applier.store.frontends[&frontend(1)].range();
    let id = ids(&applier, "api")[&backend(21)];
    applier.store.slots.insert(range + 1, empty_slot());
    applier.store.frontends.remove(&frontend(2));
    let strange = FrontendValue::new(&frontend(9), range, FrontendFlags::NONE);
    applier.store.frontends.insert(frontend(9), strange);
    applier.store.backends.remove(&id);
    let (repaired, errors) = applier.heal(&world).unwrap();
    assert_eq!(errors, []);
    assert!(repaired >= 4, "{repaired}");
    assert_eq!(read_back(&applier.store), wanted(&world));
    assert_eq!(applier.heal(&world).unwrap(), (0, vec![]));
}

proptest! {
    #[test]
    fn any_sequence_reads_back_with_restarts_in_between(
        steps in proptest::collection::vec(
            (proptest::collection::btree_map(0_u8..4, (0_u8..5, proptest::collection::btree_set(0_u8..6, 0..4)), 0..4), any::<bool>()),
            1..12,
        ),
    ) {
        let mut applier = applier();
        for (services, restart) in steps {
            let mut tables = Tables::default();
            for (name, (vip, cluster)) in services {
                let cluster: Vec<u8> = cluster.into_iter().collect();
                tables.services.insert(service(&format!("s{name}")), row(&cluster, &[]).into());
                let row = FrontendRow { service: service(&format!("s{name}")), flags: FrontendFlags::NONE };
                tables.frontends.insert(frontend(vip), row);
            }
            prop_assert_eq!(applier.apply_all(&tables), vec![]);
            prop_assert_eq!(read_back(&applier.store), wanted(&tables));
            let quarantine = applier.take_quarantine();
            applier.release(quarantine);
            if restart {
                applier = Applier::restore(applier.store).unwrap();
            }
        }
    }
}

#[test]
fn programs_can_choose_from_what_apply_wrote() {
    struct Kernel<'a>(&'a Fake);
    impl proxy_ebpf::choose::Tables for Kernel<'_> {
        fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
            self.0.frontends.get(key).copied()
        }
        fn slot(&self, index: u32) -> Option<Slot> {
            self.0.slots.get(&index).copied()
        }
        fn node_addr(&self, _: &Addr) -> Option<proxy_ebpf::node::NodeAddr> {
            None
        }
        fn admits(&self, _: &Source) -> bool {
            true
        }
    }
    let mut applier = applier();
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 12]), ("empty", 2, &[])])), []);
    let kernel = Kernel(&applier.store);
    let choice = |vip, random| {
        let value = applier.store.frontends[&frontend(vip)];
        choose(&kernel, value, Caller::Internal, random, |_, _| None)
    };
    assert!(matches!(choice(1, 0), Some(Choice::Backend(_, slot)) if slot.addr == addr(11)));
    assert!(matches!(choice(1, u32::MAX), Some(Choice::Backend(_, slot)) if slot.addr == addr(12)));
    assert!(matches!(choice(2, 0), Some(Choice::Refuse(_))));
}
