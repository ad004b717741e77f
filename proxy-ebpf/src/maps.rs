//! The maps: names, sizes, and where they are pinned.
//!
//! | name | type | key | value | writer |
//! |---|---|---|---|---|
//! | `frontends` | hash | [`FrontendKey`] | [`FrontendValue`] | agent |
//! | `slots` | array, mmap | index | [`Slot`], [`RangeHeader`] | agent |
//! | `backends` | array, mmap | [`BackendId`] | [`BackendState`] | agent |
//! | `services` | hash | [`ServiceId`] | [`ServiceInfo`] | agent |
//! | `node_addrs` | hash | [`Addr`] | [`NodeAddr`] | agent |
//! | `cluster_cidrs` | LPM trie | prefix of an [`Addr`] | `u32`, 1 | agent |
//! | `service_cidrs` | LPM trie | prefix of an [`Addr`] | `u32`, 1 | agent |
//! | `source_ranges` | LPM trie | prefix of a [`Source`] | `u32`, 1 | agent |
//! | `devices` | hash | interface index | [`Device`] | agent |
//! | `opted_out` | hash | id of a pod's cgroup | `u32`, 1 | agent |
//! | `opt_outs` | array | 0 | `u32`, how many | agent |
//! | `addr_filter` | array, mmap | index | [`AddrBit`]s | agent |
//! | `affinity` | LRU hash | [`AffinityKey`] | [`AffinityRecord`] | programs; the agent forgets |
//! | `service_counters` | per-CPU array | [`ServiceId`] | [`ServiceCounters`] | programs |
//! | `outcomes` | per-CPU array | [`counter_index`] | `u64` | programs |
//! | `tcp_peers` | array | [`TcpPeer::place`] | [`TcpPeer`] | programs |
//! | `dns_zone` | array, mmap | 0 | [`Zone`] | agent |
//! | `dns_names` | hash | [`NameKey`] | number of the name, `u32` | agent |
//! | `dns_values` | array, mmap | number of the name | [`NameValue`] | agent |
//! | `dns_records` | array, mmap | index | [`Addr`] | agent |
//! | `dns_counters` | per-CPU array | [`dns::outcome::counter_index`] | `u64` | programs |
//! | `pod_addrs` | hash | [`Addr`] | interface index, `u32` | agent |
//!
//! All are pinned in [`LAYOUT`] below the agent's directory of the BPF file system, so that they
//! outlive the agent and the command line can read them.
//!
//! [`Addr`]: crate::Addr
//! [`FrontendKey`]: crate::frontend::FrontendKey
//! [`FrontendValue`]: crate::frontend::FrontendValue
//! [`Slot`]: crate::slot::Slot
//! [`RangeHeader`]: crate::slot::RangeHeader
//! [`BackendId`]: crate::slot::BackendId
//! [`BackendState`]: crate::slot::BackendState
//! [`ServiceId`]: crate::service::ServiceId
//! [`ServiceInfo`]: crate::service::ServiceInfo
//! [`ServiceCounters`]: crate::service::ServiceCounters
//! [`NodeAddr`]: crate::node::NodeAddr
//! [`Device`]: crate::node::Device
//! [`AddrBit`]: crate::filter::AddrBit
//! [`Source`]: crate::source::Source
//! [`AffinityKey`]: crate::affinity::AffinityKey
//! [`AffinityRecord`]: crate::affinity::AffinityRecord
//! [`counter_index`]: crate::outcome::counter_index
//! [`TcpPeer`]: crate::socket::TcpPeer
//! [`TcpPeer::place`]: crate::socket::TcpPeer::place
//! [`Zone`]: crate::dns::Zone
//! [`NameKey`]: crate::dns::NameKey
//! [`NameValue`]: crate::dns::NameValue
//! [`dns::outcome::counter_index`]: crate::dns::outcome::counter_index

/// The version of every key and value in this crate, and the name of the directory in which the
/// maps are pinned. Any change of a layout changes it.
pub const LAYOUT: &str = "v5";

/// Frontends of all services; preallocated, 5.8 MB.
pub const FRONTENDS: u32 = 65_536;
/// Elements of the slot array, headers included, 24 bytes each.
pub const SLOTS: u32 = 524_288;
/// Backends of all services, 8 bytes each.
pub const BACKENDS: u32 = 524_288;
/// Service ports.
pub const SERVICES: u32 = 32_768;
/// Addresses of this node at which NodePorts are reached.
pub const NODE_ADDRS: u32 = 1_024;
/// Prefixes of pods' addresses.
pub const CLUSTER_CIDRS: u32 = 64;
/// Prefixes that ClusterIPs are taken from.
pub const SERVICE_CIDRS: u32 = 64;
/// Prefixes of sources, over all services with `loadBalancerSourceRanges`.
pub const SOURCE_RANGES: u32 = 65_536;
/// Clients of services with affinity, the longest unseen of which are forgotten; 16 MB.
pub const AFFINITY: u32 = 131_072;
/// Devices that the packet path is attached to.
pub const DEVICES: u32 = 4_096;
/// Pods of this node whose sockets the socket path leaves alone.
pub const OPTED_OUT: u32 = 1_024;
/// Names of the cluster zone; not preallocated, about 190 bytes each.
pub const DNS_NAMES: u32 = 524_288;
/// Addresses of names, 16 bytes each.
pub const DNS_RECORDS: u32 = 524_288;
/// Addresses of this node's pods.
pub const POD_ADDRS: u32 = 4_096;

/// The names of all pinned maps.
pub const NAMES: [&str; 22] = [
    "frontends",
    "slots",
    "backends",
    "services",
    "node_addrs",
    "cluster_cidrs",
    "service_cidrs",
    "source_ranges",
    "devices",
    "opted_out",
    "opt_outs",
    "addr_filter",
    "affinity",
    "service_counters",
    "outcomes",
    "tcp_peers",
    "dns_zone",
    "dns_names",
    "dns_values",
    "dns_records",
    "dns_counters",
    "pod_addrs",
];

/// The names of the read-only globals that the loader sets.
pub mod globals {
    /// `u32`: a random number, by which the choices for UDP cannot be told beforehand.
    pub const DIGEST_KEY: &str = "DIGEST_KEY";
    /// `u8`: 1 if the socket path serves the node's own network namespace alone.
    pub const HOST_SOCKETS_ONLY: &str = "HOST_SOCKETS_ONLY";
    /// `u64`: the cookie of the network namespace that the node is.
    pub const HOST_NETNS_COOKIE: &str = "HOST_NETNS_COOKIE";
    /// `u16`: the lowest NodePort.
    pub const NODE_PORT_FIRST: &str = "NODE_PORT_FIRST";
    /// `u16`: the highest NodePort.
    pub const NODE_PORT_LAST: &str = "NODE_PORT_LAST";
    /// `u8`: 1 if backends of ClusterIPs are to see the node's address, whoever asks.
    pub const MASQUERADE_ALL: &str = "MASQUERADE_ALL";
    /// `u64`: the time between two queries of a pod that are answered for ever, in nanoseconds;
    /// 0 for no limit.
    pub const DNS_INTERVAL: &str = "DNS_INTERVAL";
    /// `u64`: how far a pod may be ahead of that, in nanoseconds.
    pub const DNS_BURST: &str = "DNS_BURST";
}
