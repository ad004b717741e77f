//! The pinned maps, read-only: what the kernel programs act on, with or without an agent.
//!
//! Takes the root of a BPF file system; gives the maps' contents as the contract's own types.
//! Never writes to a map, and never asks an agent.

mod counters;
mod names;
mod range;

pub use counters::{Counters, Fill, NoLocal, OutcomeCount, ServiceCount};
pub use names::NameCount;
pub use range::Range;

use crate::loader::{pin_directory, sys};
use crate::tables::Prefix;
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use aya::util::nr_cpus;
use ipnetwork::IpNetwork;
use proxy_ebpf::Addr;
use proxy_ebpf::choose::Tables;
use proxy_ebpf::dns::{NameKey, NameValue, Zone};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::maps::LAYOUT;
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendId, BackendState, RangeHeader, Slot};
use proxy_ebpf::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Why the pinned maps could not be read.
#[derive(thiserror::Error, Debug)]
pub enum PinnedError {
    /// The directory of the maps does not exist.
    #[error(
        "no maps are pinned in {}: no agent has run on this node since it booted, or its BPF file \
         system is elsewhere (--bpffs-root)", .dir.display()
    )]
    NothingPinned {
        /// Where the maps were looked for.
        dir: PathBuf,
    },
    /// There are maps, but of other layouts.
    #[error(
        "the maps in {} have the layout {found}, and this is a shunt for {LAYOUT}: use the shunt \
         of the agent's version", .dir.display()
    )]
    OtherLayout {
        /// The directory that holds one directory for each layout.
        dir: PathBuf,
        /// The layouts that are there.
        found: String,
    },
    /// The kernel does not let this process see the maps.
    #[error("reading {} is not permitted: run as root", .path.display())]
    NotPermitted {
        /// What was to be read.
        path: PathBuf,
    },
    /// A map could not be opened.
    #[error(
        "cannot open the pinned map {}: if an agent is starting, try again; otherwise `shunt \
         cleanup` and a new agent make the maps anew", .path.display()
    )]
    Open {
        /// The pin.
        path: PathBuf,
        /// What the kernel or aya said.
        #[source]
        source: Box<MapError>,
    },
    /// A map was opened but could not be read.
    #[error("cannot read the map {map}")]
    Read {
        /// The map's name.
        map: &'static str,
        /// What the kernel or aya said.
        #[source]
        source: Box<MapError>,
    },
    /// The directory could not be read for another reason.
    #[error("cannot read {}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// The pinned maps, open.
pub struct PinnedMaps {
    frontends: Table<HashMap<MapData, FrontendKey, FrontendValue>>,
    slots: Table<Array<MapData, Slot>>,
    backends: Table<Array<MapData, BackendState>>,
    services: Table<HashMap<MapData, ServiceId, ServiceInfo>>,
    node_addrs: Table<HashMap<MapData, Addr, NodeAddr>>,
    cluster_cidrs: Table<LpmTrie<MapData, Addr, u32>>,
    service_cidrs: Table<LpmTrie<MapData, Addr, u32>>,
    source_ranges: Table<LpmTrie<MapData, Source, u32>>,
    devices: Table<HashMap<MapData, u32, Device>>,
    service_counters: Table<PerCpuArray<MapData, ServiceCounters>>,
    outcomes: Table<PerCpuArray<MapData, u64>>,
    dns_zone: Table<Array<MapData, Zone>>,
    dns_names: Table<HashMap<MapData, NameKey, u32>>,
    dns_values: Table<Array<MapData, NameValue>>,
    dns_records: Table<Array<MapData, Addr>>,
    dns_counters: Table<PerCpuArray<MapData, u64>>,
    pod_addrs: Table<HashMap<MapData, Addr, u32>>,
}

/// A map with the name and the size it was made with.
struct Table<M> {
    name: &'static str,
    map: M,
    max: u32,
    fd: OwnedFd,
}

impl PinnedMaps {
    /// Opens the maps below `bpffs_root`, which is `/sys/fs/bpf` on most nodes.
    pub fn open(bpffs_root: &Path) -> Result<Self, PinnedError> {
        let dir = pin_directory(bpffs_root);
        check(&dir)?;
        Ok(Self {
            frontends: Table::open(&dir, "frontends")?,
            slots: Table::open(&dir, "slots")?,
            backends: Table::open(&dir, "backends")?,
            services: Table::open(&dir, "services")?,
            node_addrs: Table::open(&dir, "node_addrs")?,
            cluster_cidrs: Table::open(&dir, "cluster_cidrs")?,
            service_cidrs: Table::open(&dir, "service_cidrs")?,
            source_ranges: Table::open(&dir, "source_ranges")?,
            devices: Table::open(&dir, "devices")?,
            service_counters: Table::open(&dir, "service_counters")?,
            outcomes: Table::open(&dir, "outcomes")?,
            dns_zone: Table::open(&dir, "dns_zone")?,
            dns_names: Table::open(&dir, "dns_names")?,
            dns_values: Table::open(&dir, "dns_values")?,
            dns_records: Table::open(&dir, "dns_records")?,
            dns_counters: Table::open(&dir, "dns_counters")?,
            pod_addrs: Table::open(&dir, "pod_addrs")?,
        })
    }

    /// All frontends. An element that the kernel gave to another key while it was read is left
    /// out (see [`FrontendKey::tag`]).
    pub fn frontends(&self) -> Result<BTreeMap<FrontendKey, FrontendValue>, PinnedError> {
        let mut all = self.frontends.entries()?;
        all.retain(|key, value: &mut FrontendValue| value.tag() == key.tag());
        Ok(all)
    }

    /// All service ports.
    pub fn services(&self) -> Result<BTreeMap<ServiceId, ServiceInfo>, PinnedError> {
        self.services.entries()
    }

    /// The addresses of this node.
    pub fn node_addrs(&self) -> Result<BTreeMap<Addr, NodeAddr>, PinnedError> {
        self.node_addrs.entries()
    }

    /// The prefixes of the pods' addresses.
    pub fn cluster_cidrs(&self) -> Result<Vec<IpNetwork>, PinnedError> {
        self.cluster_cidrs.networks()
    }

    /// The networks that ClusterIPs are taken from.
    pub fn service_cidrs(&self) -> Result<Vec<IpNetwork>, PinnedError> {
        self.service_cidrs.networks()
    }

    /// The networks that the restricted frontends of services are open to.
    pub fn source_ranges(&self) -> Result<BTreeMap<ServiceId, BTreeSet<IpNetwork>>, PinnedError> {
        let table = &self.source_ranges;
        let mut ranges: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for key in table.map.keys().take(2 * table.max as usize) {
            let key = key.map_err(|source| table.unreadable(source))?;
            let Source { service, addr } = key.data();
            let bits = key.prefix_len().saturating_sub(Source::SERVICE_BITS);
            ranges.entry(service).or_default().extend(Prefix { addr, bits }.network());
        }
        Ok(ranges)
    }

    /// The devices of the packet path, by interface index.
    pub fn devices(&self) -> Result<BTreeMap<u32, Device>, PinnedError> {
        self.devices.entries()
    }

    /// The state of the backend `id`; the zero state if there is none.
    pub fn backend(&self, id: BackendId) -> Result<BackendState, PinnedError> {
        self.backends.map.get(&id.0, 0).map_err(|source| self.backends.unreadable(source))
    }

    /// What all services have carried, over all CPUs, by the number of their ids.
    pub fn service_counters(&self) -> Result<Vec<ServiceCounters>, PinnedError> {
        self.service_counters.sums(|sum: ServiceCounters, cpu| ServiceCounters {
            connections: sum.connections + cpu.connections,
            refused: sum.refused + cpu.refused,
            datagrams: sum.datagrams + cpu.datagrams,
        })
    }

    /// The ranges that `frontends` name, by the index of their headers; reads nothing else of
    /// the slot array. A frontend that moves meanwhile is brought up to date, one that goes is
    /// removed.
    pub fn ranges(
        &self,
        frontends: &mut BTreeMap<FrontendKey, FrontendValue>,
    ) -> Result<BTreeMap<u32, Range>, PinnedError> {
        let now = |key: &FrontendKey| self.frontend(key).filter(|value| value.tag() == key.tag());
        range::of(frontends, |index| self.range(index), now)
    }

    fn range(&self, index: u32) -> Result<Range, PinnedError> {
        let read = |index| self.slots.map.get(&index, 0).map_err(|e| self.slots.unreadable(e));
        let header = self.header(index)?;
        // A header that was overwritten while it was read may promise more than there is.
        let counts = [header.cluster, header.local, header.draining].map(u64::from);
        let end = u64::from(index) + 1 + counts.iter().sum::<u64>();
        let end = end.min(self.slots.max.into()) as u32;
        let slots = (index + 1..end).map(read).collect::<Result<_, _>>()?;
        Ok(Range { header, slots })
    }

    fn header(&self, index: u32) -> Result<RangeHeader, PinnedError> {
        let slot = self.slots.map.get(&index, 0).map_err(|e| self.slots.unreadable(e))?;
        Ok(RangeHeader::from_slot(&slot))
    }
}

/// A map that cannot be read holds nothing here; the other functions say why.
impl Tables for PinnedMaps {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.map.get(key, 0).ok()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.map.get(&index, 0).ok()
    }

    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.node_addrs.map.get(addr, 0).ok()
    }

    fn admits(&self, source: &Source) -> bool {
        self.source_ranges.map.get(&Key::new(Source::BITS, *source), 0).is_ok()
    }
}

impl<M: TryFrom<Map, Error = MapError>> Table<M> {
    fn open(dir: &Path, name: &'static str) -> Result<Self, PinnedError> {
        let path = dir.join(name);
        let open = || -> Result<_, MapError> {
            let data = MapData::from_pin(&path)?;
            let max = data.info()?.max_entries();
            let fd = data.fd().as_fd().try_clone_to_owned()?;
            Ok(Self { name, max, fd, map: Map::from_map_data(data)?.try_into()? })
        };
        open().map_err(|source| match &source {
            MapError::SyscallError(error)
                if error.io_error.kind() == ErrorKind::PermissionDenied =>
            {
                PinnedError::NotPermitted { path: path.clone() }
            }
            _ => PinnedError::Open { path: path.clone(), source: Box::new(source) },
        })
    }
}

impl<M> Table<M> {
    fn unreadable(&self, source: MapError) -> PinnedError {
        PinnedError::Read { map: self.name, source: Box::new(source) }
    }
}

impl Table<LpmTrie<MapData, Addr, u32>> {
    fn networks(&self) -> Result<Vec<IpNetwork>, PinnedError> {
        let mut networks = BTreeSet::new();
        for key in self.map.keys().take(2 * self.max as usize) {
            let key = key.map_err(|source| self.unreadable(source))?;
            // The agent writes whole prefixes, so no key is left out.
            networks.extend(Prefix { addr: key.data(), bits: key.prefix_len() }.network());
        }
        Ok(networks.into_iter().collect())
    }
}

impl<V: Pod + Default> Table<PerCpuArray<MapData, V>> {
    /// Each element, added up over the CPUs: a few system calls for all.
    fn sums(&self, add: impl Fn(V, &V) -> V) -> Result<Vec<V>, PinnedError> {
        let cpus = nr_cpus().map_err(|(_, error)| self.unreadable(error.into()))?;
        let mut sums = Vec::with_capacity(self.max as usize);
        let visit = |cpus: &[V]| sums.push(cpus.iter().fold(V::default(), &add));
        sys::per_cpu_elements(self.fd.as_fd(), cpus, visit)
            .map_err(|error| self.unreadable(error.into()))?;
        Ok(sums)
    }
}

impl<K: Pod + Ord, V: Pod> Table<HashMap<MapData, K, V>> {
    fn entries(&self) -> Result<BTreeMap<K, V>, PinnedError> {
        let entries = sys::entries(self.fd.as_fd()).map_err(|e| self.unreadable(e.into()))?;
        Ok(entries.into_iter().collect())
    }

    /// Walks over the keys, which takes no memory for a large map. A walk starts again when the
    /// entry it stands on is deleted, so it is bounded.
    fn len(&self) -> Result<u32, PinnedError> {
        let mut len = 0;
        for key in self.map.keys().take(self.max as usize) {
            key.map_err(|source| self.unreadable(source))?;
            len += 1;
        }
        Ok(len)
    }
}

/// Says what is wrong if `dir` is not there.
fn check(dir: &Path) -> Result<(), PinnedError> {
    let failed = |path: &Path, error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => PinnedError::NothingPinned { dir: dir.into() },
        ErrorKind::PermissionDenied => PinnedError::NotPermitted { path: path.into() },
        _ => PinnedError::Directory { path: path.into(), source: error },
    };
    match std::fs::metadata(dir) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(dir, error)),
    }
    let parent = dir.parent().unwrap_or(dir);
    let listing = std::fs::read_dir(parent).map_err(|error| failed(parent, error))?;
    let mut found: Vec<String> = listing
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok()))
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(PinnedError::NothingPinned { dir: dir.into() });
    }
    Err(PinnedError::OtherLayout { dir: parent.into(), found: found.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(root: &Path) -> String {
        PinnedMaps::open(root).err().expect("there are no maps").to_string()
    }

    #[test]
    fn error_names_the_directory_and_the_flag_when_nothing_is_pinned() {
        let root = tempfile::tempdir().unwrap();
        let dir = pin_directory(root.path()).display().to_string();
        for made in ["", "shunt"] {
            std::fs::create_dir_all(root.path().join(made)).unwrap();
            let error = opened(root.path());
            assert!(error.contains(&dir) && error.contains("--bpffs-root"), "{error}");
        }
    }

    #[test]
    fn error_names_the_layouts_that_are_there() {
        let root = tempfile::tempdir().unwrap();
        for layout in ["v0", "v9", "links"] {
            std::fs::create_dir_all(root.path().join("shunt").join(layout)).unwrap();
        }
        let error = opened(root.path());
        assert!(
            error.contains("v0, v9, and") && error.contains(&format!("for {LAYOUT}")),
            "{error}"
        );
    }

    #[test]
    fn error_names_the_map_that_is_no_map() {
        let root = tempfile::tempdir().unwrap();
        let dir = pin_directory(root.path());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("frontends"), "").unwrap();
        let error = opened(root.path());
        assert!(error.contains(&format!("{LAYOUT}/frontends")), "{error}");
    }
}
