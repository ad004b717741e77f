//! Loader: brings the kernel programs into the kernel and attaches them.
//!
//! Takes the embedded object and the agent's settings; gives the maps, pinned, and the programs,
//! attached by pinned links (or filters, which need no pins), so that both outlive the agent. Adopts what an earlier agent left:
//! maps are used again, links get the new programs in one atomic step. Never touches a program
//! or link that is not in its own directory.

pub mod cgroups;
mod clsact;
pub mod devices;
pub mod diag;
mod filter;
pub mod links;
mod nat;
mod netlink;
pub mod nft;
mod node;
pub mod store;
pub mod sys;

use crate::nat::{NatSettings, NatTables};
use crate::netfilter::{NetfilterError, NetlinkPort};
use aya::maps::lpm_trie::Key;
use aya::maps::{Map, MapInfo};
use aya::programs::{CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use filter::SharedFilter;
use nat::SharedNat;
use proxy_ebpf::Addr;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::dns::{self, NameKey, NameValue, Zone};
use proxy_ebpf::filter::ADDR_WORDS;
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::maps::{self, globals};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::outcome::COUNTERS;
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendState, Slot};
use proxy_ebpf::socket::{TCP_PEERS, TcpPeer};
use proxy_ebpf::source::Source;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// The programs of the socket path, all attached to the cgroup root.
pub const SOCKET_PROGRAMS: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];

/// The programs of the packet path.
pub const PACKET_PROGRAMS: [&str; 2] = ["ingress", "ingress_bare"];

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
    /// Whether the socket path serves the node's own network namespace alone.
    pub host_sockets_only: bool,
    /// The bit of the packet mark that hides a client, as a mask.
    pub masquerade_mark: u32,
    /// The level up to which the programs log, if they do.
    pub log_level: Option<aya_log::Level>,
    /// How often the kernel answers a pod's queries of names.
    pub dns_limit: DnsLimit,
}

impl Settings {
    /// What the agent's flags say by default, with the BPF file system at `bpffs_root`.
    pub fn new(bpffs_root: impl Into<PathBuf>) -> Self {
        Self {
            bpffs_root: bpffs_root.into(),
            node_ports: NodePortRange { first: 30_000, last: 32_767 },
            masquerade_all: false,
            host_sockets_only: false,
            masquerade_mark: 1 << 14,
            log_level: None,
            dns_limit: DnsLimit::default(),
        }
    }
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
        "the kernel programs cannot be loaded: this needs Linux 6.1 or later with BTF, and root or \
         the capabilities BPF, NET_ADMIN and PERFMON"
    )]
    Object(#[source] EbpfError),
    /// A program was refused.
    #[error(
        "the kernel refuses the program `{0}`: this needs Linux 6.1 or later, and root or the \
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
    /// A filter cannot be attached.
    #[error(
        "cannot attach `{program}` to {target} as a filter: a kernel without tcx needs \
         CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF (modules sch_ingress and cls_bpf), and no \
         filter of another kind or protocol at priorities 1 and 2 of the device's ingress"
    )]
    Filter {
        /// The program.
        program: &'static str,
        /// The device.
        target: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another program has the filter's place.
    #[error(
        "cannot attach `{program}` to {target}: somebody else's filter has its priority and \
         handle; see `tc filter show dev {target} ingress`"
    )]
    Taken {
        /// The program.
        program: &'static str,
        /// The device.
        target: String,
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
    /// nftables cannot be used.
    #[error(
        "the nftables table `shunt` cannot be written: this needs a kernel with nftables and NAT \
         (CONFIG_NF_TABLES, CONFIG_NFT_NAT) and the capability NET_ADMIN"
    )]
    Nat(#[source] NetfilterError),
    /// Rows have no room, or are refused; the others are written.
    #[error("{count} rows of the map `{map}` cannot be written, the first of them is {first}")]
    Rows {
        /// The map.
        map: &'static str,
        /// How many.
        count: usize,
        /// The first key.
        first: String,
        /// What the kernel said of it.
        #[source]
        source: Box<aya::maps::MapError>,
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
    /// Whether the packet path is attached by tcx, else by filters.
    has_tcx: bool,
    addr_filter: SharedFilter,
    nat: SharedNat,
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
    for layout in layouts(bpffs_root)? {
        links::detach(&layout)?;
    }
    links::detach_filters()?;
    NatTables::remove().map_err(io::Error::other)?;
    match std::fs::remove_dir_all(bpffs_root.join("shunt")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes what agents of other layouts have left below `bpffs_root`: their programs would answer
/// with what they knew. What a living agent holds stays. Returns the layouts that went.
pub fn remove_other_layouts(bpffs_root: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for layout in layouts(bpffs_root)? {
        let is_held = File::open(&layout)?.try_lock().is_err();
        if layout != pin_directory(bpffs_root) && !is_held {
            links::detach(&layout)?;
            std::fs::remove_dir_all(&layout)?;
            removed.extend(layout.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(removed)
}

/// The directories of all layouts below `bpffs_root`.
fn layouts(bpffs_root: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(bpffs_root.join("shunt")) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
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
        let host_sockets_only = u8::from(settings.host_sockets_only);
        let digest_key = RandomState::new().hash_one(0) as u32;
        let mut loader = EbpfLoader::new();
        loader
            .override_global(globals::HOST_NETNS_COOKIE, &cookie, true)
            .override_global(globals::NODE_PORT_FIRST, &settings.node_ports.first, true)
            .override_global(globals::NODE_PORT_LAST, &settings.node_ports.last, true)
            .override_global(globals::MASQUERADE_ALL, &masquerade_all, true)
            .override_global(globals::HOST_SOCKETS_ONLY, &host_sockets_only, true)
            .override_global(globals::DIGEST_KEY, &digest_key, true)
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
        let nat = SharedNat::open(NatSettings { masquerade_mark: settings.masquerade_mark })?;
        let has_tcx = sys::has_tcx().map_err(|e| LoadError::Kernel("ask for tcx", e))?;
        Ok(Self { ebpf, pins, has_tcx, addr_filter, nat })
    }

    /// Hands out the maps that services are written to; once.
    pub fn take_store(&mut self) -> Result<store::MapStore, LoadError> {
        store::MapStore::new(&mut self.ebpf, self.addr_filter.clone(), self.nat.clone())
    }

    /// Hands out the programs' log; once. Silent unless the loader has set a level.
    pub fn take_log(
        &mut self,
    ) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }

    /// The name by which nftables' events know the agent's own changes.
    pub fn nat_port(&self) -> NetlinkPort {
        self.nat.lock().port()
    }

    /// Whether nobody has changed nftables since the agent did.
    pub fn is_nat_untouched(&self) -> Result<bool, LoadError> {
        self.nat.lock().is_untouched().map_err(LoadError::Nat)
    }

    /// The loaded programs and their names, to be measured or run on made packets.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.ebpf.programs()
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
        "opted_out" => of::<u64, u32>(maps::OPTED_OUT),
        "opt_outs" => of::<u32, u32>(1),
        "addr_filter" => of::<u32, u64>(ADDR_WORDS),
        "service_counters" => of::<u32, ServiceCounters>(maps::SERVICES),
        "outcomes" => of::<u32, u64>(COUNTERS),
        "tcp_peers" => of::<u32, TcpPeer>(TCP_PEERS),
        "dns_zone" => of::<u32, Zone>(1),
        "dns_names" => of::<NameKey, u32>(maps::DNS_NAMES),
        "dns_values" => of::<u32, NameValue>(maps::DNS_NAMES),
        "dns_records" => of::<u32, Addr>(maps::DNS_RECORDS),
        "dns_counters" => of::<u32, u64>(dns::outcome::COUNTERS),
        "pod_addrs" => of::<Addr, u32>(maps::POD_ADDRS),
        _ => None,
    }
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, LoadError> {
    let missing = || LoadError::Missing(name.to_owned());
    ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())
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
