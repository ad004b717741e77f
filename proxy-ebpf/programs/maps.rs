//! The maps, and how the programs read and count in them.
//!
//! Names, sizes and writers stand in [`proxy_ebpf::maps`].

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::{Global, helpers};
use core::ptr;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::choose::{NodePortRange, Tables};
use proxy_ebpf::dns::outcome as dns_outcome;
use proxy_ebpf::dns::{NameKey, NameValue, Work, Zone};
use proxy_ebpf::filter::{self, AddrBit};
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::outcome::{COUNTERS, Program, counter_index};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendId, BackendState, Slot};
use proxy_ebpf::socket::{self, TcpPeer};
use proxy_ebpf::source::Source;
use proxy_ebpf::{Addr, maps};

const MMAP: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "frontends")]
static FRONTENDS: HashMap<FrontendKey, FrontendValue, { maps::FRONTENDS as usize }> =
    HashMap::new();

#[btf_map(name = "slots")]
static SLOTS: Array<Slot, { maps::SLOTS as usize }, MMAP> = Array::new();

#[btf_map(name = "backends")]
static BACKENDS: Array<BackendState, { maps::BACKENDS as usize }, MMAP> = Array::new();

/// Only user space reads it.
#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceId, ServiceInfo, { maps::SERVICES as usize }> = HashMap::new();

#[btf_map(name = "node_addrs")]
static NODE_ADDRS: HashMap<Addr, NodeAddr, { maps::NODE_ADDRS as usize }> = HashMap::new();

#[btf_map(name = "cluster_cidrs")]
pub(crate) static CLUSTER_CIDRS: LpmTrie<Addr, u32, { maps::CLUSTER_CIDRS as usize }> =
    LpmTrie::new();

#[btf_map(name = "service_cidrs")]
static SERVICE_CIDRS: LpmTrie<Addr, u32, { maps::SERVICE_CIDRS as usize }> = LpmTrie::new();

#[btf_map(name = "source_ranges")]
static SOURCE_RANGES: LpmTrie<Source, u32, { maps::SOURCE_RANGES as usize }> = LpmTrie::new();

#[btf_map(name = "affinity")]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityRecord, { maps::AFFINITY as usize }> =
    LruHashMap::new();

#[btf_map(name = "devices")]
pub(crate) static DEVICES: HashMap<u32, Device, { maps::DEVICES as usize }> = HashMap::new();

#[btf_map(name = "opted_out")]
pub(crate) static OPTED_OUT: HashMap<u64, u32, { maps::OPTED_OUT as usize }> = HashMap::new();

#[btf_map(name = "opt_outs")]
pub(crate) static OPT_OUTS: Array<u32, 1> = Array::new();

#[btf_map(name = "addr_filter")]
static ADDR_FILTER: Array<u64, { filter::ADDR_WORDS as usize }, MMAP> = Array::new();

#[btf_map(name = "service_counters")]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, { maps::SERVICES as usize }> =
    PerCpuArray::new();

#[btf_map(name = "outcomes")]
static OUTCOMES: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

#[btf_map(name = "tcp_peers")]
pub(crate) static TCP_PEERS: Array<TcpPeer, { socket::TCP_PEERS as usize }> = Array::new();

#[btf_map(name = "dns_zone")]
static DNS_ZONE: Array<Zone, 1, MMAP> = Array::new();

#[btf_map(name = "dns_names")]
pub(crate) static DNS_NAMES: HashMap<NameKey, u32, { maps::DNS_NAMES as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "dns_values")]
pub(crate) static DNS_VALUES: Array<NameValue, { maps::DNS_NAMES as usize }, MMAP> = Array::new();

#[btf_map(name = "dns_records")]
pub(crate) static DNS_RECORDS: Array<Addr, { maps::DNS_RECORDS as usize }, MMAP> = Array::new();

#[btf_map(name = "dns_counters")]
static DNS_COUNTERS: PerCpuArray<u64, { dns_outcome::COUNTERS as usize }> = PerCpuArray::new();

#[btf_map(name = "pod_addrs")]
pub(crate) static POD_ADDRS: HashMap<Addr, u32, { maps::POD_ADDRS as usize }, NO_PREALLOC> =
    HashMap::new();

/// The query in work, out of the way of the 512-byte stack.
#[btf_map(name = "dns_work")]
static DNS_WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// When each pod has used up its share, in nanoseconds; nobody else needs it, nor does the next
/// program.
#[btf_map(name = "dns_shares")]
pub(crate) static DNS_SHARES: LruHashMap<u32, u64, { maps::DEVICES as usize }> = LruHashMap::new();

#[unsafe(no_mangle)]
pub(crate) static DIGEST_KEY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static HOST_SOCKETS_ONLY: Global<u8> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static HOST_NETNS_COOKIE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static NODE_PORT_FIRST: Global<u16> = Global::new(30_000);
#[unsafe(no_mangle)]
static NODE_PORT_LAST: Global<u16> = Global::new(32_767);
#[unsafe(no_mangle)]
static MASQUERADE_ALL: Global<u8> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static DNS_INTERVAL: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static DNS_BURST: Global<u64> = Global::new(0);

/// The ports among which NodePorts are looked for.
#[inline(always)]
pub(crate) fn node_ports() -> NodePortRange {
    NodePortRange { first: NODE_PORT_FIRST.load(), last: NODE_PORT_LAST.load() }
}

/// Whether backends of ClusterIPs are to see the node's address, whoever asks.
#[inline(always)]
pub(crate) fn masquerade_all() -> bool {
    MASQUERADE_ALL.load() != 0
}

/// Whether pods' sockets are left to the packet path.
#[inline(always)]
pub(crate) fn serves_host_sockets_only() -> bool {
    HOST_SOCKETS_ONLY.load() != 0
}

/// The maps as the decision reads them.
pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn may_be_services(&self, addr: &Addr) -> bool {
        let AddrBit { word, mask } = AddrBit::of(*addr);
        ADDR_FILTER.get(word).is_none_or(|bits| bits & mask != 0)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        let value = FRONTENDS.get_ptr(key)?;
        // SAFETY: the kernel keeps the element's memory until this program returns; it may give
        // the element to another key meanwhile, which the tag in the value tells. One read of
        // one word, so never half a value.
        Some(unsafe { ptr::read_volatile(value) })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        // SAFETY: copied at once; a recycled element would be another address of this node.
        unsafe { NODE_ADDRS.get(addr) }.copied()
    }

    #[inline(always)]
    fn admits(&self, source: &Source) -> bool {
        SOURCE_RANGES.get(&Key::new(Source::BITS, *source)).is_some()
    }
}

/// Whether Services take their ClusterIPs from a range that holds `addr`.
#[inline(always)]
pub(crate) fn is_service_addr(addr: &Addr) -> bool {
    SERVICE_CIDRS.get(&Key::new(Addr::BITS, *addr)).is_some()
}

/// The state of a backend; "no backend" for an id that is out of range.
#[inline(always)]
pub(crate) fn backend_state(id: BackendId) -> BackendState {
    // SAFETY: array elements stay where they are; one read of one word.
    BACKENDS
        .get_ptr(id.0)
        .map_or_else(BackendState::default, |state| unsafe { ptr::read_volatile(state) })
}

/// Counts one exit of `program` with the outcome of number `outcome`.
#[inline(always)]
pub(crate) fn count(program: Program, outcome: u32) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(counter_index(program, outcome)) {
        // SAFETY: the copy of this CPU, which no other program writes while this one runs.
        unsafe { *counter += 1 }
    }
}

/// Counts one exit of the program that answers names.
#[inline(always)]
pub(crate) fn count_dns(kind: dns_outcome::Kind, outcome: u32) {
    let index = kind as u32 * dns_outcome::Outcome::ALL.len() as u32 + outcome;
    if let Some(counter) = DNS_COUNTERS.get_ptr_mut(index) {
        // SAFETY: the copy of this CPU, which no other program writes while this one runs.
        unsafe { *counter += 1 }
    }
}

/// The cluster zone.
#[inline(always)]
pub(crate) fn zone<'a>() -> Option<&'a Zone> {
    DNS_ZONE.get(0)
}

/// This CPU's place for a query in work.
#[inline(always)]
pub(crate) fn work<'a>() -> Option<&'a mut Work> {
    // SAFETY: the copy of this CPU; the program that answers names is not entered again before it
    // is left, and its steps take the place one after the other.
    DNS_WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Lets `add` count in this CPU's counters of `service`.
#[inline(always)]
pub(crate) fn count_service(service: ServiceId, add: impl FnOnce(&mut ServiceCounters)) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service.0) {
        // SAFETY: the copy of this CPU, which no other program writes while this one runs.
        add(unsafe { &mut *counters });
    }
}

/// The current time to a few milliseconds, in nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn nanoseconds() -> u64 {
    // SAFETY: no preconditions; since Linux 5.11.
    unsafe { helpers::generated::bpf_ktime_get_coarse_ns() }
}

/// A number that is uniform over all 32-bit numbers.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no preconditions.
    unsafe { helpers::generated::bpf_get_prandom_u32() }
}
