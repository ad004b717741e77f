//! What each watched kind is called, which of its objects are asked for, and which [`Change`]s
//! they make.

use crate::model::{Change, Node, ObjectName, OptedOut, Service, Slice, Warning};
use crate::source::convert::{
    COREDNS_NAME, COREDNS_NAMESPACE, Converter, SERVICE_NAME, SERVICE_PROXY_NAME,
};
use crate::source::no_node;
use ipnetwork::IpNetwork;
use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem::take;
use std::sync::Arc;

/// Turns the objects of one kind into changes. Keeps none of them: a list is converted object by
/// object, and sent as a whole at its end.
pub(super) trait Feed: Send {
    /// The kind.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;

    /// What RBAC calls the kind.
    const RESOURCE: &'static str;

    /// Whether an API server may know nothing of the kind; then there is none.
    const OPTIONAL: bool = false;

    /// Whether it looks out for a server that cannot be reached, for all kinds.
    const PROBES: bool = false;

    /// Where its objects are asked for.
    fn api(client: Client) -> Api<Self::Object> {
        Api::all(client)
    }

    /// The label selector and the field selector of what is asked for.
    fn selectors(&self) -> (Option<String>, Option<String>);

    /// A list begins; what an unfinished one brought is forgotten.
    fn begin_list(&mut self);

    /// An object of the list.
    fn listed(&mut self, object: &Self::Object);

    /// The list is complete.
    fn end_list(&mut self) -> Change;

    /// An object is new or has changed.
    fn applied(&mut self, object: &Self::Object) -> Option<Change>;

    /// An object is gone.
    fn deleted(&mut self, object: &Self::Object) -> Change;

    /// What is wrong with the objects as they are now.
    fn warning(&self) -> Option<Warning> {
        None
    }
}

/// The Services.
pub(super) struct Services {
    names: bool,
    converter: Converter,
    list: Vec<Service>,
}

impl Services {
    /// The feed of the Services; also of those of other proxies, if their names are wanted.
    pub(super) fn new(names: bool) -> Self {
        Self { names, converter: Converter::new(names), list: Vec::new() }
    }
}

impl Feed for Services {
    type Object = core::Service;
    const RESOURCE: &'static str = "services";
    const PROBES: bool = true;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        ((!self.names).then(|| format!("!{SERVICE_PROXY_NAME}")), None)
    }

    fn begin_list(&mut self) {
        self.list.clear();
    }

    fn listed(&mut self, object: &core::Service) {
        self.list.extend(self.converter.service(object));
    }

    fn end_list(&mut self) -> Change {
        Change::AllServices(take(&mut self.list))
    }

    fn applied(&mut self, object: &core::Service) -> Option<Change> {
        Some(match self.converter.service(object) {
            Some(service) => Change::Service(Box::new(service)),
            None => self.deleted(object),
        })
    }

    fn deleted(&mut self, object: &core::Service) -> Change {
        Change::ServiceGone(self.converter.name(&object.metadata))
    }
}

/// The EndpointSlices.
#[derive(Default)]
pub(super) struct Slices {
    converter: Converter,
    list: Vec<Slice>,
}

impl Feed for Slices {
    type Object = discovery::EndpointSlice;
    const RESOURCE: &'static str = "endpointslices.discovery.k8s.io";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (Some(SERVICE_NAME.into()), None)
    }

    fn begin_list(&mut self) {
        self.list.clear();
    }

    fn listed(&mut self, object: &discovery::EndpointSlice) {
        self.list.extend(self.converter.slice(object));
    }

    fn end_list(&mut self) -> Change {
        Change::AllSlices(take(&mut self.list))
    }

    fn applied(&mut self, object: &discovery::EndpointSlice) -> Option<Change> {
        Some(match self.converter.slice(object) {
            Some(slice) => Change::Slice(Box::new(slice)),
            None => self.deleted(object),
        })
    }

    fn deleted(&mut self, object: &discovery::EndpointSlice) -> Change {
        let name: ObjectName = self.converter.name(&object.metadata);
        Change::SliceGone(name)
    }
}

/// The ServiceCIDRs. There are few, and only all of them together mean something.
#[derive(Default)]
pub(super) struct ServiceCidrs {
    converter: Converter,
    known: BTreeMap<String, Vec<IpNetwork>>,
}

impl Feed for ServiceCidrs {
    type Object = networking::ServiceCIDR;
    const RESOURCE: &'static str = "servicecidrs.networking.k8s.io";
    const OPTIONAL: bool = true;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, None)
    }

    fn begin_list(&mut self) {
        self.known.clear();
    }

    fn listed(&mut self, object: &networking::ServiceCIDR) {
        self.known.insert(object.name_any(), self.converter.service_cidrs(object));
    }

    fn end_list(&mut self) -> Change {
        Change::ServiceCidrs(self.known.values().flatten().copied().collect())
    }

    fn applied(&mut self, object: &networking::ServiceCIDR) -> Option<Change> {
        self.listed(object);
        Some(self.end_list())
    }

    fn deleted(&mut self, object: &networking::ServiceCIDR) -> Change {
        self.known.remove(&object.name_any());
        self.end_list()
    }
}

/// The own Node. Its status changes often and seldom matters, so the last one is kept to compare.
pub(super) struct OwnNode {
    name: Arc<str>,
    converter: Converter,
    node: Option<Node>,
}

impl OwnNode {
    /// The feed of the Node `name`.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), converter: Converter::default(), node: None }
    }
}

impl Feed for OwnNode {
    type Object = core::Node;
    const RESOURCE: &'static str = "nodes";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, Some(format!("metadata.name={}", self.name)))
    }

    fn begin_list(&mut self) {
        self.node = None;
    }

    fn listed(&mut self, object: &core::Node) {
        self.node = Some(self.converter.node(object));
    }

    fn end_list(&mut self) -> Change {
        Change::Node(self.node.clone())
    }

    fn applied(&mut self, object: &core::Node) -> Option<Change> {
        let node = Some(self.converter.node(object));
        (node != self.node).then(|| {
            self.node = node;
            self.end_list()
        })
    }

    fn deleted(&mut self, _: &core::Node) -> Change {
        self.node = None;
        self.end_list()
    }

    fn warning(&self) -> Option<Warning> {
        self.node.is_none().then(|| no_node(&self.name))
    }
}

/// The pods of the own node, of which only those matter that opt out of something.
pub(super) struct OwnPods {
    node_name: String,
    converter: Converter,
    opted_out: BTreeMap<ObjectName, OptedOut>,
}

impl OwnPods {
    /// The feed of the pods of the Node `node_name`.
    pub(super) fn new(node_name: &str) -> Self {
        let node_name = node_name.to_owned();
        Self { node_name, converter: Converter::default(), opted_out: BTreeMap::new() }
    }
}

impl Feed for OwnPods {
    type Object = core::Pod;
    const RESOURCE: &'static str = "pods";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, Some(format!("spec.nodeName={}", self.node_name)))
    }

    fn begin_list(&mut self) {
        self.opted_out.clear();
    }

    fn listed(&mut self, object: &core::Pod) {
        let opted_out = self.converter.opted_out(object);
        if opted_out != OptedOut::default() {
            self.opted_out.insert(self.converter.name(&object.metadata), opted_out);
        }
    }

    fn end_list(&mut self) -> Change {
        let mut all = OptedOut::default();
        self.opted_out.values().for_each(|pod| all.extend(pod));
        Change::OptedOutPods(all)
    }

    fn applied(&mut self, object: &core::Pod) -> Option<Change> {
        let before = self.opted_out.remove(&self.converter.name(&object.metadata));
        self.listed(object);
        let now = self.opted_out.get(&self.converter.name(&object.metadata));
        (before.as_ref() != now).then(|| self.end_list())
    }

    fn deleted(&mut self, object: &core::Pod) -> Change {
        self.opted_out.remove(&self.converter.name(&object.metadata));
        self.end_list()
    }
}

/// The Namespaces, of which the names alone matter.
#[derive(Default)]
pub(super) struct Namespaces {
    converter: Converter,
    list: Vec<Arc<str>>,
}

impl Feed for Namespaces {
    type Object = core::Namespace;
    const RESOURCE: &'static str = "namespaces";

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, None)
    }

    fn begin_list(&mut self) {
        self.list.clear();
    }

    fn listed(&mut self, object: &core::Namespace) {
        self.list.push(self.converter.namespace(object));
    }

    fn end_list(&mut self) -> Change {
        Change::AllNamespaces(take(&mut self.list))
    }

    fn applied(&mut self, object: &core::Namespace) -> Option<Change> {
        Some(Change::Namespace(self.converter.namespace(object)))
    }

    fn deleted(&mut self, object: &core::Namespace) -> Change {
        Change::NamespaceGone(self.converter.namespace(object))
    }
}

/// The Corefile, in the ConfigMap of CoreDNS.
#[derive(Default)]
pub(super) struct Corefile {
    converter: Converter,
    text: Option<Arc<str>>,
}

impl Feed for Corefile {
    type Object = core::ConfigMap;
    const RESOURCE: &'static str = "configmaps";

    /// RBAC need allow no other namespace.
    fn api(client: Client) -> Api<core::ConfigMap> {
        Api::namespaced(client, COREDNS_NAMESPACE)
    }

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (None, Some(format!("metadata.name={COREDNS_NAME}")))
    }

    fn begin_list(&mut self) {
        self.text = None;
    }

    fn listed(&mut self, object: &core::ConfigMap) {
        self.text = self.converter.corefile(object);
    }

    fn end_list(&mut self) -> Change {
        Change::Corefile(self.text.clone())
    }

    fn applied(&mut self, object: &core::ConfigMap) -> Option<Change> {
        self.text = self.converter.corefile(object);
        Some(self.end_list())
    }

    fn deleted(&mut self, _: &core::ConfigMap) -> Change {
        self.text = None;
        self.end_list()
    }
}
