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
//! | `flows` | LRU hash | [`FlowKey`] | [`FlowValue`] | programs; the agent sweeps |
//! | `snat_cursors` | array | digest of the backend | `u32` | programs |
//! | `affinity` | LRU hash | [`AffinityKey`] | [`AffinityRecord`] | programs; the agent forgets |
//! | `service_counters` | per-CPU array | [`ServiceId`] | [`ServiceCounters`] | programs |
//! | `outcomes` | per-CPU array | [`counter_index`] | `u64` | programs |
//! | `tcp_peers` | socket storage | socket | [`Translation`] | programs |
//! | `udp_peers` | socket storage | socket | [`UdpPeers`] | programs |
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
//! [`Source`]: crate::source::Source
//! [`AffinityKey`]: crate::affinity::AffinityKey
//! [`AffinityRecord`]: crate::affinity::AffinityRecord
//! [`FlowKey`]: crate::flow::FlowKey
//! [`FlowValue`]: crate::flow::FlowValue
//! [`counter_index`]: crate::outcome::counter_index
//! [`Translation`]: crate::socket::Translation
//! [`UdpPeers`]: crate::socket::UdpPeers

/// The version of every key and value in this crate, and the name of the directory in which the
/// maps are pinned. Any change of a layout changes it.
pub const LAYOUT: &str = "v1";

/// Frontends of all services; preallocated, 5.8 MB.
pub const FRONTENDS: u32 = 65_536;
/// Elements of the slot array, headers included, 24 bytes each.
pub const SLOTS: u32 = 524_288;
/// Backends of all services, 8 bytes each.
pub const BACKENDS: u32 = 524_288;
/// Service ports.
pub const SERVICES: u32 = 32_768;
/// Addresses of this node.
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
/// Entries of flows: two or four a flow.
pub const FLOWS: u32 = 524_288;
/// Cursors into the SNAT range; a power of two.
pub const SNAT_CURSORS: u32 = 1_024;

/// The names of all pinned maps.
pub const NAMES: [&str; 16] = [
    "frontends",
    "slots",
    "backends",
    "services",
    "node_addrs",
    "cluster_cidrs",
    "service_cidrs",
    "source_ranges",
    "devices",
    "flows",
    "snat_cursors",
    "affinity",
    "service_counters",
    "outcomes",
    "tcp_peers",
    "udp_peers",
];

/// The names of the read-only globals that the loader sets.
pub mod globals {
    /// `u64`: the cookie of the network namespace that the node is.
    pub const HOST_NETNS_COOKIE: &str = "HOST_NETNS_COOKIE";
    /// `u16`: the lowest NodePort.
    pub const NODE_PORT_FIRST: &str = "NODE_PORT_FIRST";
    /// `u16`: the highest NodePort.
    pub const NODE_PORT_LAST: &str = "NODE_PORT_LAST";
    /// `u8`: 1 if backends of ClusterIPs are to see the node's address, whoever asks.
    pub const MASQUERADE_ALL: &str = "MASQUERADE_ALL";
    /// `u16`: the lowest port for SNAT.
    pub const SNAT_PORT_FIRST: &str = "SNAT_PORT_FIRST";
    /// `u16`: the highest port for SNAT.
    pub const SNAT_PORT_LAST: &str = "SNAT_PORT_LAST";
}
