//! Every outcome that a packet can provoke, and what becomes of the packet. That it was counted
//! once, and nothing else was, is checked with every packet by [`Plane::run`].
//!
//! Not here: `table_full`, since a table of least recently used entries makes room.

use crate::net::Net;
use crate::packet::{ETHERNET, Packet};
use crate::plane::{Fate, Out, Plane, Via, passed};
use crate::writer::{CLUSTER_IP, NODE_PORT, REFUSED, Served, frontend_key};
use proxy_ebpf::flow::Hook::{Egress, Ingress};
use proxy_ebpf::frontend::{FrontendFlags, FrontendValue};
use proxy_ebpf::outcome::Outcome;
use proxy_ebpf::{Proto, maps};
use proxy_user::tables::Family;
use std::net::SocketAddr;

fn dropped(outcome: Outcome, packet: &Packet) -> Out {
    Out { fate: Fate::Dropped, ..passed(outcome, packet) }
}

/// Both hooks leave `packet`, which goes to a frontend, as it is: at ingress with `outcome`, and at
/// egress, where no flow has anything like it, after a first look or with `outcome` too.
fn check_left_alone(plane: &mut Plane, packet: &[u8], outcome: Outcome, what: &str) {
    for hook in [Ingress, Egress] {
        let out = plane.run_bytes(Via::Node, hook, packet);
        let at_once = hook == Egress && out.outcome == Outcome::NotOurs;
        let outcome = if at_once { Outcome::NotOurs } else { outcome };
        let expected = Out { fate: Fate::Passed, outcome, packet: packet.to_vec() };
        assert_eq!(out, expected, "{what} at {hook:?}");
    }
}

/// A plane on which every net's `vip` leads to a backend, and the opening packet of a pod.
fn with_services() -> (Plane, [(Net, Packet); 4]) {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[(net.vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
    }
    (plane, Net::ALL.map(|net| (net, net.opening(net.pod, net.vip))))
}

#[test]
fn packets_to_unallocated_service_addresses_are_dropped_at_both_hooks_once_ranges_are_known() {
    let mut plane = Plane::new();
    for known in [false, true] {
        if known {
            plane.know_services();
        }
        for net in Net::ALL {
            let opening = net.opening(net.pod, net.other_vip);
            for hook in [Ingress, Egress] {
                let out = plane.run(Via::Pod, hook, &opening);
                let expected = if known {
                    (Fate::Dropped, Outcome::Unallocated)
                } else {
                    (Fate::Passed, Outcome::NotOurs)
                };
                assert_eq!((out.fate, out.outcome), expected, "{net:?} {hook:?}");
            }
            let elsewhere = net.opening(net.pod, net.outsider);
            for hook in [Ingress, Egress] {
                assert_eq!(plane.run(Via::Pod, hook, &elsewhere).outcome, Outcome::NotOurs);
            }
            if net.has_tcp() {
                let data = net.data(net.pod, net.other_vip);
                assert_eq!(
                    plane.run(Via::Pod, Ingress, &data).outcome,
                    Outcome::NotOurs,
                    "another proxy's"
                );
            }
        }
    }
}

#[test]
fn packet_that_leaves_the_node_for_a_cluster_ip_is_dropped_with_the_reason() {
    use FrontendFlags as F;
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { node_port, vip, other_vip, there, .. } = net;
        let restricted = F::LOAD_BALANCER.with(F::RESTRICTED);
        let cases = [
            (F::NONE, Some(Outcome::Untranslated)),
            (F::INTERNAL_LOCAL, Some(Outcome::NoLocalEndpoint)),
            (F::EXTERNAL_IP, None),
            (F::LOAD_BALANCER, None),
            (restricted, Some(Outcome::SourceNotAllowed)),
            (restricted.with(F::ADMITS_NODE), None),
        ];
        for (flags, outcome) in cases {
            let frontends = &[(vip, flags)];
            let cluster = &there[..1];
            plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
            let packet = net.opening(node_port, vip);
            let expected = match outcome {
                Some(outcome) => dropped(outcome, &packet),
                None => passed(Outcome::NotOurs, &packet),
            };
            assert_eq!(plane.run(Via::Node, Egress, &packet), expected, "{net:?} {flags:?}");
        }
        let frontends = &[(other_vip, REFUSED)];
        plane.serve(net, "web", Served { cluster: &there, frontends, ..Default::default() });
        let packet = net.opening(node_port, other_vip);
        assert_eq!(plane.run(Via::Node, Egress, &packet).outcome, Outcome::NoPort);
    }
}

#[test]
fn packet_of_no_service_is_not_ours() {
    let (mut plane, cases) = with_services();
    for (net, packet) in cases {
        let other_port = SocketAddr::new(net.vip.ip(), net.vip.port() + 1);
        for dst in [net.other_vip, net.there[0], other_port] {
            let bytes = packet.to(dst).bytes();
            check_left_alone(&mut plane, &bytes, Outcome::NotOurs, "another address");
        }
        let other_proto = if net.has_tcp() { Proto::SCTP } else { Proto(1) };
        let bytes = Packet { proto: other_proto, ..packet.clone() }.bytes();
        check_left_alone(&mut plane, &bytes, Outcome::NotOurs, "another protocol");

        // In the packet: what comes so has a second tag, of which the kernel takes the outer one.
        for tag in [[0x81, 0x00, 0x00, 0x05], [0x81, 0x00, 0xa0, 0x00], [0x88, 0xa8, 0x00, 0x05]] {
            let mut tagged = packet.bytes();
            drop(tagged.splice(12..12, tag));
            check_left_alone(&mut plane, &tagged, Outcome::NotOurs, "a VLAN tag");
        }
        let mut arp = packet.bytes();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        check_left_alone(&mut plane, &arp, Outcome::NotOurs, "another Ethernet type");
        assert!(plane.entries(net).is_empty());
    }
}

#[test]
fn policy_without_a_local_endpoint_drops() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[
            (net.vip, FrontendFlags::INTERNAL_LOCAL),
            (net.node_port, NODE_PORT.with(FrontendFlags::EXTERNAL_LOCAL)),
        ];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        for (via, src, dst) in
            [(Via::Pod, net.pod, net.vip), (Via::Node, net.outsider, net.node_port)]
        {
            let packet = net.opening(src, dst);
            let out = plane.run(via, Ingress, &packet);
            assert_eq!(out, dropped(Outcome::NoLocalEndpoint, &packet));
        }
        assert_eq!(plane.counters(net, "web").refused, 2);
        assert!(plane.entries(net).is_empty());
    }
}

#[test]
fn ipv4_packet_that_must_not_be_fragmented_is_no_fragment() {
    let (mut plane, cases) = with_services();
    for (_, packet) in cases.into_iter().filter(|(net, _)| net.family == Family::V4) {
        let mut bytes = packet.bytes();
        bytes[ETHERNET + 6] = 0x40;
        let out = plane.run_bytes(Via::Pod, Ingress, &bytes);
        assert_eq!(out.outcome, Outcome::Chosen);
    }
}

#[test]
fn headers_that_are_cut_off_or_contradict_themselves_are_malformed() {
    let (mut plane, cases) = with_services();
    for (net, packet) in cases {
        let bytes = packet.bytes();
        let header = if net.has_tcp() { 20 } else { 8 };
        // The kernel's test run takes no packet without a whole IP header.
        for len in packet.transport()..packet.transport() + header {
            let what = format!("{net:?}, cut to {len} bytes");
            check_left_alone(&mut plane, &bytes[..len], Outcome::Malformed, &what);
        }
        let first = bytes[ETHERNET];
        let wrong: &[u8] = if net.family == Family::V4 {
            &[0x44, 0x40, 0x65, 0x05, 0x4f]
        } else {
            &[first ^ 0x20, first & 0x0f]
        };
        for first in wrong {
            let mut bytes = bytes.clone();
            bytes[ETHERNET] = *first;
            // A header of the greatest length does not fit into the shortest packet.
            bytes.truncate(packet.transport() + header);
            check_left_alone(&mut plane, &bytes, Outcome::Malformed, &format!("{first:x}"));
        }
        assert!(plane.entries(net).is_empty());
    }
}

#[test]
fn mapped_address_on_the_wire_is_malformed() {
    let (mut plane, cases) = with_services();
    for (_, packet) in cases.into_iter().filter(|(net, _)| net.family == Family::V6) {
        for at in [8, 24] {
            let mut bytes = packet.bytes();
            let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1];
            bytes[ETHERNET + at..][..16].copy_from_slice(&mapped);
            check_left_alone(&mut plane, &bytes, Outcome::Malformed, "a mapped address");
        }
    }
}

#[test]
fn snat_range_without_a_free_port_drops() {
    let mut plane = Plane::with_snat_ports(61_000..=61_001);
    for net in Net::ALL {
        let Net { node_port, there: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        for (port, outcome) in
            [(1, Outcome::Matched), (2, Outcome::Matched), (3, Outcome::SnatExhausted)]
        {
            let opening = net.opening(SocketAddr::new(net.outsider.ip(), port), node_port);
            plane.run(Via::Node, Ingress, &opening);
            let out = plane.run(Via::Node, Egress, &opening.to(backend));
            let fate = if port == 3 { Fate::Dropped } else { Fate::Passed };
            assert_eq!((out.outcome, out.fate), (outcome, fate));
        }
    }
}

#[test]
fn device_without_an_address_of_the_family_drops_what_needs_snat() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, node_port, there: [backend, _], .. } = net;
        let frontends = &[(node_port, NODE_PORT)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        let opening = net.opening(outsider, node_port);
        plane.run(Via::Node, Ingress, &opening);
        let inside = opening.to(backend);
        let out = plane.run(Via::Unnumbered, Egress, &inside);
        assert_eq!(out, dropped(Outcome::NoSnatAddress, &inside));
        // An address that comes later is used.
        assert_eq!(plane.run(Via::Node, Egress, &inside).outcome, Outcome::Matched);
    }
}

/// Scenario 21.
#[test]
fn sctp_is_translated_where_its_checksum_stays_right_and_else_dropped() {
    let mut plane = Plane::new();
    for net in [Family::V4, Family::V6].map(|family| Net::new(Proto::SCTP, family)) {
        let Net { pod, vip, other_vip, there: [backend, _], .. } = net;
        let same_port = SocketAddr::new(vip.ip(), backend.port());
        let frontends = &[(same_port, CLUSTER_IP), (other_vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
        let packet = net.opening(pod, same_port);
        let expected = passed(Outcome::Chosen, &packet.to(backend));
        assert_eq!(plane.run(Via::Pod, Ingress, &packet), expected);

        let another_port = SocketAddr::new(pod.ip(), pod.port() + 1);
        let packet = net.opening(another_port, other_vip);
        let out = plane.run(Via::Pod, Ingress, &packet);
        assert_eq!(out, dropped(Outcome::RewriteFailed, &packet));
    }
}

#[test]
fn frontend_that_names_slots_beyond_the_table_is_inconsistent_and_left_alone() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let key = frontend_key(net, net.vip, CLUSTER_IP);
        let frontends = &[(net.vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        plane.write_raw("frontends", key, FrontendValue::new(&key, maps::SLOTS, CLUSTER_IP));
        let packet = net.opening(net.pod, net.vip);
        let out = plane.run(Via::Pod, Ingress, &packet);
        assert_eq!(out, passed(Outcome::Inconsistent, &packet));
    }
}

#[test]
fn frontend_value_of_another_key_is_no_frontend() {
    let (mut plane, cases) = with_services();
    for (net, packet) in cases {
        let [key, other] = [net.vip, net.other_vip].map(|vip| frontend_key(net, vip, CLUSTER_IP));
        let value = plane.maps.frontends().unwrap()[&key];
        plane.write_raw("frontends", other, value);
        let packet = packet.to(net.other_vip);
        let out = plane.run(Via::Pod, Ingress, &packet);
        assert_eq!(out, passed(Outcome::NotOurs, &packet));
    }
}
