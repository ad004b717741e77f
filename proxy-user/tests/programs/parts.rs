//! Packets that are not whole packets of a flow: fragments, and ICMP errors that quote one; and
//! IPv6's extension headers before one.

use crate::net::Net;
use crate::packet::{ETHERNET, Packet, SYN, extended, fragments, quoting};
use crate::plane::{Fate, Out, Plane, Via};
use crate::services::snat_source;
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::flow::FlowFlags;
use proxy_ebpf::flow::Hook::{self, Egress, Ingress};
use proxy_ebpf::outcome::Outcome::{self, Chosen, Matched, NoEndpoint, NotOurs, Unsupported};
use proxy_user::tables::Family;
use std::net::{IpAddr, SocketAddr};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

fn serve(plane: &mut Plane, net: Net) {
    let frontends = &[(net.vip, CLUSTER_IP), (net.node_port, NODE_PORT)];
    let cluster = &net.there[..1];
    plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
}

fn passed(outcome: Outcome, packet: Vec<u8>) -> Out {
    Out { fate: Fate::Passed, outcome, packet }
}

/// A flow of the outsider through the NodePort to another node: the client, the frontend, the
/// backend, and the address that SNAT gave.
fn with_snat(plane: &mut Plane, net: Net) -> [SocketAddr; 4] {
    let Net { outsider, node_port, there: [backend, _], .. } = net;
    let request = net.opening(outsider, node_port);
    plane.run(Via::Node, Ingress, &request);
    let inside = request.to(backend);
    let snat = snat_source(net, &plane.run(Via::Node, Egress, &inside), &inside);
    [outsider, node_port, backend, snat]
}

#[test]
fn extension_headers_are_read_past_and_stay() {
    let mut plane = Plane::new();
    let chains: [&[u8]; 5] = [
        &[HOP_BY_HOP],
        &[DESTINATION],
        &[ROUTING],
        &[HOP_BY_HOP, DESTINATION, ROUTING, DESTINATION],
        &[DESTINATION; 6],
    ];
    for net in Net::ALL.into_iter().filter(|net| net.family == Family::V6) {
        serve(&mut plane, net);
        for (number, chain) in (1..).zip(chains) {
            let client = SocketAddr::new(net.pod.ip(), number);
            let packet = net.opening(client, net.vip);
            let inside = packet.to(net.there[0]);
            let out = plane.run_bytes(Via::Pod, Ingress, &extended(&packet, chain));
            assert_eq!(out, passed(Chosen, extended(&inside, chain)), "{chain:?}");
            let reply = inside.reply();
            let out = plane.run_bytes(Via::Pod, Egress, &extended(&reply, chain));
            let expected = extended(&reply.from(net.vip), chain);
            assert_eq!(out, passed(Matched, expected), "{chain:?}");
        }
        let packet = net.opening(net.pod, net.vip);
        for hook in [Ingress, Egress] {
            let seven = extended(&packet, &[DESTINATION; 7]);
            assert_eq!(plane.run_bytes(Via::Pod, hook, &seven), passed(Unsupported, seven));
            // A segment is left: the packet is not for this destination.
            let mut routed = extended(&packet, &[ROUTING]);
            routed[ETHERNET + 43] = 1;
            assert_eq!(plane.run_bytes(Via::Pod, hook, &routed), passed(Unsupported, routed));
        }
    }
}

#[test]
fn a_refused_packet_with_extension_headers_is_answered_without() {
    let mut plane = Plane::new();
    let net = Net::new(Proto::TCP, Family::V6);
    let frontends = &[(net.vip, CLUSTER_IP)];
    plane.serve(net, "web", Served { frontends, ..Default::default() });
    let packet = net.opening(net.pod, net.vip);
    let plain = plane.run(Via::Pod, Ingress, &packet);
    assert_eq!((plain.fate, plain.outcome), (Fate::Returned, NoEndpoint));
    let out = plane.run_bytes(Via::Pod, Ingress, &extended(&packet, &[HOP_BY_HOP, DESTINATION]));
    assert_eq!(out, plain);
}

#[test]
fn fragments_follow_the_first_one_through_every_hook_in_both_directions() {
    let mut plane = Plane::new();
    let payload: Vec<u8> = (0..2000_u32).map(|i| (i * 7) as u8).collect();
    for net in Net::ALL {
        serve(&mut plane, net);
        let [client, frontend, backend, snat] = with_snat(&mut plane, net);
        let packet = |src, dst| net.data(src, dst).payload(&payload);
        let trip = [
            (Ingress, packet(client, frontend), packet(client, backend)),
            (Egress, packet(client, backend), packet(snat, backend)),
            (Ingress, packet(backend, snat), packet(backend, client)),
            (Egress, packet(backend, client), packet(frontend, client)),
        ];
        for (hook, before, after) in trip {
            for (before, after) in fragments(&before, 800, 7).iter().zip(fragments(&after, 800, 7))
            {
                assert_eq!(plane.run_bytes(Via::Node, hook, before), passed(Matched, after));
            }
        }
        assert_eq!(plane.entries(net).len(), 4);
    }
}

#[test]
fn a_flow_may_begin_with_a_fragment() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        serve(&mut plane, net);
        let packet = net.opening(net.pod, net.vip).payload(&[7; 1500]);
        let before = fragments(&packet, 800, 9);
        let after = fragments(&packet.to(net.there[0]), 800, 9);
        for (index, outcome) in [Chosen, Matched].into_iter().enumerate() {
            let out = plane.run_bytes(Via::Pod, Ingress, &before[index]);
            assert_eq!(out, passed(outcome, after[index].clone()));
        }
    }
}

#[test]
fn a_fragment_whose_first_one_is_not_known_is_left_alone() {
    let mut plane = Plane::new();
    // IPv6 tells packets of two protocols apart by their number only.
    for (net, id) in Net::ALL.into_iter().zip([10, 20, 30, 40]) {
        serve(&mut plane, net);
        let packet = net.opening(net.pod, net.vip).payload(&[7; 1500]);
        let [first, later] = &fragments(&packet, 800, id)[..] else { panic!("two fragments") };
        assert_eq!(plane.run_bytes(Via::Pod, Ingress, later), passed(Unsupported, later.clone()));
        assert_eq!(plane.run_bytes(Via::Pod, Ingress, first).outcome, Chosen);
        // Of another packet, or at another hook.
        let [_, other] = &fragments(&packet, 800, id + 1)[..] else { panic!("two fragments") };
        assert_eq!(plane.run_bytes(Via::Pod, Ingress, other), passed(Unsupported, other.clone()));
        assert_eq!(plane.run_bytes(Via::Pod, Egress, later), passed(Unsupported, later.clone()));
        assert_eq!(plane.run_bytes(Via::Pod, Ingress, later).outcome, Matched);
    }
}

#[test]
fn only_the_first_fragment_is_answered() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[(net.vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { frontends, ..Default::default() });
        let packet = net.opening(net.pod, net.vip).payload(&[7; 1500]);
        let [first, later] = &fragments(&packet, 800, 3)[..] else { panic!("two fragments") };
        assert_eq!(plane.run_bytes(Via::Pod, Ingress, first).fate, Fate::Returned);
        assert_eq!(plane.run_bytes(Via::Pod, Ingress, later), passed(Unsupported, later.clone()));
    }
}

/// An error of every kind from `src` to `dst` about the packet `quoted`, of which `len` bytes of
/// the transport header and the payload are quoted.
fn errors(src: IpAddr, dst: IpAddr, quoted: &Packet, len: usize) -> Vec<Vec<u8>> {
    let bytes = quoted.bytes();
    let quote = &bytes[ETHERNET..bytes.len().min(quoted.transport() + len)];
    let kinds: &[[u8; 2]] = match src {
        // Fragmentation needed, port unreachable, time exceeded, parameter problem.
        IpAddr::V4(_) => &[[3, 4], [3, 3], [11, 0], [12, 0]],
        // Packet too big, port unreachable, time exceeded, parameter problem.
        IpAddr::V6(_) => &[[2, 0], [1, 4], [3, 0], [4, 0]],
    };
    kinds.iter().map(|kind| quoting(*kind, [0, 0, 5, 0x14], src, dst, quote)).collect()
}

/// The router that reports errors.
fn router(net: Net) -> IpAddr {
    match net.family {
        Family::V4 => [198, 51, 100, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0xffff, 1].into(),
    }
}

/// Scenario S13.
#[test]
fn errors_are_translated_with_what_they_quote_in_both_directions() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        serve(&mut plane, net);
        let [client, frontend, backend, snat] = with_snat(&mut plane, net);
        let router = router(net);
        let packet = |src, dst| net.opening(src, dst).payload(b"what was sent");
        // Where an error is seen, whom it is from and to, what it quotes; and what it becomes.
        let cases = [
            (
                Ingress,
                [router, snat.ip()],
                [snat, backend],
                [router, client.ip()],
                [client, backend],
            ),
            (
                Egress,
                [router, client.ip()],
                [client, backend],
                [frontend.ip(), client.ip()],
                [client, frontend],
            ),
            (
                Ingress,
                [router, frontend.ip()],
                [frontend, client],
                [router, backend.ip()],
                [backend, client],
            ),
            (
                Egress,
                [router, backend.ip()],
                [backend, client],
                [snat.ip(), backend.ip()],
                [backend, snat],
            ),
        ];
        for (hook, [src, dst], [from, to], [new_src, new_dst], [new_from, new_to]) in cases {
            for len in [8, 11, 16, 18, 20, 100] {
                let before = errors(src, dst, &packet(from, to), len);
                let after = errors(new_src, new_dst, &packet(new_from, new_to), len);
                for (before, after) in before.iter().zip(after) {
                    let out = plane.run_bytes(Via::Node, hook, before);
                    assert_eq!(out, passed(Matched, after), "{net:?} {hook:?} {from} {to} {len}");
                }
            }
        }
        let trip =
            [(Ingress, client, frontend), (Egress, client, backend), (Ingress, backend, snat)];
        for (hook, src, dst) in trip {
            let entry = plane.entry(hook, &net.opening(src, dst).flags(SYN)).unwrap();
            assert!(!entry.flags.has(FlowFlags::ESTABLISHED), "an error establishes nothing");
        }
        assert_eq!(plane.entries(net).len(), 4);
    }
}

#[test]
fn errors_that_quote_headers_of_any_length_and_checksums_that_are_none_are_translated() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        serve(&mut plane, net);
        let Net { pod, vip, there: [backend, _], .. } = net;
        plane.run(Via::Pod, Ingress, &net.opening(pod, vip));
        let quotes = |dst: SocketAddr| {
            let packet = Packet { options: vec![1; 12], ..net.opening(pod, dst) };
            let mut bare = packet.bytes();
            if !net.has_tcp() {
                let at = packet.checksum_at();
                bare[at..at + 2].fill(0);
            }
            let extended = match net.family {
                Family::V4 => packet.bytes(),
                Family::V6 => extended(&packet, &[HOP_BY_HOP, DESTINATION]),
            };
            [
                packet.bytes(),
                bare,
                extended,
                fragments(&packet.payload(&[7; 900]), 800, 5).remove(0),
            ]
        };
        let kind = if net.family == Family::V4 { [3, 4] } else { [2, 0] };
        for (before, after) in quotes(backend).iter().zip(quotes(vip)) {
            let mtu = [0, 0, 5, 0x14];
            let before = quoting(kind, mtu, router(net), pod.ip(), &before[ETHERNET..]);
            let after = quoting(kind, mtu, vip.ip(), pod.ip(), &after[ETHERNET..]);
            assert_eq!(plane.run_bytes(Via::Pod, Egress, &before), passed(Matched, after));
        }
    }
}

#[test]
fn other_icmp_and_errors_about_other_packets_are_left_alone() {
    let mut plane = Plane::new();
    let check = |plane: &mut Plane, hook: Hook, packet: &[u8], what: &str| {
        let out = plane.run_bytes(Via::Node, hook, packet);
        assert_eq!(out, passed(NotOurs, packet.to_vec()), "{what}");
    };
    for net in Net::ALL {
        serve(&mut plane, net);
        let [client, frontend, backend, snat] = with_snat(&mut plane, net);
        let router = router(net);
        let about_reply = net.opening(frontend, client).bytes();
        let quote = &about_reply[ETHERNET..];
        // Redirect and echo; neighbour discovery and echo.
        let kinds: &[[u8; 2]] = if net.family == Family::V4 {
            &[[5, 1], [8, 0], [0, 0]]
        } else {
            &[[137, 0], [128, 0]]
        };
        for kind in kinds {
            let packet = quoting(*kind, [0; 4], router, frontend.ip(), quote);
            check(&mut plane, Ingress, &packet, "no error");
        }
        for error in errors(router, backend.ip(), &net.opening(frontend, client), 8) {
            check(&mut plane, Ingress, &error, "not to whom it quotes");
        }
        let unknown = SocketAddr::new(snat.ip(), snat.port() ^ 1);
        for error in errors(router, snat.ip(), &net.opening(unknown, backend), 8) {
            check(&mut plane, Ingress, &error, "an unknown flow");
            check(&mut plane, Egress, &error, "an unknown flow");
        }
        let later = fragments(&net.opening(frontend, client).payload(&[7; 900]), 800, 5).remove(1);
        let kind = if net.family == Family::V4 { [11, 1] } else { [3, 1] };
        let packet = quoting(kind, [0; 4], router, frontend.ip(), &later[ETHERNET..]);
        check(&mut plane, Ingress, &packet, "about a later fragment");
        assert_eq!(plane.entries(net).len(), 4);
    }
}
