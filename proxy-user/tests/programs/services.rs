//! Services over packets: a packet to a frontend comes out as one to a backend and its reply as
//! one from the frontend, whole and with right checksums, for TCP and UDP in both families.

use crate::net::Net;
use crate::packet::{ETHERNET, Packet};
use crate::plane::{Out, Plane, Via, entry, passed};
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proxy_ebpf::flow::FlowFlags;
use proxy_ebpf::flow::Hook::{Egress, Ingress};
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::outcome::Outcome::{Chosen, Matched, NotOurs};
use std::net::SocketAddr;

const NONE: FlowFlags = FlowFlags(0);
const REPLY: FlowFlags = FlowFlags::REPLY;
const SNAT: FlowFlags = FlowFlags::SNAT;

/// The source that SNAT gave to the packet in `out`, which is otherwise `packet`.
pub(crate) fn snat_source(net: Net, out: &Out, packet: &Packet) -> SocketAddr {
    let at = packet.transport();
    let port = u16::from_be_bytes([out.packet[at], out.packet[at + 1]]);
    let source = SocketAddr::new(net.node_port.ip(), port);
    assert_eq!(*out, passed(Matched, &packet.from(source)));
    source
}

#[test]
fn cluster_ip_from_a_pod_becomes_the_backend_and_the_reply_the_frontend() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, there: [backend, _], .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });

        let opening = net.opening(pod, vip);
        let expected = passed(Chosen, &opening.to(backend));
        assert_eq!(plane.run(Via::Pod, Ingress, &opening), expected);
        assert_eq!(
            plane.entries(net),
            [entry(Egress, backend, pod, vip, REPLY), entry(Ingress, pod, vip, backend, NONE),]
        );
        let forwarded = opening.to(backend);
        assert_eq!(plane.run(Via::Node, Egress, &forwarded), passed(NotOurs, &forwarded));

        let reply = forwarded.reply();
        assert_eq!(plane.run(Via::Node, Ingress, &reply), passed(NotOurs, &reply));
        assert_eq!(plane.run(Via::Pod, Egress, &reply), passed(Matched, &reply.from(vip)));
        let data = net.data(pod, vip);
        assert_eq!(plane.run(Via::Pod, Ingress, &data), passed(Matched, &data.to(backend)));
        assert_eq!(plane.entries(net).len(), 2);
    }
}

#[test]
fn node_port_to_another_node_makes_the_round_trip_through_this_one() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, there: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });

        let opening = net.opening(outsider, node_port);
        let inside = opening.to(backend);
        assert_eq!(plane.run(Via::Node, Ingress, &opening), passed(Chosen, &inside));
        let out = plane.run(Via::Node, Egress, &inside);
        let snat = snat_source(net, &out, &inside);
        assert!((61_000..=65_535).contains(&snat.port()), "{snat}");
        assert_eq!(
            plane.entries(net),
            [
                entry(Egress, backend, outsider, node_port, REPLY.with(SNAT)),
                entry(Egress, outsider, backend, snat, SNAT),
                entry(Ingress, backend, snat, outsider, REPLY.with(SNAT)),
                entry(Ingress, outsider, node_port, backend, SNAT),
            ]
        );

        let reply = inside.from(snat).reply();
        let inside = reply.to(outsider);
        assert_eq!(plane.run(Via::Node, Ingress, &reply), passed(Matched, &inside));
        let outside = inside.from(node_port);
        assert_eq!(plane.run(Via::Node, Egress, &inside), passed(Matched, &outside));

        let data = net.data(outsider, node_port);
        let inside = data.to(backend);
        assert_eq!(plane.run(Via::Node, Ingress, &data), passed(Matched, &inside));
        let sent = plane.run(Via::Node, Egress, &inside);
        assert_eq!(sent, passed(Matched, &inside.from(snat)), "the port stays");
        assert_eq!(plane.entries(net).len(), 4);
    }
}

#[test]
fn node_port_to_a_backend_here_keeps_the_client() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, here: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });

        let opening = net.opening(outsider, node_port);
        let inside = opening.to(backend);
        assert_eq!(plane.run(Via::Node, Ingress, &opening), passed(Chosen, &inside));
        assert_eq!(plane.run(Via::Pod, Egress, &inside), passed(NotOurs, &inside));
        let reply = inside.reply();
        assert_eq!(plane.run(Via::Pod, Ingress, &reply), passed(NotOurs, &reply));
        let outside = reply.from(node_port);
        assert_eq!(plane.run(Via::Node, Egress, &reply), passed(Matched, &outside));
        assert_eq!(plane.entries(net).len(), 2);
    }
}

/// Scenario S4.
#[test]
fn pod_that_is_its_own_backend_hears_from_the_node_and_not_from_itself() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, .. } = net;
        let backend = SocketAddr::new(pod.ip(), 8080);
        let frontends = &[(vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });

        let opening = net.opening(pod, vip);
        let inside = opening.to(backend);
        assert_eq!(plane.run(Via::Pod, Ingress, &opening), passed(Chosen, &inside));
        let snat = snat_source(net, &plane.run(Via::Pod, Egress, &inside), &inside);
        let reply = inside.from(snat).reply();
        let inside = reply.to(pod);
        assert_eq!(plane.run(Via::Pod, Ingress, &reply), passed(Matched, &inside));
        assert_eq!(plane.run(Via::Pod, Egress, &inside), passed(Matched, &inside.from(vip)));
    }
}

#[test]
fn masquerade_all_hides_the_clients_of_cluster_ips_and_of_nothing_else() {
    let mut plane = Plane::with(|settings| settings.masquerade_all = true);
    for net in Net::ALL {
        let Net { pod, vip, node_port, here: [near, _], there: [far, _], .. } = net;
        for backend in [near, far] {
            let frontends = &[(vip, CLUSTER_IP), (node_port, NODE_PORT)];
            let cluster = &[backend];
            plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
            let client = SocketAddr::new(pod.ip(), pod.port() + backend.port());
            let inside = net.opening(client, vip).to(backend);
            let opening = net.opening(client, vip);
            assert_eq!(plane.run(Via::Pod, Ingress, &opening), passed(Chosen, &inside));
            snat_source(net, &plane.run(Via::Node, Egress, &inside), &inside);

            let client = SocketAddr::new(pod.ip(), client.port() + 1_000);
            let inside = net.opening(client, node_port).to(backend);
            plane.run(Via::Pod, Ingress, &net.opening(client, node_port));
            assert_eq!(plane.run(Via::Node, Egress, &inside), passed(NotOurs, &inside));
        }
    }
}

#[test]
fn outsider_with_a_local_policy_gets_the_local_set_and_pods_the_cluster_set() {
    let mut plane = Plane::new();
    plane.know_pods();
    for net in Net::ALL {
        let Net { outsider, pod, node_port, here: [near, _], there: [far, another], .. } = net;
        let flags = NODE_PORT.with(FrontendFlags::EXTERNAL_LOCAL);
        let frontends = &[(node_port, flags)];
        plane.serve(
            net,
            "web",
            Served { cluster: &[far], local: &[near], frontends, ..Default::default() },
        );

        // Pods are known by their device or, where they are on other nodes, by their address.
        let behind = SocketAddr::new(outsider.ip(), 1);
        for (via, client, backend) in [
            (Via::Node, outsider, near),
            (Via::Pod, pod, far),
            (Via::Node, another, far),
            (Via::Local, behind, far),
        ] {
            let opening = net.opening(client, node_port);
            let expected = passed(Chosen, &opening.to(backend));
            assert_eq!(plane.run(via, Ingress, &opening), expected, "{client}");
            // Who is behind a bridge need not be of this node.
            let snat = plane.entry(Ingress, &opening).unwrap().flags.has(SNAT);
            assert_eq!(snat, via != Via::Pod && backend == far, "{client}");
        }
    }
}

#[test]
fn node_port_is_served_at_accepted_addresses_only_and_after_service_addresses() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, here: [near, another], vip, .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[near], frontends, ..Default::default() });
        let elsewhere = net.opening(outsider, SocketAddr::new(vip.ip(), node_port.port()));
        assert_eq!(plane.run(Via::Node, Ingress, &elsewhere), passed(NotOurs, &elsewhere));

        let frontends = &[(node_port, FrontendFlags::EXTERNAL_IP)];
        plane.serve(
            net,
            "external",
            Served { cluster: &[another], frontends, ..Default::default() },
        );
        let opening = net.opening(outsider, node_port);
        let expected = passed(Chosen, &opening.to(another));
        assert_eq!(plane.run(Via::Node, Ingress, &opening), expected);
    }
}

#[test]
fn each_packet_of_a_flow_is_counted_once_whatever_hooks_it_passes() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, there: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });

        let (opening, data) = (net.opening(outsider, node_port), net.data(outsider, node_port));
        let mut bytes = 0;
        for packet in [opening, data.clone(), data] {
            plane.run(Via::Node, Ingress, &packet);
            let inside = packet.to(backend);
            let out = plane.run(Via::Node, Egress, &inside);
            let reply = inside.from(snat_source(net, &out, &inside)).reply();
            plane.run(Via::Node, Ingress, &reply);
            plane.run(Via::Node, Egress, &reply.to(outsider));
            bytes += 2 * (packet.bytes().len() - ETHERNET) as u64;
        }
        let counters = plane.counters(net, "web");
        assert_eq!((counters.connections, counters.packets), (1, 6));
        assert_eq!((counters.bytes, counters.refused), (bytes, 0));
    }
}
