//! Kubernetes objects for what a lab has, as plain JSON that a test may edit.

use crate::lab::{Node, Pod};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A port of a service and of the slices behind it.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// Its name.
    pub name: &'a str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'a str,
    /// The port at the service.
    pub port: u16,
    /// The port at the pods.
    pub target: u16,
}

/// A Service `NAMESPACE/NAME` (or `NAME`, in `default`) of type ClusterIP; headless without
/// addresses.
pub fn service(name: &str, cluster_ips: &[&str], ports: &[Port<'_>]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|p| {
            json!({ "name": p.name, "protocol": p.protocol, "port": p.port, "targetPort": p.target })
        })
        .collect();
    let cluster_ips = if cluster_ips.is_empty() { &["None"] } else { cluster_ips };
    let family = |addr: &&str| if addr.contains(':') { "IPv6" } else { "IPv4" };
    let mut spec = json!({
        "type": "ClusterIP",
        "clusterIP": cluster_ips[0],
        "clusterIPs": cluster_ips,
        "ports": ports,
    });
    if cluster_ips != ["None"] {
        spec["ipFamilies"] = cluster_ips.iter().map(family).collect();
    }
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata(name), "spec": spec })
}

/// The EndpointSlices of the service `name`, one of each family, with a ready endpoint for each
/// of `pods`.
pub fn slices(name: &str, ports: &[Port<'_>], pods: &[&Pod]) -> [Value; 2] {
    let v4 = pods.iter().map(|pod| endpoint(pod, pod.ipv4())).collect();
    let v6 = pods.iter().map(|pod| endpoint(pod, pod.ipv6())).collect();
    [slice(name, "IPv4", ports, v4), slice(name, "IPv6", ports, v6)]
}

fn slice(service: &str, family: &str, ports: &[Port<'_>], endpoints: Vec<Value>) -> Value {
    let mut metadata = metadata(&format!("{service}-{}", family.to_lowercase()));
    let (_, bare) = split(service);
    metadata["labels"] = json!({ "kubernetes.io/service-name": bare });
    let ports: Vec<_> = ports
        .iter()
        .map(|p| json!({ "name": p.name, "protocol": p.protocol, "port": p.target }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A ready endpoint for `pod`.
pub fn endpoint(pod: &Pod, addr: impl Into<IpAddr>) -> Value {
    json!({
        "addresses": [addr.into()],
        "nodeName": pod.node(),
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "targetRef": { "kind": "Pod", "namespace": "default", "name": pod.name() },
    })
}

/// The conditions of an endpoint that is being deleted, and still serves or not.
pub fn terminating(serving: bool) -> Value {
    json!({ "ready": false, "serving": serving, "terminating": true })
}

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// The ConfigMap of CoreDNS with this Corefile.
pub fn corefile(text: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata("kube-system/coredns"),
        "data": { "Corefile": text },
    })
}

/// The Node object of `node`.
pub fn node(node: &Node) -> Value {
    let addrs = [IpAddr::from(node.ipv4()), node.ipv6().into()];
    let addresses = addrs.map(|addr| json!({ "type": "InternalIP", "address": addr }));
    let pod_cidrs = node.pod_networks().map(|network| network.to_string());
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
        "spec": { "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs },
        "status": { "addresses": addresses },
    })
}

/// Writes `object` to a file of its own in `folder`, replacing the one of the same object.
///
/// The file appears whole, as a careful editor would save it.
pub fn write(folder: &Path, object: &Value) -> Result<PathBuf> {
    let path = folder.join(file_name(object));
    let new = path.with_extension("new");
    let text = serde_json::to_string_pretty(object)?;
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("replace {}", path.display()))?;
    Ok(path)
}

/// The name of the file that [`write`] gives an object. JSON is YAML.
fn file_name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let metadata = &object["metadata"];
    let (kind, namespace) = (text(&object["kind"]), text(&metadata["namespace"]));
    format!("{kind}-{namespace}-{}.yaml", text(&metadata["name"]))
}

fn metadata(name: &str) -> Value {
    let (namespace, name) = split(name);
    json!({ "namespace": namespace, "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" })
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("default", name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    const HTTP: Port<'_> = Port { name: "http", protocol: "TCP", port: 80, target: 8080 };

    #[test]
    fn a_service_reads_as_kubernetes_own_type() -> Result<()> {
        let object = service("shop/web", &["10.96.0.10", "fd00:96::10"], &[HTTP]);
        let spec = serde_json::from_value::<Service>(object.clone())?.spec.context("a spec")?;
        assert_eq!(spec.ip_families, Some(vec!["IPv4".to_owned(), "IPv6".to_owned()]));
        assert_eq!(spec.ports.map(|ports| ports[0].port), Some(80));
        assert_eq!(file_name(&object), "service-shop-web.yaml");
        assert_eq!(service("web", &[], &[])["spec"]["clusterIP"], "None");
        Ok(())
    }

    #[test]
    fn slices_read_as_kubernetes_own_type() -> Result<()> {
        let [_, v6] = slices("shop/web", &[HTTP], &[]);
        let slice: EndpointSlice = serde_json::from_value(v6)?;
        let labels = slice.metadata.labels.context("labels")?;
        assert_eq!(labels["kubernetes.io/service-name"], "web");
        assert_eq!(
            (slice.address_type.as_str(), slice.ports.map(|p| p[0].port)),
            ("IPv6", Some(Some(8080)))
        );
        assert_eq!(slice.metadata.name.as_deref(), Some("web-ipv6"));
        Ok(())
    }
}
