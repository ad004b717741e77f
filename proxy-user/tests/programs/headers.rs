//! Headers between the packet's beginning and its ports: what the program reads past, and what has
//! no ports to read.

use crate::net::Net;
use crate::packet::{ETHERNET, Packet, extended, fragments};
use crate::plane::{Plane, Told, Via};
use crate::writer::{CLUSTER_IP, Served};
use proxy_ebpf::outcome::Outcome::{Chosen, NotOurs, Unsupported};
use proxy_user::tables::Family;
use std::net::{IpAddr, SocketAddr};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// A plane on which every net's `vip` leads to its first backend elsewhere.
fn plane() -> Plane {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[(net.vip, CLUSTER_IP)];
        let cluster = &net.there[..1];
        plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
    }
    plane
}

#[test]
fn payload_and_ipv4_options_of_any_length_do_not_matter() {
    let mut plane = plane();
    for net in Net::ALL {
        let chosen = (Chosen, Told::To(net.there[0]));
        for len in [0, 1, 2, 3, 64, 1399, 1400] {
            for options in [0, 4, 20, 40] {
                let opening = net.opening(net.pod, net.vip).payload(&vec![7; len]);
                let opening = Packet { options: vec![1; options], ..opening };
                assert_eq!(plane.run(Via::Pod, &opening), chosen, "{len} {options}");
            }
        }
    }
}

#[test]
fn extension_headers_are_read_past() {
    let mut plane = plane();
    let chains: [&[u8]; 5] = [
        &[HOP_BY_HOP],
        &[DESTINATION],
        &[ROUTING],
        &[HOP_BY_HOP, DESTINATION, ROUTING, DESTINATION],
        &[DESTINATION; 6],
    ];
    for net in Net::ALL.into_iter().filter(|net| net.family == Family::V6) {
        let packet = net.opening(net.pod, net.vip);
        for chain in chains {
            let out = plane.run_bytes(Via::Pod, &extended(&packet, chain));
            assert_eq!(out, (Chosen, Told::To(net.there[0])), "{chain:?}");
        }
        let unsupported = (Unsupported, Told::Nothing);
        let seven = extended(&packet, &[DESTINATION; 7]);
        assert_eq!(plane.run_bytes(Via::Pod, &seven), unsupported);
        // A segment is left: the packet is not for this destination.
        let mut routed = extended(&packet, &[ROUTING]);
        routed[ETHERNET + 43] = 1;
        assert_eq!(plane.run_bytes(Via::Pod, &routed), unsupported);
    }
}

/// Whatever the order in which they come: conntrack puts them together before NAT.
#[test]
fn first_fragment_chooses_and_later_ones_are_left_alone() {
    let mut plane = plane();
    for net in Net::ALL {
        let packet = net.opening(net.pod, net.vip).payload(&[7; 2_000]);
        let [first, second, third] = &fragments(&packet, 800, 9)[..] else { panic!("three") };
        for later in [third, second] {
            assert_eq!(plane.run_bytes(Via::Pod, later), (NotOurs, Told::Nothing), "{net:?}");
        }
        let out = plane.run_bytes(Via::Pod, first);
        assert_eq!(out, (Chosen, Told::To(net.there[0])), "{net:?}");
        assert_eq!(plane.run_bytes(Via::Pod, second), (NotOurs, Told::Nothing), "{net:?}");
    }
}

/// IPv4's "don't fragment", and RFC 6946's fragment that is all of its packet.
#[test]
fn packet_that_only_looks_like_a_fragment_chooses() {
    let mut plane = plane();
    for net in Net::ALL {
        let packet = net.opening(net.pod, net.vip);
        let bytes = match net.family {
            Family::V4 => {
                let mut bytes = packet.bytes();
                bytes[ETHERNET + 6] = 0x40;
                bytes
            }
            Family::V6 => fragments(&packet, 800, 9).remove(0),
        };
        assert_eq!(plane.run_bytes(Via::Pod, &bytes), (Chosen, Told::To(net.there[0])));
    }
}

/// The kernel's test run takes the packet's type from where an Ethernet header has it, whatever
/// the program expects; there, this packet has two bytes of its source address.
#[test]
fn packet_without_a_link_header_is_read_by_the_program_for_bare_devices() {
    let mut plane = plane();
    for net in Net::ALL {
        let ip: IpAddr = match net.family {
            Family::V4 => [8, 0, 0, 1].into(),
            Family::V6 => [0xfd00, 0, 0x86dd, 0, 0, 0, 0, 1].into(),
        };
        let opening = net.opening(SocketAddr::new(ip, 40_000), net.vip).payload(&[7; 64]);
        let bare = opening.bytes().split_off(ETHERNET);
        let (outcome, bare_priority) = plane.run_program("ingress_bare", Via::Pod, 0, &bare);
        let (_, priority) = plane.run_program("ingress", Via::Pod, 0, &opening.bytes());
        assert_eq!((outcome, bare_priority), (Chosen, priority));
    }
}
