//! The tables: what the maps ought to hold, before ids and slots are given out.
//!
//! `plan` produces them and `apply` writes them; neither knows the other.

pub use proxy_ebpf::dns::NameKind;

use ipnetwork::IpNetwork;
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, Scope};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::slot::BackendFlags;
use proxy_ebpf::{Addr, Port, Proto};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// One port of one Service: what a [`ServiceId`](proxy_ebpf::service::ServiceId) stands for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePortName {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
    /// The port's name; empty if it has none.
    pub port: Arc<str>,
    /// The port's protocol.
    pub proto: Proto,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// One endpoint of a service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendRow {
    /// The endpoint's address.
    pub addr: Addr,
    /// The endpoint's port.
    pub port: Port,
}

impl fmt::Display for BackendRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.addr.into(), self.port.number()).fmt(f)
    }
}

/// The backends of a service port in one family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceRow {
    /// The endpoints that serve, chosen now or not, and what is known of them. Flows stay with
    /// these.
    ///
    /// Flags say which set they are in, with affinity or without; the local set is empty if the
    /// Service has no policy `Local`.
    ///
    /// Invariant: sorted by backend and without duplicates.
    pub all: Arc<[(BackendRow, BackendFlags)]>,
    /// Client-IP affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
    /// The sources that its restricted frontends are open to.
    pub source_ranges: BTreeSet<Prefix>,
}

impl ServiceRow {
    /// The backends that have `flag`: those of one set, say.
    pub fn with(&self, flag: BackendFlags) -> impl Iterator<Item = BackendRow> {
        self.all.iter().filter(move |(_, flags)| flags.has(flag)).map(|(backend, _)| *backend)
    }
}

/// A network, as the tries of the maps have it: the first bits of an address of sixteen bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    /// The network's address.
    pub addr: Addr,
    /// How many bits of it count.
    pub bits: u32,
}

/// How many bits an IPv4 address has before it as an [`Addr`].
const MAPPED_BITS: u32 = 96;

impl From<IpNetwork> for Prefix {
    fn from(network: IpNetwork) -> Self {
        let before = if network.is_ipv4() { MAPPED_BITS } else { 0 };
        let bits = before + u32::from(network.prefix());
        Self { addr: network.network().into(), bits }
    }
}

impl From<Addr> for Prefix {
    fn from(addr: Addr) -> Self {
        Self { addr, bits: Addr::BITS }
    }
}

impl Prefix {
    /// The network; `None` for bits that are none of the family's.
    pub fn network(self) -> Option<IpNetwork> {
        let before = if self.addr.is_v4() { MAPPED_BITS } else { 0 };
        let bits = u8::try_from(self.bits.checked_sub(before)?).ok()?;
        IpNetwork::new(IpAddr::from(self.addr), bits).ok()
    }
}

/// What a frontend leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrontendRow {
    /// The service port.
    pub service: ServiceKey,
    /// The frontend's properties.
    pub flags: FrontendFlags,
}

/// The frontend in words, such as `10.96.0.1:80/TCP` or `NodePort 30080/TCP (IPv4)`.
pub fn describe(key: &FrontendKey) -> String {
    match key.scope() {
        Scope::Service => {
            format!("{}/{}", SocketAddr::new(key.addr.into(), key.port.number()), key.proto)
        }
        Scope::Address => format!("the address {}", key.addr),
        Scope::Node => format!("NodePort {}/{} ({})", key.port, key.proto, Family::of(key.addr)),
    }
}

/// A service port in one family; each has backends, an id and a slot range of its own.
///
/// Its names are shared and not copied: the key stands in every table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceKey {
    /// The service port.
    pub port: Arc<ServicePortName>,
    /// The family.
    pub family: Family,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `addr`.
    pub const fn of(addr: Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Everything that the maps ought to hold of services.
///
/// Service rows are shared and not copied: they are most of the agent's memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// The service ports.
    pub services: BTreeMap<ServiceKey, Arc<ServiceRow>>,
    /// The frontends.
    pub frontends: BTreeMap<FrontendKey, FrontendRow>,
    /// The names of the cluster zone. A name that is no row does not exist.
    pub names: BTreeMap<DnsName, Arc<NameRow>>,
}

/// What a Service's `healthCheckNodePort` answers with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The port, at all addresses of the node.
    pub port: u16,
    /// How many addresses of ready endpoints are on this node, for each family of the Service.
    pub ready: BTreeMap<Family, usize>,
}

/// A step from one state of [`Tables`] to the next; `None` removes a row.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableDelta {
    /// The service ports that change.
    pub services: BTreeMap<ServiceKey, Option<Arc<ServiceRow>>>,
    /// The frontends that change.
    pub frontends: BTreeMap<FrontendKey, Option<FrontendRow>>,
    /// The names that change.
    pub names: BTreeMap<DnsName, Option<Arc<NameRow>>>,
}

/// A name relative to the cluster zone, in lower case, as people write it and without a dot at
/// the end: `web-0.nginx.default.svc`. The labels of Kubernetes have no dots inside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DnsName(pub Arc<str>);

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a name of the cluster zone stands for.
///
/// Invariant: the addresses are sorted and distinct. A headless service without a ready endpoint
/// is no row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameRow {
    /// What kind of name it is.
    pub kind: NameKind,
    /// Its IPv4 addresses.
    pub v4: Vec<Addr>,
    /// Its IPv6 addresses.
    pub v6: Vec<Addr>,
}

/// What the kernel knows of the cluster zone as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsRow {
    /// The zone, such as `cluster.local`, in lower case and without a dot at the end.
    pub zone: String,
    /// The time to live of answers, in seconds.
    pub ttl: u32,
    /// The serial number in the zone's SOA record.
    pub serial: u32,
    /// The addresses of the DNS service; queries to others are left alone.
    pub addrs: Vec<Addr>,
    /// Whether the kernel says of a name that it does not exist.
    pub deny: bool,
    /// Whether the kernel only counts what it would have denied, and leaves it alone.
    pub shadow: bool,
}

/// Everything that the maps ought to hold of the node itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeRows {
    /// The node's addresses at which NodePorts are reached, and those that lie where ClusterIPs are
    /// taken from.
    pub addrs: BTreeMap<Addr, NodeAddr>,
    /// The devices of the packet path, by interface index.
    pub devices: BTreeMap<u32, Device>,
    /// The addresses that clients are hidden behind on the devices, by interface index, that have
    /// the node's primary addresses.
    pub sources: BTreeSet<(u32, Addr)>,
    /// The networks of pods, as far as they are known by their addresses.
    pub cluster_cidrs: BTreeSet<Prefix>,
    /// The networks that ClusterIPs are taken from; `None` while that is not known.
    pub service_cidrs: Option<BTreeSet<Prefix>>,
    /// The addresses of this node's pods, and the index of the device that leads to each. A query
    /// from another address is not answered in the kernel.
    pub pod_addrs: BTreeMap<Addr, u32>,
}

impl TableDelta {
    /// Whether the step changes nothing.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.frontends.is_empty() && self.names.is_empty()
    }
}

impl Tables {
    /// Takes the step `delta`.
    pub fn apply(&mut self, delta: &TableDelta) {
        step(&mut self.services, &delta.services);
        step(&mut self.frontends, &delta.frontends);
        step(&mut self.names, &delta.names);
    }
}

fn step<K: Ord + Clone, V: Clone>(rows: &mut BTreeMap<K, V>, delta: &BTreeMap<K, Option<V>>) {
    if rows.is_empty() {
        let added = delta.iter().filter_map(|(key, row)| Some((key.clone(), row.clone()?)));
        // A tree that is collected has full nodes.
        *rows = added.collect();
        return;
    }
    for (key, row) in delta {
        match row {
            Some(row) => drop(rows.insert(key.clone(), row.clone())),
            None => drop(rows.remove(key)),
        }
    }
}
