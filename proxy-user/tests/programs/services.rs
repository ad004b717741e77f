//! Services over packets: what netfilter is told of a packet to a frontend, for TCP and UDP in both
//! families.

use crate::net::Net;
use crate::plane::{Out, Plane, Told, Via};
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::outcome::Outcome::{Chosen, NotOurs};
use proxy_ebpf::priority::Priority;
use proxy_user::tables::Family;
use std::collections::BTreeMap;
use std::net::SocketAddr;

const LEFT_ALONE: Out = (NotOurs, Told::Nothing);

#[test]
fn what_opens_a_connection_to_a_cluster_ip_is_given_a_backend_and_nothing_else_is() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, there: [backend, draining], .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        let cluster = &[backend];
        let draining = &[draining];
        plane.serve(net, "web", Served { cluster, draining, frontends, ..Default::default() });

        let chosen = (Chosen, Told::To(backend));
        for _ in 0..3 {
            assert_eq!(plane.run(Via::Pod, &net.opening(pod, vip)), chosen);
        }
        // Any datagram may be the first one.
        let data = if net.has_tcp() { LEFT_ALONE } else { chosen };
        assert_eq!(plane.run(Via::Pod, &net.data(pod, vip)), data);
        let inside = net.opening(pod, backend);
        assert_eq!(plane.run(Via::Pod, &inside), LEFT_ALONE);
        assert_eq!(plane.run(Via::Node, &net.opening(backend, pod)), LEFT_ALONE);
    }
}

/// Scenario 21. RFC 9260: an INIT alone has no verification tag.
#[test]
fn sctp_is_given_a_backend_at_any_port_by_its_init() {
    let mut plane = Plane::new();
    for net in [Family::V4, Family::V6].map(|family| Net::new(Proto::SCTP, family)) {
        let Net { pod, vip, there: [backend, _], .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        let out = plane.run(Via::Pod, &net.opening(pod, vip));
        assert_eq!(out, (Chosen, Told::To(backend)));
        assert_eq!(plane.run(Via::Pod, &net.data(pod, vip)), LEFT_ALONE);
        assert_eq!(plane.counters(net, "web").connections, 1);
    }
}

/// Every case of `hides_client`: its answer would not come back through the node by itself.
#[test]
fn client_is_hidden_where_the_answer_would_not_come_back() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, outsider, vip, node_port, here: [near, _], there: [far, _], .. } = net;
        let itself = SocketAddr::new(pod.ip(), 8080);
        let cases = [
            (Via::Pod, pod, vip, near, false),
            (Via::Pod, pod, vip, far, false),
            (Via::Pod, pod, node_port, far, false),
            (Via::Node, outsider, node_port, near, false),
            (Via::Node, outsider, node_port, far, true),
            (Via::Node, outsider, vip, far, true),
            // Whoever is behind a bridge need not be of this node.
            (Via::Local, pod, vip, near, false),
            (Via::Local, pod, vip, far, true),
            // A pod on the same bridge would answer past the translation.
            (Via::Bridged, pod, vip, near, true),
            (Via::Bridged, pod, vip, far, false),
            // Scenario S4: it would answer itself.
            (Via::Pod, pod, vip, itself, true),
            (Via::Node, pod, vip, itself, true),
        ];
        for (via, client, to, backend, is_hidden) in cases {
            let frontends = &[(vip, CLUSTER_IP), (node_port, NODE_PORT)];
            let cluster = &[backend];
            plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
            let told = if is_hidden { Told::Hidden(backend) } else { Told::To(backend) };
            let out = plane.run(via, &net.opening(client, to));
            assert_eq!(out, (Chosen, told), "{net:?} {via:?} {client} {to} {backend}");
        }
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
            let out = plane.run(Via::Pod, &net.opening(pod, vip));
            assert_eq!(out, (Chosen, Told::Hidden(backend)));
            let out = plane.run(Via::Pod, &net.opening(pod, node_port));
            assert_eq!(out, (Chosen, Told::To(backend)));
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
        for (via, client, told) in [
            (Via::Node, outsider, Told::To(near)),
            (Via::Pod, pod, Told::To(far)),
            (Via::Node, another, Told::Hidden(far)),
            (Via::Local, outsider, Told::Hidden(far)),
        ] {
            let out = plane.run(via, &net.opening(client, node_port));
            assert_eq!(out, (Chosen, told), "{client}");
        }
    }
}

#[test]
fn node_port_is_served_at_accepted_addresses_only_and_after_service_addresses() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, here: [near, another], vip, other_vip, .. } = net;
        plane.own(other_vip);
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[near], frontends, ..Default::default() });
        for elsewhere in [vip, other_vip] {
            let elsewhere = SocketAddr::new(elsewhere.ip(), node_port.port());
            assert_eq!(plane.run(Via::Node, &net.opening(outsider, elsewhere)), LEFT_ALONE);
        }
        let opening = net.opening(outsider, node_port);
        assert_eq!(plane.run(Via::Node, &opening), (Chosen, Told::To(near)));

        let frontends = &[(node_port, FrontendFlags::EXTERNAL_IP)];
        let cluster = &[another];
        plane.serve(net, "external", Served { cluster, frontends, ..Default::default() });
        assert_eq!(plane.run(Via::Node, &opening), (Chosen, Told::To(another)));
    }
}

/// How often each backend is chosen, for one opening packet of each of `clients`.
fn spread(
    plane: &mut Plane,
    net: Net,
    clients: impl Iterator<Item = SocketAddr>,
) -> BTreeMap<SocketAddr, u32> {
    let mut counts = BTreeMap::new();
    for client in clients {
        let out = plane.run(Via::Pod, &net.opening(client, net.vip));
        let (Chosen, Told::To(backend)) = out else { panic!("{client}: {out:?}") };
        *counts.entry(backend).or_default() += 1;
    }
    counts
}

/// Scenario 16.
#[test]
fn new_connections_and_the_datagrams_of_many_clients_are_spread_evenly() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[(net.vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        // By the port, as one resolver's queries are, and by the address.
        let ports = (1..=400).map(|port| SocketAddr::new(net.pod.ip(), port));
        let hosts = (0..400).map(|host| SocketAddr::new(net.nth(host), 5353));
        for counts in [spread(&mut plane, net, ports), spread(&mut plane, net, hosts)] {
            // Outside by chance once in 10 million runs.
            let even = counts.values().all(|count| (146..=254).contains(count));
            assert!(counts.len() == 2 && even, "{net:?}: {counts:?}");
        }
    }
}

/// conntrack makes one connection of two first datagrams at once only if they are translated alike.
#[test]
fn datagrams_of_one_socket_to_one_frontend_choose_alike() {
    let mut plane = Plane::new();
    for net in Net::ALL.into_iter().filter(|net| !net.has_tcp()) {
        let backend = |port| SocketAddr::new(net.there[0].ip(), port);
        let cluster: Vec<_> = (1..=100).map(backend).collect();
        let frontends = &[(net.vip, CLUSTER_IP), (net.other_vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &cluster, frontends, ..Default::default() });
        let client = |port| SocketAddr::new(net.pod.ip(), port);
        for port in 1..=10 {
            let counts = spread(&mut plane, net, std::iter::repeat_n(client(port), 10));
            assert_eq!(counts.len(), 1, "{counts:?}");
        }
        let differs = (1..=20).any(|port| {
            plane.run(Via::Pod, &net.opening(client(port), net.vip)).1
                != plane.run(Via::Pod, &net.opening(client(port), net.other_vip)).1
        });
        assert!(differs, "the frontend counts too");
    }
}

#[test]
fn connections_are_counted_once_and_datagrams_each() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, there: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        plane.run(Via::Node, &net.opening(outsider, node_port));
        plane.run(Via::Node, &net.data(outsider, node_port));
        plane.run(Via::Node, &net.data(outsider, node_port));
        let counters = plane.counters(net, "web");
        let wanted = if net.has_tcp() { (1, 0) } else { (0, 3) };
        assert_eq!((counters.connections, counters.datagrams), wanted);
        assert_eq!(counters.refused, 0);
    }
}

/// A pod may set `SO_PRIORITY`, and a VLAN's device does.
#[test]
fn priority_that_looks_like_ours_is_wiped_and_others_stay() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        let elsewhere = net.opening(pod, other_vip).bytes();
        let arp = [&elsewhere[..12], &[0x08, 0x06], &elsewhere[14..]].concat();
        let cut = &elsewhere[..elsewhere.len().min(60)];
        for forged in [Priority::DROP.0, Priority::TAG, Priority::TAG | 0x00ff_ffff] {
            for packet in [&elsewhere[..], &arp, cut] {
                let (_, priority) = plane.run_program("ingress", Via::Pod, forged, packet);
                assert_eq!(priority, 0, "{forged:x}");
            }
        }
        for foreign in [1, 6, 0x0001_0002, 0x5200_0001, 0xffff_ffff] {
            let out = plane.run_program("ingress", Via::Pod, foreign, &elsewhere);
            assert_eq!(out, (NotOurs, foreign));
        }
        let opening = net.opening(pod, vip).bytes();
        let (_, fresh) = plane.run_program("ingress", Via::Pod, 0, &opening);
        for before in [Priority::REFUSE.0, 6] {
            let out = plane.run_program("ingress", Via::Pod, before, &opening);
            assert_eq!(out, (Chosen, fresh));
        }
    }
}
