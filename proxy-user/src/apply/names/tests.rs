//! Names over maps in memory, which can be full, broken and changed by strangers; and a reader
//! that looks at them after every write.

use super::*;
use proptest::prelude::*;
use proxy_ebpf::dns::NameKind;

/// The maps of names in memory, which keep what a program could see after each write.
#[derive(Debug, Default, Clone)]
pub(crate) struct Fake {
    names: BTreeMap<NameKey, u32>,
    values: BTreeMap<u32, NameValue>,
    records: BTreeMap<u32, Addr>,
    zone: Option<Zone>,
    room: Option<usize>,
    fails: bool,
    writes: usize,
    /// What the program answers at each moment: names with their kinds and addresses.
    moments: Vec<BTreeMap<String, (NameKind, Vec<Addr>)>>,
    watched: bool,
}

impl Fake {
    /// What a program sees now.
    fn seen(&self) -> BTreeMap<String, (NameKind, Vec<Addr>)> {
        let row = |(key, number): (&NameKey, &u32)| {
            let value = self.value(*number);
            assert_eq!(value.tag(), key.tag(), "the value is of another name");
            let (base, len) = (value.records(false).0, value.len() as u32);
            let addrs = (base..base + len).map(|index| self.record(index)).collect();
            Some((name(key)?.0.to_string(), (value.kind()?, addrs)))
        };
        self.names.iter().filter_map(row).collect()
    }

    fn wrote(&mut self) {
        self.writes += 1;
        if self.watched {
            let seen = self.seen();
            self.moments.push(seen);
        }
    }
}

impl NameStore for Fake {
    fn names(&self) -> Result<Vec<(NameKey, u32)>, StoreError> {
        Ok(self.names.iter().map(|(key, number)| (*key, *number)).collect())
    }
    fn put_names(&mut self, rows: &[(NameKey, u32)]) -> Vec<(NameKey, StoreError)> {
        let mut failed = Vec::new();
        for (key, number) in rows {
            if self.fails || self.room.is_some_and(|room| self.names.len() >= room) {
                failed.push((*key, full()));
            } else {
                self.names.insert(*key, *number);
                self.wrote();
            }
        }
        failed
    }
    fn remove_names(&mut self, keys: &[NameKey]) -> Vec<(NameKey, StoreError)> {
        if self.fails {
            return keys.iter().map(|key| (*key, full())).collect();
        }
        for key in keys {
            self.names.remove(key);
            self.wrote();
        }
        Vec::new()
    }
    fn value(&self, number: u32) -> NameValue {
        self.values.get(&number).copied().unwrap_or_default()
    }
    fn write_value(&mut self, number: u32, value: NameValue) {
        self.values.insert(number, value);
        self.wrote();
    }
    fn record(&self, index: u32) -> Addr {
        self.records.get(&index).copied().unwrap_or_default()
    }
    fn write_records(&mut self, index: u32, records: &[Addr]) {
        self.records.extend((index..).zip(records.iter().copied()));
        self.wrote();
    }
    fn zone(&self) -> Zone {
        self.zone.unwrap_or(Zone::NONE)
    }
    fn write_zone(&mut self, zone: &Zone) {
        self.zone = Some(*zone);
    }
    fn wait(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn full() -> StoreError {
    StoreError { map: "dns_names", action: "write", reason: "the map is full".to_owned() }
}

/// Names with their kinds and addresses, by number.
type Rows = BTreeMap<&'static str, (NameKind, Vec<u8>)>;

fn rows(rows: &Rows) -> NameDelta {
    let row = |(name, (kind, addrs)): (&&str, &(NameKind, Vec<u8>))| {
        let v4 = addrs.iter().map(|last| addr(*last)).collect();
        (DnsName((*name).into()), Some(Arc::new(NameRow { kind: *kind, v4, v6: vec![] })))
    };
    rows.iter().map(row).collect()
}

fn addr(last: u8) -> Addr {
    std::net::IpAddr::from([10, 0, 0, last]).into()
}

/// A writer over maps in memory.
struct Stage {
    store: Fake,
    names: Names,
    quarantine: Quarantine,
}

impl Stage {
    fn new(mut store: Fake) -> Self {
        let names = Names::restore(&mut store).unwrap();
        Self { store, names, quarantine: Quarantine::default() }
    }

    /// Brings the tables to just `wanted`. Returns how many rows were written, and what failed.
    fn become_all(&mut self, wanted: &Rows) -> (u64, Vec<ApplyError>) {
        let delta = self.names.replaced_by(rows(wanted));
        let mut errors = Vec::new();
        let writes = self.names.apply(&mut self.store, delta, &mut self.quarantine, &mut errors);
        (writes, errors)
    }

    /// Lets the last readers end.
    fn release(&mut self) {
        let Quarantine { names, records, .. } = std::mem::take(&mut self.quarantine);
        self.names.release(names, records);
    }

    fn holds(&self, wanted: &Rows) -> bool {
        let due = wanted.iter().map(|(name, (kind, addrs))| {
            (name.to_string(), (*kind, addrs.iter().map(|last| addr(*last)).collect()))
        });
        self.store.seen() == due.collect()
    }

    fn zone(&mut self, row: Option<&DnsRow>) -> Zone {
        self.names.write_zone(&mut self.store, row, 7).unwrap();
        self.store.zone()
    }
}

fn shop(endpoints: &[u8]) -> Rows {
    let name = ["db-0.db.shop.svc", "db-1.db.shop.svc", "db-2.db.shop.svc", "db-3.db.shop.svc"];
    let mut rows = Rows::from([
        ("shop.svc", (NameKind::Namespace, vec![])),
        ("db.shop.svc", (NameKind::Service, endpoints.to_vec())),
    ]);
    if endpoints.is_empty() {
        drop(rows.remove("db.shop.svc"));
    }
    rows.extend(
        endpoints.iter().map(|last| (name[*last as usize], (NameKind::Endpoint, vec![*last]))),
    );
    rows
}

fn zone() -> DnsRow {
    let zone = "cluster.local".to_owned();
    let addrs = vec![addr(10)];
    DnsRow { zone, ttl: 30, serial: 1, addrs, deny: true, shadow: false }
}

#[test]
fn every_moment_of_a_change_is_true() {
    let mut stage = Stage::new(Fake::default());
    stage.store.watched = true;
    let states: [&[u8]; 7] = [&[0, 1, 2], &[0, 1], &[0, 1, 3], &[], &[3], &[0, 1, 2, 3], &[2]];
    let mut before = Rows::new();
    for endpoints in states {
        let wanted = shop(endpoints);
        let (_, errors) = stage.become_all(&wanted);
        assert_eq!(errors, []);
        assert!(stage.holds(&wanted));
        for moment in std::mem::take(&mut stage.store.moments) {
            for (name, row) in &moment {
                let of = |rows: &Rows| {
                    rows.get(name.as_str()).map(|(kind, addrs)| {
                        (*kind, addrs.iter().map(|last| addr(*last)).collect::<Vec<_>>())
                    })
                };
                let is_true =
                    of(&before).as_ref() == Some(row) || of(&wanted).as_ref() == Some(row);
                assert!(is_true, "{name} has {row:?} on the way to {endpoints:?}");
            }
            if let Some((_, addrs)) = moment.get("db.shop.svc") {
                for addr in addrs {
                    let is_named = |(kind, of): &(NameKind, Vec<Addr>)| {
                        *kind == NameKind::Endpoint && of.contains(addr)
                    };
                    assert!(moment.values().any(is_named), "{addr} has no name in {moment:?}");
                }
            }
            for name in before.keys().filter(|name| wanted.contains_key(*name)) {
                assert!(moment.contains_key(*name), "{name} is gone on the way to {endpoints:?}");
            }
        }
        before = wanted;
        stage.release();
    }
}

#[test]
fn what_a_slow_reader_has_found_does_not_change_before_it_ends() {
    let mut stage = Stage::new(Fake::default());
    drop(stage.become_all(&shop(&[0, 1, 2])));
    let values: Vec<_> = stage.store.values.values().copied().collect();
    let records = stage.store.records.clone();
    for endpoints in [&[0_u8, 1][..], &[], &[3], &[0, 2, 3]] {
        drop(stage.become_all(&shop(endpoints)));
    }
    for value in values {
        let (base, len) = (value.records(false).0, value.len() as u32);
        for index in base..base + len {
            assert_eq!(stage.store.record(index), records[&index], "written while it may be read");
        }
    }
}

#[test]
fn what_is_there_is_not_written_again() {
    let mut stage = Stage::new(Fake::default());
    let wanted = shop(&[0, 1, 2]);
    assert_eq!(stage.become_all(&wanted).0, 5);
    let writes = stage.store.writes;
    assert_eq!(stage.become_all(&wanted), (0, vec![]));
    let mut next = Stage::new(stage.store.clone());
    assert_eq!(next.become_all(&wanted), (0, vec![]), "nor by the next agent");
    assert_eq!((stage.store.writes, next.store.writes), (writes, writes));
}

#[test]
fn the_next_agent_removes_what_went_meanwhile() {
    let mut stage = Stage::new(Fake::default());
    drop(stage.become_all(&shop(&[0, 1, 2])));
    let mut next = Stage::new(stage.store);
    let wanted = shop(&[1]);
    assert_eq!(next.become_all(&wanted), (3, vec![]));
    assert!(next.holds(&wanted));
}

#[test]
fn rows_that_contradict_themselves_are_removed_at_the_start() {
    let mut stage = Stage::new(Fake::default());
    let wanted = shop(&[0, 1]);
    drop(stage.become_all(&wanted));
    let key = |name: &str| NameKey::new(name).unwrap();
    let mut store = stage.store;
    // Two names with one number, a number without a value, records of another name.
    let number = store.names[&key("db.shop.svc")];
    store.names.insert(key("stray.shop.svc"), number);
    store.names.insert(key("other.shop.svc"), 999);
    let base = store.value(number).records(false).0;
    let thief = key("thief.shop.svc");
    store.names.insert(thief, 77);
    store.values.insert(77, NameValue::new(&thief, NameKind::Service, base + 1, 1, 0));
    let mut next = Stage::new(store);
    assert_eq!(next.become_all(&wanted).1, []);
    assert!(next.holds(&wanted));
}

#[test]
fn no_name_is_denied_while_a_row_is_not_written() {
    let mut stage = Stage::new(Fake { room: Some(3), ..Fake::default() });
    let wanted = shop(&[0, 1, 2]);
    let (writes, errors) = stage.become_all(&wanted);
    assert_eq!(writes, 3, "what has room is written");
    assert!(matches!(errors[..], [ApplyError::Names { others: 1, .. }]), "{errors:?}");
    assert!(!stage.zone(Some(&zone())).flags.has(ZoneFlags::DENY));
    stage.store.room = None;
    let mut errors = Vec::new();
    let none = NameDelta::new();
    let writes = stage.names.apply(&mut stage.store, none, &mut stage.quarantine, &mut errors);
    assert_eq!((writes, errors), (2, vec![]), "it is tried again");
    assert!(stage.holds(&wanted));
    assert!(stage.zone(Some(&zone())).flags.has(ZoneFlags::DENY));
}

#[test]
fn a_name_that_cannot_be_removed_is_removed_later() {
    let mut stage = Stage::new(Fake::default());
    drop(stage.become_all(&shop(&[0, 1])));
    stage.store.fails = true;
    let (_, errors) = stage.become_all(&shop(&[0]));
    assert_eq!(errors.len(), 1);
    stage.store.fails = false;
    drop(stage.become_all(&shop(&[0])));
    assert!(stage.holds(&shop(&[0])));
}

#[test]
fn what_a_stranger_has_changed_is_found_and_healed() {
    let mut stage = Stage::new(Fake::default());
    let wanted = shop(&[0, 1, 2]);
    drop(stage.become_all(&wanted));
    let key = |name: &str| NameKey::new(name).unwrap();
    let number = stage.store.names[&key("db-1.db.shop.svc")];
    stage.store.values.insert(number, NameValue::NONE);
    stage.store.names.remove(&key("db-2.db.shop.svc"));
    stage.store.names.insert(key("stranger.shop.svc"), 5);
    let all = rows(&wanted).into_iter().map(|(name, row)| (name, row.unwrap())).collect();
    let (strange, delta) =
        stage.names.drifted(&mut stage.store, &all, &mut stage.quarantine).unwrap();
    assert_eq!((strange, delta.len()), (1, 2));
    let mut errors = Vec::new();
    stage.names.apply(&mut stage.store, delta, &mut stage.quarantine, &mut errors);
    assert!(errors.is_empty() && stage.holds(&wanted));
}

#[test]
fn the_zone_is_off_while_its_name_changes() {
    let mut stage = Stage::new(Fake::default());
    let first = stage.zone(Some(&zone()));
    assert_eq!((first.ttl, first.serial, first.fresh_until), (30, 1, 7));
    assert!(first.flags.has(ZoneFlags::ON.with(ZoneFlags::DENY)));
    let long = DnsRow { zone: "a".repeat(63), ..zone() };
    let error = stage.names.write_zone(&mut stage.store, Some(&long), 7).unwrap_err();
    assert!(error.to_string().contains("62 bytes"), "{error}");
    assert_eq!(stage.store.zone().flags, ZoneFlags::OFF, "not the old one instead");
    assert_eq!(stage.zone(None).flags, ZoneFlags::OFF);
}

proptest! {
    #[test]
    fn any_steps_end_in_just_the_last_state(
        steps in proptest::collection::vec(
            (proptest::collection::btree_set(0_u8..4, 0..5), any::<bool>(), any::<bool>()),
            1..12,
        ),
    ) {
        let mut stage = Stage::new(Fake::default());
        for (endpoints, release, restart) in steps {
            let wanted = shop(&endpoints.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(stage.become_all(&wanted).1, []);
            prop_assert!(stage.holds(&wanted));
            if release {
                stage.release();
            }
            if restart {
                stage = Stage::new(stage.store);
            }
        }
    }
}
