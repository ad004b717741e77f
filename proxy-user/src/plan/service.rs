//! The plan of one Service: its rows, and the frontends that it claims.
//!
//! A pure function of the Service, its slices and the [`Place`]. Other Services do not matter
//! here; who gets a contested frontend is decided in `claims`.

use super::remarks::{About, Remarks};
use super::{backends, sources};
use crate::model::{ObjectName, Service, ServicePort, ServiceType, Slice, TrafficPolicy};
use crate::tables::{Family, FrontendRow, ServiceKey, ServicePortName, ServiceRow, describe};
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey};
use proxy_ebpf::service::NAME_LEN;
use proxy_ebpf::{Addr, Port, Proto};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Where the plan is made for, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The node's name.
    pub(super) node: &'a str,
    /// The node's zone.
    pub(super) zone: Option<&'a str>,
    /// The node's InternalIPs.
    pub(super) node_ips: &'a [IpAddr],
    /// Whether `spec.externalIPs` are served.
    pub(super) external_ips: bool,
    /// The node's own addresses.
    pub(super) own_addrs: &'a BTreeSet<IpAddr>,
    /// The NodePorts that the programs look for.
    pub(super) node_ports: NodePortRange,
}

impl Place<'_> {
    /// Whether `addr` is one of the node's own, as NodeLocal DNSCache makes the ClusterIP of the
    /// DNS service: then the node answers there.
    fn is_own(&self, addr: Addr) -> bool {
        self.own_addrs.contains(&addr.into())
    }
}

/// What one Service needs.
#[derive(Debug, Default)]
pub(super) struct ServicePlan {
    /// A row for each port and family, with backends or without, and how many of them do not fit.
    pub(super) rows: BTreeMap<ServiceKey, (ServiceRow, usize)>,
    /// The frontends that the Service claims; each names one of `rows`.
    pub(super) frontends: BTreeMap<FrontendKey, FrontendRow>,
    /// What cannot be served as it was asked for.
    pub(super) remarks: Remarks,
}

/// Plans `service` with its `slices`, which are sorted by name.
///
/// A Service without a ClusterIP gets nothing, nor does that of another proxy. Any other is served
/// in the families of its ClusterIPs; an external address of another family is not.
pub(super) fn plan(service: &Service, slices: &[Arc<Slice>], place: Place<'_>) -> ServicePlan {
    let mut plan = ServicePlan::default();
    if !is_served(service) {
        return plan;
    }
    if let Some(name) = too_long(service) {
        let not_served = || format!("`{name}` is longer than {NAME_LEN} bytes: not served");
        plan.remarks.add(About::Name, not_served);
        return plan;
    }
    let targets = targets(slices, |_| true);
    for &cluster_ip in &service.cluster_ips {
        for port in &service.ports {
            let key = key(service, port, Family::of(cluster_ip.into()));
            plan_frontends(&mut plan, service, port, &key, cluster_ip.into(), place);
            let row = plan_row(service, port, key.family, &targets, place);
            plan.rows.insert(key, row);
        }
    }
    for addr in external_addrs(service, place).map(|(addr, _)| addr) {
        if !service.cluster_ips.iter().any(|ip| ip.is_ipv4() == addr.is_v4()) {
            let family = Family::of(addr);
            plan.remarks.add(About::Addr, || {
                format!("{addr} is not served: the Service has no {family} ClusterIP")
            });
        }
    }
    plan
}

/// The rows of `service` that `touched` versions of its slices say something of. Its frontends and
/// the remarks on it are not for slices to say.
pub(super) fn plan_touched(
    service: &Service,
    slices: &[Arc<Slice>],
    touched: &[Arc<Slice>],
    place: Place<'_>,
) -> BTreeMap<ServiceKey, (ServiceRow, usize)> {
    let mut rows = BTreeMap::new();
    if !is_served(service) || too_long(service).is_some() {
        return rows;
    }
    let ports = touched.iter().flat_map(|slice| &slice.ports).map(|port| (&*port.name, port.proto));
    let ports: BTreeSet<_> = ports.collect();
    let endpoints = touched.iter().flat_map(|slice| &slice.endpoints);
    let families: BTreeSet<_> =
        endpoints.map(|endpoint| Family::of(endpoint.addr.into())).collect();
    let targets = targets(slices, |port| ports.contains(port));
    let served = service.cluster_ips.iter().map(|&ip| Family::of(ip.into()));
    for family in served.filter(|family| families.contains(family)) {
        for port in service.ports.iter().filter(|p| ports.contains(&(&*p.name, p.proto))) {
            let row = plan_row(service, port, family, &targets, place);
            rows.insert(key(service, port, family), row);
        }
    }
    rows
}

/// Whether `service` is one that a proxy serves, and this one.
fn is_served(service: &Service) -> bool {
    !service.cluster_ips.is_empty() && !service.other_proxy
}

fn key(service: &Service, port: &ServicePort, family: Family) -> ServiceKey {
    let ObjectName { namespace, name } = service.name.clone();
    let name = ServicePortName { namespace, name, port: port.name.clone(), proto: port.proto };
    ServiceKey { port: name.into(), family }
}

/// By name and protocol, the ports that are `wanted`, in each slice that has them.
///
/// Made once for all ports of a Service: it may have 10,000, and so may its slices.
fn targets(
    slices: &[Arc<Slice>],
    wanted: impl Fn(&(&str, Proto)) -> bool,
) -> BTreeMap<(&str, Proto), Vec<(&Slice, Port)>> {
    let mut targets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| !slice.headless) {
        for port in &slice.ports {
            let name = (&*port.name, port.proto);
            if wanted(&name) {
                targets.entry(name).or_default().push((&**slice, port.port));
            }
        }
    }
    targets
}

/// Adds the frontends of `port` in the family of `cluster_ip`, which lead to `key`.
fn plan_frontends(
    plan: &mut ServicePlan,
    service: &Service,
    port: &ServicePort,
    key: &ServiceKey,
    cluster_ip: Addr,
    place: Place<'_>,
) {
    for (frontend, flags) in frontends(service, port, cluster_ip, place) {
        match plan.frontends.entry(frontend) {
            Entry::Vacant(entry) => {
                entry.insert(FrontendRow { service: key.clone(), flags });
            }
            // The same address twice, as an external IP that is also the balancer's.
            Entry::Occupied(entry) if entry.get().service == *key => {}
            Entry::Occupied(entry) => plan.remarks.add(About::TwoPorts, || {
                format!(
                    "{} goes to port `{}`, though port `{}` asks for it too",
                    describe(&frontend),
                    entry.get().service.port.port,
                    key.port.port,
                )
            }),
        }
    }
    if let Some(number) = node_port(service, port).filter(|&n| !place.node_ports.contains(n)) {
        let NodePortRange { first, last } = place.node_ports;
        plan.remarks.add(About::NodePort, || {
            format!(
                "NodePort {number}/{} is not served: it is not in --node-port-range \
                 {first}-{last}; give the flag the API server's --service-node-port-range",
                port.proto,
            )
        });
    }

    if place.is_own(cluster_ip) {
        plan.remarks.add(About::OwnAddr, || {
            format!("{cluster_ip} is an address of this node, which answers there by itself")
        });
    } else {
        // One of its ports answers for all that the Service does not have.
        plan.frontends
            .entry(FrontendKey::address(cluster_ip))
            .or_insert(FrontendRow { service: key.clone(), flags: FrontendFlags::REFUSED });
    }
}

/// The row of `port` in `family`, and how many endpoints do not fit into it.
fn plan_row(
    service: &Service,
    port: &ServicePort,
    family: Family,
    targets: &BTreeMap<(&str, Proto), Vec<(&Slice, Port)>>,
    place: Place<'_>,
) -> (ServiceRow, usize) {
    let targets = targets.get(&(&*port.name, port.proto)).map_or(&[][..], Vec::as_slice);
    let endpoints = backends::endpoints(targets, family, place.node);
    let policies = [service.internal_policy, service.external_policy];
    let (mut row, left_out) =
        backends::choose(&endpoints, place, policies.contains(&TrafficPolicy::Local));
    row.affinity_seconds = service.affinity_seconds.unwrap_or(0);
    row.source_ranges = sources::ranges(service, family, place.node_ips);
    (row, left_out)
}

/// The frontends of `port` in the family of `cluster_ip`; the first of equal keys counts.
///
/// The internal policy is that of the ClusterIP, the external one that of all others.
fn frontends(
    service: &Service,
    port: &ServicePort,
    cluster_ip: Addr,
    place: Place<'_>,
) -> Vec<(FrontendKey, FrontendFlags)> {
    let local = |policy, flag| match policy {
        TrafficPolicy::Local => flag,
        TrafficPolicy::Cluster => FrontendFlags::NONE,
    };
    let internal = local(service.internal_policy, FrontendFlags::INTERNAL_LOCAL);
    let external = local(service.external_policy, FrontendFlags::EXTERNAL_LOCAL);

    let at = |addr| FrontendKey::service(addr, port.port, port.proto);
    let mut frontends = Vec::new();
    if !place.is_own(cluster_ip) {
        frontends.push((at(cluster_ip), internal));
    }
    if let Some(number) = node_port(service, port).filter(|&n| place.node_ports.contains(n)) {
        let key = FrontendKey::node_port(cluster_ip, number, port.proto);
        frontends.push((key, FrontendFlags::NODE_PORT.with(external)));
    }
    let sources = sources::flags(service, Family::of(cluster_ip), place.node_ips);
    frontends.extend(
        external_addrs(service, place).filter(|(addr, _)| addr.is_v4() == cluster_ip.is_v4()).map(
            |(addr, flags)| {
                let balanced = flags.has(FrontendFlags::LOAD_BALANCER);
                let sources = if balanced { sources } else { FrontendFlags::NONE };
                (at(addr), flags.with(external).with(sources))
            },
        ),
    );
    frontends
}

/// The NodePort of `port`, in the range or not.
fn node_port(service: &Service, port: &ServicePort) -> Option<Port> {
    let has_node_ports = matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer);
    port.node_port.filter(|_| has_node_ports)
}

/// The addresses of the Service that are not ClusterIPs. Those of the load balancer come first:
/// an address that is both is the balancer's, because source ranges hold for it.
fn external_addrs(
    service: &Service,
    place: Place<'_>,
) -> impl Iterator<Item = (Addr, FrontendFlags)> {
    fn tagged(ips: &[IpAddr], flags: FrontendFlags) -> impl Iterator<Item = (Addr, FrontendFlags)> {
        ips.iter().map(move |&ip| (Addr::from(ip), flags))
    }
    let balanced = service.kind == ServiceType::LoadBalancer;
    let load_balancer_ips = if balanced { service.load_balancer_ips.as_slice() } else { &[] };
    let external_ips = if place.external_ips { service.external_ips.as_slice() } else { &[] };
    tagged(load_balancer_ips, FrontendFlags::LOAD_BALANCER)
        .chain(tagged(external_ips, FrontendFlags::EXTERNAL_IP))
}

/// A name that the maps cannot hold. Kubernetes allows none; a file may.
fn too_long(service: &Service) -> Option<&str> {
    let ObjectName { namespace, name } = &service.name;
    let ports = service.ports.iter().map(|port| &port.name);
    [namespace, name]
        .into_iter()
        .chain(ports)
        .find(|name| name.len() > NAME_LEN)
        .map(|name| &**name)
}
