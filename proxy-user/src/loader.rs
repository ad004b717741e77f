//! Loader: brings the kernel programs into the kernel and attaches them.
//!
//! Takes the embedded object and the agent's settings; gives the maps, pinned, and the programs,
//! attached by pinned links, so that both outlive the agent. Adopts what an earlier agent left:
//! maps are used again, links get the new programs in one atomic step. Never touches a program
//! or link that is not in its own directory.

pub mod cgroups;
pub mod devices;
pub mod diag;
mod filter;
mod flows;
pub mod links;
mod netlink;
pub mod nft;
pub mod store;
pub mod sys;

pub use flows::FlowTable;

use crate::tables::{NodeRows, Prefix};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapInfo};
use aya::programs::{CgroupSockAddr, Iter, Program, ProgramError, ProgramFd, SchedClassifier};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, Pod};
use filter::SharedFilter;
use proxy_ebpf::Addr;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::dns::{self, NameKey, NameValue, Zone};
use proxy_ebpf::filter::{ADDR_WORDS, FLOW_ELEMENTS};
use proxy_ebpf::flow::{End, FlowKey, FlowValue};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::maps::{self, globals};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::outcome::COUNTERS;
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendState, Slot};
use proxy_ebpf::socket::{TCP_PEERS, TcpPeer, UdpPeers};
use proxy_ebpf::source::Source;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// The programs of the socket path, all attached to the cgroup root.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// The programs of the packet path.
pub const PACKET_PROGRAMS: [&str; 4] = ["ingress", "egress", "ingress_bare", "egress_bare"];

/// The iterator over what is remembered of UDP sockets.
const SOCKET_LISTER: &str = "udp_sockets";
/// The program that answers pods' queries of names.
pub const NAMES_PROGRAM: &str = "names";

/// The kernel programs, as built with this binary.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs"));

/// What the programs are loaded with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the BPF file system is mounted.
    pub bpffs_root: PathBuf,
    /// The ports among which NodePorts are looked for.
    pub node_ports: NodePortRange,
    /// Whether backends of ClusterIPs see the node's address instead of the client's.
    pub masquerade_all: bool,
    /// The ports that SNAT takes.
    pub snat_ports: RangeInclusive<u16>,
    /// The level up to which the programs log, if they do.
    pub log_level: Option<aya_log::Level>,
    /// How often the kernel answers a pod's queries of names.
    pub dns_limit: DnsLimit,
}

/// How often the kernel answers one pod's queries of names; what is beyond goes on to the DNS
/// service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsLimit {
    /// Answers in a second, for ever; 0 for no limit.
    pub rate: u32,
    /// Answers at once.
    pub burst: u32,
}

impl Default for DnsLimit {
    /// About a tenth of what one CPU can answer.
    fn default() -> Self {
        Self { rate: 20_000, burst: 20_000 }
    }
}

impl DnsLimit {
    /// The time between two answers, and how far a pod may be ahead, in nanoseconds.
    fn nanoseconds(self) -> (u64, u64) {
        let interval = 1_000_000_000_u64.checked_div(self.rate.into()).unwrap_or(0);
        (interval, interval * u64::from(self.burst))
    }
}

/// What went wrong while programs were loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory for pins cannot be made.
    #[error(
        "cannot make {0}: is a BPF file system mounted at --bpffs-root (`mount -t bpf bpf DIR`), \
         and may this process write to it?"
    )]
    PinDirectory(PathBuf, #[source] io::Error),
    /// A pinned map has another layout.
    #[error(
        "the pinned map {0} has another layout than this version's; run `shunt cleanup` once, \
         which interrupts service, and start again"
    )]
    Layout(PathBuf),
    /// The object was refused.
    #[error(
        "the kernel programs cannot be loaded: this needs Linux 6.6 or later with BTF, and root or \
         the capabilities BPF, NET_ADMIN and PERFMON"
    )]
    Object(#[source] EbpfError),
    /// A program was refused.
    #[error(
        "the kernel refuses the program `{0}`: this needs Linux 6.6 or later, and root or the \
         capabilities BPF, NET_ADMIN and PERFMON"
    )]
    Program(&'static str, #[source] ProgramError),
    /// Something is missing from the object.
    #[error("`{0}` is missing from the embedded programs: the binary was built wrong")]
    Missing(String),
    /// A kernel call failed.
    #[error("cannot {0}")]
    Kernel(&'static str, #[source] io::Error),
    /// A link cannot be attached.
    #[error("cannot attach `{program}` to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup or device.
        target: String,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// A pinned link cannot be read, made or removed.
    #[error("cannot {action} the pinned link {path}")]
    Pin {
        /// What was attempted.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map cannot be used.
    #[error("cannot read or write the map `{0}`")]
    Map(&'static str, #[source] aya::maps::MapError),
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct Dataplane {
    ebpf: Ebpf,
    pins: PathBuf,
    addr_filter: SharedFilter,
}

/// The directory that holds everything of one layout below the BPF file system.
pub fn pin_directory(bpffs_root: &Path) -> PathBuf {
    bpffs_root.join("shunt").join(maps::LAYOUT)
}

/// Removes every pin of every layout below `bpffs_root`: programs are detached, maps go. Does
/// nothing if there is nothing. An error of kind `ResourceBusy` if an agent runs, which would make
/// everything again, unless `force`.
pub fn cleanup(bpffs_root: &Path, force: bool) -> io::Result<()> {
    let busy = || File::open(pin_directory(bpffs_root)).is_ok_and(|pins| pins.try_lock().is_err());
    if !force && busy() {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    // The kernel lets go of a removed pin's link some time later; this is at once.
    for link in links::pins(&pin_directory(bpffs_root)) {
        if let Some(link) = sys::open_pin(&link)? {
            match sys::detach_link(link.as_fd()) {
                // What it was attached to is gone already.
                Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => return Err(error),
                _ => {}
            }
        }
    }
    match std::fs::remove_dir_all(bpffs_root.join("shunt")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Dataplane {
    /// Loads all programs, with the pinned maps if there are any.
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        let pins = pin_directory(&settings.bpffs_root);
        let links = pins.join("links");
        std::fs::create_dir_all(&links).map_err(|e| LoadError::PinDirectory(links, e))?;
        check_layout(&pins)?;

        let cookie = sys::netns_cookie()
            .map_err(|e| LoadError::Kernel("read the cookie of the network namespace", e))?;
        let log_level = settings.log_level.map_or(0, |level| level as u8);
        let masquerade_all = u8::from(settings.masquerade_all);
        let dns = settings.dns_limit.nanoseconds();
        let snat = (*settings.snat_ports.start(), *settings.snat_ports.end());
        let mut loader = EbpfLoader::new();
        loader
            .override_global(globals::HOST_NETNS_COOKIE, &cookie, true)
            .override_global(globals::NODE_PORT_FIRST, &settings.node_ports.first, true)
            .override_global(globals::NODE_PORT_LAST, &settings.node_ports.last, true)
            .override_global(globals::MASQUERADE_ALL, &masquerade_all, true)
            .override_global(globals::SNAT_PORT_FIRST, &snat.0, true)
            .override_global(globals::SNAT_PORT_LAST, &snat.1, true)
            .override_global(globals::DNS_INTERVAL, &dns.0, true)
            .override_global(globals::DNS_BURST, &dns.1, true)
            .override_global(aya_log::LEVEL, &log_level, false);
        for name in maps::NAMES {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::Object)?;
        for name in SOCKET_PROGRAMS {
            socket_program(&mut ebpf, name)?.load().map_err(|e| LoadError::Program(name, e))?;
        }
        for name in PACKET_PROGRAMS.into_iter().chain([NAMES_PROGRAM]) {
            packet_program(&mut ebpf, name)?.load().map_err(|e| LoadError::Program(name, e))?;
        }
        let Some(Map::Array(filter)) = ebpf.map("addr_filter") else {
            return Err(LoadError::Missing("addr_filter".to_owned()));
        };
        let addr_filter = SharedFilter::new(filter.fd().as_fd())?;
        let btf = Btf::from_sys_fs().map_err(|e| LoadError::Object(e.into()))?;
        lister(&mut ebpf)?
            .load("bpf_sk_storage_map", &btf)
            .map_err(|e| LoadError::Program(SOCKET_LISTER, e))?;
        Ok(Self { ebpf, pins, addr_filter })
    }

    /// Hands out the maps that services are written to; once.
    pub fn take_store(&mut self) -> Result<store::MapStore, LoadError> {
        store::MapStore::new(&mut self.ebpf, self.addr_filter.clone())
    }

    /// Hands out the programs' log; once. Silent unless the loader has set a level.
    pub fn take_log(
        &mut self,
    ) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }

    /// Makes the maps of the node's addresses and devices say just what `rows` say. Returns how
    /// many rows were written or removed.
    pub fn write_node(&mut self, rows: &NodeRows) -> Result<u64, LoadError> {
        let addrs = sync_hash(&mut self.ebpf, "node_addrs", &rows.addrs)?;
        let devices = sync_hash(&mut self.ebpf, "devices", &rows.devices)?;
        let bridges = sync_hash(&mut self.ebpf, "bridges", &rows.bridges)?;
        let cidrs = match &rows.service_cidrs {
            Some(cidrs) => {
                self.addr_filter.lock().cover(cidrs);
                sync_trie(&mut self.ebpf, "service_cidrs", cidrs)?
            }
            None => 0,
        };
        let networks = sync_trie(&mut self.ebpf, "cluster_cidrs", &rows.cluster_cidrs)?;
        let pods = sync_hash(&mut self.ebpf, "pod_addrs", &rows.pod_addrs)?;
        Ok(addrs + devices + bridges + cidrs + networks + pods)
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

    /// The loaded programs and their names, to be measured or run on made packets.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.ebpf.programs()
    }

    /// What the socket path remembers of UDP sockets, to be read apart from everything else.
    pub fn socket_table(&self) -> Result<SocketTable, LoadError> {
        let Some(Map::SkStorage(map)) = self.ebpf.map("udp_peers") else {
            return Err(LoadError::Missing("udp_peers".to_owned()));
        };
        let again = |e| LoadError::Kernel("open the UDP peers once more", e);
        let peers = map.fd().as_fd().try_clone_to_owned().map_err(again)?;
        let lister = program_fd(&self.ebpf, SOCKET_LISTER)?.as_fd();
        Ok(SocketTable { peers, lister: lister.try_clone_to_owned().map_err(again)? })
    }

    /// The table of flows, to be read and swept apart from everything else.
    pub fn flow_table(&self) -> Result<FlowTable, LoadError> {
        let Some(Map::LruHashMap(map)) = self.ebpf.map("flows") else {
            return Err(LoadError::Missing("flows".to_owned()));
        };
        let Some(Map::Array(filter)) = self.ebpf.map("flow_filter") else {
            return Err(LoadError::Missing("flow_filter".to_owned()));
        };
        FlowTable::open(map.fd().as_fd(), filter.fd().as_fd())
    }
}

/// What the socket path remembers of UDP sockets, in every network namespace.
#[derive(Debug)]
pub struct SocketTable {
    peers: OwnedFd,
    lister: OwnedFd,
}

impl SocketTable {
    /// What is remembered, by the sockets' cookies.
    pub fn udp_peers(&self) -> Result<HashMap<u64, UdpPeers>, LoadError> {
        const COOKIE: usize = size_of::<u64>();
        let failed = |e| LoadError::Kernel("list the sockets that are remembered", e);
        let mut bytes = Vec::new();
        sys::map_iterator(self.lister.as_fd(), self.peers.as_fd())
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(failed)?;
        let row = |row: &[u8]| Some((sys::read_plain(row)?, sys::read_plain(row.get(COOKIE..)?)?));
        Ok(bytes.chunks_exact(COOKIE + size_of::<UdpPeers>()).filter_map(row).collect())
    }
}

/// Locks the pins below `bpffs_root` for as long as the result is open; `None` if another agent
/// has them.
pub fn try_lock(bpffs_root: &Path) -> Result<Option<File>, LoadError> {
    let pins = pin_directory(bpffs_root);
    let open = || {
        std::fs::create_dir_all(&pins)?;
        File::open(&pins)
    };
    let directory = open().map_err(|e| LoadError::PinDirectory(pins.clone(), e))?;
    Ok(directory.try_lock().is_ok().then_some(directory))
}

/// aya takes a pinned map as it is; a map of another shape would be read as nonsense, or make
/// the verifier refuse the programs.
fn check_layout(pins: &Path) -> Result<(), LoadError> {
    for name in maps::NAMES {
        let path = pins.join(name);
        let Some(shape) = shape(name).filter(|_| path.exists()) else { continue };
        let info = MapInfo::from_pin(&path).map_err(|e| LoadError::Map(name, e))?;
        if shape != (info.key_size(), info.value_size(), info.max_entries()) {
            return Err(LoadError::Layout(path));
        }
    }
    Ok(())
}

/// Key size, value size (both in bytes) and capacity of a pinned map.
fn shape(name: &str) -> Option<(u32, u32, u32)> {
    const fn of<K, V>(capacity: u32) -> Option<(u32, u32, u32)> {
        Some((size_of::<K>() as u32, size_of::<V>() as u32, capacity))
    }
    match name {
        "frontends" => of::<FrontendKey, FrontendValue>(maps::FRONTENDS),
        "slots" => of::<u32, Slot>(maps::SLOTS),
        "backends" => of::<u32, BackendState>(maps::BACKENDS),
        "services" => of::<ServiceId, ServiceInfo>(maps::SERVICES),
        "node_addrs" => of::<Addr, NodeAddr>(maps::NODE_ADDRS),
        "cluster_cidrs" => of::<Key<Addr>, u32>(maps::CLUSTER_CIDRS),
        "service_cidrs" => of::<Key<Addr>, u32>(maps::SERVICE_CIDRS),
        "source_ranges" => of::<Key<Source>, u32>(maps::SOURCE_RANGES),
        "affinity" => of::<AffinityKey, AffinityRecord>(maps::AFFINITY),
        "devices" => of::<u32, Device>(maps::DEVICES),
        "retired" => of::<End, ServiceId>(maps::RETIRED),
        "opted_out" => of::<u64, u32>(maps::OPTED_OUT),
        "opt_outs" => of::<u32, u32>(1),
        "flows" => of::<FlowKey, FlowValue>(maps::FLOWS),
        "addr_filter" => of::<u32, u64>(ADDR_WORDS),
        "flow_filter" => of::<u32, u64>(FLOW_ELEMENTS),
        "snat_cursors" => of::<u32, u32>(maps::SNAT_CURSORS),
        "service_counters" => of::<u32, ServiceCounters>(maps::SERVICES),
        "outcomes" => of::<u32, u64>(COUNTERS),
        "tcp_peers" => of::<u32, TcpPeer>(TCP_PEERS),
        "udp_peers" => of::<u32, UdpPeers>(0),
        "dns_zone" => of::<u32, Zone>(1),
        "dns_names" => of::<NameKey, u32>(maps::DNS_NAMES),
        "dns_values" => of::<u32, NameValue>(maps::DNS_NAMES),
        "dns_records" => of::<u32, Addr>(maps::DNS_RECORDS),
        "dns_counters" => of::<u32, u64>(dns::outcome::COUNTERS),
        "pod_addrs" => of::<Addr, u32>(maps::POD_ADDRS),
        _ => None,
    }
}

/// Makes the hash map `name` say just what `rows` say. Returns how many rows that took.
fn sync_hash<K, V>(
    ebpf: &mut Ebpf,
    name: &'static str,
    rows: &BTreeMap<K, V>,
) -> Result<u64, LoadError>
where
    K: Pod + Ord,
    V: Pod + PartialEq,
{
    let failed = |e| LoadError::Map(name, e);
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
    let mut map: aya::maps::HashMap<_, K, V> = map.try_into().map_err(failed)?;
    let known: BTreeMap<K, V> = map.iter().filter_map(Result::ok).collect();
    let mut written = 0;
    for (key, value) in rows.iter().filter(|(key, value)| known.get(key) != Some(value)) {
        map.insert(key, value, 0).map_err(failed)?;
        written += 1;
    }
    for key in known.keys().filter(|key| !rows.contains_key(key)) {
        map.remove(key).map_err(failed)?;
        written += 1;
    }
    Ok(written)
}

/// Makes the trie `name` say just `wanted`. Returns how many rows that took.
fn sync_trie(
    ebpf: &mut Ebpf,
    name: &'static str,
    wanted: &BTreeSet<Prefix>,
) -> Result<u64, LoadError> {
    let failed = |e| LoadError::Map(name, e);
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
    let mut map: LpmTrie<_, Addr, u32> = map.try_into().map_err(failed)?;
    let prefix = |key: Key<Addr>| Prefix { addr: key.data(), bits: key.prefix_len() };
    let known: BTreeSet<Prefix> = map.keys().filter_map(Result::ok).map(prefix).collect();
    for &Prefix { addr, bits } in wanted.difference(&known) {
        map.insert(&Key::new(bits, addr), 1, 0).map_err(failed)?;
    }
    for &Prefix { addr, bits } in known.difference(wanted) {
        map.remove(&Key::new(bits, addr)).map_err(failed)?;
    }
    Ok(wanted.symmetric_difference(&known).count() as u64)
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, LoadError> {
    let missing = || LoadError::Missing(name.to_owned());
    ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn lister(ebpf: &mut Ebpf) -> Result<&mut Iter, LoadError> {
    let missing = || LoadError::Missing(SOCKET_LISTER.to_owned());
    ebpf.program_mut(SOCKET_LISTER).ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn packet_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, LoadError> {
    let missing = || LoadError::Missing(name.to_owned());
    ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn program_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a ProgramFd, LoadError> {
    let missing = || LoadError::Missing(name.to_owned());
    ebpf.program(name).ok_or_else(missing)?.fd().map_err(|_| missing())
}
