//! Pods whose connections somebody redirects or emulates.
//!
//! A sidecar takes its pod's connections and asks the kernel whom they were for: it has to find the
//! Service's address, by which it routes, encrypts and permits. A virtual machine or a sandbox with
//! a network stack of its own makes no sockets that a hook could see. Both are known by what their
//! projects write into the pods; a pod that pretends to be one of them slows only itself down.

use super::{Metadata, SOCKET_PATH, annotation};
use crate::source::objects;

/// Annotations that say so by being there, whatever their value.
const ANNOTATIONS: [&str; 3] = [
    // Istio's injector, and its CNI plugin for ambient pods.
    "sidecar.istio.io/status",
    "ambient.istio.io/redirection",
    // Linkerd's injector.
    "linkerd.io/proxy-version",
];

/// Annotations and labels that say so by their value.
const VALUES: [(&str, &str); 3] = [
    ("kuma.io/sidecar-injected", "true"),
    ("kuma.io/sidecar-injection", "enabled"),
    ("kubevirt.io", "virt-launcher"),
];

/// How the names of runtime classes begin that run pods in a sandbox: gVisor and Kata Containers.
const SANDBOXES: [&str; 3] = ["gvisor", "runsc", "kata"];

/// Whether the connections of `pod` are redirected or emulated, unless its annotation
/// `shunt.dev/socket-path: on` says that it wants the socket path all the same.
pub(super) fn is_redirected(pod: &objects::Pod) -> bool {
    let metadata = &pod.metadata;
    if annotation(metadata, SOCKET_PATH) == Some("on") {
        return false;
    }
    let class = pod.spec.runtime_class_name.as_deref().unwrap_or_default();
    ANNOTATIONS.iter().any(|key| metadata.annotations.contains_key(*key))
        || VALUES.iter().any(|(key, value)| has(metadata, key, value))
        || SANDBOXES.iter().any(|name| class.starts_with(name))
}

fn has(metadata: &Metadata, key: &str, value: &str) -> bool {
    let in_map = |map: &std::collections::BTreeMap<String, String>| {
        map.get(key).is_some_and(|found| found == value)
    };
    in_map(&metadata.annotations) || in_map(&metadata.labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirected(yaml: &str) -> bool {
        is_redirected(&serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn sidecars_and_sandboxes_are_known_and_others_are_not() {
        for pod in [
            "{metadata: {annotations: {sidecar.istio.io/status: '{}'}}}",
            "{metadata: {annotations: {ambient.istio.io/redirection: enabled}}}",
            "{metadata: {annotations: {linkerd.io/proxy-version: stable-2.14}}}",
            "{metadata: {annotations: {kuma.io/sidecar-injected: 'true'}}}",
            "{metadata: {labels: {kubevirt.io: virt-launcher}}}",
            "{spec: {runtimeClassName: kata-qemu}}",
            "{spec: {runtimeClassName: gvisor}}",
        ] {
            assert!(redirected(pod), "{pod}");
        }
        for pod in [
            "{metadata: {annotations: {sidecar.istio.io/inject: 'false'}}}",
            "{metadata: {labels: {kubevirt.io: virt-api}}}",
            "{metadata: {annotations: {kuma.io/sidecar-injected: 'false'}}}",
            "{spec: {runtimeClassName: nvidia}}",
            "{metadata: {annotations: {sidecar.istio.io/status: '{}', shunt.dev/socket-path: 'on'}}}",
        ] {
            assert!(!redirected(pod), "{pod}");
        }
    }
}
