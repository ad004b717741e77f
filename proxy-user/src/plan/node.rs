//! The plan for the node itself: which devices the packet path is attached to, at which addresses
//! NodePorts are reached, and what clients are hidden behind.
//!
//! A pure function of the interfaces, the settings, and what the world says of the Node, the
//! ServiceCIDRs and the pods that opt out.

use crate::glob::matches_any;
use crate::model::{DetectLocal, Interface, Node, Warning, World};
use crate::tables::{NodeRows, Prefix};
use ipnetwork::IpNetwork;
use proxy_ebpf::Addr;
use proxy_ebpf::node::{Device, DeviceFlags, NodeAddr};
use std::collections::BTreeSet;
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
    /// All addresses of the node.
    pub own: BTreeSet<IpAddr>,
    /// What keeps pods from being told from outsiders.
    pub warnings: Vec<Warning>,
}

/// The device to which kube-proxy's mode ipvs gives every ClusterIP as an address, and which it
/// leaves behind. None of them is the node's own.
const LEFT_BY_IPVS: &str = "kube-ipvs0";

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
        None => (!i.addrs.is_empty() || i.default_route) && i.controller.is_none(),
    };
    let is_used = |i: &&Interface| is_pod(i) || is_local(i) || is_node(i);
    let attach: Vec<&Interface> =
        interfaces.iter().filter(|i| i.up && !i.loopback).filter(is_used).collect();
    let own = || interfaces.iter().filter(|i| !is_pod(i) && !is_local(i) && i.name != LEFT_BY_IPVS);
    let primary = [false, true].map(|v6| primary(own(), node, v6));

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
    // The loopback interface too: it may have a VIP that is announced, or the InternalIP itself. And
    // the node's ends of pods' devices: pods find the node there.
    let all = interfaces.iter().filter(|i| i.name != LEFT_BY_IPVS);
    for addr in all.flat_map(|i| &i.addrs).map(IpNetwork::ip) {
        let v6 = addr.is_ipv6();
        let accepted = match &settings.node_port_addresses {
            Some(ranges) => {
                let mut ranges = ranges.iter().filter(|range| range.is_ipv6() == v6).peekable();
                ranges.peek().is_none() || ranges.any(|range| range.contains(addr))
            }
            None => primary.contains(&Some(addr)) || is_only_of_family(node, !v6),
        };
        let is_service = || {
            let networks = world.service_cidrs().unwrap_or_default();
            networks.iter().any(|network| network.contains(addr))
        };
        if accepted {
            plan.rows.addrs.insert(addr.into(), NodeAddr::NODE_PORT);
        } else if is_service() {
            plan.rows.addrs.insert(addr.into(), NodeAddr::OWN);
        }
        plan.own.insert(addr);
    }
    for interface in own() {
        let has = |addr: &IpAddr| interface.addrs.iter().any(|own| own.ip() == *addr);
        let sources = primary.iter().flatten().filter(|addr| has(addr));
        plan.rows.sources.extend(sources.map(|addr| (interface.index, Addr::from(*addr))));
    }
    for interface in attach {
        let names_off = world.opted_out_pods().is_some_and(|opted_out| {
            interface.pods.iter().any(|addr| opted_out.names.contains(addr))
        });
        let flags = if is_pod(interface) {
            let names = if names_off { DeviceFlags::NAMES_OFF } else { DeviceFlags::NODE };
            let bridge = interfaces.iter().find(|i| interface.controller == Some(i.index));
            let unseen = bridge.is_some_and(|bridge| bridge.unseen_bridge);
            plan.warnings.extend(bridge.filter(|_| unseen).map(bridge_warning));
            let bridge = if unseen { DeviceFlags::UNSEEN_BRIDGE } else { DeviceFlags::NODE };
            let addrs = interface.pods.iter().map(|addr| (Addr::from(*addr), interface.index));
            plan.rows.pod_addrs.extend(addrs);
            DeviceFlags::POD.with(names).with(bridge)
        } else if is_local(interface) {
            DeviceFlags::LOCAL
        } else if interface.default_route {
            DeviceFlags::UPLINK
        } else {
            DeviceFlags::NODE
        };
        let netns = interface.peer_netns.unwrap_or(-1);
        plan.rows.devices.insert(interface.index, Device { flags, netns });
        plan.attach.push(interface.clone());
    }
    plan.warnings.sort();
    plan.warnings.dedup();
    plan
}

/// What comes of a bridge whose frames netfilter does not see.
fn bridge_warning(bridge: &Interface) -> Warning {
    Warning {
        subject: format!("bridge {}", bridge.name),
        message: "netfilter does not see what its ports send each other, so a pod that asks a pod \
                  beside it through a Service seems to be the node: load the module br_netfilter \
                  and set the sysctls net.bridge.bridge-nf-call-iptables and \
                  net.bridge.bridge-nf-call-ip6tables to 1"
            .to_owned(),
    }
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

/// Whether the Node has InternalIPs, and all are of one family.
fn is_only_of_family(node: Option<&Node>, v6: bool) -> bool {
    let internal_ips = node.map_or(&[][..], |node| &node.internal_ips);
    !internal_ips.is_empty() && internal_ips.iter().all(|ip| ip.is_ipv6() == v6)
}

/// The node's primary address of a family: its first InternalIP that is here, or else the first
/// address of the first device that is not loopback.
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
        devices
            .by_ref()
            .filter(|i| !i.loopback)
            .find_map(|i| i.addrs.iter().map(IpNetwork::ip).find(|ip| ip.is_ipv6() == v6))
    })
}

#[cfg(test)]
mod tests;
