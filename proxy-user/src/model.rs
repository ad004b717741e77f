//! The model: what Shunt knows of the cluster, in its own words.
//!
//! A source turns Kubernetes objects into [`Change`]s; [`World`] holds what they add up to. No
//! Kubernetes types, no I/O, no clock. An object with faults is kept as far as it makes sense,
//! and carries the sentences that say what is wrong with it.

#[cfg(test)]
pub(crate) mod examples;
mod world;

pub use world::{Extent, Touched, World};

use ipnetwork::IpNetwork;
use proxy_ebpf::{Port, Proto};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What a pod, or several, opted out of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OptedOut {
    /// The UIDs, as the kubelet names cgroups by, of those that want the packet path alone.
    pub socket_path: BTreeSet<Arc<str>>,
    /// The UIDs of pods whose connections somebody redirects or emulates, and which are better left
    /// alone too.
    pub redirected: BTreeSet<Arc<str>>,
    /// The addresses of those that want their names from the DNS service.
    pub names: BTreeSet<IpAddr>,
}

impl OptedOut {
    /// With what `other` opted out of.
    pub fn extend(&mut self, other: &Self) {
        self.socket_path.extend(other.socket_path.iter().cloned());
        self.redirected.extend(other.redirected.iter().cloned());
        self.names.extend(&other.names);
    }
}

/// The namespace and name of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which endpoints a traffic policy admits (`spec.internalTrafficPolicy`,
/// `spec.externalTrafficPolicy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Endpoints on the node that the traffic came to.
    Local,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    /// Reached inside the cluster; the default.
    #[default]
    ClusterIp,
    /// Also reached at a port of every node.
    NodePort,
    /// Also reached through a load balancer.
    LoadBalancer,
    /// A DNS alias; never has a frontend.
    ExternalName,
}

/// A Service, as far as the dataplane and DNS care.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970; the oldest of several claimants gets
    /// a contested frontend.
    pub created: i64,
    /// Its type.
    pub kind: ServiceType,
    /// Its ClusterIPs, at most one of each family; empty for a headless Service and for an
    /// ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether it asks for no ClusterIP (`None`): its name stands for its endpoints.
    pub headless: bool,
    /// Whether another proxy serves it (label `service.kubernetes.io/service-proxy-name`): then
    /// DNS alone uses it.
    pub other_proxy: bool,
    /// Valid addresses of `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` whose `ipMode` is VIP (or absent).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Its ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Which endpoints callers inside the cluster get.
    pub internal_policy: TrafficPolicy,
    /// Which endpoints callers from outside get.
    pub external_policy: TrafficPolicy,
    /// Client-IP affinity in seconds, if the Service asks for it.
    pub affinity_seconds: Option<u32>,
    /// `spec.loadBalancerSourceRanges`; empty means open.
    pub source_ranges: Vec<IpNetwork>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// `spec.externalName` of an ExternalName Service.
    pub external_name: Option<Box<str>>,
    /// What is wrong with the object; each a sentence without the object's name.
    pub warnings: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub proto: Proto,
    /// The port at the Service's own addresses.
    pub port: Port,
    /// The port at the nodes' addresses, if any.
    pub node_port: Option<Port>,
}

/// An EndpointSlice that belongs to a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Its name.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`), in the same namespace.
    pub service: ObjectName,
    /// Whether it carries the label `service.kubernetes.io/headless`: then DNS alone uses it.
    pub headless: bool,
    /// Its ports; an endpoint serves all of them.
    pub ports: Vec<SlicePort>,
    /// Its endpoints, all of one address family.
    pub endpoints: Vec<Endpoint>,
    /// `endpoints.kubernetes.io/last-change-trigger-time`, in milliseconds since 1970.
    pub triggered: Option<i64>,
    /// What is wrong with the object; each a sentence without the object's name.
    pub warnings: Vec<String>,
}

/// A port of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Its name; joins it with the Service's port of the same name and protocol.
    pub name: Arc<str>,
    /// Its protocol.
    pub proto: Proto,
    /// The endpoints' port.
    pub port: Port,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address (the first of the object's list, as kube-proxy does).
    pub addr: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// Where it runs, and for whom.
    pub placement: Arc<Placement>,
    /// Its DNS host name, if it has one of its own.
    pub hostname: Option<Arc<str>>,
}

// There may be 250,000 of them: nothing takes more of the agent's memory.
const _: () = assert!(size_of::<Endpoint>() <= 48);

/// Where endpoints run, and for whom they are meant. All those of a node mostly have the same, and
/// a source keeps it once.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Placement {
    /// The node they run on.
    pub node: Option<Arc<str>>,
    /// `hints.forZones`.
    pub zone_hints: Box<[Arc<str>]>,
    /// `hints.forNodes`.
    pub node_hints: Box<[Arc<str>]>,
}

/// The conditions of an endpoint, with the defaults of an absent one applied (KEP-1672).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conditions {
    /// Ready for new connections.
    pub ready: bool,
    /// Passes its readiness probe, terminating or not.
    pub serving: bool,
    /// Being deleted.
    pub terminating: bool,
}

/// This node's own Node object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Its addresses of type InternalIP, the first of each family being the primary one.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Whether it has a deletionTimestamp.
    pub deleting: bool,
    /// Whether it carries the taint `ToBeDeletedByClusterAutoscaler`.
    pub to_be_deleted: bool,
}

/// How a pod is told from an outsider, where a traffic policy cares: as kube-proxy's
/// `detectLocalMode` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DetectLocal {
    /// Its address is in the cluster's networks for pods.
    ClusterCidr,
    /// Its address is in this node's `podCIDRs`.
    NodeCidr,
    /// What it sends comes by the bridge of this name.
    BridgeInterface(String),
    /// What it sends comes by an interface whose name begins so.
    InterfaceNamePrefix(String),
}

/// A network interface of the node's network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether a default route leads there.
    pub default_route: bool,
    /// Whether it is a bridge of Linux, and netfilter does not see what one port sends to another.
    pub unseen_bridge: bool,
    /// The index of the bridge, bond or other interface that it is a port of.
    pub controller: Option<u32>,
    /// The id of the network namespace that its peer is in, if that is another one.
    pub peer_netns: Option<i32>,
    /// Its addresses of global scope, with their prefixes.
    pub addrs: Vec<IpNetwork>,
    /// The addresses of those behind it, if it leads to single ones: of the pod behind a veth.
    pub pods: Vec<IpAddr>,
}

/// Something wrong that an operator should see: what it is about, and a sentence.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct Warning {
    /// The object, file or sysctl, such as `Service default/web`.
    pub subject: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Something about a Service that its owner should see, as a Warning event in Kubernetes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// The Service.
    pub service: ObjectName,
    /// Why, in one word, such as `FailedToStartServiceHealthcheck`.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
    /// Whether it is so on this node alone. What every node finds alike becomes one Event.
    pub of_node: bool,
}

/// A step from one state of the cluster to the next.
///
/// The three `All…` changes replace everything of their kind, as a list or a relist does. A
/// source sends each of them once before anything of their kind; nothing is written to the
/// kernel before all three have come.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// The complete Services of the cluster.
    AllServices(Vec<Service>),
    /// The complete EndpointSlices of the cluster.
    AllSlices(Vec<Slice>),
    /// Services that the next `AllServices` lacks because they cannot be read: what is known of
    /// them stays.
    KeptServices(BTreeSet<ObjectName>),
    /// The same of EndpointSlices.
    KeptSlices(BTreeSet<ObjectName>),
    /// The own Node; `None` if it does not exist, or was deleted.
    Node(Option<Node>),
    /// The complete Namespaces of the cluster; sent only to who asked for names.
    AllNamespaces(Vec<Arc<str>>),
    /// A Service is new or has changed.
    Service(Box<Service>),
    /// A Service is gone.
    ServiceGone(ObjectName),
    /// An EndpointSlice is new or has changed.
    Slice(Box<Slice>),
    /// An EndpointSlice is gone, or no longer belongs to a Service.
    SliceGone(ObjectName),
    /// All networks that ClusterIPs are taken from; none in a cluster that has no ServiceCIDRs.
    /// Nothing waits for this change.
    ServiceCidrs(Vec<IpNetwork>),
    /// What all pods of this node opt out of. Not waited for.
    OptedOutPods(OptedOut),
    /// A Namespace is new.
    Namespace(Arc<str>),
    /// A Namespace is gone.
    NamespaceGone(Arc<str>),
    /// The Corefile of CoreDNS, `None` if there is none; sent only to who asked for names.
    Corefile(Option<Arc<str>>),
    /// What the source itself finds wrong (a file that does not parse, say), replacing what it
    /// said before.
    SourceWarnings(Vec<Warning>),
}
