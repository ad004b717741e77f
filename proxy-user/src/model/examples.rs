//! Objects for tests: the simplest of each kind, to be changed field by field.

use super::{
    Conditions, Endpoint, ObjectName, Service, ServicePort, ServiceType, Slice, SlicePort,
    TrafficPolicy,
};
use proxy_ebpf::{Port, Proto};
use std::net::IpAddr;
use std::sync::Arc;

/// The object `name` in the namespace `default`.
pub(crate) fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "default".into(), name: name.into() }
}

/// A ClusterIP Service with TCP port 80.
pub(crate) fn service(service: &str, cluster_ip: impl Into<IpAddr>) -> Service {
    let port =
        ServicePort { name: "".into(), proto: Proto::TCP, port: Port::new(80), node_port: None };
    Service {
        name: name(service),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![cluster_ip.into()],
        headless: false,
        other_proxy: false,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: vec![port],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        external_name: None,
        warnings: Vec::new(),
    }
}

/// A slice of ready endpoints at TCP port 8080.
pub(crate) fn slice(
    slice: &str,
    service: &str,
    addrs: impl IntoIterator<Item = impl Into<IpAddr>>,
) -> Slice {
    Slice {
        name: name(slice),
        service: name(service),
        headless: false,
        ports: vec![SlicePort { name: "".into(), proto: Proto::TCP, port: Port::new(8080) }],
        endpoints: addrs.into_iter().map(endpoint).collect(),
        triggered: None,
        warnings: Vec::new(),
    }
}

/// A ready endpoint on no node.
pub(crate) fn endpoint(addr: impl Into<IpAddr>) -> Endpoint {
    Endpoint {
        addr: addr.into(),
        conditions: Conditions { ready: true, serving: true, terminating: false },
        placement: Arc::default(),
        hostname: None,
    }
}
