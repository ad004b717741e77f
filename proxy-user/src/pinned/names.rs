//! The names of the cluster zone as the pinned maps hold them, read as the programs read them.

use super::{PinnedError, PinnedMaps};
use proxy_ebpf::Addr;
use proxy_ebpf::dns::decide::{Lookup, Names};
use proxy_ebpf::dns::outcome::counter_index;
use proxy_ebpf::dns::{Kind, NameKey, NameValue, Outcome, Zone};

/// How often queries of one kind ended in one way, over all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameCount {
    /// What was asked for.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome,
    /// How often.
    pub count: u64,
}

impl PinnedMaps {
    /// The zone.
    pub fn zone(&self) -> Result<Zone, PinnedError> {
        self.dns_zone.map.get(&0, 0).map_err(|source| self.dns_zone.unreadable(source))
    }

    /// The addresses of `value` in one family.
    pub fn records(&self, value: NameValue, v6: bool) -> Result<Vec<Addr>, PinnedError> {
        let (base, len) = value.records(v6);
        let record = |index| self.dns_records.map.get(&index, 0);
        let records = (base..).take(len).map(record).collect::<Result<_, _>>();
        records.map_err(|source| self.dns_records.unreadable(source))
    }

    /// The index of the device of the pod that has `addr`; `None` if no pod of this node has it.
    pub fn pod_device(&self, addr: Addr) -> Option<u32> {
        self.pod_addrs.map.get(&addr, 0).ok()
    }

    pub(super) fn name_counts(&self) -> Result<Vec<NameCount>, PinnedError> {
        let table = &self.dns_counters;
        let pairs = Kind::ALL.iter().flat_map(|k| Outcome::ALL.iter().map(move |o| (*k, *o)));
        pairs
            .map(|(kind, outcome)| {
                let per_cpu = table.map.get(&counter_index(kind, outcome), 0);
                let count = per_cpu.map_err(|e| table.unreadable(e))?.iter().sum();
                Ok(NameCount { kind, outcome, count })
            })
            .collect()
    }
}

/// A map that cannot be read makes unsure; the other functions say why.
impl Names for PinnedMaps {
    fn name(&self, key: &NameKey) -> Lookup {
        use aya::maps::MapError;
        let number = match self.dns_names.map.get(key, 0) {
            Ok(number) => number,
            Err(MapError::KeyNotFound) => return Lookup::Absent,
            Err(_) => return Lookup::Unsure,
        };
        match self.dns_values.map.get(&number, 0) {
            Ok(value) if value.tag() == key.tag() => Lookup::Found(value),
            _ => Lookup::Unsure,
        }
    }
}
