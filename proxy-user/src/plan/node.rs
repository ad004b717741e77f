//! The plan for the node itself: which devices the packet path is attached to, at which addresses
//! NodePorts are reached, and what the source of SNAT is on each device.
//!
//! A pure function of the interfaces, the settings, and what the world says of the Node, the
//! ServiceCIDRs and the pods that opt out.

use crate::glob::matches_any;
use crate::model::{Interface, Node, World};
use crate::tables::{NodeRows, Prefix};
use ipnetwork::IpNetwork;
use proxy_ebpf::Addr;
use proxy_ebpf::node::{Device, NodeAddr};
use std::net::IpAddr;

/// The settings that decide about devices and addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// Patterns (see [`matches_any`]) of the node's own devices; `None` takes every device that has an address.
    pub devices: Option<Vec<String>>,
    /// Patterns of the node's side of pod devices.
    pub pod_devices: Vec<String>,
    /// Where NodePorts are reached: at addresses within these, or, if `None`, at the primary
    /// address of each family. A family of which nothing is named is not restricted.
    pub node_port_addresses: Option<Vec<IpNetwork>>,
}

/// What is planned for the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePlan {
    /// The rows of the node's tables.
    pub rows: NodeRows,
    /// The interfaces that the packet path is attached to.
    pub attach: Vec<Interface>,
    /// The node's primary address of each family that it has.
    pub primary: Vec<IpAddr>,
}

/// Plans the node.
pub fn plan_node(interfaces: &[Interface], world: &World, settings: &NodeSettings) -> NodePlan {
    let node = world.node();
    let is_pod = |i: &Interface| matches_any(&settings.pod_devices, &i.name);
    let is_node = |i: &Interface| match &settings.devices {
        Some(patterns) => matches_any(patterns, &i.name),
        None => !i.addrs.is_empty() && !i.has_controller,
    };
    let attach: Vec<&Interface> =
        interfaces.iter().filter(|i| i.up && !i.loopback && (is_pod(i) || is_node(i))).collect();
    let node_devices = || attach.iter().filter(|i| !is_pod(i)).copied();
    let primary = [false, true].map(|v6| primary(node_devices(), node, v6));

    let mut plan =
        NodePlan { primary: primary.into_iter().flatten().collect(), ..NodePlan::default() };
    plan.rows.service_cidrs =
        world.service_cidrs().map(|cidrs| cidrs.iter().copied().map(Prefix::from).collect());
    // The loopback interface too: a VIP that announces itself may be an address of `lo`.
    for addr in interfaces.iter().flat_map(|i| &i.addrs).map(IpNetwork::ip) {
        let v6 = addr.is_ipv6();
        let accepted = match &settings.node_port_addresses {
            Some(ranges) => {
                let mut ranges = ranges.iter().filter(|range| range.is_ipv6() == v6).peekable();
                ranges.peek().is_none() || ranges.any(|range| range.contains(addr))
            }
            None => primary.contains(&Some(addr)) || is_only_of_family(node, !v6),
        };
        let flags = if accepted { NodeAddr::NODE_PORT } else { NodeAddr::LOCAL };
        plan.rows.addrs.insert(addr.into(), flags);
    }
    for interface in attach {
        let own = |v6: bool| interface.addrs.iter().map(IpNetwork::ip).find(|a| a.is_ipv6() == v6);
        let snat = |v6: bool| own(v6).or(primary[usize::from(v6)]).map_or_else(none, Addr::from);
        let names_off = world.opted_out_pods().is_some_and(|opted_out| {
            interface.pods.iter().any(|addr| opted_out.names.contains(addr))
        });
        let pod = match (is_pod(interface), names_off) {
            (true, true) => Device::POD | Device::NAMES_OFF,
            (true, false) => Device::POD,
            (false, _) => 0,
        };
        let netns = interface.peer_netns.unwrap_or(-1);
        let device = Device { snat_v4: snat(false), snat_v6: snat(true), pod, netns };
        plan.rows.devices.insert(interface.index, device);
        if pod != 0 {
            let addrs = interface.pods.iter().map(|addr| (Addr::from(*addr), interface.index));
            plan.rows.pod_addrs.extend(addrs);
        }
        plan.attach.push(interface.clone());
    }
    plan
}

const fn none() -> Addr {
    Addr::UNSPECIFIED_V6
}

/// Whether the Node has InternalIPs, and all are of one family.
fn is_only_of_family(node: Option<&Node>, v6: bool) -> bool {
    let internal_ips = node.map_or(&[][..], |node| &node.internal_ips);
    !internal_ips.is_empty() && internal_ips.iter().all(|ip| ip.is_ipv6() == v6)
}

/// The node's primary address of a family: its first InternalIP that is here, or else the first
/// address of the first device.
fn primary<'a>(
    mut devices: impl Iterator<Item = &'a Interface> + Clone,
    node: Option<&Node>,
    v6: bool,
) -> Option<IpAddr> {
    let here = |ip: &IpAddr| devices.clone().any(|i| i.addrs.iter().any(|a| a.ip() == *ip));
    let internal = node.and_then(|node| {
        node.internal_ips.iter().find(|ip| ip.is_ipv6() == v6 && here(ip)).copied()
    });
    internal.or_else(|| {
        devices.find_map(|i| i.addrs.iter().map(IpNetwork::ip).find(|ip| ip.is_ipv6() == v6))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, OptedOut};

    fn interface(index: u32, name: &str, addrs: &[&str]) -> Interface {
        Interface {
            index,
            name: name.into(),
            up: true,
            loopback: name == "lo",
            ethernet: true,
            has_controller: false,
            peer_netns: None,
            addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
            pods: Vec::new(),
        }
    }

    fn settings() -> NodeSettings {
        let pod_devices = vec!["veth*".into()];
        NodeSettings { devices: None, pod_devices, node_port_addresses: None }
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
        assert_eq!(plan.rows.devices.values().map(|d| d.pod).collect::<Vec<_>>(), [0, 0, 1]);
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
        interfaces[1].has_controller = true;
        interfaces[2].up = false;
        let plan = plan_node(&interfaces, &World::default(), &settings());
        assert_eq!(plan.attach.len(), 1);
        interfaces[3].has_controller = true;
        assert_eq!(
            plan_node(&interfaces, &World::default(), &settings()).attach.len(),
            1,
            "pods' always"
        );
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
    fn listed_ranges_choose_the_addresses_and_all_are_known() {
        let mut settings = settings();
        settings.node_port_addresses = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        let plan = plan_node(&interfaces(), &World::default(), &settings);
        assert!(plan.rows.addrs[&addr("10.1.0.2")].accepts_node_ports());
        assert!(!plan.rows.addrs[&addr("172.18.0.2")].accepts_node_ports());
        assert!(plan.rows.addrs.contains_key(&addr("192.168.7.7")));
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
    fn snat_takes_the_devices_own_address_or_the_primary_one() {
        let plan = plan_node(&interfaces(), &World::default(), &settings());
        assert_eq!(plan.rows.devices[&3].snat_v4, addr("10.1.0.2"));
        assert_eq!(plan.rows.devices[&3].snat_v6, addr("fd00::2"));
        assert_eq!(plan.rows.devices[&4].snat_v4, addr("172.18.0.2"));
    }
}
