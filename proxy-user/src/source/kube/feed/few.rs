//! Kinds of which there are few objects, or few that matter: what counts of each is kept, and only
//! all of them together mean something.

use super::Feed;
use crate::model::{Change, Node, ObjectName, OptedOut, Warning};
use crate::source::convert::{COREDNS_NAME, COREDNS_NAMESPACE, Converter};
use crate::source::no_node;
use crate::source::objects::{self, Metadata};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::mem::take;
use std::sync::Arc;

/// What counts of the objects of a kind.
#[derive(Default)]
struct Known<T> {
    objects: BTreeMap<ObjectName, T>,
    /// Those of the list that is being read.
    list: BTreeMap<ObjectName, T>,
}

impl<T: Clone> Known<T> {
    /// What was known of the object stays, though the list does not say it again.
    fn keep(&mut self, name: ObjectName) {
        if let Some(object) = self.objects.get(&name).cloned() {
            self.list.insert(name, object);
        }
    }

    fn end_list(&mut self) {
        self.objects = take(&mut self.list);
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.objects.values()
    }
}

/// The ServiceCIDRs.
#[derive(Default)]
pub(in crate::source::kube) struct ServiceCidrs {
    converter: Converter,
    known: Known<Vec<IpNetwork>>,
}

impl ServiceCidrs {
    fn all(&self) -> Change {
        Change::ServiceCidrs(self.known.values().flatten().copied().collect())
    }
}

impl Feed for ServiceCidrs {
    type Object = objects::ServiceCidr;
    const RESOURCE: &'static str = "servicecidrs.networking.k8s.io";
    const PATH: &'static str = "/apis/networking.k8s.io/v1/servicecidrs";
    const OPTIONAL: bool = true;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, None)
    }

    fn begin_list(&mut self) {
        self.known.list.clear();
    }

    fn listed(&mut self, object: &objects::ServiceCidr) {
        let cidrs = self.converter.service_cidrs(object);
        self.known.list.insert(self.converter.name(&object.metadata), cidrs);
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.known.keep(self.converter.name(metadata));
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.known.end_list();
        vec![self.all()]
    }

    fn applied(&mut self, object: &objects::ServiceCidr) -> Option<Change> {
        let cidrs = self.converter.service_cidrs(object);
        self.known.objects.insert(self.converter.name(&object.metadata), cidrs);
        Some(self.all())
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        self.known.objects.remove(&self.converter.name(metadata));
        self.all()
    }
}

/// The own Node. Its status changes often and seldom matters, so the last one is kept to compare.
pub(in crate::source::kube) struct OwnNode {
    name: Arc<str>,
    converter: Converter,
    known: Known<Node>,
}

impl OwnNode {
    /// The feed of the Node `name`.
    pub(in crate::source::kube) fn new(name: &str) -> Self {
        Self { name: name.into(), converter: Converter::default(), known: Known::default() }
    }

    fn node(&self) -> Change {
        Change::Node(self.known.values().next().cloned())
    }
}

impl Feed for OwnNode {
    type Object = objects::Node;
    const RESOURCE: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, Some(format!("metadata.name={}", self.name)))
    }

    fn begin_list(&mut self) {
        self.known.list.clear();
    }

    fn listed(&mut self, object: &objects::Node) {
        let node = self.converter.node(object);
        self.known.list.insert(self.converter.name(&object.metadata), node);
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.known.keep(self.converter.name(metadata));
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.known.end_list();
        vec![self.node()]
    }

    fn applied(&mut self, object: &objects::Node) -> Option<Change> {
        let node = self.converter.node(object);
        let before = self.known.objects.insert(self.converter.name(&object.metadata), node.clone());
        (before != Some(node)).then(|| self.node())
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        self.known.objects.remove(&self.converter.name(metadata));
        self.node()
    }

    fn warning(&self) -> Option<Warning> {
        self.known.objects.is_empty().then(|| no_node(&self.name))
    }
}

/// The pods of the own node, of which only those matter that opt out of something.
pub(in crate::source::kube) struct OwnPods {
    node_name: String,
    converter: Converter,
    known: Known<OptedOut>,
}

impl OwnPods {
    /// The feed of the pods of the Node `node_name`.
    pub(in crate::source::kube) fn new(node_name: &str) -> Self {
        let node_name = node_name.to_owned();
        Self { node_name, converter: Converter::default(), known: Known::default() }
    }

    /// What the pod opts out of, if it does.
    fn opted_out(&mut self, object: &objects::Pod) -> Option<OptedOut> {
        Some(self.converter.opted_out(object)).filter(|opted_out| *opted_out != OptedOut::default())
    }

    fn all(&self) -> Change {
        let mut all = OptedOut::default();
        self.known.values().for_each(|pod| all.extend(pod));
        Change::OptedOutPods(all)
    }
}

impl Feed for OwnPods {
    type Object = objects::Pod;
    const RESOURCE: &'static str = "pods";
    const PATH: &'static str = "/api/v1/pods";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, Some(format!("spec.nodeName={}", self.node_name)))
    }

    fn begin_list(&mut self) {
        self.known.list.clear();
    }

    fn listed(&mut self, object: &objects::Pod) {
        if let Some(opted_out) = self.opted_out(object) {
            self.known.list.insert(self.converter.name(&object.metadata), opted_out);
        }
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.known.keep(self.converter.name(metadata));
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.known.end_list();
        vec![self.all()]
    }

    fn applied(&mut self, object: &objects::Pod) -> Option<Change> {
        let name = self.converter.name(&object.metadata);
        let now = self.opted_out(object);
        let before = match now.clone() {
            Some(opted_out) => self.known.objects.insert(name, opted_out),
            None => self.known.objects.remove(&name),
        };
        (before != now).then(|| self.all())
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        self.known.objects.remove(&self.converter.name(metadata));
        self.all()
    }
}

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

/// The Corefile, in the ConfigMap of CoreDNS.
#[derive(Default)]
pub(in crate::source::kube) struct Corefile {
    converter: Converter,
    known: Known<Arc<str>>,
}

impl Corefile {
    fn text(&self) -> Change {
        Change::Corefile(self.known.values().next().cloned())
    }
}

impl Feed for Corefile {
    type Object = objects::ConfigMap;
    const RESOURCE: &'static str = "configmaps";
    /// RBAC need allow no other namespace.
    const PATH: &'static str = "/api/v1/namespaces/kube-system/configmaps";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, Some(format!("metadata.name={COREDNS_NAME}")))
    }

    fn begin_list(&mut self) {
        self.known.list.clear();
    }

    fn listed(&mut self, object: &objects::ConfigMap) {
        if let Some(text) = self.converter.corefile(object) {
            self.known.list.insert(self.converter.name(&object.metadata), text);
        }
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.known.keep(self.converter.name(metadata));
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.known.end_list();
        vec![self.text()]
    }

    fn applied(&mut self, object: &objects::ConfigMap) -> Option<Change> {
        let name = self.converter.name(&object.metadata);
        match self.converter.corefile(object) {
            Some(text) => drop(self.known.objects.insert(name, text)),
            None => drop(self.known.objects.remove(&name)),
        }
        Some(self.text())
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        self.known.objects.remove(&self.converter.name(metadata));
        self.text()
    }
}

const _: () = assert!(
    matches!(COREDNS_NAMESPACE.as_bytes(), b"kube-system"),
    "the path of the Corefile names the namespace of CoreDNS"
);
