//! The kinds, field by field. Names and meanings are those of the Kubernetes API reference; which
//! of them count, and for what, [`convert`](crate::source::convert) says.
#![expect(missing_docs, reason = "the fields are Kubernetes', documented in its API reference")]

use super::{Metadata, Object, list, map, zero};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "zero")]
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "zero")]
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "list")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub ip_families: Vec<String>,
    #[serde(rename = "externalIPs", deserialize_with = "list")]
    pub external_ips: Vec<String>,
    pub external_name: Option<String>,
    pub external_traffic_policy: Option<String>,
    pub internal_traffic_policy: Option<String>,
    pub health_check_node_port: Option<i32>,
    #[serde(deserialize_with = "list")]
    pub load_balancer_source_ranges: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub ports: Vec<ServicePort>,
    pub session_affinity: Option<String>,
    #[serde(deserialize_with = "zero")]
    pub session_affinity_config: SessionAffinityConfig,
}

/// `spec.ports` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    #[serde(deserialize_with = "zero")]
    pub port: i32,
    pub node_port: Option<i32>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "zero")]
    pub client_ip: ClientIp,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIp {
    pub timeout_seconds: Option<i32>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    #[serde(deserialize_with = "zero")]
    pub load_balancer: LoadBalancer,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    #[serde(deserialize_with = "list")]
    pub ingress: Vec<Ingress>,
}

/// `status.loadBalancer.ingress` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    pub ip: Option<String>,
    pub ip_mode: Option<String>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "zero")]
    pub address_type: String,
    #[serde(deserialize_with = "list")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "list")]
    pub ports: Vec<EndpointPort>,
}

/// `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    #[serde(deserialize_with = "list")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "zero")]
    pub conditions: EndpointConditions,
    #[serde(deserialize_with = "zero")]
    pub hints: EndpointHints,
    pub hostname: Option<String>,
    pub node_name: Option<String>,
}

/// `endpoints[].conditions` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// `endpoints[].hints` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    #[serde(deserialize_with = "list")]
    pub for_zones: Vec<Named>,
    #[serde(deserialize_with = "list")]
    pub for_nodes: Vec<Named>,
}

/// A zone or node in a hint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    #[serde(deserialize_with = "zero")]
    pub name: String,
}

/// `ports` of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i32>,
}

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "zero")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "zero")]
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "list")]
    pub pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub taints: Vec<Taint>,
}

/// `spec.taints` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    #[serde(deserialize_with = "zero")]
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "list")]
    pub addresses: Vec<NodeAddress>,
}

/// `status.addresses` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type", deserialize_with = "zero")]
    pub type_: String,
    #[serde(deserialize_with = "zero")]
    pub address: String,
}

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "zero")]
    pub spec: PodSpec,
    #[serde(deserialize_with = "zero")]
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Option<String>,
    pub runtime_class_name: Option<String>,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    pub start_time: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "list")]
    pub pod_ips: Vec<PodIp>,
}

/// `status.podIPs` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    #[serde(deserialize_with = "zero")]
    pub ip: String,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "zero")]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    #[serde(deserialize_with = "list")]
    pub cidrs: Vec<String>,
}

/// A Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
}

/// A ConfigMap.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    #[serde(deserialize_with = "zero")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "map")]
    pub data: BTreeMap<String, String>,
}

macro_rules! objects {
    ($($object:ident is $kind:literal of $api_version:literal;)*) => {
        $(impl Object for $object {
            const API_VERSION: &'static str = $api_version;
            const KIND: &'static str = $kind;

            fn metadata(&self) -> &Metadata {
                &self.metadata
            }
        })*
    };
}

objects! {
    Service is "Service" of "v1";
    EndpointSlice is "EndpointSlice" of "discovery.k8s.io/v1";
    Node is "Node" of "v1";
    Pod is "Pod" of "v1";
    ServiceCidr is "ServiceCIDR" of "networking.k8s.io/v1";
    Namespace is "Namespace" of "v1";
    ConfigMap is "ConfigMap" of "v1";
}
