//! Names over maps in memory, which can be full, broken and changed by strangers; and a reader
//! that looks at them after every write.

use super::*;
use proptest::prelude::*;
use proxy_ebpf::dns::NameKind;
use std::net::IpAddr;

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
