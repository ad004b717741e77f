//! The kinds that the API server knows.

use serde_json::Value;

/// A kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Its group and version, such as `v1` or `discovery.k8s.io/v1`.
    pub(super) api_version: &'static str,
    /// Its name in URLs.
    pub(super) plural: &'static str,
    /// Its name in objects.
    pub(super) kind: &'static str,
    /// Its short name in `kubectl`.
    pub(super) short: &'static str,
    /// Whether its objects lie in namespaces.
    pub(super) namespaced: bool,
}

impl Kind {
    /// Its group; empty for the core group.
    pub(super) fn group(&self) -> &'static str {
        self.api_version.rsplit_once('/').map_or("", |(group, _)| group)
    }
}

const fn kind(
    api_version: &'static str,
    plural: &'static str,
    kind: &'static str,
    short: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { api_version, plural, kind, short, namespaced }
}

/// All kinds.
pub(super) const KINDS: &[Kind] = &[
    kind("v1", "services", "Service", "svc", true),
    kind("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", "eps", true),
    kind("v1", "nodes", "Node", "no", false),
    kind("v1", "namespaces", "Namespace", "ns", false),
    kind("v1", "pods", "Pod", "po", true),
    kind("v1", "configmaps", "ConfigMap", "cm", true),
    kind("v1", "events", "Event", "ev", true),
    kind("networking.k8s.io/v1", "servicecidrs", "ServiceCIDR", "", false),
];

/// The kind of an object, by its `apiVersion` and `kind`.
pub(super) fn of_object(object: &Value) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|kind| object["apiVersion"] == kind.api_version && object["kind"] == kind.kind)
}
