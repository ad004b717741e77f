//! The world: what all changes so far add up to.
//!
//! Takes [`Change`]s in any order (a slice may come before its Service) and says which Services
//! each of them touches. A change that says what is known already touches nothing. It decides
//! nothing: what objects mean together is `plan`'s business.

use super::{Change, Node, ObjectName, OptedOut, Service, Slice, Warning};
use crate::tree::pack;
use ipnetwork::IpNetwork;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::sync::Arc;

/// How many sentences are said about one object; it may have a fault in each of 10,000 ports.
const SENTENCES: usize = 5;

/// All objects of the cluster that matter here.
#[derive(Clone, Debug, Default)]
pub struct World {
    services: BTreeMap<ObjectName, Arc<Service>>,
    slices: BTreeMap<ObjectName, Arc<Slice>>,
    /// Invariant: the values of `slices` under the Service they name, sorted by name, no entry
    /// empty.
    slices_of: BTreeMap<ObjectName, Vec<Arc<Slice>>>,
    node: Option<Node>,
    service_cidrs: Option<Vec<IpNetwork>>,
    /// `None` until they are listed.
    namespaces: Option<BTreeSet<Arc<str>>>,
    /// `None` until it is known whether there is one.
    corefile: Option<Option<Arc<str>>>,
    arrived: Arrived,
    /// Invariant: the sum over `slices`.
    endpoints: usize,
    /// Invariant: the names of those objects that carry warnings.
    faulty_services: BTreeSet<ObjectName>,
    faulty_slices: BTreeSet<ObjectName>,
    opted_out_pods: Option<OptedOut>,
    /// What the next list lacks and still exists.
    kept_services: BTreeSet<ObjectName>,
    kept_slices: BTreeSet<ObjectName>,
    source_warnings: Vec<Warning>,
}

/// Which lists have come at least once.
#[derive(Clone, Copy, Debug, Default)]
struct Arrived {
    services: bool,
    slices: bool,
    node: bool,
}

/// What a change touches: what has to be planned again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "what is touched has to be planned again"]
pub struct Touched {
    /// The Services that are new, gone or different, or whose slices are.
    pub services: BTreeMap<ObjectName, Extent>,
    /// The Namespaces that are new or gone.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Whether the node's name, zone or addresses have changed, on which every Service depends.
    pub everything: bool,
}

/// How much of a Service is touched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of it.
    Whole,
    /// The ports and families of these slices, as they were and as they are.
    Slices(Vec<Arc<Slice>>),
}

/// How many versions of slices are kept for the sake of an [`Extent`].
const VERSIONS: usize = 16;

impl Extent {
    fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Slices(known), Self::Slices(more)) if known.len() + more.len() <= VERSIONS => {
                known.extend(more);
            }
            _ => *self = Self::Whole,
        }
    }
}

impl Touched {
    /// Adds that the Service `name` is touched.
    pub fn touch(&mut self, name: ObjectName, extent: Extent) {
        match self.services.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(extent)),
            Entry::Occupied(mut entry) => entry.get_mut().merge(extent),
        }
    }

    /// Whether nothing is touched.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.namespaces.is_empty() && !self.everything
    }

    /// Adds what `other` touches: several changes can be planned in one pass.
    pub fn merge(&mut self, other: Self) {
        for (name, extent) in other.services {
            self.touch(name, extent);
        }
        self.namespaces.extend(other.namespaces);
        self.everything |= other.everything;
    }
}

impl World {
    /// Takes the step `change`.
    pub fn apply(&mut self, change: Change) -> Touched {
        let mut touched = Touched::default();
        match change {
            Change::AllServices(services) => {
                self.arrived.services = true;
                let listed: BTreeMap<_, _> =
                    services.into_iter().map(|service| (service.name.clone(), service)).collect();
                let kept = take(&mut self.kept_services);
                for name in absent(&self.services, &listed) {
                    if !kept.contains(&name) {
                        self.remove_service(&name, &mut touched);
                    }
                }
                for service in listed.into_values() {
                    self.put_service(Arc::new(service), &mut touched);
                }
                pack(&mut self.services);
            }
            Change::AllSlices(slices) => {
                self.arrived.slices = true;
                let listed: BTreeMap<_, _> =
                    slices.into_iter().map(|slice| (slice.name.clone(), slice)).collect();
                let kept = take(&mut self.kept_slices);
                for name in absent(&self.slices, &listed) {
                    if !kept.contains(&name) {
                        self.remove_slice(&name, &mut touched);
                    }
                }
                for slice in listed.into_values() {
                    self.put_slice(slice, &mut touched);
                }
                pack(&mut self.slices);
                pack(&mut self.slices_of);
            }
            Change::KeptServices(names) => self.kept_services = names,
            Change::KeptSlices(names) => self.kept_slices = names,
            Change::Node(node) => {
                self.arrived.node = true;
                self.put_node(node, &mut touched);
            }
            Change::Service(service) => self.put_service(service.into(), &mut touched),
            Change::ServiceGone(name) => self.remove_service(&name, &mut touched),
            Change::Slice(slice) => self.put_slice(*slice, &mut touched),
            Change::SliceGone(name) => self.remove_slice(&name, &mut touched),
            Change::ServiceCidrs(cidrs) => self.service_cidrs = Some(cidrs),
            Change::OptedOutPods(pods) => self.opted_out_pods = Some(pods),
            Change::AllNamespaces(names) => {
                let listed: BTreeSet<_> = names.into_iter().collect();
                let known = self.namespaces.replace(listed.clone()).unwrap_or_default();
                touched.namespaces = known.symmetric_difference(&listed).cloned().collect();
            }
            Change::Namespace(name) => {
                if self.namespaces.get_or_insert_default().insert(name.clone()) {
                    touched.namespaces.insert(name);
                }
            }
            Change::NamespaceGone(name) => {
                if self.namespaces.get_or_insert_default().remove(&name) {
                    touched.namespaces.insert(name);
                }
            }
            Change::Corefile(text) => self.corefile = Some(text),
            Change::SourceWarnings(warnings) => self.source_warnings = warnings,
        }
        touched
    }

    /// Whether all Services, all slices and the Node have come: before that, what is missing
    /// may exist, and nothing may be written.
    pub fn synced(&self) -> bool {
        self.arrived.services && self.arrived.slices && self.arrived.node
    }

    /// The Service `name`.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values().map(Arc::as_ref)
    }

    /// The slices of the Service `name`, by name; also if the Service itself is not known.
    pub fn slices_of(&self, name: &ObjectName) -> &[Arc<Slice>] {
        self.slices_of.get(name).map_or(&[], Vec::as_slice)
    }

    /// This node as last seen; a deleted Node object stays, `None` means that it was never seen.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The networks that ClusterIPs are taken from; `None` while that is not known.
    pub fn service_cidrs(&self) -> Option<&[IpNetwork]> {
        self.service_cidrs.as_deref()
    }

    /// What this node's pods opted out of; `None` until a source has said so.
    pub fn opted_out_pods(&self) -> Option<&OptedOut> {
        self.opted_out_pods.as_ref()
    }

    /// The Namespaces; `None` until they are listed, so that what is missing may exist.
    pub fn namespaces(&self) -> Option<&BTreeSet<Arc<str>>> {
        self.namespaces.as_ref()
    }

    /// The Corefile of CoreDNS; `None` until it is known whether there is one.
    pub fn corefile(&self) -> Option<Option<&str>> {
        self.corefile.as_ref().map(Option::as_deref)
    }

    /// How many slices there are.
    pub fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// How many endpoints there are in all slices.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints
    }

    /// What is wrong with the objects, and what the source itself finds wrong: a few sentences for
    /// each object. Made as they are taken.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let services = self
            .faulty_services
            .iter()
            .filter_map(|name| self.services.get(name))
            .map(|service| ("Service", &service.name, &service.warnings));
        let slices = self
            .faulty_slices
            .iter()
            .filter_map(|name| self.slices.get(name))
            .map(|slice| ("EndpointSlice", &slice.name, &slice.warnings));
        let objects = services.chain(slices).flat_map(|(kind, name, messages)| {
            let more = messages.len().saturating_sub(SENTENCES);
            let more = (more > 0).then(|| format!("{more} more faults"));
            let messages = messages.iter().take(SENTENCES).cloned().chain(more);
            messages.map(move |message| Warning { subject: format!("{kind} {name}"), message })
        });
        self.source_warnings.iter().cloned().chain(objects)
    }

    /// How many objects there are warnings about, and what the source itself finds wrong.
    pub fn warning_count(&self) -> usize {
        self.source_warnings.len() + self.faulty_services.len() + self.faulty_slices.len()
    }

    fn put_service(&mut self, service: Arc<Service>, touched: &mut Touched) {
        if self.services.get(&service.name) == Some(&service) {
            return;
        }
        let name = service.name.clone();
        mark(&mut self.faulty_services, &name, !service.warnings.is_empty());
        self.services.insert(name.clone(), service);
        touched.touch(name, Extent::Whole);
    }

    fn remove_service(&mut self, name: &ObjectName, touched: &mut Touched) {
        if self.services.remove(name).is_some() {
            mark(&mut self.faulty_services, name, false);
            touched.touch(name.clone(), Extent::Whole);
        }
    }

    fn put_slice(&mut self, slice: Slice, touched: &mut Touched) {
        match self.slices.get(&slice.name) {
            Some(known) if **known == slice => return,
            Some(known) if known.service != slice.service => {
                self.remove_slice(&slice.name, touched);
            }
            _ => {}
        }
        mark(&mut self.faulty_slices, &slice.name, !slice.warnings.is_empty());
        let slice = Arc::new(slice);
        let versions = self.slices.get(&slice.name).into_iter().chain([&slice]);
        let versions = Extent::Slices(versions.cloned().collect());
        touched.touch(slice.service.clone(), versions);
        // Nearly every Service has one slice; a growing vector would reserve four.
        let siblings =
            self.slices_of.entry(slice.service.clone()).or_insert_with(|| Vec::with_capacity(1));
        match siblings.binary_search_by(|sibling| sibling.name.cmp(&slice.name)) {
            Ok(index) => siblings[index] = Arc::clone(&slice),
            Err(index) => siblings.insert(index, Arc::clone(&slice)),
        }
        self.endpoints += slice.endpoints.len();
        if let Some(known) = self.slices.insert(slice.name.clone(), slice) {
            self.endpoints -= known.endpoints.len();
        }
    }

    fn remove_slice(&mut self, name: &ObjectName, touched: &mut Touched) {
        let Some(slice) = self.slices.remove(name) else { return };
        self.endpoints -= slice.endpoints.len();
        mark(&mut self.faulty_slices, name, false);
        touched.touch(slice.service.clone(), Extent::Slices(vec![Arc::clone(&slice)]));
        if let Some(siblings) = self.slices_of.get_mut(&slice.service) {
            siblings.retain(|sibling| sibling.name != *name);
            if siblings.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
    }

    /// A deleted Node object changes nothing: the node still runs, and may be registered again.
    fn put_node(&mut self, node: Option<Node>, touched: &mut Touched) {
        let Some(node) = node else { return };
        let facts = |node: &Node| (node.name.clone(), node.zone.clone(), node.internal_ips.clone());
        touched.everything = self.node.as_ref().map(facts) != Some(facts(&node));
        self.node = Some(node);
    }
}

/// The keys of `known` that `listed` lacks.
fn absent<A, B>(
    known: &BTreeMap<ObjectName, A>,
    listed: &BTreeMap<ObjectName, B>,
) -> Vec<ObjectName> {
    known.keys().filter(|name| !listed.contains_key(*name)).cloned().collect()
}

fn mark(names: &mut BTreeSet<ObjectName>, name: &ObjectName, present: bool) {
    if present {
        names.insert(name.clone());
    } else {
        names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::examples::{name, service, slice};
    use super::*;

    const VIP: [u8; 4] = [10, 96, 0, 1];
    const POD: [u8; 4] = [10, 1, 0, 1];

    fn services(touched: &Touched) -> Vec<String> {
        touched.services.keys().map(ToString::to_string).collect()
    }

    fn node(zone: &str) -> Node {
        Node { name: "node-a".into(), zone: Some(zone.into()), ..Node::default() }
    }

    /// Scenario 112.
    #[test]
    fn world_is_synced_after_all_three_lists_and_not_before() {
        let lists = [Change::AllServices(vec![]), Change::Node(None), Change::AllSlices(vec![])];
        for missing in 0..lists.len() {
            let mut world = World::default();
            let _ = world.apply(Change::Service(Box::new(service("web", VIP))));
            let _ = world.apply(Change::Slice(Box::new(slice("web-1", "web", [POD]))));
            for (i, list) in lists.iter().enumerate() {
                if i != missing {
                    let _ = world.apply(list.clone());
                }
            }
            assert!(!world.synced());
            let _ = world.apply(lists[missing].clone());
            assert!(world.synced());
        }
    }

    #[test]
    fn relist_touches_only_what_differs() {
        let mut world = World::default();
        let before = ["a", "b", "c"].map(|name| service(name, VIP));
        let _ = world.apply(Change::AllServices(before.to_vec()));
        let [a, mut b, _] = before;
        b.created += 1;
        let touched = world.apply(Change::AllServices(vec![service("d", VIP), b, a]));
        assert_eq!(services(&touched), ["default/b", "default/c", "default/d"]);
        assert_eq!(world.services().len(), 3);
    }

    #[test]
    fn what_is_kept_outlives_the_next_list_and_no_more() {
        let mut world = World::default();
        let (a, b) = (service("a", VIP), service("b", VIP));
        let _ = world.apply(Change::AllServices(vec![a.clone(), b]));
        let _ = world.apply(Change::AllSlices(vec![slice("s", "b", [POD])]));
        let _ = world.apply(Change::KeptServices(BTreeSet::from([name("b"), name("c")])));
        let _ = world.apply(Change::KeptSlices(BTreeSet::from([name("s")])));
        assert!(world.apply(Change::AllServices(vec![a.clone()])).is_empty());
        assert!(world.apply(Change::AllSlices(vec![])).is_empty());
        assert_eq!(services(&world.apply(Change::AllServices(vec![a]))), ["default/b"]);
        assert_eq!(services(&world.apply(Change::AllSlices(vec![]))), ["default/b"]);
    }

    #[test]
    fn slice_that_changes_hands_touches_both_services() {
        let mut world = World::default();
        let _ =
            world.apply(Change::AllSlices(vec![slice("s", "a", [POD]), slice("t", "a", [POD])]));
        let touched = world.apply(Change::Slice(Box::new(slice("s", "b", [POD, POD]))));
        assert_eq!(services(&touched), ["default/a", "default/b"]);
        let slices_of = |service| -> Vec<_> {
            world.slices_of(&name(service)).iter().map(|slice| &*slice.name.name).collect()
        };
        assert_eq!((slices_of("a"), slices_of("b")), (vec!["t"], vec!["s"]));
        assert_eq!((world.slice_count(), world.endpoint_count()), (2, 3));
    }

    #[test]
    fn node_touches_everything_only_by_what_services_depend_on() {
        let mut world = World::default();
        assert!(world.apply(Change::Node(Some(node("zone-a")))).everything);
        let cordoned = Node { deleting: true, ..node("zone-a") };
        assert!(world.apply(Change::Node(Some(cordoned.clone()))).is_empty());
        assert_eq!(world.node(), Some(&cordoned));
        assert!(world.apply(Change::Node(None)).is_empty());
        assert_eq!(world.node(), Some(&cordoned), "the node outlives its object");
        assert!(world.apply(Change::Node(Some(node("zone-b")))).everything);
        let moved = Node { internal_ips: vec![[192, 168, 0, 1].into()], ..node("zone-b") };
        assert!(world.apply(Change::Node(Some(moved))).everything);
    }

    #[test]
    fn namespaces_are_unknown_until_they_are_listed() {
        let touched = |world: &mut World, change| -> Vec<String> {
            world.apply(change).namespaces.iter().map(ToString::to_string).collect()
        };
        let mut world = World::default();
        assert!(world.namespaces().is_none() && world.corefile().is_none());
        let all = |names: &[&str]| Change::AllNamespaces(names.iter().map(|&n| n.into()).collect());
        assert_eq!(touched(&mut world, all(&["a", "b"])), ["a", "b"]);
        assert_eq!(touched(&mut world, Change::Namespace("b".into())), [""; 0]);
        assert_eq!(touched(&mut world, Change::Namespace("c".into())), ["c"]);
        assert_eq!(touched(&mut world, Change::NamespaceGone("a".into())), ["a"]);
        assert_eq!(touched(&mut world, all(&["c", "d"])), ["b", "d"], "a list replaces");
        assert_eq!(world.namespaces().unwrap().len(), 2);
    }

    #[test]
    fn warnings_name_their_objects_and_go_with_them() {
        let mut world = World::default();
        let mut faulty_service = service("web", VIP);
        faulty_service.warnings = vec!["one".into(), "two".into()];
        let mut faulty_slice = slice("web-abc", "web", [POD]);
        faulty_slice.warnings = vec!["three".into()];
        let source = Warning { subject: "web.yaml".into(), message: "zero".into() };
        let _ = world.apply(Change::SourceWarnings(vec![source]));
        let _ = world.apply(Change::Service(Box::new(faulty_service)));
        let _ = world.apply(Change::Slice(Box::new(faulty_slice)));
        let warnings = |world: &World| -> Vec<_> {
            let warnings = world.warnings();
            warnings.map(|warning| format!("{}: {}", warning.subject, warning.message)).collect()
        };
        assert_eq!(
            warnings(&world),
            [
                "web.yaml: zero",
                "Service default/web: one",
                "Service default/web: two",
                "EndpointSlice default/web-abc: three",
            ]
        );
        let _ = world.apply(Change::SliceGone(name("web-abc")));
        let _ = world.apply(Change::Service(Box::new(service("web", VIP))));
        let _ = world.apply(Change::SourceWarnings(vec![]));
        assert!(warnings(&world).is_empty());
    }
}
