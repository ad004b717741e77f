//! Refusals and drops, which the program only says: netfilter carries them out, for what conntrack
//! takes for a new connection.

use crate::net::Net;
use crate::packet::{ACK, FIN, RST, SYN, extended};
use crate::plane::{Plane, Told, Via};
use crate::writer::{CLUSTER_IP, NODE_PORT, REFUSED, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::outcome::Outcome::{
    Chosen, NoEndpoint, NoLocalEndpoint, NoPort, NotOurs, Unallocated,
};
use proxy_user::tables::Family;
use std::net::SocketAddr;

/// All that can be refused.
fn nets() -> impl Iterator<Item = Net> {
    let sctp = [Family::V4, Family::V6].map(|family| Net::new(Proto::SCTP, family));
    Net::ALL.into_iter().chain(sctp)
}

/// A plane on which no service has an endpoint.
fn without_endpoints() -> Plane {
    let mut plane = Plane::new();
    for net in nets() {
        let frontends = &[(net.vip, CLUSTER_IP), (net.node_port, NODE_PORT)];
        plane.serve(net, "web", Served { frontends, ..Default::default() });
    }
    plane
}

#[test]
fn service_without_endpoints_refuses_at_every_kind_of_address() {
    let mut plane = without_endpoints();
    for net in nets() {
        for (via, src, dst) in
            [(Via::Pod, net.pod, net.vip), (Via::Node, net.outsider, net.node_port)]
        {
            let out = plane.run(via, &net.opening(src, dst));
            assert_eq!(out, (NoEndpoint, Told::Refuse), "{net:?}");
        }
        let counters = plane.counters(net, "web");
        assert_eq!((counters.refused, counters.connections, counters.datagrams), (2, 0, 0));
    }
}

/// Scenario 93.
#[test]
fn packets_before_the_first_endpoint_do_not_spoil_those_after_it() {
    let mut plane = without_endpoints();
    for net in nets() {
        let opening = net.opening(net.pod, net.vip);
        assert_eq!(plane.run(Via::Pod, &opening), (NoEndpoint, Told::Refuse));
        let cluster = &net.there[..1];
        plane.serve(net, "web", Served { cluster, ..Default::default() });
        assert_eq!(plane.run(Via::Pod, &opening), (Chosen, Told::To(net.there[0])));
    }
}

#[test]
fn what_opens_no_connection_is_refused_nothing() {
    let mut plane = without_endpoints();
    for net in nets().filter(|net| net.has_tcp()) {
        for flags in [SYN | ACK, ACK, FIN, FIN | ACK, RST, RST | ACK] {
            let packet = net.data(net.pod, net.vip).flags(flags);
            assert_eq!(plane.run(Via::Pod, &packet), (NotOurs, Told::Nothing), "{flags:x}");
        }
        for flags in [SYN, SYN | FIN] {
            let packet = net.data(net.pod, net.vip).flags(flags);
            assert_eq!(plane.run(Via::Pod, &packet), (NoEndpoint, Told::Refuse), "{flags:x}");
        }
    }
}

#[test]
fn packet_with_extension_headers_is_refused_too() {
    let mut plane = without_endpoints();
    for net in nets().filter(|net| net.family == Family::V6) {
        let packet = extended(&net.opening(net.pod, net.vip), &[0, 60]);
        assert_eq!(plane.run_bytes(Via::Pod, &packet), (NoEndpoint, Told::Refuse));
    }
}

#[test]
fn what_a_cluster_ip_has_beside_its_frontends_is_refused() {
    let mut plane = Plane::new();
    for net in nets() {
        let frontends = &[(net.vip, CLUSTER_IP), (net.vip, REFUSED)];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        let other_port = SocketAddr::new(net.vip.ip(), net.vip.port() + 1);
        let out = plane.run(Via::Pod, &net.opening(net.pod, other_port));
        assert_eq!(out, (NoPort, Told::Refuse), "{net:?}");
        assert_eq!(plane.run(Via::Pod, &net.opening(net.pod, net.vip)).0, Chosen);
    }
}

#[test]
fn policy_without_a_local_endpoint_drops() {
    let mut plane = Plane::new();
    for net in nets() {
        let frontends = &[
            (net.vip, FrontendFlags::INTERNAL_LOCAL),
            (net.node_port, NODE_PORT.with(FrontendFlags::EXTERNAL_LOCAL)),
        ];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        for (via, src, dst) in
            [(Via::Pod, net.pod, net.vip), (Via::Node, net.outsider, net.node_port)]
        {
            let out = plane.run(via, &net.opening(src, dst));
            assert_eq!(out, (NoLocalEndpoint, Told::Drop), "{net:?}");
        }
        assert_eq!(plane.counters(net, "web").refused, 2);
    }
}

#[test]
fn unallocated_service_addresses_drop_once_ranges_are_known_but_not_where_the_node_has_them() {
    let mut plane = Plane::new();
    for known in [false, true] {
        if known {
            plane.know_services();
        }
        for net in nets() {
            let opening = net.opening(net.pod, net.other_vip);
            let expected = if known { (Unallocated, Told::Drop) } else { (NotOurs, Told::Nothing) };
            assert_eq!(plane.run(Via::Pod, &opening), expected, "{net:?}");
            let elsewhere = net.opening(net.pod, net.outsider);
            assert_eq!(plane.run(Via::Pod, &elsewhere), (NotOurs, Told::Nothing));
            if net.proto != Proto::UDP {
                let data = net.data(net.pod, net.other_vip);
                assert_eq!(plane.run(Via::Pod, &data), (NotOurs, Told::Nothing));
            }
        }
    }
    // NodeLocal DNSCache has the DNS service's.
    for net in nets() {
        plane.own(net.other_vip);
        let opening = net.opening(net.pod, net.other_vip);
        assert_eq!(plane.run(Via::Pod, &opening), (NotOurs, Told::Nothing));
    }
}
