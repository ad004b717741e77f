//! What each watched kind is called, which of its objects are asked for, and which [`Change`]s
//! they make.

mod few;

pub(super) use few::{Corefile, Few, Namespaces, OwnNode, OwnPods, ServiceCidrs};

use crate::model::{Change, ObjectName, Service, Slice, Warning};
use crate::source::convert::{Converter, SERVICE_NAME, SERVICE_PROXY_NAME};
use crate::source::objects::{self, Metadata, Object};
use std::collections::BTreeSet;

/// Turns the objects of one kind into changes. Keeps none of them: a list is converted object by
/// object, and sent as a whole at its end.
pub(super) trait Feed: Send {
    /// The kind.
    type Object: Object;

    /// What RBAC calls the kind.
    const RESOURCE: &'static str;

    /// Where its objects are asked for.
    const PATH: &'static str;

    /// Whether an API server may know nothing of the kind; then there is none.
    const OPTIONAL: bool = false;

    /// Whether it looks out for a server that cannot be reached, for all kinds.
    const PROBES: bool = false;

    /// Whether names are vouched for only while it is heard of.
    const NAMES: bool = false;

    /// The label selector and the field selector of what is asked for.
    fn selectors(&self) -> (Option<String>, Option<String>);

    /// A list begins; what an unfinished one brought is forgotten.
    fn begin_list(&mut self);

    /// An object of the list.
    fn listed(&mut self, object: &Self::Object);

    /// An object of the list cannot be read: what was known of it stays.
    fn kept(&mut self, metadata: &Metadata);

    /// The list is complete.
    fn end_list(&mut self) -> Vec<Change>;

    /// An object is new or has changed.
    fn applied(&mut self, object: &Self::Object) -> Option<Change>;

    /// An object is gone.
    fn deleted(&mut self, metadata: &Metadata) -> Change;

    /// What is wrong with the objects as they are now.
    fn warning(&self) -> Option<Warning> {
        None
    }
}

/// A list that is being read, object by object.
struct Listing<T> {
    objects: Vec<T>,
    /// Those that cannot be read.
    kept: BTreeSet<ObjectName>,
}

impl<T> Listing<T> {
    const fn new() -> Self {
        Self { objects: Vec::new(), kept: BTreeSet::new() }
    }

    /// The changes that the list makes: what is kept, if anything is, before all that there is.
    fn end(
        &mut self,
        kept: fn(BTreeSet<ObjectName>) -> Change,
        all: fn(Vec<T>) -> Change,
    ) -> Vec<Change> {
        let Self { objects, kept: names } = std::mem::replace(self, Self::new());
        let kept = (!names.is_empty()).then(|| kept(names));
        kept.into_iter().chain([all(objects)]).collect()
    }
}

/// The Services.
pub(super) struct Services {
    names: bool,
    converter: Converter,
    list: Listing<Service>,
}

impl Services {
    /// The feed of the Services; also of those of other proxies, if their names are wanted.
    pub(super) fn new(names: bool) -> Self {
        let converter = Converter::new(names);
        Self { names, converter, list: Listing::new() }
    }
}

impl Feed for Services {
    type Object = objects::Service;
    const RESOURCE: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";
    const NAMES: bool = true;
    const PROBES: bool = true;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        ((!self.names).then(|| format!("!{SERVICE_PROXY_NAME}")), None)
    }

    fn begin_list(&mut self) {
        self.list = Listing::new();
    }

    fn listed(&mut self, object: &objects::Service) {
        self.list.objects.extend(self.converter.service(object));
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.list.kept.insert(self.converter.name(metadata));
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.list.end(Change::KeptServices, Change::AllServices)
    }

    fn applied(&mut self, object: &objects::Service) -> Option<Change> {
        Some(match self.converter.service(object) {
            Some(service) => Change::Service(Box::new(service)),
            None => self.deleted(&object.metadata),
        })
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        Change::ServiceGone(self.converter.name(metadata))
    }
}

/// The EndpointSlices.
pub(super) struct Slices {
    converter: Converter,
    list: Listing<Slice>,
}

impl Slices {
    /// The feed of the EndpointSlices.
    pub(super) fn new() -> Self {
        Self { converter: Converter::default(), list: Listing::new() }
    }
}

impl Feed for Slices {
    type Object = objects::EndpointSlice;
    const RESOURCE: &'static str = "endpointslices.discovery.k8s.io";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    const NAMES: bool = true;

    fn selectors(&self) -> (Option<String>, Option<String>) {
        (Some(SERVICE_NAME.into()), None)
    }

    fn begin_list(&mut self) {
        self.list = Listing::new();
    }

    fn listed(&mut self, object: &objects::EndpointSlice) {
        self.list.objects.extend(self.converter.slice(object));
    }

    fn kept(&mut self, metadata: &Metadata) {
        self.list.kept.insert(self.converter.name(metadata));
    }

    fn end_list(&mut self) -> Vec<Change> {
        self.list.end(Change::KeptSlices, Change::AllSlices)
    }

    fn applied(&mut self, object: &objects::EndpointSlice) -> Option<Change> {
        Some(match self.converter.slice(object) {
            Some(slice) => Change::Slice(Box::new(slice)),
            None => self.deleted(&object.metadata),
        })
    }

    fn deleted(&mut self, metadata: &Metadata) -> Change {
        Change::SliceGone(self.converter.name(metadata))
    }
}
