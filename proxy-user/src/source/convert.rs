//! Kubernetes objects in, objects of the [model](crate::model) out.
//!
//! The rules are kube-proxy's: which Services and EndpointSlices count, which of their parts,
//! and what an absent field means. A part that makes no sense is left out, with a sentence in
//! `warnings`; the rest of the object keeps working. Pure: no I/O, no clock, no failure.

mod address;
mod intern;
mod redirected;
mod service;
#[cfg(test)]
mod tests;

use super::objects::{self, Metadata};
use crate::model::{
    Conditions, Endpoint, Node, ObjectName, OptedOut, Placement, Service, ServicePort, ServiceType,
    Slice, SlicePort, TrafficPolicy,
};
use intern::Interner;
use ipnetwork::IpNetwork;
use proxy_ebpf::{Port, Proto};
use std::net::IpAddr;
use std::sync::Arc;

/// The label of a Service that another proxy serves, whatever its value (KEP-2447).
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label of an EndpointSlice that names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The annotation with which a pod chooses its path: `off` leaves it to the packet path, as
/// sandboxes and meshes with a network stack of their own want.
pub const SOCKET_PATH: &str = "shunt.dev/socket-path";
/// The annotation with which a pod chooses who answers its names: `off` leaves them to the DNS
/// service, as a pod whose policy keeps it from there may want.
pub const DNS: &str = "shunt.dev/dns";
/// The annotation of a static pod's mirror that has the UID by which the kubelet knows the pod; the
/// API server gives the mirror another one.
const STATIC_UID: &str = "kubernetes.io/config.hash";
/// The annotation that makes a pod the mirror of a static one.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where CoreDNS has its ConfigMap.
pub const COREDNS_NAMESPACE: &str = "kube-system";
/// What it is called.
pub const COREDNS_NAME: &str = "coredns";

const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Converts objects, and keeps one copy of what they share.
#[derive(Debug, Default)]
pub struct Converter {
    strings: Interner<str>,
    placements: Interner<Placement>,
    /// Whether Services of other proxies are converted too, for their names.
    names: bool,
}

impl Converter {
    /// A converter, for who needs the names of Services that other proxies serve, or not.
    pub fn new(names: bool) -> Self {
        Self { names, ..Self::default() }
    }

    /// The Service, or `None` if another proxy serves it and names are not needed.
    pub fn service(&mut self, object: &objects::Service) -> Option<Service> {
        let other_proxy = has_label(&object.metadata, SERVICE_PROXY_NAME);
        if other_proxy && !self.names {
            return None;
        }
        let spec = &object.spec;
        let mut warnings = Vec::new();
        let kind = service::service_type(spec, &mut warnings);
        let cluster_ips = service::cluster_ips(spec, kind, &mut warnings);
        // kube-proxy skips a Service without a ClusterIP as a whole.
        let served = !cluster_ips.is_empty();
        let external_ips =
            if served { service::external_ips(spec, &mut warnings) } else { Vec::new() };
        let load_balancer_ips =
            if served { service::load_balancer_ips(object, &mut warnings) } else { Vec::new() };
        let reached_from_outside =
            matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer)
                || !spec.external_ips.is_empty();
        let external_policy = match service::policy(spec.external_traffic_policy.as_deref()) {
            TrafficPolicy::Local if reached_from_outside => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let checked = kind == ServiceType::LoadBalancer && external_policy == TrafficPolicy::Local;
        Some(Service {
            name: self.name(&object.metadata),
            created: created(&object.metadata),
            kind,
            cluster_ips,
            headless: service::is_headless(spec, kind),
            other_proxy,
            external_ips,
            load_balancer_ips,
            ports: self.service_ports(spec, &mut warnings),
            internal_policy: service::policy(spec.internal_traffic_policy.as_deref()),
            external_policy,
            affinity_seconds: service::affinity_seconds(spec, &mut warnings),
            source_ranges: service::source_ranges(spec, &mut warnings),
            health_check_node_port: spec
                .health_check_node_port
                .and_then(|port| u16::try_from(port).ok())
                .filter(|&port| port != 0 && checked),
            external_name: spec
                .external_name
                .as_deref()
                .filter(|name| kind == ServiceType::ExternalName && !name.is_empty())
                .map(Into::into),
            warnings,
        })
    }

    /// The EndpointSlice, or `None` if it belongs to no Service or holds DNS names.
    pub fn slice(&mut self, object: &objects::EndpointSlice) -> Option<Slice> {
        let service = label(&object.metadata, SERVICE_NAME).filter(|name| !name.is_empty())?;
        if object.address_type == "FQDN" {
            return None;
        }
        let mut warnings = Vec::new();
        let endpoints = object.endpoints.iter();
        let mut endpoints: Vec<_> = endpoints
            .filter_map(|endpoint| match endpoint_addr(&object.address_type, &endpoint.addresses) {
                Ok(addr) => Some(self.endpoint(endpoint, addr)),
                Err(warning) => {
                    warnings.push(warning);
                    None
                }
            })
            .collect();
        endpoints.shrink_to_fit();
        let name = self.name(&object.metadata);
        Some(Slice {
            service: ObjectName {
                namespace: name.namespace.clone(),
                name: self.strings.intern(service),
            },
            name,
            headless: has_label(&object.metadata, HEADLESS),
            ports: self.slice_ports(object, &mut warnings),
            endpoints,
            triggered: annotation(&object.metadata, TRIGGER_TIME)
                .and_then(|time| time.parse::<jiff::Timestamp>().ok())
                .map(jiff::Timestamp::as_millisecond),
            warnings,
        })
    }

    /// The networks of the ServiceCIDR. One that makes no sense is left out: nothing is dropped
    /// for it.
    pub fn service_cidrs(&mut self, object: &objects::ServiceCidr) -> Vec<IpNetwork> {
        object.spec.cidrs.iter().filter_map(|cidr| address::range(cidr)).collect()
    }

    /// The Node.
    pub fn node(&mut self, object: &objects::Node) -> Node {
        let addresses = object.status.addresses.iter();
        let internal_ips = addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address::virtual_ip(&address.address).ok())
            .collect();
        let pod_cidrs = match object.spec.pod_cidrs.as_slice() {
            [] => object.spec.pod_cidr.as_slice(),
            cidrs => cidrs,
        };
        Node {
            name: self.strings.intern(object.metadata.name()),
            zone: label(&object.metadata, ZONE)
                .filter(|zone| !zone.is_empty())
                .map(|zone| self.strings.intern(zone)),
            internal_ips,
            pod_cidrs: pod_cidrs.iter().filter_map(|cidr| address::range(cidr)).collect(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            to_be_deleted: object.spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED),
        }
    }

    /// What the pod opts out of, if it runs, or will.
    pub fn opted_out(&mut self, object: &objects::Pod) -> OptedOut {
        let metadata = &object.metadata;
        let mut opted_out = OptedOut::default();
        if matches!(object.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return opted_out;
        }
        let uid = static_uid(object).or(metadata.uid.as_deref());
        let uid = uid.map(|uid| self.strings.intern(uid));
        if annotation(metadata, SOCKET_PATH) == Some("off") {
            opted_out.socket_path.extend(uid);
        } else if redirected::is_redirected(object) {
            opted_out.redirected.extend(uid);
        }
        if annotation(metadata, DNS) == Some("off") {
            let addrs =
                object.status.pod_ips.iter().filter_map(|addr| addr.ip.parse::<IpAddr>().ok());
            opted_out.names.extend(addrs);
        }
        opted_out
    }

    /// The name of a Namespace.
    pub fn namespace(&mut self, object: &objects::Namespace) -> Arc<str> {
        self.strings.intern(object.metadata.name())
    }

    /// The Corefile, if the ConfigMap is that of CoreDNS and has one.
    pub fn corefile(&mut self, object: &objects::ConfigMap) -> Option<Arc<str>> {
        let (namespace, name) = object_key(&object.metadata);
        let is_core_dns = (namespace, name) == (COREDNS_NAMESPACE, COREDNS_NAME);
        let text = object.data.get("Corefile").filter(|_| is_core_dns)?;
        Some(text.as_str().into())
    }

    /// The name of an object; without a namespace it is in `default`.
    pub fn name(&mut self, metadata: &Metadata) -> ObjectName {
        let (namespace, name) = object_key(metadata);
        ObjectName { namespace: self.strings.intern(namespace), name: self.strings.intern(name) }
    }

    fn service_ports(
        &mut self,
        spec: &objects::ServiceSpec,
        warnings: &mut Vec<String>,
    ) -> Vec<ServicePort> {
        let ports = spec.ports.iter();
        let ports: Box<[_]> = ports
            .filter_map(|port| {
                let Some(number) = port_number(port.port) else {
                    warnings.push(format!("port {} is ignored: it is not 1 to 65535", port.port));
                    return None;
                };
                let node_port = port.node_port.unwrap_or(0);
                if node_port != 0 && port_number(node_port).is_none() {
                    warnings.push(format!("nodePort {node_port} is ignored: it is not 1 to 65535"));
                }
                Some(ServicePort {
                    name: self.strings.intern(port.name.as_deref().unwrap_or_default()),
                    proto: protocol(port.protocol.as_deref(), port.port, warnings)?,
                    port: number,
                    node_port: port_number(node_port),
                })
            })
            .collect();
        ports.into_vec()
    }

    fn slice_ports(
        &mut self,
        object: &objects::EndpointSlice,
        warnings: &mut Vec<String>,
    ) -> Vec<SlicePort> {
        let ports = object.ports.iter();
        let ports: Box<[_]> = ports
            .filter_map(|port| {
                // Absent means all ports, which no proxy serves.
                let number = port.port.filter(|&number| number != 0)?;
                let Some(port_number) = port_number(number) else {
                    warnings.push(format!("port {number} is ignored: it is not 1 to 65535"));
                    return None;
                };
                Some(SlicePort {
                    // The API server turns an absent name into an empty one; a file has not
                    // been through it.
                    name: self.strings.intern(port.name.as_deref().unwrap_or_default()),
                    proto: protocol(port.protocol.as_deref(), number, warnings)?,
                    port: port_number,
                })
            })
            .collect();
        ports.into_vec()
    }

    fn endpoint(&mut self, endpoint: &objects::Endpoint, addr: IpAddr) -> Endpoint {
        let objects::EndpointHints { for_zones: zones, for_nodes: nodes } = &endpoint.hints;
        let placement = Placement {
            node: self.optional(endpoint.node_name.as_deref()),
            zone_hints: zones.iter().map(|zone| self.strings.intern(zone.name.as_str())).collect(),
            node_hints: nodes.iter().map(|node| self.strings.intern(node.name.as_str())).collect(),
        };
        Endpoint {
            addr,
            conditions: Conditions {
                ready: endpoint.conditions.ready.unwrap_or(true),
                serving: endpoint.conditions.serving.unwrap_or(true),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
            },
            placement: self.placements.intern(placement),
            hostname: self.optional(endpoint.hostname.as_deref()),
        }
    }

    fn optional(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.filter(|text| !text.is_empty()).map(|text| self.strings.intern(text))
    }
}

/// The namespace and name of an object.
pub(super) fn object_key(metadata: &Metadata) -> (&str, &str) {
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    (namespace.unwrap_or("default"), metadata.name())
}

fn label<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.labels.get(key).map(String::as_str)
}

fn has_label(metadata: &Metadata, key: &str) -> bool {
    label(metadata, key).is_some()
}

fn annotation<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.annotations.get(key).map(String::as_str)
}

/// The UID of the static pod that `object` mirrors, if the kubelet made it.
///
/// Whoever makes a pod chooses its annotations and its owners, but not its status: the kubelet does
/// not acknowledge (`startTime`) a mirror without a static pod of its own, it deletes it. So nobody
/// speaks for another pod.
fn static_uid(object: &objects::Pod) -> Option<&str> {
    let metadata = &object.metadata;
    let node = object.spec.node_name.as_deref()?;
    let mut owners = metadata.owner_references.iter();
    let of_node = owners
        .any(|owner| (&*owner.api_version, &*owner.kind, &*owner.name) == ("v1", "Node", node));
    let acknowledged = object.status.start_time.is_some();
    let is_mirror = annotation(metadata, MIRROR).is_some() && of_node && acknowledged;
    // A digest; the UIDs that the API server gives have dashes.
    let is_digest = |uid: &&str| uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit());
    annotation(metadata, STATIC_UID).filter(|_| is_mirror).filter(is_digest)
}

fn created(metadata: &Metadata) -> i64 {
    let time = metadata.creation_timestamp.as_deref();
    let time = time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    time.map_or(0, jiff::Timestamp::as_second)
}

fn endpoint_addr(address_type: &str, addresses: &[String]) -> Result<IpAddr, String> {
    let Some(text) = addresses.first() else {
        return Err("an endpoint is ignored: it has no address".into());
    };
    let addr = address::unicast_ip(text)
        .map_err(|reason| format!("endpoint {text} is ignored: {reason}"))?;
    if service::family(addr) != address_type {
        return Err(format!(
            "endpoint {text} is ignored: the slice's addressType is {address_type}"
        ));
    }
    Ok(addr)
}

fn port_number(number: i32) -> Option<Port> {
    u16::try_from(number).ok().filter(|&number| number != 0).map(Port::new)
}

fn protocol(text: Option<&str>, port: i32, warnings: &mut Vec<String>) -> Option<Proto> {
    match text {
        None | Some("" | "TCP") => Some(Proto::TCP),
        Some("UDP") => Some(Proto::UDP),
        Some("SCTP") => Some(Proto::SCTP),
        Some(other) => {
            warnings.push(format!("port {port} is ignored: its protocol {other} is not served"));
            None
        }
    }
}
