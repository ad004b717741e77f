//! Sources: who may connect to a Service's load balancer addresses.
//!
//! A pure function of the Service and the node's addresses. The rules are kube-proxy's: ranges of
//! the other family alone restrict nobody, nor does any set of ranges with a /0.

use crate::model::{Service, ServiceType};
use crate::tables::{Family, Prefix};
use ipnetwork::IpNetwork;
use proxy_ebpf::Addr;
use proxy_ebpf::frontend::FrontendFlags;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The ranges that the balancer's addresses of `family` are open to; none if they are open to
/// all, or there are none.
///
/// A node that has such an address on an interface uses it as its source when it connects to it.
/// So where the node may connect, the addresses themselves are sources too.
pub(super) fn ranges(service: &Service, family: Family, node_ips: &[IpAddr]) -> BTreeSet<Prefix> {
    let ranges = restricting(service, family);
    let mut prefixes: BTreeSet<Prefix> = ranges.iter().copied().map(Prefix::from).collect();
    if admit_node(&ranges, node_ips) {
        let own = service.load_balancer_ips.iter().map(|&ip| Addr::from(ip));
        prefixes.extend(own.filter(|addr| Family::of(*addr) == family).map(Prefix::from));
    }
    prefixes
}

/// What the frontends at the balancer's addresses of `family` say about sources.
pub(super) fn flags(service: &Service, family: Family, node_ips: &[IpAddr]) -> FrontendFlags {
    let ranges = restricting(service, family);
    if ranges.is_empty() {
        FrontendFlags::NONE
    } else if admit_node(&ranges, node_ips) {
        FrontendFlags::RESTRICTED.with(FrontendFlags::ADMITS_NODE)
    } else {
        FrontendFlags::RESTRICTED
    }
}

/// `spec.loadBalancerSourceRanges` of `family`, if they shut anyone out.
fn restricting(service: &Service, family: Family) -> Vec<IpNetwork> {
    let of_family = |ip: &IpAddr| Family::of((*ip).into()) == family;
    let balanced = service.kind == ServiceType::LoadBalancer
        && service.load_balancer_ips.iter().any(of_family);
    let ranges = service.source_ranges.iter().filter(|range| of_family(&range.ip()));
    let ranges: Vec<_> = ranges.filter(|_| balanced).copied().collect();
    if ranges.iter().any(|range| range.prefix() == 0) { Vec::new() } else { ranges }
}

fn admit_node(ranges: &[IpNetwork], node_ips: &[IpAddr]) -> bool {
    ranges.iter().any(|range| node_ips.iter().any(|ip| range.contains(*ip)))
}
