//! What is left alone, and why. That every packet was counted once, that nothing else was, and that
//! it went on as it was, is checked with every packet by [`Plane::run`].

use crate::net::Net;
use crate::packet::{ETHERNET, Packet};
use crate::plane::{Plane, Told, Via};
use crate::writer::{CLUSTER_IP, Served, frontend_key};
use proxy_ebpf::frontend::FrontendValue;
use proxy_ebpf::outcome::Outcome;
use proxy_ebpf::{Proto, maps};
use proxy_user::tables::Family;
use std::net::SocketAddr;

fn check_left_alone(plane: &mut Plane, packet: &[u8], outcome: Outcome, what: &str) {
    let out = plane.run_bytes(Via::Node, packet);
    assert_eq!(out, (outcome, Told::Nothing), "{what}");
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
    }
}

#[test]
fn headers_that_are_cut_off_or_contradict_themselves_are_malformed() {
    let (mut plane, cases) = with_services();
    for (net, packet) in cases {
        let bytes = packet.bytes();
        // As far as it is read: TCP up to its flags.
        let read = if net.has_tcp() { 16 } else { 8 };
        // The kernel's test run takes no packet without a whole IP header. A datagram is not read
        // beyond its ports, where nothing stands between them and the network header.
        for len in 0..read {
            let outcome = match len {
                4.. if !net.has_tcp() => Outcome::Chosen,
                _ => Outcome::Malformed,
            };
            let out = plane.run_bytes(Via::Node, &bytes[..packet.transport() + len]);
            assert_eq!(out.0, outcome, "{net:?}, cut to {len} bytes");
        }
        let out = plane.run_bytes(Via::Node, &bytes[..packet.transport() + read]);
        assert_eq!(out.0, Outcome::Chosen);
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
            bytes.truncate(packet.transport() + 20);
            // What the first look does not mind in IPv6: netfilter drops the packet.
            let out = plane.run_bytes(Via::Node, &bytes);
            let is_unread = net.family == Family::V6 && out.0 == Outcome::Chosen;
            assert!(is_unread || out == (Outcome::Malformed, Told::Nothing), "{first:x}: {out:?}");
        }
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
fn frontend_that_names_slots_beyond_the_table_is_inconsistent_and_left_alone() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let key = frontend_key(net, net.vip, CLUSTER_IP);
        let frontends = &[(net.vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        plane.write_raw("frontends", key, FrontendValue::new(&key, maps::SLOTS, CLUSTER_IP));
        let packet = net.opening(net.pod, net.vip).bytes();
        check_left_alone(&mut plane, &packet, Outcome::Inconsistent, "no slots");
    }
}

#[test]
fn frontend_value_of_another_key_is_no_frontend() {
    let (mut plane, cases) = with_services();
    for (net, packet) in cases {
        let [key, other] = [net.vip, net.other_vip].map(|vip| frontend_key(net, vip, CLUSTER_IP));
        let value = plane.maps.frontends().unwrap()[&key];
        plane.write_raw("frontends", other, value);
        let packet = packet.to(net.other_vip).bytes();
        check_left_alone(&mut plane, &packet, Outcome::NotOurs, "another's value");
    }
}
