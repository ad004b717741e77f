//! Facts that the tables of a small case do not show.

use super::Planner;
use super::backends::MAX_BACKENDS;
use crate::model::{
    Change, Service, ServicePort, ServiceType, Slice, SlicePort, Touched, World, examples,
};
use proxy_ebpf::Port;
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::frontend::Scope;
use proxy_ebpf::slot::BackendFlags;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

fn addr(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + index)
}

fn world(services: Vec<Service>, slices: Vec<Slice>) -> (World, Touched) {
    let mut world = World::default();
    let mut touched = world.apply(Change::AllServices(services));
    touched.merge(world.apply(Change::AllSlices(slices)));
    (world, touched)
}

#[test]
fn change_costs_what_it_touches_in_a_world_of_10_000_services() {
    const SERVICES: u32 = 10_000;
    const ENDPOINTS: u32 = 25;
    let slice = |i: u32, count: u32| {
        let addrs = (0..count).map(|j| addr(0x10_0000 + i * ENDPOINTS + j));
        examples::slice(&format!("s{i}-x"), &format!("s{i}"), addrs)
    };
    let services = (0..SERVICES).map(|i| examples::service(&format!("s{i}"), addr(i))).collect();
    let slices = (0..SERVICES).map(|i| slice(i, ENDPOINTS)).collect();
    let (mut world, touched) = world(services, slices);
    let mut planner = Planner::new("node-a");
    let delta = planner.update(&world, &touched);
    assert_eq!(delta.services.len(), 10_000);
    assert_eq!(world.endpoint_count(), 250_000);
    assert_eq!(planner.services_planned(), 10_000);

    let touched = world.apply(Change::Slice(Box::new(slice(4711, 24))));
    assert!(touched.services.keys().eq([&examples::name("s4711")]));
    let delta = planner.update(&world, &touched);
    assert_eq!(planner.services_planned(), 10_001);
    assert_eq!((delta.services.len(), delta.frontends.len()), (1, 0));
}

/// Scenario 67.
#[test]
fn external_ips_can_be_turned_off() {
    let mut service = examples::service("web", addr(1));
    service.external_ips = vec![IpAddr::from([192, 0, 2, 8])];
    let (world, touched) = world(vec![service], vec![]);
    let mut planner = Planner::new("node-a").without_external_ips();
    let delta = planner.update(&world, &touched);
    assert!(!delta.frontends.is_empty());
    assert!(delta.frontends.keys().all(|key| key.addr == addr(1).into()));
}

#[test]
fn service_without_a_cluster_ip_gets_nothing_and_no_warning() {
    let mut service = examples::service("web", addr(1));
    service.cluster_ips.clear();
    service.external_ips = vec![IpAddr::from([192, 0, 2, 8])];
    let (world, touched) = world(vec![service], vec![]);
    let mut planner = Planner::new("node-a");
    assert!(planner.update(&world, &touched).is_empty());
    assert_eq!(planner.warnings().count(), 0);
}

#[test]
fn service_with_more_backends_than_fit_gets_those_that_do_and_a_warning() {
    let most = u32::try_from(MAX_BACKENDS).unwrap();
    let plan = |count| {
        let slice = examples::slice("web-1", "web", (0..count).map(|i| addr(0x10_0000 + i)));
        let (world, touched) = world(vec![examples::service("web", addr(1))], vec![slice]);
        let mut planner = Planner::new("node-a");
        let delta = planner.update(&world, &touched);
        let row = delta.services.into_values().next().unwrap().unwrap();
        (row.with(BackendFlags::IN_CLUSTER_SET).count(), planner.warnings().collect::<Vec<_>>())
    };
    assert_eq!(plan(most), (MAX_BACKENDS, vec![]));
    let (backends, warnings) = plan(most + 2);
    assert_eq!((backends, warnings.len()), (MAX_BACKENDS, 1));
    assert_eq!(warnings[0].subject, "Service default/web");
    assert!(warnings[0].message.contains(" 2 endpoints are left out"), "{}", warnings[0].message);
}

#[test]
fn name_that_the_maps_cannot_hold_is_a_warning() {
    let plan = |length| {
        let service = examples::service(&"a".repeat(length), addr(1));
        let (world, touched) = world(vec![service], vec![]);
        let mut planner = Planner::new("node-a");
        (planner.update(&world, &touched).services.len(), planner.warnings().count())
    };
    assert_eq!(plan(63), (1, 0));
    assert_eq!(plan(64), (0, 1));
}

/// Two Services that ask for the same addresses and ports get one warning, not thousands.
#[test]
fn a_contest_about_many_ports_is_one_warning_that_counts_them() {
    let contest = |ports: u16| {
        let contender = |name, index| {
            let mut service = examples::service(name, addr(index));
            let port = service.ports[0].clone();
            let number = |number| ServicePort { port: Port::new(number), ..port.clone() };
            service.ports = (1..=ports).map(number).collect();
            service.external_ips = vec![IpAddr::from([192, 0, 2, 8])];
            service
        };
        let (world, touched) = world(vec![contender("a", 1), contender("b", 2)], vec![]);
        let mut planner = Planner::new("node-a");
        let _ = planner.update(&world, &touched);
        planner.warnings().map(|warning| warning.message).collect::<Vec<_>>()
    };
    let one = "192.0.2.8:1/TCP goes to Service default/a, which asks for it too and is as old, and \
               first by name: take it out of one of the two";
    assert_eq!(contest(1), [one]);
    assert_eq!(
        contest(10_000),
        [format!("{one}; so it is with 9999 more of its addresses and ports")]
    );
}

/// The programs look for NodePorts in their range alone, and say nothing of others.
#[test]
fn node_ports_outside_the_range_have_no_frontend_and_one_warning() {
    let mut service = examples::service("web", addr(1));
    service.kind = ServiceType::NodePort;
    let port = service.ports[0].clone();
    let with = |number, node_port| ServicePort {
        port: Port::new(number),
        node_port: Some(Port::new(node_port)),
        ..port.clone()
    };
    service.ports = vec![with(80, 20_080), with(81, 30_000), with(82, 32_768)];
    let (world, touched) = world(vec![service], vec![]);
    let range = NodePortRange { first: 30_000, last: 32_767 };
    let mut planner = Planner::new("node-a").with_node_ports(range);
    let delta = planner.update(&world, &touched);
    let node_ports = delta.frontends.keys().filter(|key| key.scope() == Scope::Node);
    assert_eq!(node_ports.map(|key| key.port.number()).collect::<Vec<_>>(), [30_000]);
    let warnings: Vec<_> = planner.warnings().collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].subject, "Service default/web");
    let message = &warnings[0].message;
    assert!(message.starts_with("NodePort 20080/TCP is not served"), "{message}");
    assert!(message.contains("--node-port-range 30000-32767"), "{message}");
    assert!(message.ends_with("; 1 more like this"), "{message}");
}

/// A Service with `ports` named ports, and a slice for each `in_slice` of them.
fn many_ports(ports: u16, in_slice: u16, last: u32) -> (Service, Vec<Slice>) {
    let mut service = examples::service("web", addr(1));
    let name = |number: u16| -> Arc<str> { format!("p{number}").into() };
    let (port, mut slices) = (service.ports[0].clone(), Vec::new());
    service.ports = (1..=ports)
        .map(|number| ServicePort { name: name(number), port: Port::new(number), ..port.clone() })
        .collect();
    for first in (1..=ports).step_by(in_slice.into()) {
        let mut slice = examples::slice(&format!("web-{first}"), "web", [addr(0x10_0000 + last)]);
        let port = slice.ports[0].clone();
        slice.ports = (first..first + in_slice)
            .map(|number| SlicePort { name: name(number), ..port.clone() })
            .collect();
        slices.push(slice);
    }
    (service, slices)
}

#[test]
fn change_of_a_slice_costs_the_ports_that_the_slice_has() {
    let (service, slices) = many_ports(10_000, 100, 0);
    let (mut world, touched) = world(vec![service], slices);
    let mut planner = Planner::new("node-a");
    let _ = planner.update(&world, &touched);
    assert_eq!(planner.rows_planned(), 10_000);
    let (_, mut slices) = many_ports(10_000, 100, 1);
    let touched = world.apply(Change::Slice(Box::new(slices.remove(7))));
    let delta = planner.update(&world, &touched);
    assert_eq!((delta.services.len(), delta.frontends.len()), (100, 0));
    assert_eq!(planner.rows_planned(), 10_100);
}

/// Eight times the ports take about eight times as long, and 64 times if each port looks at all
/// ports of the slice.
#[test]
fn time_for_a_service_goes_with_its_ports_and_not_with_their_square() {
    let time = |ports| {
        let (service, slices) = many_ports(ports, ports, 0);
        let (world, touched) = world(vec![service], slices);
        let run = || {
            let began = Instant::now();
            let _ = Planner::new("node-a").update(&world, &touched);
            began.elapsed()
        };
        let mut runs: Vec<_> = std::iter::repeat_with(run).take(5).collect();
        runs.sort();
        runs[2]
    };
    let (few, many) = (time(500), time(4_000));
    assert!(many < few * 30, "500 ports take {few:?}, 4,000 take {many:?}");
}
