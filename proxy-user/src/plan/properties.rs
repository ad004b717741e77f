//! Properties of the planner over random worlds, with so few names, addresses and ports that
//! everything collides with everything.

use super::Planner;
use crate::model::{
    Change, Conditions, Endpoint, Node, ObjectName, Placement, Service, ServicePort, ServiceType,
    Slice, SlicePort, Touched, TrafficPolicy, World,
};
use crate::tables::Tables;
use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proxy_ebpf::frontend::FrontendKey;
use proxy_ebpf::slot::BackendFlags;
use proxy_ebpf::{Port, Proto};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const OWN_NODE: &str = "node-a";
const EVERYTHING: fn() -> Touched = || Touched { everything: true, ..Touched::default() };

fn name() -> impl Strategy<Value = ObjectName> {
    (select(vec!["n", "nn"]), select(vec!["a", "b"]))
        .prop_map(|(namespace, name)| ObjectName { namespace: namespace.into(), name: name.into() })
}

fn port_name() -> impl Strategy<Value = Arc<str>> {
    select(vec!["", "x"]).prop_map(Into::into)
}

fn proto() -> impl Strategy<Value = Proto> {
    select(vec![Proto::TCP, Proto::UDP])
}

fn ips(all: &[&str]) -> impl Strategy<Value = Vec<IpAddr>> + use<> {
    let all: Vec<IpAddr> = all.iter().map(|ip| ip.parse().unwrap()).collect();
    let most = all.len();
    subsequence(all, 0..=most)
}

fn ranges(all: &[&str]) -> impl Strategy<Value = Vec<IpNetwork>> + use<> {
    let all: Vec<IpNetwork> = all.iter().map(|range| range.parse().unwrap()).collect();
    let most = all.len();
    subsequence(all, 0..=most)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn kind() -> impl Strategy<Value = ServiceType> {
    use ServiceType::{ClusterIp, LoadBalancer, NodePort};
    select(vec![ClusterIp, NodePort, LoadBalancer])
}

prop_compose! {
    fn service_port()(
        name in port_name(),
        proto in proto(),
        port in 80_u16..83,
        node_port in prop::option::of(30_000_u16..30_002),
    ) -> ServicePort {
        ServicePort { name, proto, port: Port::new(port), node_port: node_port.map(Port::new) }
    }
}

prop_compose! {
    fn service()(
        name in name(),
        created in 0_i64..2,
        kind in kind(),
        v4 in ips(&["10.96.0.1"]),
        v6 in ips(&["fd00::1"]),
        external_ips in ips(&["10.96.0.1", "192.0.2.1", "fd00::2"]),
        load_balancer_ips in ips(&["192.0.2.1", "192.0.2.2"]),
        ports in vec(service_port(), 0..3),
        policies in (policy(), policy()),
        affinity_seconds in prop::option::of(1_u32..3),
        ranges in ranges(&["192.0.2.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd00::/16"]),
    ) -> Service {
        let (internal_policy, external_policy) = policies;
        Service {
            name, created, kind, external_ips, load_balancer_ips, ports, internal_policy,
            external_policy, affinity_seconds,
            headless: v4.is_empty() && v6.is_empty(),
            cluster_ips: [v4, v6].concat(),
            source_ranges: ranges,
            health_check_node_port: None,
            other_proxy: false,
            external_name: None,
            warnings: Vec::new(),
        }
    }
}

fn hints(all: &'static [&'static str]) -> impl Strategy<Value = Box<[Arc<str>]>> {
    subsequence(all, 0..=all.len()).prop_map(|hints| hints.into_iter().map(Into::into).collect())
}

prop_compose! {
    fn endpoint()(
        addr in select(vec!["10.1.0.1", "10.1.0.2", "10.1.0.3", "fd01::1", "fd01::2"]),
        (ready, serving, terminating) in any::<(bool, bool, bool)>(),
        node in prop::option::of(select(vec![OWN_NODE, "node-b"])),
        hostname in prop::option::weighted(0.3, select(vec!["a", "b", "a.b"])),
        zone_hints in hints(&["zone-a", "zone-b"]),
        node_hints in hints(&[OWN_NODE, "node-b"]),
    ) -> Endpoint {
        Endpoint {
            addr: addr.parse().unwrap(),
            conditions: Conditions { ready, serving, terminating },
            placement: Placement { node: node.map(Into::into), zone_hints, node_hints }.into(),
            hostname: hostname.map(Into::into),
        }
    }
}

prop_compose! {
    fn slice()(
        service in name(),
        slice in select(vec!["s", "t", "u"]),
        headless in prop::bool::weighted(0.1),
        ports in vec((port_name(), proto(), 8080_u16..8082), 0..3),
        endpoints in vec(endpoint(), 0..5),
    ) -> Slice {
        let slot = |(name, proto, port)| SlicePort { name, proto, port: Port::new(port) };
        Slice {
            name: ObjectName { namespace: service.namespace.clone(), name: slice.into() },
            service,
            headless,
            ports: ports.into_iter().map(slot).collect(),
            endpoints,
            triggered: None,
            warnings: Vec::new(),
        }
    }
}

fn node() -> impl Strategy<Value = Node> {
    prop::option::of(select(vec!["zone-a", "zone-b"])).prop_map(|zone| Node {
        name: OWN_NODE.into(),
        zone: zone.map(Into::into),
        ..Node::default()
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => vec(service(), 0..4).prop_map(Change::AllServices),
        1 => vec(slice(), 0..5).prop_map(Change::AllSlices),
        1 => prop::option::of(node()).prop_map(Change::Node),
        6 => service().prop_map(|service| Change::Service(Box::new(service))),
        3 => name().prop_map(Change::ServiceGone),
        6 => slice().prop_map(|slice| Change::Slice(Box::new(slice))),
        3 => slice().prop_map(|slice| Change::SliceGone(slice.name)),
    ]
}

/// The objects of a cluster, each once, in any order.
fn objects() -> impl Strategy<Value = (Vec<Service>, Vec<Slice>, Node)> {
    (vec(service(), 0..6), vec(slice(), 0..8), node()).prop_map(|(services, slices, node)| {
        let services: BTreeMap<_, _> = services.into_iter().map(|s| (s.name.clone(), s)).collect();
        let slices: BTreeMap<_, _> = slices.into_iter().map(|s| (s.name.clone(), s)).collect();
        (services.into_values().collect(), slices.into_values().collect(), node)
    })
}

fn one_by_one((services, slices, node): (Vec<Service>, Vec<Slice>, Node)) -> Vec<Change> {
    let services = services.into_iter().map(|service| Change::Service(Box::new(service)));
    let slices = slices.into_iter().map(|slice| Change::Slice(Box::new(slice)));
    services.chain(slices).chain([Change::Node(Some(node))]).collect()
}

fn from_scratch(world: &World) -> Planner {
    let mut planner = Planner::new(OWN_NODE).with_names();
    let delta = planner.update(world, &EVERYTHING());
    let mut tables = Tables::default();
    tables.apply(&delta);
    assert_eq!(tables, *planner.tables());
    planner
}

fn planned(changes: impl IntoIterator<Item = Change>) -> (World, Planner) {
    let (mut world, mut planner) = (World::default(), Planner::new(OWN_NODE).with_names());
    for change in changes {
        let touched = world.apply(change);
        let _delta = planner.update(&world, &touched);
    }
    (world, planner)
}

proptest! {
    /// Scenario 15.
    #[test]
    fn incremental_equals_from_scratch(
        batches in vec(vec(change(), 0..4), 0..12),
    ) {
        let (mut world, mut planner) = (World::default(), Planner::new(OWN_NODE).with_names());
        let mut tables = Tables::default();
        for batch in batches {
            let mut touched = Touched::default();
            for change in batch {
                touched.merge(world.apply(change));
            }
            let delta = planner.update(&world, &touched);
            for (key, row) in &delta.services {
                prop_assert_ne!(tables.services.get(key), row.as_ref(), "{:?} is no change", key);
            }
            for (key, row) in &delta.frontends {
                prop_assert_ne!(tables.frontends.get(key), row.as_ref(), "{:?} is no change", key);
            }
            tables.apply(&delta);
            prop_assert_eq!(&tables, planner.tables());
            let fresh = from_scratch(&world);
            prop_assert_eq!(&tables, fresh.tables());
            prop_assert_eq!(planner.warnings().collect::<Vec<_>>(), fresh.warnings().collect::<Vec<_>>());
        }
    }

    /// Scenario 12.
    #[test]
    fn arrival_order_changes_nothing(
        (one, other) in objects().prop_map(one_by_one).prop_flat_map(|changes| {
            (Just(changes.clone()).prop_shuffle(), Just(changes).prop_shuffle())
        }),
    ) {
        let ((one_world, one), (other_world, other)) = (planned(one), planned(other));
        prop_assert_eq!(one.tables(), other.tables());
        prop_assert_eq!(one.warnings().collect::<Vec<_>>(), other.warnings().collect::<Vec<_>>());
        prop_assert_eq!(one_world.endpoint_count(), other_world.endpoint_count());
    }

    #[test]
    fn a_change_that_was_made_touches_nothing(
        changes in vec(change(), 0..12),
        last in change(),
    ) {
        let (mut world, _) = planned(changes);
        let _ = world.apply(last.clone());
        prop_assert_eq!(world.apply(last), Touched::default());
    }

    #[test]
    fn planning_again_changes_nothing(changes in vec(change(), 0..12)) {
        let (world, mut planner) = planned(changes);
        // Without any change, not even what is always there has been planned.
        let _ = planner.update(&world, &Touched::default());
        prop_assert!(planner.update(&world, &EVERYTHING()).is_empty());
    }

    #[test]
    fn relist_of_the_current_state_touches_nothing(objects in objects()) {
        let (mut world, _) = planned(one_by_one(objects.clone()));
        let (services, slices, node) = objects;
        for change in [
            Change::AllServices(services),
            Change::AllSlices(slices),
            Change::Node(Some(node)),
        ] {
            prop_assert_eq!(world.apply(change), Touched::default());
        }
        prop_assert!(world.synced());
    }

    #[test]
    fn relist_replaces_what_was_there(
        changes in vec(change(), 0..12),
        (services, slices, node) in objects(),
    ) {
        let relist = [
            Change::AllServices(services),
            Change::AllSlices(slices),
            Change::Node(Some(node)),
        ];
        let (_, after) = planned(changes.into_iter().chain(relist.clone()));
        let (_, fresh) = planned(relist);
        prop_assert_eq!(after.tables(), fresh.tables());
        prop_assert_eq!(after.warnings().collect::<Vec<_>>(), fresh.warnings().collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_left_after_the_last_object(changes in vec(change(), 0..12)) {
        let gone = [Change::AllServices(Vec::new()), Change::AllSlices(Vec::new())];
        let gone = changes.into_iter().chain(gone);
        let (world, mut planner) = planned(gone);
        let _ = planner.update(&world, &Touched::default());
        let empty = from_scratch(&World::default());
        prop_assert_eq!(planner.tables(), empty.tables());
        prop_assert_eq!(planner.tables().services.len(), 0);
        prop_assert_eq!(planner.warnings().count(), 0);
        prop_assert!(planner.claims.is_empty());
        prop_assert_eq!(world.endpoint_count(), 0);
    }

    #[test]
    fn rows_keep_their_invariants(objects in objects()) {
        let (_, planner) = planned(one_by_one(objects));
        let tables = planner.tables();
        for (key, row) in &tables.frontends {
            prop_assert!(tables.services.contains_key(&row.service), "{:?} dangles", row);
            let owned = tables.frontends.contains_key(&FrontendKey::address(key.addr));
            prop_assert!(!owned || row.flags.is_cluster_ip(), "{key:?} of a ClusterIP is taken");
        }
        for row in tables.services.values() {
            prop_assert!(row.all.is_sorted_by(|a, b| a.0 < b.0), "{:?}", row.all);
            let is_refused = row.with(BackendFlags::IN_CLUSTER_SET).next().is_none();
            prop_assert_eq!(row.all.is_empty(), is_refused, "refused means unusable");
        }
    }
}
