//! Two flows of one client port, through two frontends, to one backend: the later one is seen from
//! another port of the client, by the stack and by the backend, and nobody else can tell.

use crate::net::Net;
use crate::packet::{ACK, ETHERNET, FIN, Packet, SYN, fragments, quoting};
use crate::plane::{Fate, Out, Plane, Via, flow_key, passed};
use crate::services::snat_source;
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::flow::Hook::{self, Egress, Ingress};
use proxy_ebpf::flow::Stamp;
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::outcome::Outcome::{Chosen, Collision, Matched, PortChanged, SnatExhausted};
use proxy_user::tables::Family;
use std::net::SocketAddr;

/// A packet's hook, what it is before, and what it becomes.
type Step = (Hook, Packet, Packet);

/// Gives `net` a service with one backend and two frontends: its ClusterIPs.
fn serve(plane: &mut Plane, net: Net, backend: SocketAddr) {
    let frontends = &[(net.vip, CLUSTER_IP), (net.other_vip, CLUSTER_IP)];
    plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
}

/// The sender of the packet in `out`, which is otherwise `packet`: another port of the client.
fn seen(out: &Out, packet: &Packet) -> SocketAddr {
    let at = packet.transport();
    let port = u16::from_be_bytes([out.packet[at], out.packet[at + 1]]);
    let source = SocketAddr::new(packet.src.ip(), port);
    assert_eq!(*out, passed(PortChanged, &packet.from(source)));
    assert_ne!(source, packet.src);
    source
}

/// Has the port of `client` ask `first`, which gives it `backend`, and then `second`. Returns how
/// the client is seen in the flow to the second.
fn begin(
    plane: &mut Plane,
    net: Net,
    client: SocketAddr,
    [first, second]: [SocketAddr; 2],
    backend: SocketAddr,
) -> SocketAddr {
    let opening = net.opening(client, first);
    assert_eq!(plane.run(Via::Pod, Ingress, &opening), passed(Chosen, &opening.to(backend)));
    let opening = net.opening(client, second);
    seen(&plane.run(Via::Pod, Ingress, &opening), &opening.to(backend))
}

/// The way there and back of packets between `client`, `frontend` and `backend`, which sees
/// `seen`.
fn round_trip(
    packet: impl Fn(SocketAddr, SocketAddr) -> Packet,
    ends: [SocketAddr; 4],
) -> [Step; 2] {
    let [client, frontend, backend, seen] = ends;
    [
        (Ingress, packet(client, frontend), packet(seen, backend)),
        (Egress, packet(backend, seen), packet(frontend, client)),
    ]
}

/// Lets the entry that `packet` matches at `hook` have rested for long.
fn rest(plane: &mut Plane, hook: Hook, packet: &Packet) {
    let mut value = plane.entry(hook, packet).unwrap();
    value.seen = Stamp(0);
    plane.write_raw("flows", flow_key(hook, packet), value);
}

#[test]
fn a_client_port_that_is_taken_at_the_backend_becomes_another_one() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, backend);
        let other = begin(&mut plane, net, pod, [vip, other_vip], backend);
        assert!((61_000..=65_535).contains(&other.port()), "{other}");
        assert_eq!(plane.entries(net).len(), 4);
        let steps = [[pod, vip, backend, pod], [pod, other_vip, backend, other]];
        // In turn, so that one cannot take the place of the other.
        for (hook, before, after) in steps
            .into_iter()
            .cycle()
            .take(4)
            .flat_map(|ends| round_trip(|a, b| net.data(a, b), ends))
        {
            assert_eq!(plane.run(Via::Pod, hook, &before), passed(Matched, &after));
        }
        assert_eq!(plane.entries(net).len(), 4);
        let counters = plane.counters(net, "web");
        assert_eq!((counters.connections, counters.packets), (2, 2 + 8));
    }
}

#[test]
fn a_frontend_with_the_policy_local_keeps_the_clients_address_all_the_same() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, vip, other_vip, here: [backend, _], .. } = net;
        let local = FrontendFlags::LOAD_BALANCER.with(FrontendFlags::EXTERNAL_LOCAL);
        let frontends = &[(vip, local), (other_vip, local)];
        let served =
            Served { cluster: &[backend], local: &[backend], frontends, ..Default::default() };
        plane.serve(net, "web", served);
        let other = begin(&mut plane, net, outsider, [vip, other_vip], backend);
        assert_eq!(other.ip(), outsider.ip());
    }
}

#[test]
fn a_flow_with_snat_and_another_port_makes_the_round_trip() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, other_vip, there: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT), (other_vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        let sources = [(node_port, Chosen), (other_vip, PortChanged)].map(|(frontend, outcome)| {
            let opening = net.opening(outsider, frontend);
            let out = plane.run(Via::Node, Ingress, &opening);
            let inside = match outcome {
                Chosen => opening.to(backend),
                _ => opening.to(backend).from(seen(&out, &opening.to(backend))),
            };
            let source = snat_source(net, &plane.run(Via::Node, Egress, &inside), &inside);
            (frontend, inside.src, source)
        });
        for (frontend, client, source) in sources {
            let data = |from, to| net.data(from, to);
            let [there, back] = round_trip(data, [outsider, frontend, backend, client]);
            let sent = (Egress, data(client, backend), data(source, backend));
            let heard = (Ingress, data(backend, source), data(backend, client));
            for (hook, before, after) in [there, sent, heard, back] {
                assert_eq!(plane.run(Via::Node, hook, &before), passed(Matched, &after));
            }
        }
        assert_ne!(sources[0].2, sources[1].2);
        assert_eq!(plane.entries(net).len(), 8);
    }
}

#[test]
fn the_port_is_kept_as_long_as_the_first_connection_lives_and_no_longer() {
    let mut plane = Plane::new();
    for net in Net::ALL.into_iter().filter(|net| net.has_tcp()) {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, backend);
        let other = begin(&mut plane, net, pod, [vip, other_vip], backend);
        let again = net.opening(pod, other_vip);
        let expected = again.to(backend).from(other);
        assert_eq!(plane.run(Via::Pod, Ingress, &again), passed(Matched, &expected), "a SYN again");
        plane.run(Via::Pod, Ingress, &again.clone().flags(ACK));
        let anew = plane.run(Via::Pod, Ingress, &again);
        assert_eq!(seen(&anew, &again.to(backend)), other, "another connection");

        let first = net.opening(pod, vip).flags(FIN | ACK);
        plane.run(Via::Pod, Ingress, &first);
        plane.run(Via::Pod, Egress, &first.to(backend).reply());
        plane.run(Via::Pod, Ingress, &again.clone().flags(ACK));
        assert_eq!(plane.run(Via::Pod, Ingress, &again), passed(Chosen, &again.to(backend)));
    }
}

#[test]
fn without_a_free_port_the_flow_is_dropped_until_another_ends_or_rests() {
    let mut plane = Plane::with_snat_ports(61_000..=61_001);
    for net in Net::ALL {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, backend);
        let client = |port| SocketAddr::new(pod.ip(), port);
        let [one, two] =
            [1, 2].map(|port| begin(&mut plane, net, client(port), [vip, other_vip], backend));
        assert_ne!(one, two);
        plane.run(Via::Pod, Ingress, &net.opening(client(3), vip));
        let third = net.opening(client(3), other_vip);
        let out = plane.run(Via::Pod, Ingress, &third);
        assert_eq!((out.fate, out.outcome), (Fate::Dropped, SnatExhausted));
        // Another client has all ports for itself.
        begin(&mut plane, net, SocketAddr::new(net.nth(1), 1), [vip, other_vip], backend);

        let end = |from, to| net.opening(from, to).flags(FIN | ACK);
        for (hook, before, _) in round_trip(end, [client(2), other_vip, backend, two]) {
            plane.run(Via::Pod, hook, &before);
            if !net.has_tcp() {
                rest(&mut plane, hook, &before);
            }
        }
        let out = plane.run(Via::Pod, Ingress, &third);
        assert_eq!(seen(&out, &third.to(backend)), two);
        assert_eq!(plane.entry(Ingress, &net.opening(client(2), other_vip)), None);
    }
}

#[test]
fn sctp_whose_checksum_covers_the_ports_is_dropped() {
    let mut plane = Plane::new();
    for net in [Family::V4, Family::V6].map(|family| Net::new(Proto::SCTP, family)) {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        let [vip, other_vip] = [vip, other_vip].map(|to| SocketAddr::new(to.ip(), backend.port()));
        serve(&mut plane, Net { vip, other_vip, ..net }, backend);
        assert_eq!(plane.run(Via::Pod, Ingress, &net.opening(pod, vip)).outcome, Chosen);
        let second = net.opening(pod, other_vip);
        let out = plane.run(Via::Pod, Ingress, &second);
        assert_eq!((out.fate, out.outcome), (Fate::Dropped, Collision));
        assert_eq!(plane.entries(net).len(), 2);
    }
}

#[test]
fn an_evicted_entry_gets_its_port_again() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, backend);
        let other = begin(&mut plane, net, pod, [vip, other_vip], backend);
        let trip = round_trip(|from, to| net.data(from, to), [pod, other_vip, backend, other]);
        for (kept, lost) in [(0, 1), (1, 0)] {
            let (hook, before, _) = &trip[kept];
            rest(&mut plane, *hook, before);
            plane.evict(trip[lost].0, &trip[lost].1);
            for (hook, before, after) in [&trip[kept], &trip[lost]] {
                assert_eq!(plane.run(Via::Pod, *hook, before), passed(Matched, after));
            }
        }
    }
}

#[test]
fn fragments_and_errors_of_a_flow_with_another_port_are_translated() {
    let mut plane = Plane::new();
    for (net, id) in Net::ALL.into_iter().zip([10, 20, 30, 40]) {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, backend);
        let other = begin(&mut plane, net, pod, [vip, other_vip], backend);
        let ends = [pod, other_vip, backend, other];
        let large = |from, to| net.data(from, to).payload(&[7; 1500]);
        for (hook, before, after) in round_trip(large, ends) {
            for (before, after) in
                fragments(&before, 800, id).iter().zip(fragments(&after, 800, id))
            {
                let expected = Out { fate: Fate::Passed, outcome: Matched, packet: after };
                assert_eq!(plane.run_bytes(Via::Pod, hook, before), expected);
            }
        }
        // Each error is about a packet of the other direction.
        let kind = if net.family == Family::V4 { [3, 4] } else { [2, 0] };
        let [(_, request, sent), (_, reply, heard)] =
            round_trip(|from, to| net.opening(from, to).flags(SYN), ends);
        for (hook, [src, dst], before, [new_src, new_dst], after) in [
            (Ingress, [pod, other_vip], heard, [pod, backend], reply),
            (Egress, [backend, pod], sent, [other_vip, pod], request),
        ] {
            for len in [8, 18, 100] {
                let error = |src: SocketAddr, dst: SocketAddr, quoted: &Packet| {
                    let bytes = quoted.bytes();
                    let end = bytes.len().min(quoted.transport() + len);
                    quoting(kind, [0, 0, 5, 0x14], src.ip(), dst.ip(), &bytes[ETHERNET..end])
                };
                let packet = error(new_src, new_dst, &after);
                let expected = Out { fate: Fate::Passed, outcome: Matched, packet };
                let before = error(src, dst, &before);
                assert_eq!(plane.run_bytes(Via::Pod, hook, &before), expected, "{net:?} {hook:?}");
            }
        }
    }
}
