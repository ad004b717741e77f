//! The fields of a Service, read one by one.
//!
//! Each function reads one field; what makes no sense becomes a sentence in `warnings`.

use super::address;
use crate::model::{ServiceType, TrafficPolicy};
use crate::source::objects::{Service, ServiceSpec};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// `DefaultClientIPServiceAffinitySeconds` in k8s.io/api/core/v1.
const AFFINITY_SECONDS: i32 = 10_800;
/// `MaxClientIPServiceAffinitySeconds` in k8s.io/api/core/v1.
const AFFINITY_SECONDS_MAX: i32 = 86_400;

pub(super) fn service_type(spec: &ServiceSpec, warnings: &mut Vec<String>) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            warnings.push(format!("type {other} is not known, and taken for ClusterIP"));
            ServiceType::ClusterIp
        }
    }
}

pub(super) fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// `clusterIPs[i]` is the ClusterIP of `ipFamilies[i]`; either may be absent, in old objects and
/// in files, and then `clusterIP` and the address itself say it.
pub(super) fn cluster_ips(
    spec: &ServiceSpec,
    kind: ServiceType,
    warnings: &mut Vec<String>,
) -> Vec<IpAddr> {
    if kind == ServiceType::ExternalName {
        return Vec::new();
    }
    let texts = match spec.cluster_ips.as_slice() {
        [] => spec.cluster_ip.as_slice(),
        texts => texts,
    };
    let families = &spec.ip_families;
    let mut addrs: Vec<IpAddr> = Vec::new();
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        if text == "None" {
            return Vec::new();
        }
        match address::virtual_ip(text) {
            Err(reason) => warnings.push(format!("ClusterIP {text} is ignored: {reason}")),
            Ok(addr)
                if !families.is_empty() && families.get(i).is_none_or(|f| *f != family(addr)) =>
            {
                warnings.push(format!(
                    "ClusterIP {text} is ignored: spec.ipFamilies names no {} in its place",
                    family(addr)
                ));
            }
            Ok(addr) if addrs.iter().any(|known| known.is_ipv4() == addr.is_ipv4()) => warnings
                .push(format!("ClusterIP {text} is ignored: it is the second of its family")),
            Ok(addr) => addrs.push(addr),
        }
    }
    if texts.iter().all(String::is_empty) {
        warnings.push(
            "it has no clusterIP, so nothing reaches it: set one, or None for a headless Service"
                .into(),
        );
    }
    addrs
}

/// Whether the Service asks for no ClusterIP.
pub(super) fn is_headless(spec: &ServiceSpec, kind: ServiceType) -> bool {
    let mut texts = spec.cluster_ips.iter().chain(&spec.cluster_ip);
    kind != ServiceType::ExternalName && texts.any(|text| text == "None")
}

pub(super) fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

pub(super) fn external_ips(spec: &ServiceSpec, warnings: &mut Vec<String>) -> Vec<IpAddr> {
    spec.external_ips
        .iter()
        .filter_map(|text| {
            address::unicast_ip(text)
                .map_err(|reason| warnings.push(format!("externalIP {text} is ignored: {reason}")))
                .ok()
        })
        .collect()
}

/// Only addresses whose mode is VIP (KEP-1860); the others are the load balancer's to answer.
pub(super) fn load_balancer_ips(object: &Service, warnings: &mut Vec<String>) -> Vec<IpAddr> {
    let ingress = object.status.load_balancer.ingress.iter();
    ingress
        .filter(|ingress| matches!(ingress.ip_mode.as_deref(), None | Some("" | "VIP")))
        .filter_map(|ingress| ingress.ip.as_deref().filter(|ip| !ip.is_empty()))
        .filter_map(|text| {
            address::virtual_ip(text)
                .map_err(|reason| {
                    warnings.push(format!("load balancer address {text} is ignored: {reason}"));
                })
                .ok()
        })
        .collect()
}

pub(super) fn affinity_seconds(spec: &ServiceSpec, warnings: &mut Vec<String>) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
    let seconds = seconds.unwrap_or(AFFINITY_SECONDS);
    let clamped = seconds.clamp(1, AFFINITY_SECONDS_MAX);
    if clamped != seconds {
        warnings.push(format!(
            "affinity timeout {seconds} is taken for {clamped}: it is not 1 to {AFFINITY_SECONDS_MAX}"
        ));
    }
    Some(clamped.unsigned_abs())
}

/// Ranges none of which can be read admit nobody: an empty list would admit everybody.
pub(super) fn source_ranges(spec: &ServiceSpec, warnings: &mut Vec<String>) -> Vec<IpNetwork> {
    let texts = &spec.load_balancer_source_ranges;
    let mut ranges = Vec::with_capacity(texts.len());
    for text in texts {
        match address::range(text) {
            Some(range) => ranges.push(range),
            None => warnings.push(format!(
                "loadBalancerSourceRanges entry {text} is ignored: it is not an IP range"
            )),
        }
    }
    if ranges.is_empty() && !texts.is_empty() {
        warnings.push("the load balancer addresses admit nobody: no source range is valid".into());
        ranges.extend(["0.0.0.0", "::"].into_iter().filter_map(address::range));
    }
    ranges
}
