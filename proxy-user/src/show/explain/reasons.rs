//! The sentences of an explanation: who asks, what a policy means, what may have been meant.

use crate::show::{FrontendRef, Snapshot, socket};
use proxy_ebpf::choose::{Caller, Destination, Sender, shut_out};
use proxy_ebpf::frontend::{FrontendFlags, FrontendValue, Scope};
use proxy_ebpf::node::DeviceFlags;
use proxy_ebpf::slot::{BackendFlags, Slot};
use proxy_ebpf::{Addr, Proto};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Who `from` is, as far as the maps know: `None` for an address that may be a pod's or anyone's.
pub(super) fn caller(snapshot: &Snapshot, from: Option<IpAddr>) -> (Option<Caller>, String) {
    let Some(ip) = from else {
        return (Some(Caller::Internal), "a process on this node".to_owned());
    };
    let addr = Addr::from(ip);
    if snapshot.node_addrs.contains_key(&addr) || ip.is_loopback() {
        return (Some(Caller::Internal), format!("{ip}, this node"));
    }
    if let Some(cidr) = snapshot.cluster_cidrs.iter().find(|cidr| cidr.contains(ip)) {
        return (Some(Caller::Internal), format!("{ip}, a pod (of {cidr})"));
    }
    let here = |slot: &Slot| slot.addr == addr && slot.flags.has(BackendFlags::LOCAL);
    if let Some(range) = snapshot.ranges.values().find(|range| range.slots.iter().any(here)) {
        let service = snapshot.name(range.header.service);
        return (Some(Caller::Internal), format!("{ip}, an endpoint of {service} on this node"));
    }
    if snapshot.cluster_cidrs.is_empty() {
        return (None, format!("{ip}, a pod or an outsider: the pods' prefixes are not known"));
    }
    // A pod of this node counts as inside by its device, whatever its address.
    (Some(Caller::External), format!("{ip}, an outsider unless a pod of this node has the address"))
}

/// Whether `from` is this node itself.
fn is_node(snapshot: &Snapshot, from: Option<IpAddr>) -> bool {
    from.is_none_or(|ip| ip.is_loopback() || snapshot.node_addrs.contains_key(&ip.into()))
}

/// Who sends packets to be translated; `None` for this node. A pod is one of this node, whose
/// device the programs know. `is_inside` decides where the address does not.
pub(super) fn sender(snapshot: &Snapshot, from: Option<IpAddr>, is_inside: bool) -> Option<Sender> {
    let ip = from.filter(|_| !is_node(snapshot, from))?;
    let is_pod = is_inside || caller(snapshot, from).0 == Some(Caller::Internal);
    let device = if is_pod { DeviceFlags::POD } else { DeviceFlags::NODE };
    Some(Sender { addr: ip.into(), device })
}

/// By which path `from` gets its backend at a frontend with `value`.
pub(super) fn path(
    snapshot: &Snapshot,
    to: Destination,
    value: FrontendValue,
    from: Option<IpAddr>,
) -> String {
    let is_tcp = to.proto == Proto::TCP;
    let is_restricted = value.flags().has(FrontendFlags::RESTRICTED);
    let is_outside = caller(snapshot, from).0 == Some(Caller::External);
    let path = match (is_node(snapshot, from), is_tcp) {
        (true, true) => "when the socket connects, or by packets with --socket-path=off",
        (false, true) if !is_outside && !is_restricted => {
            "when a pod's socket connects; by packets if the socket has a port of its own, if pods \
             are left to packets (--socket-path, sidecars, --masquerade-all), or if it is no pod"
        }
        _ => "by packets: netfilter translates the first one, and conntrack remembers",
    };
    path.to_owned()
}

/// Whether a restricted frontend with `value` is open to `from` (`None` is this node), and why.
pub(super) fn sources(
    snapshot: &Snapshot,
    value: FrontendValue,
    from: Option<IpAddr>,
) -> (bool, String) {
    let admitted = match from {
        Some(from) => shut_out(snapshot, value, from.into()).is_none(),
        None => value.flags().has(FrontendFlags::ADMITS_NODE),
    };
    let service = snapshot.service_of(value);
    let ranges = service.and_then(|service| snapshot.source_ranges.get(&service));
    let ranges: Vec<_> = ranges.into_iter().flatten().map(ToString::to_string).collect();
    let finding = format!(
        "loadBalancerSourceRanges: open to {}; {} is {}",
        if ranges.is_empty() { "nobody".to_owned() } else { ranges.join(", ") },
        from.map_or_else(|| "this node".to_owned(), |from| from.to_string()),
        if admitted { "in there" } else { "not in there" },
    );
    (admitted, finding)
}

/// What the traffic policy in `flags` means.
pub(super) fn policy(flags: FrontendFlags) -> &'static str {
    if flags.has(FrontendFlags::INTERNAL_LOCAL) {
        "internalTrafficPolicy Local: endpoints on this node only"
    } else if flags.has(FrontendFlags::EXTERNAL_LOCAL) {
        "externalTrafficPolicy Local: pods and this node reach all endpoints, callers from \
         outside only those on this node"
    } else {
        "Cluster: all endpoints, whoever calls"
    }
}

/// What is near a destination that is no frontend.
pub(super) fn nearest(snapshot: &Snapshot, to: Destination) -> Vec<String> {
    let mut near = Vec::new();
    let mut served = BTreeSet::new();
    let mut node_port = None;
    for (key, value) in &snapshot.frontends {
        let service =
            snapshot.service_of(*value).map_or_else(|| "?".to_owned(), |id| snapshot.name(id));
        match key.scope() {
            Scope::Service if key.addr == to.addr => {
                let kind = FrontendRef::new(key, *value).kind;
                served.insert((
                    key.port,
                    format!("{}/{} ({kind} of {service})", key.port, key.proto),
                ));
            }
            Scope::Node
                if key.addr == to.addr.unspecified()
                    && (key.port, key.proto) == (to.port, to.proto) =>
            {
                node_port = Some(service);
            }
            _ => {}
        }
    }
    if !served.is_empty() {
        let served: Vec<_> = served.into_iter().map(|(_, text)| text).collect();
        near.push(format!("{} is reached at {}", to.addr, served.join(", ")));
    }
    let known = snapshot.node_addrs.get(&to.addr);
    if let Some(service) = node_port {
        let mut taking: Vec<IpAddr> = snapshot
            .node_addrs
            .iter()
            .filter(|(addr, node)| node.accepts_node_ports() && addr.is_v4() == to.addr.is_v4())
            .map(|(addr, _)| (*addr).into())
            .collect();
        taking.sort();
        let taking: Vec<_> = taking.iter().map(ToString::to_string).collect();
        let what = match known {
            Some(_) => "an address of this node that takes no NodePorts (--node-port-addresses)",
            None if to.addr.is_loopback() => {
                "reached by processes of this node only, outside pods' network namespaces"
            }
            None => "no address of this node",
        };
        near.push(format!(
            "{}/{} is a NodePort of {service}, but {} is {what}; NodePorts are reached at {}",
            to.port,
            to.proto,
            to.addr,
            if taking.is_empty() { "no address".to_owned() } else { taking.join(", ") },
        ));
    } else if known.is_some() {
        near.push(format!(
            "{} is an address of this node, and no Service has the NodePort {}/{}",
            to.addr, to.port, to.proto
        ));
    }
    let mut ranges = snapshot.ranges.values();
    let backs = |slot: &Slot| (slot.addr, slot.port) == (to.addr, to.port);
    if let Some(range) = ranges.find(|range| range.slots.iter().any(backs)) {
        near.push(format!(
            "{} is an endpoint of {}: it is reached directly",
            socket(to.addr, to.port),
            snapshot.name(range.header.service)
        ));
    }
    if near.is_empty() {
        near.push(format!("no Service has the address {}", to.addr));
    }
    near
}
