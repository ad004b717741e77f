//! The plan for the node itself: which devices the packet path is attached to, at which addresses
//! NodePorts are reached, and what the source of SNAT is on each device.
//!
//! A pure function of the interfaces, the settings, and what the world says of the Node, the
//! ServiceCIDRs and the pods that opt out.

use crate::glob::matches_any;
use crate::model::{DetectLocal, Interface, Node, Warning, World};
use crate::tables::{NodeRows, Prefix};
use ipnetwork::IpNetwork;
use proxy_ebpf::Addr;
use proxy_ebpf::node::{Device, LinkAddr, NodeAddr};
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
    /// The networks of the cluster's pods.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// How pods are told from outsiders.
    pub detect_local: DetectLocal,
}

/// What is planned for the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePlan {
    /// The rows of the node's tables.
    pub rows: NodeRows,
    /// The interfaces that the packet path is attached to.
    pub attach: Vec<Interface>,
    /// What keeps pods from being told from outsiders.
    pub warnings: Vec<Warning>,
}

/// Plans the node.
pub fn plan_node(interfaces: &[Interface], world: &World, settings: &NodeSettings) -> NodePlan {
    let node = world.node();
    let bridge = match &settings.detect_local {
        DetectLocal::BridgeInterface(name) => interfaces.iter().find(|i| i.name == *name),
        _ => None,
    };
    let is_local = |i: &Interface| match &settings.detect_local {
        DetectLocal::ClusterCidr | DetectLocal::NodeCidr => false,
        DetectLocal::BridgeInterface(_) => bridge
            .is_some_and(|bridge| i.index == bridge.index || i.controller == Some(bridge.index)),
        DetectLocal::InterfaceNamePrefix(prefix) => i.name.starts_with(prefix),
    };
    // Only a veth leads to one pod, and a bridge may have a port to the world.
    let is_pod = |i: &Interface| {
        matches_any(&settings.pod_devices, &i.name) || is_local(i) && i.peer_netns.is_some()
    };
    let is_node = |i: &Interface| match &settings.devices {
        Some(patterns) => matches_any(patterns, &i.name),
        None => !i.addrs.is_empty() && i.controller.is_none(),
    };
    let is_used = |i: &&Interface| is_pod(i) || is_local(i) || is_node(i);
    let attach: Vec<&Interface> =
        interfaces.iter().filter(|i| i.up && !i.loopback).filter(is_used).collect();
    let node_devices = || attach.iter().filter(|i| !is_pod(i) && !is_local(i)).copied();
    let primary = [false, true].map(|v6| primary(node_devices(), node, v6));

    let mut plan = NodePlan::default();
    let pods = match &settings.detect_local {
        DetectLocal::ClusterCidr => &settings.cluster_cidrs[..],
        DetectLocal::NodeCidr => node.map_or(&[][..], |node| &node.pod_cidrs),
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => &[],
    };
    plan.rows.cluster_cidrs = pods.iter().copied().map(Prefix::from).collect();
    plan.warnings.extend(detection_warning(&settings.detect_local, bridge, node));
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
            (false, _) if is_local(interface) => Device::LOCAL,
            (false, _) => 0,
        };
        let netns = interface.peer_netns.unwrap_or(-1);
        let device = Device { snat_v4: snat(false), snat_v6: snat(true), pod, netns };
        plan.rows.devices.insert(interface.index, device);
        if pod & Device::POD != 0 {
            let addrs = interface.pods.iter().map(|addr| (Addr::from(*addr), interface.index));
            plan.rows.pod_addrs.extend(addrs);
            let bridge = interfaces.iter().find(|i| interface.controller == Some(i.index));
            let addr = bridge.and_then(|bridge| bridge.bridge_addr).map(LinkAddr::new);
            plan.rows.bridges.extend(addr.map(|addr| (interface.index, addr)));
        }
        plan.attach.push(interface.clone());
    }
    plan
}

/// Why no pod is told from an outsider, if the node lacks what `detect_local` goes by.
fn detection_warning(
    detect_local: &DetectLocal,
    bridge: Option<&Interface>,
    node: Option<&Node>,
) -> Option<Warning> {
    let message = match detect_local {
        DetectLocal::BridgeInterface(name) if bridge.is_none() => {
            format!("there is no interface {name}: is --pod-bridge-interface the CNI's bridge?")
        }
        DetectLocal::NodeCidr if node.is_some_and(|node| node.pod_cidrs.is_empty()) => {
            "the Node has no podCIDRs: let the controller manager allocate them, or choose another \
             mode"
                .to_owned()
        }
        _ => return None,
    };
    Some(Warning { subject: "--detect-local-mode".to_owned(), message })
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
mod tests;
