//! Kinds of which there are few objects, or few that matter: what counts of each is kept, and only
//! all of them together mean something.

use super::Feed;
use crate::model::{Change, Node, ObjectName, OptedOut, Warning};
use crate::source::convert::{COREDNS_NAME, COREDNS_NAMESPACE, Converter};
use crate::source::no_node;
use crate::source::objects::{self, Metadata, Object};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::mem::take;
use std::sync::Arc;

/// Such a kind.
pub(in crate::source::kube) trait Kind: Send {
    /// The objects.
    type Object: Object;

    /// What counts of one of them.
    type Part: Clone + PartialEq + Send;

    /// As of [`Feed`].
    const RESOURCE: &'static str;

    /// As of [`Feed`].
    const PATH: &'static str;

    /// As of [`Feed`].
    const OPTIONAL: bool = false;

    /// The field selector of what is asked for.
    fn field_selector(&self) -> Option<String> {
        None
    }

    /// What counts of `object`, if it matters.
    fn part(&self, converter: &mut Converter, object: &Self::Object) -> Option<Self::Part>;

    /// What `parts`, all that are known, mean.
    fn change(&self, parts: &BTreeMap<ObjectName, Self::Part>) -> Change;

    /// What is wrong with them.
    fn warning(&self, _parts: &BTreeMap<ObjectName, Self::Part>) -> Option<Warning> {
        None
    }
}

/// The feed of such a kind. Its objects may change often and seldom matter: what counts of them is
/// kept to compare.
pub(in crate::source::kube) struct Few<K: Kind> {
    kind: K,
    converter: Converter,
    known: BTreeMap<ObjectName, K::Part>,
    /// Those of the list that is being read.
    list: BTreeMap<ObjectName, K::Part>,
}

impl<K: Kind> Few<K> {
    /// The feed of `kind`.
    pub(in crate::source::kube) fn of(kind: K) -> Self {
        let converter = Converter::default();
        Self { kind, converter, known: BTreeMap::new(), list: BTreeMap::new() }
    }

    fn change(&self) -> Change {
        self.kind.change(&self.known)
    }
}

impl<K: Kind> Feed for Few<K> {
    type Object = K::Object;
    const RESOURCE: &'static str = K::RESOURCE;
    const PATH: &'static str = K::PATH;
    const OPTIONAL: bool = K::OPTIONAL;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, self.kind.field_selector())
    }

    fn begin_list(&mut self) {
        self.list.clear();
    }

    fn listed(&mut self, object: &K::Object) {
        if let Some(part) = self.kind.part(&mut self.converter, object) {
            self.list.insert(self.converter.name(object.metadata()), part);
        }
    }

    fn kept(&mut self, metadata: &Metadata) {
        let name = self.converter.name(metadata);
        if let Some(part) = self.known.get(&name).cloned() {
            self.list.insert(name, part);
        }
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.known = take(&mut self.list);
        vec![self.change()]
    }

    fn applied(&mut self, object: &K::Object) -> Option<Change> {
        let name = self.converter.name(object.metadata());
        let now = self.kind.part(&mut self.converter, object);
        let before = match now.clone() {
            Some(part) => self.known.insert(name, part),
            None => self.known.remove(&name),
        };
        (before != now).then(|| self.change())
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        self.known.remove(&self.converter.name(metadata));
        self.change()
    }

    fn warning(&self) -> Option<Warning> {
        self.kind.warning(&self.known)
    }
}

/// The ServiceCIDRs.
pub(in crate::source::kube) struct ServiceCidrs;

impl Kind for ServiceCidrs {
    type Object = objects::ServiceCidr;
    type Part = Vec<IpNetwork>;
    const RESOURCE: &'static str = "servicecidrs.networking.k8s.io";
    const PATH: &'static str = "/apis/networking.k8s.io/v1/servicecidrs";
    const OPTIONAL: bool = true;

    fn part(&self, converter: &mut Converter, object: &Self::Object) -> Option<Self::Part> {
        Some(converter.service_cidrs(object))
    }

    fn change(&self, parts: &BTreeMap<ObjectName, Self::Part>) -> Change {
        Change::ServiceCidrs(parts.values().flatten().copied().collect())
    }
}

/// The own Node, by its name.
pub(in crate::source::kube) struct OwnNode(pub(in crate::source::kube) Arc<str>);

impl Kind for OwnNode {
    type Object = objects::Node;
    type Part = Node;
    const RESOURCE: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";

    fn field_selector(&self) -> Option<String> {
        Some(format!("metadata.name={}", self.0))
    }

    fn part(&self, converter: &mut Converter, object: &Self::Object) -> Option<Self::Part> {
        Some(converter.node(object))
    }

    fn change(&self, parts: &BTreeMap<ObjectName, Self::Part>) -> Change {
        Change::Node(parts.values().next().cloned())
    }

    fn warning(&self, parts: &BTreeMap<ObjectName, Self::Part>) -> Option<Warning> {
        parts.is_empty().then(|| no_node(&self.0))
    }
}

/// The pods of the own node, by its name; of them only those matter that opt out of something.
pub(in crate::source::kube) struct OwnPods(pub(in crate::source::kube) Arc<str>);

impl Kind for OwnPods {
    type Object = objects::Pod;
    type Part = OptedOut;
    const RESOURCE: &'static str = "pods";
    const PATH: &'static str = "/api/v1/pods";

    fn field_selector(&self) -> Option<String> {
        Some(format!("spec.nodeName={}", self.0))
    }

    fn part(&self, converter: &mut Converter, object: &Self::Object) -> Option<Self::Part> {
        Some(converter.opted_out(object)).filter(|opted_out| *opted_out != OptedOut::default())
    }

    fn change(&self, parts: &BTreeMap<ObjectName, Self::Part>) -> Change {
        let mut all = OptedOut::default();
        parts.values().for_each(|pod| all.extend(pod));
        Change::OptedOutPods(all)
    }
}

/// The Corefile, in the ConfigMap of CoreDNS.
pub(in crate::source::kube) struct Corefile;

impl Kind for Corefile {
    type Object = objects::ConfigMap;
    type Part = Arc<str>;
    const RESOURCE: &'static str = "configmaps";
    /// RBAC need allow no other namespace.
    const PATH: &'static str = "/api/v1/namespaces/kube-system/configmaps";

    fn field_selector(&self) -> Option<String> {
        Some(format!("metadata.name={COREDNS_NAME}"))
    }

    fn part(&self, converter: &mut Converter, object: &Self::Object) -> Option<Self::Part> {
        converter.corefile(object)
    }

    fn change(&self, parts: &BTreeMap<ObjectName, Self::Part>) -> Change {
        Change::Corefile(parts.values().next().cloned())
    }
}

const _: () = assert!(
    matches!(COREDNS_NAMESPACE.as_bytes(), b"kube-system"),
    "the path of the Corefile names the namespace of CoreDNS"
);

/// The Namespaces, of which the names alone matter, and those can always be read.
#[derive(Default)]
pub(in crate::source::kube) struct Namespaces {
    converter: Converter,
    list: Vec<Arc<str>>,
}

impl Feed for Namespaces {
    type Object = objects::Namespace;
    const RESOURCE: &'static str = "namespaces";
    const PATH: &'static str = "/api/v1/namespaces";
    const NAMES: bool = true;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, None)
    }

    fn begin_list(&mut self) {
        self.list.clear();
    }

    fn listed(&mut self, object: &objects::Namespace) {
        self.list.push(self.converter.namespace(object));
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.list.push(metadata.name().into());
    }

    fn end_list(&mut self) -> Vec<Change> {
        vec![Change::AllNamespaces(take(&mut self.list))]
    }

    fn applied(&mut self, object: &objects::Namespace) -> Option<Change> {
        Some(Change::Namespace(self.converter.namespace(object)))
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        Change::NamespaceGone(metadata.name().into())
    }
}
