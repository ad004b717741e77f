//! What is planned for the node's own addresses and devices.

use super::*;
use crate::model::{Change, OptedOut};
use std::collections::BTreeSet;

fn interface(index: u32, name: &str, addrs: &[&str]) -> Interface {
    Interface {
        index,
        name: name.into(),
        up: true,
        loopback: name == "lo",
        ethernet: true,
        controller: None,
        peer_netns: None,
        default_route: false,
        unseen_bridge: false,
        addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        pods: Vec::new(),
    }
}

fn settings() -> NodeSettings {
    let pod_devices = vec!["veth*".into()];
    let detect_local = DetectLocal::ClusterCidr;
    NodeSettings {
        devices: None,
        pod_devices,
        node_port_addresses: None,
        cluster_cidrs: Vec::new(),
        detect_local,
    }
}

fn interfaces() -> Vec<Interface> {
    vec![
        interface(1, "lo", &["192.168.7.7/32"]),
        interface(2, "eth0", &["172.18.0.2/16", "172.18.0.3/16", "fd00::2/64"]),
        interface(3, "eth1", &["10.1.0.2/24"]),
        interface(4, "veth12", &[]),
        interface(5, "wlan0", &[]),
    ]
}

fn world(node: Option<&Node>) -> World {
    let mut world = World::default();
    let _ = world.apply(Change::Node(node.cloned()));
    world
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

#[test]
fn node_devices_have_addresses_and_pod_devices_match() {
    let plan = plan_node(&interfaces(), &World::default(), &settings());
    let names: Vec<_> = plan.attach.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1", "veth12"]);
    let flags: Vec<_> = plan.rows.devices.values().map(|device| device.flags).collect();
    assert_eq!(flags, [DeviceFlags::NODE, DeviceFlags::NODE, DeviceFlags::POD]);
}

#[test]
fn addresses_behind_the_devices_of_pods_are_pods() {
    let mut interfaces = interfaces();
    let pod: IpAddr = "10.244.1.5".parse().unwrap();
    interfaces[1].pods = vec!["10.9.9.9".parse().unwrap()];
    interfaces[3].pods = vec![pod];
    let plan = plan_node(&interfaces, &World::default(), &settings());
    assert_eq!(plan.rows.pod_addrs.into_iter().collect::<Vec<_>>(), [(pod.into(), 4)]);
}

#[test]
fn names_of_a_pod_that_opts_out_are_left_alone_on_its_device() {
    let mut interfaces = interfaces();
    let pod: IpAddr = "fd00::1:5".parse().unwrap();
    interfaces[3].pods = vec!["10.244.1.5".parse().unwrap(), pod];
    interfaces.push(Interface { pods: vec![], ..interface(6, "veth13", &[]) });
    let mut world = World::default();
    let answered = |world: &World| {
        let plan = plan_node(&interfaces, world, &settings());
        [4, 6].map(|index| plan.rows.devices[&index].answers_names())
    };
    assert_eq!(answered(&world), [true, true]);
    let opted_out = OptedOut { names: [pod].into(), ..OptedOut::default() };
    let _ = world.apply(Change::OptedOutPods(opted_out));
    assert_eq!(answered(&world), [false, true]);
}

#[test]
fn ports_of_a_bridge_and_devices_that_are_down_are_left_alone() {
    let mut interfaces = interfaces();
    interfaces[1].controller = Some(9);
    interfaces[2].up = false;
    let plan = plan_node(&interfaces, &World::default(), &settings());
    assert_eq!(plan.attach.len(), 1);
    interfaces[3].controller = Some(9);
    assert_eq!(
        plan_node(&interfaces, &World::default(), &settings()).attach.len(),
        1,
        "pods' always"
    );
}

/// A pod's veth whose name no pattern fits, a tap that is as well a port of the bridge, and the
/// bridge.
fn bridged() -> Vec<Interface> {
    let port = |index, name| Interface { controller: Some(7), ..interface(index, name, &[]) };
    let mut interfaces = interfaces();
    interfaces.push(Interface { peer_netns: Some(3), ..port(6, "pod0") });
    interfaces.push(interface(7, "cni0", &["10.244.1.1/24"]));
    interfaces.push(port(8, "tap0"));
    interfaces
}

fn detected(detect_local: DetectLocal, world: &World) -> NodePlan {
    let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    plan_node(&bridged(), world, &NodeSettings { cluster_cidrs, detect_local, ..settings() })
}

fn prefixes(networks: &[&str]) -> BTreeSet<Prefix> {
    networks.iter().map(|network| network.parse::<IpNetwork>().unwrap().into()).collect()
}

#[test]
fn pods_device_says_whether_netfilter_sees_its_bridge() {
    let mut interfaces = bridged();
    interfaces[5].name = "veth6".to_owned();
    let marked = |interfaces: &[Interface]| -> Vec<u32> {
        let devices = plan_node(interfaces, &World::default(), &settings()).rows.devices;
        let unseen = DeviceFlags::UNSEEN_BRIDGE;
        devices.iter().filter(|(_, device)| device.flags.has(unseen)).map(|(i, _)| *i).collect()
    };
    assert!(marked(&interfaces).is_empty());
    interfaces[6].unseen_bridge = true;
    assert_eq!(marked(&interfaces), [6], "and no other device");
}

#[test]
fn device_without_an_address_is_used_where_a_default_route_leads_to_it() {
    let mut interfaces = interfaces();
    interfaces[4].default_route = true;
    let plan = plan_node(&interfaces, &World::default(), &settings());
    assert!(plan.attach.iter().any(|interface| interface.name == "wlan0"));
}

#[test]
fn pods_are_told_by_the_clusters_networks_or_by_those_of_the_node_as_it_is_now() {
    let mut world = world(None);
    let told = |detect_local, world: &World| detected(detect_local, world).rows.cluster_cidrs;
    assert_eq!(told(DetectLocal::ClusterCidr, &world), prefixes(&["10.244.0.0/16"]));
    assert_eq!(told(DetectLocal::NodeCidr, &world), prefixes(&[]));
    for networks in [&["10.244.1.0/24", "fd00:244:1::/64"][..], &["10.244.9.0/24"]] {
        let pod_cidrs = networks.iter().map(|network| network.parse().unwrap()).collect();
        let _ = world.apply(Change::Node(Some(Node { pod_cidrs, ..Node::default() })));
        assert_eq!(told(DetectLocal::NodeCidr, &world), prefixes(networks));
        assert_eq!(detected(DetectLocal::NodeCidr, &world).warnings, []);
    }
    assert_eq!(told(DetectLocal::ClusterCidr, &world), prefixes(&["10.244.0.0/16"]));
}

#[test]
fn pods_are_told_by_the_bridge_and_its_ports_or_by_the_beginning_of_a_name() {
    let flags = |detect_local| {
        let plan = detected(detect_local, &World::default());
        assert_eq!(plan.rows.cluster_cidrs, prefixes(&[]), "and not by their addresses");
        let accepted = plan.rows.addrs.iter().filter(|(_, a)| a.accepts_node_ports());
        assert!(accepted.map(|(addr, _)| *addr).eq([addr("172.18.0.2"), addr("fd00::2")]));
        [2, 4, 6, 7, 8].map(|index| plan.rows.devices.get(&index).map(|device| device.flags))
    };
    let (node, pod) = (Some(DeviceFlags::NODE), Some(DeviceFlags::POD));
    let local = Some(DeviceFlags::LOCAL);
    let bridge = flags(DetectLocal::BridgeInterface("cni0".to_owned()));
    assert_eq!(bridge, [node, pod, pod, local, local]);
    let prefix = flags(DetectLocal::InterfaceNamePrefix("pod".to_owned()));
    assert_eq!(prefix, [node, pod, pod, node, None]);
}

#[test]
fn a_mode_that_the_node_lacks_the_means_for_is_a_warning() {
    let world = world(Some(&Node::default()));
    let warning = |detect_local| detected(detect_local, &world).warnings.pop();
    let missing = warning(DetectLocal::BridgeInterface("cbr0".to_owned())).unwrap();
    assert_eq!(missing.subject, "--detect-local-mode");
    assert!(missing.message.contains("no interface cbr0"), "{}", missing.message);
    let no_networks = warning(DetectLocal::NodeCidr).unwrap().message;
    assert!(no_networks.contains("no podCIDRs"), "{no_networks}");
    assert_eq!(warning(DetectLocal::BridgeInterface("cni0".to_owned())), None);
    assert_eq!(warning(DetectLocal::InterfaceNamePrefix("none".to_owned())), None);
}

/// Scenario 43.
#[test]
fn primary_is_the_internal_ip_and_else_the_first_address() {
    let accepted = |node: Option<&Node>| -> Vec<String> {
        let plan = plan_node(&interfaces(), &world(node), &settings());
        let accepted = plan.rows.addrs.iter().filter(|(_, a)| a.accepts_node_ports());
        accepted.map(|(addr, _)| addr.to_string()).collect()
    };
    assert_eq!(accepted(None), ["172.18.0.2", "fd00::2"]);
    let internal_ips = vec!["172.18.0.3".parse().unwrap(), "fd00::9".parse().unwrap()];
    let node = Node { internal_ips, ..Node::default() };
    assert_eq!(accepted(Some(&node)), ["172.18.0.3", "fd00::2"]);
}

/// Scenario 42.
#[test]
fn listed_ranges_choose_the_addresses() {
    let mut settings = settings();
    settings.node_port_addresses = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    let plan = plan_node(&interfaces(), &World::default(), &settings);
    let accepted = plan.rows.addrs.iter().filter(|(_, addr)| addr.accepts_node_ports());
    assert!(accepted.map(|(addr, _)| *addr).eq([addr("10.1.0.2"), addr("fd00::2")]));
    assert_eq!(plan.rows.addrs.len(), 2, "others are no business of the programs");
    for own in ["10.1.0.2", "172.18.0.2", "192.168.7.7", "fd00::2"] {
        assert!(plan.own.contains(&own.parse().unwrap()), "{own}");
    }
}

/// NodeLocal DNSCache has the ClusterIP of the DNS service on a device of the node.
#[test]
fn addresses_of_the_node_among_the_cluster_ips_are_known_as_its_own() {
    let mut interfaces = interfaces();
    interfaces.push(interface(6, "nodelocaldns", &["10.96.0.10/32", "169.254.20.10/32"]));
    interfaces.push(interface(7, LEFT_BY_IPVS, &["10.96.0.1/32"]));
    let mut world = World::default();
    let known = |world: &World| plan_node(&interfaces, world, &settings()).rows.addrs;
    assert!(!known(&world).contains_key(&addr("10.96.0.10")), "no ServiceCIDR is known");
    let _ = world.apply(Change::ServiceCidrs(vec!["10.96.0.0/16".parse().unwrap()]));
    let addrs = known(&world);
    assert_eq!(addrs.get(&addr("10.96.0.10")), Some(&NodeAddr::OWN));
    assert_eq!(addrs.get(&addr("169.254.20.10")), None);
    assert_eq!(addrs.get(&addr("10.96.0.1")), None, "kube-proxy's, which is gone");
}

/// Scenario S15.
#[test]
fn a_family_of_which_nothing_is_named_is_not_restricted() {
    let accepted = |node: Option<&Node>, settings: &NodeSettings| -> Vec<String> {
        let mut interfaces = interfaces();
        interfaces[2].addrs.push("fd00:1::2/64".parse().unwrap());
        let plan = plan_node(&interfaces, &world(node), settings);
        let accepted = plan.rows.addrs.iter().filter(|(_, a)| a.accepts_node_ports());
        accepted.map(|(addr, _)| addr.to_string()).collect()
    };
    let internal_ips = vec!["172.18.0.3".parse().unwrap()];
    let node = Node { internal_ips, ..Node::default() };
    assert_eq!(accepted(Some(&node), &settings()), ["172.18.0.3", "fd00::2", "fd00:1::2"]);
    let mut settings = settings();
    settings.node_port_addresses = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(accepted(None, &settings), ["10.1.0.2", "fd00::2", "fd00:1::2"]);
}

#[test]
fn clients_are_hidden_behind_the_primary_address_where_its_device_is_used() {
    let sources = |node: Option<&Node>| {
        let plan = plan_node(&interfaces(), &world(node), &settings());
        plan.rows.sources.into_iter().map(|(index, addr)| (index, addr.to_string())).collect()
    };
    let found: Vec<(u32, String)> = sources(None);
    assert_eq!(found, [(2, "172.18.0.2".to_owned()), (2, "fd00::2".to_owned())]);
    let internal_ips = vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
    let found: Vec<(u32, String)> = sources(Some(&Node { internal_ips, ..Node::default() }));
    assert_eq!(found, [(2, "fd00::2".to_owned()), (3, "10.1.0.2".to_owned())]);
}
