//! The node's own tables: its addresses, its devices, and who is told apart by them.
//!
//! Takes all rows of a table; writes the differences. Each table is brought up by itself, and each
//! row: what has no room keeps nothing else from being written. Rows that go make room first.

use super::{Dataplane, LoadError};
use crate::nat::NatNode;
use crate::tables::{NodeRows, Prefix};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapError};
use aya::{Ebpf, Pod};
use proxy_ebpf::Addr;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

/// How many rows were written or removed, or why not all.
type Written = Result<u64, LoadError>;

impl Dataplane {
    /// Makes the node's tables say just what `rows` say. Returns how many rows that took, and what
    /// could not be written.
    pub fn write_node(&mut self, rows: &NodeRows) -> (u64, Vec<LoadError>) {
        let ebpf = &mut self.ebpf;
        let mut written = vec![
            sync_hash(ebpf, "node_addrs", &rows.addrs),
            sync_hash(ebpf, "devices", &rows.devices),
            sync_trie(ebpf, "cluster_cidrs", &rows.cluster_cidrs),
            sync_hash(ebpf, "pod_addrs", &rows.pod_addrs),
        ];
        if let Some(cidrs) = &rows.service_cidrs {
            self.addr_filter.lock().cover(cidrs);
            written.push(sync_trie(ebpf, "service_cidrs", cidrs));
        }
        let service_networks = rows.service_cidrs.iter().flatten();
        let node = NatNode {
            sources: rows.sources.clone(),
            service_networks: service_networks.filter_map(|prefix| prefix.network()).collect(),
        };
        written.push(self.nat.lock().write_node(node).map(u64::from).map_err(LoadError::Nat));
        let mut rows = 0;
        let mut errors = Vec::new();
        for table in written {
            match table {
                Ok(count) => rows += count,
                Err(error) => errors.push(error),
            }
        }
        (rows, errors)
    }

    /// Makes the socket path leave alone just the pods with these `cgroups`.
    pub fn write_opted_out(&mut self, cgroups: &BTreeSet<u64>) -> Result<(), LoadError> {
        let rows: BTreeMap<u64, u32> = cgroups.iter().map(|&id| (id, 1)).collect();
        let _written = sync_hash(&mut self.ebpf, "opted_out", &rows)?;
        let failed = |e| LoadError::Map("opt_outs", e);
        let map = self.ebpf.map_mut("opt_outs");
        let map = map.ok_or_else(|| LoadError::Missing("opt_outs".to_owned()))?;
        let mut map: Array<_, u32> = map.try_into().map_err(failed)?;
        map.set(0, cgroups.len() as u32, 0).map_err(failed)
    }
}

/// Makes the hash map `name` say just what `rows` say.
fn sync_hash<K, V>(ebpf: &mut Ebpf, name: &'static str, rows: &BTreeMap<K, V>) -> Written
where
    K: Pod + Ord + Debug,
    V: Pod + PartialEq,
{
    let failed = |e| LoadError::Map(name, e);
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
    let mut map: aya::maps::HashMap<_, K, V> = map.try_into().map_err(failed)?;
    let known: BTreeMap<K, V> = map.iter().filter_map(Result::ok).collect();
    let gone = known.keys().filter(|key| !rows.contains_key(key)).map(|key| (key, None));
    let new = rows.iter().filter(|(key, value)| known.get(key) != Some(value));
    let new = new.map(|(key, value)| (key, Some(value)));
    write_rows(
        name,
        gone.chain(new),
        |key| format!("{key:?}"),
        |key, value| match value {
            Some(value) => map.insert(key, value, 0),
            None => map.remove(key),
        },
    )
}

/// Makes the trie `name` say just `wanted`.
fn sync_trie(ebpf: &mut Ebpf, name: &'static str, wanted: &BTreeSet<Prefix>) -> Written {
    let failed = |e| LoadError::Map(name, e);
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
    let mut map: LpmTrie<_, Addr, u32> = map.try_into().map_err(failed)?;
    let prefix = |key: Key<Addr>| Prefix { addr: key.data(), bits: key.prefix_len() };
    let known: BTreeSet<Prefix> = map.keys().filter_map(Result::ok).map(prefix).collect();
    let gone = known.difference(wanted).map(|prefix| (prefix, None));
    let new = wanted.difference(&known).map(|prefix| (prefix, Some(())));
    let network = |prefix: &Prefix| prefix.network().map_or_else(String::new, shown);
    write_rows(name, gone.chain(new), network, |prefix, value| {
        let key = Key::new(prefix.bits, prefix.addr);
        match value {
            Some(()) => map.insert(&key, 1, 0),
            None => map.remove(&key),
        }
    })
}

fn shown(value: impl Display) -> String {
    value.to_string()
}

/// Writes each of `rows` with `write`, `None` to remove it.
fn write_rows<'a, K: 'a, V>(
    map: &'static str,
    rows: impl Iterator<Item = (&'a K, Option<V>)>,
    show: impl Fn(&K) -> String,
    mut write: impl FnMut(&K, Option<V>) -> Result<(), MapError>,
) -> Written {
    let mut written = 0;
    let mut failed: Option<(usize, String, MapError)> = None;
    for (key, value) in rows {
        match (write(key, value), &mut failed) {
            (Ok(()), _) => written += 1,
            (Err(_), Some((count, ..))) => *count += 1,
            (Err(error), None) => failed = Some((1, show(key), error)),
        }
    }
    match failed {
        None => Ok(written),
        Some((count, first, source)) => {
            Err(LoadError::Rows { map, count, first, source: Box::new(source) })
        }
    }
}
