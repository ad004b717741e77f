//! Names: the rows of the cluster zone in the kernel's tables, and the zone's settings.
//!
//! Gives each name a number and a range of records, and writes only what differs. Order makes
//! every moment true for a program that reads meanwhile:
//!
//! 1. names that are new or have other addresses, endpoints before services before namespaces:
//!    when a service is there, all of its endpoints are;
//! 2. names that go, services before endpoints, for the same reason;
//! 3. the zone, which says whether unknown names are denied: not while a row is not written.

use super::pool::{IdPool, RangePool};
use super::{ApplyError, NameStore, Quarantine, StoreError};
use crate::tables::{DnsName, DnsRow, NameRow};
use proxy_ebpf::dns::zone::ZoneFlags;
use proxy_ebpf::dns::{MOST_RECORDS, NameKey, NameValue, Zone};
use proxy_ebpf::{Addr, maps};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Rows that are to be written or removed.
pub(super) type NameDelta = BTreeMap<DnsName, Option<Arc<NameRow>>>;

/// A name that has a number, and its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    number: u32,
    value: NameValue,
}

impl Placed {
    /// The range of the records.
    fn range(&self) -> (u32, u32) {
        (self.value.records(false).0, self.value.len() as u32)
    }
}

/// Keeps the tables of names.
#[derive(Debug)]
pub(super) struct Names {
    placed: HashMap<DnsName, Placed>,
    numbers: IdPool,
    ranges: RangePool,
    /// Rows that could not be written, to be tried again.
    unwritten: NameDelta,
}

impl Names {
    /// Adopts what the maps of `store` hold, and removes what contradicts itself.
    pub(super) fn restore(store: &mut impl NameStore) -> Result<Self, StoreError> {
        let mut placed = HashMap::new();
        let (mut numbers, mut ranges) = (BTreeSet::new(), BTreeMap::new());
        let mut stray = Vec::new();
        for (key, number) in store.names()? {
            let value = store.value(number);
            let row = Placed { number, value };
            let (start, len) = row.range();
            let is_known = (1..maps::DNS_NAMES).contains(&number)
                && value.tag() == key.tag()
                && value.kind().is_some()
                && (len == 0 || is_free(&ranges, start, len));
            match name(&key) {
                Some(name) if is_known && numbers.insert(number) => {
                    if len > 0 {
                        ranges.insert(start, len);
                    }
                    placed.insert(name, row);
                }
                _ => stray.push(key),
            }
        }
        if let Some((_, error)) = store.remove_names(&stray).pop() {
            return Err(error);
        }
        Ok(Self {
            placed,
            numbers: IdPool::new(maps::DNS_NAMES, &numbers),
            ranges: RangePool::new(maps::DNS_RECORDS, &ranges),
            unwritten: NameDelta::new(),
        })
    }

    /// What brings the tables from what they hold to just `rows`.
    pub(super) fn replaced_by(&mut self, mut rows: NameDelta) -> NameDelta {
        self.unwritten.clear();
        let gone = self.placed.keys().filter(|name| !rows.contains_key(*name));
        let gone: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
        rows.extend(gone);
        rows
    }

    /// How many rows wait to be written.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Takes the step `delta`, and tries again what failed before. Returns how many rows that
    /// took.
    pub(super) fn apply(
        &mut self,
        store: &mut impl NameStore,
        delta: NameDelta,
        quarantine: &mut Quarantine,
        errors: &mut Vec<ApplyError>,
    ) -> u64 {
        let mut all = std::mem::take(&mut self.unwritten);
        all.extend(delta);
        let mut writes = 0;
        let mut failed = Failed::default();
        let (kept, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, row)| row.is_some());
        for rows in by_depth(kept, Reverse) {
            writes += self.put(store, rows, quarantine, &mut failed);
        }
        for rows in by_depth(gone, |depth| depth) {
            writes += self.remove(store, rows, quarantine, &mut failed);
        }
        if let Some((first, reason)) = failed.first {
            errors.push(ApplyError::Names { first, others: failed.rows.len() - 1, reason });
        }
        self.unwritten = failed.rows;
        writes
    }

    /// Writes `rows`, all of as many labels.
    fn put(
        &mut self,
        store: &mut impl NameStore,
        rows: Vec<(DnsName, Option<Arc<NameRow>>)>,
        quarantine: &mut Quarantine,
        failed: &mut Failed,
    ) -> u64 {
        let mut writes = 0;
        let mut new = HashMap::new();
        let mut batch = Vec::new();
        for (name, row) in rows {
            // A name that is too long for a key passes, and needs none.
            let (Some(key), Some(row)) = (NameKey::new(&name.0), row) else { continue };
            let old = self.placed.get(&name).copied();
            let placed = match self.place(store, &key, &row, old) {
                Ok(Some(placed)) => placed,
                Ok(None) => continue,
                Err(full) => {
                    failed.add(name, Some(row), full);
                    continue;
                }
            };
            writes += 1;
            store.write_value(placed.number, placed.value);
            match old {
                Some(old) => {
                    quarantine.records.push(old.range());
                    self.placed.insert(name, placed);
                }
                None => {
                    batch.push((key, placed.number));
                    new.insert(key, (name, row, placed));
                }
            }
        }
        for (key, error) in store.put_names(&batch) {
            if let Some((name, row, placed)) = new.remove(&key) {
                writes -= 1;
                quarantine.records.push(placed.range());
                quarantine.names.push(placed.number);
                failed.add(name, Some(row), error);
            }
        }
        self.placed.extend(new.into_values().map(|(name, _, placed)| (name, placed)));
        writes
    }

    /// Gives the name a number and records. `None` if it has just them already.
    fn place(
        &mut self,
        store: &mut impl NameStore,
        key: &NameKey,
        row: &NameRow,
        old: Option<Placed>,
    ) -> Result<Option<Placed>, StoreError> {
        let records = records(row);
        let value = |base| NameValue::new(key, row.kind, base, row.v4.len(), row.v6.len());
        if let Some(old) = old {
            let (base, len) = old.range();
            let holds = || (base..base + len).zip(&records).all(|(at, r)| store.record(at) == *r);
            if old.value == value(base) && store.value(old.number) == old.value && holds() {
                return Ok(None);
            }
        }
        let full = |map| StoreError { map, action: "write", reason: "the map is full".to_owned() };
        let number = match old {
            Some(old) => old.number,
            None => self.numbers.take().ok_or_else(|| full("dns_values"))?,
        };
        let len = records.len() as u32;
        let base = if len == 0 { Some(0) } else { self.ranges.take(len) };
        let Some(base) = base else {
            if old.is_none() {
                self.numbers.release(number);
            }
            return Err(full("dns_records"));
        };
        store.write_records(base, &records);
        Ok(Some(Placed { number, value: value(base) }))
    }

    /// Removes `rows`, all of as many labels.
    fn remove(
        &mut self,
        store: &mut impl NameStore,
        rows: Vec<(DnsName, Option<Arc<NameRow>>)>,
        quarantine: &mut Quarantine,
        failed: &mut Failed,
    ) -> u64 {
        let mut names: BTreeMap<NameKey, DnsName> = rows
            .into_iter()
            .filter(|(name, _)| self.placed.contains_key(name))
            .filter_map(|(name, _)| Some((NameKey::new(&name.0)?, name)))
            .collect();
        let keys: Vec<NameKey> = names.keys().copied().collect();
        for (key, error) in store.remove_names(&keys) {
            if let Some(name) = names.remove(&key) {
                failed.add(name, None, error);
            }
        }
        for name in names.values() {
            if let Some(placed) = self.placed.remove(name) {
                quarantine.records.push(placed.range());
                quarantine.names.push(placed.number);
            }
        }
        names.len() as u64
    }

    /// Frees what no program can still read.
    pub(super) fn release(&mut self, numbers: Vec<u32>, records: Vec<(u32, u32)>) {
        for number in numbers {
            self.numbers.release(number);
        }
        for (start, len) in records.into_iter().filter(|(_, len)| *len > 0) {
            self.ranges.release(start, len);
        }
    }

    /// Forgets what the maps do not hold, and removes what is not known. Returns how many keys
    /// were strange, and the rows of `rows` that are to be written again.
    pub(super) fn drifted(
        &mut self,
        store: &mut impl NameStore,
        rows: &BTreeMap<DnsName, Arc<NameRow>>,
        quarantine: &mut Quarantine,
    ) -> Result<(u64, NameDelta), StoreError> {
        // The table has room for half a million names, all of which is looked at.
        if rows.is_empty() && self.placed.is_empty() {
            return Ok((0, NameDelta::default()));
        }
        let mut numbers = HashSet::new();
        let mut strange = Vec::new();
        for (key, number) in store.names()? {
            match name(&key).and_then(|name| self.placed.get_key_value(&name)) {
                Some((name, placed)) if placed.number == number => {
                    numbers.insert(name.clone());
                }
                _ => strange.push(key),
            }
        }
        if let Some((_, error)) = store.remove_names(&strange).pop() {
            return Err(error);
        }
        // What is forgotten here differs from what is wanted, and so is written again.
        self.placed.retain(|name, placed| {
            let is_there = numbers.contains(name);
            if !is_there {
                quarantine.names.push(placed.number);
                quarantine.records.push(placed.range());
            }
            is_there
        });
        let is_wrong = |(name, row): &(&DnsName, &Arc<NameRow>)| match self.placed.get(*name) {
            None => true,
            Some(placed) => {
                let (base, len) = placed.range();
                store.value(placed.number) != placed.value
                    || !(base..base + len).zip(&records(row)).all(|(at, r)| store.record(at) == *r)
            }
        };
        let wrong = rows.iter().filter(is_wrong);
        let wrong = wrong.filter(|(name, _)| NameKey::new(&name.0).is_some());
        let delta = wrong.map(|(name, row)| (name.clone(), Some(Arc::clone(row)))).collect();
        Ok((strange.len() as u64, delta))
    }

    /// Makes the zone what `row` says, `None` for no answers, until `fresh_until` (in nanoseconds
    /// of the monotonic clock). Unknown names are denied only if all known ones are written.
    pub(super) fn write_zone(
        &self,
        store: &mut impl NameStore,
        row: Option<&DnsRow>,
        fresh_until: u64,
    ) -> Result<(), ApplyError> {
        let old = store.zone();
        let Some(row) = row else {
            if old.flags != ZoneFlags::OFF {
                store.write_zone(&old.off());
            }
            return Ok(());
        };
        let Some(mut zone) = Zone::new(&row.zone, &row.addrs) else {
            store.write_zone(&old.off());
            return Err(ApplyError::Zone(row.zone.clone()));
        };
        if !zone.is_same(&old) {
            store.write_zone(&old.off());
            store.wait().map_err(ApplyError::ZoneInUse)?;
            store.write_zone(&zone);
            // Who then sees that it is on sees this too, on machines that reorder reads as well.
            store.wait().map_err(ApplyError::ZoneInUse)?;
        }
        zone.flags = ZoneFlags::ON;
        if row.deny && self.unwritten.is_empty() {
            zone.flags = zone.flags.with(ZoneFlags::DENY);
        }
        if row.shadow {
            zone.flags = zone.flags.with(ZoneFlags::SHADOW);
        }
        (zone.ttl, zone.serial, zone.fresh_until) = (row.ttl, row.serial, fresh_until);
        store.write_zone(&zone);
        Ok(())
    }
}

/// Rows that could not be written.
#[derive(Default)]
struct Failed {
    rows: NameDelta,
    first: Option<(DnsName, StoreError)>,
}

impl Failed {
    fn add(&mut self, name: DnsName, row: Option<Arc<NameRow>>, reason: StoreError) {
        self.first.get_or_insert_with(|| (name.clone(), reason));
        self.rows.insert(name, row);
    }
}

/// The rows by how many labels their names have, in the order that `order` makes of the numbers.
fn by_depth<O: Ord>(
    rows: Vec<(DnsName, Option<Arc<NameRow>>)>,
    order: impl Fn(usize) -> O,
) -> impl Iterator<Item = Vec<(DnsName, Option<Arc<NameRow>>)>> {
    let mut depths: BTreeMap<O, Vec<_>> = BTreeMap::new();
    for (name, row) in rows {
        let depth = name.0.bytes().filter(|byte| *byte == b'.').count();
        depths.entry(order(depth)).or_default().push((name, row));
    }
    depths.into_values()
}

/// The records of a row: of a family with more addresses than an answer can have, there are none.
fn records(row: &NameRow) -> Vec<Addr> {
    let families = [&row.v4, &row.v6].into_iter().filter(|addrs| addrs.len() <= MOST_RECORDS);
    families.flatten().copied().collect()
}

/// Whether the range is within the records, and none of `ranges` has any of it.
fn is_free(ranges: &BTreeMap<u32, u32>, start: u32, len: u32) -> bool {
    let end = start.saturating_add(len);
    let before = ranges.range(..end).next_back();
    start > 0 && end <= maps::DNS_RECORDS && before.is_none_or(|(other, len)| other + len <= start)
}

/// The name of `key`; `None` if it is none that the agent writes.
fn name(key: &NameKey) -> Option<DnsName> {
    let bytes = key.bytes();
    let mut labels = Vec::new();
    let mut rest = &bytes[..];
    while let Some((&len, behind)) = rest.split_first().filter(|(len, _)| **len > 0) {
        let (label, behind) = behind.split_at_checked(len.into())?;
        labels.push(str::from_utf8(label).ok()?);
        rest = behind;
    }
    let name = labels.join(".");
    (NameKey::new(&name).as_ref() == Some(key)).then(|| DnsName(name.into()))
}

#[cfg(test)]
pub(super) mod tests;
