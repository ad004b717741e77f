//! Headers and checksums: what a translation must take care of beyond the addresses.

use crate::net::Net;
use crate::packet::{ETHERNET, Packet};
use crate::plane::{Plane, Via, passed};
use crate::writer::{CLUSTER_IP, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::flow::Hook::{Egress, Ingress};
use proxy_ebpf::outcome::Outcome::{Chosen, Matched};
use proxy_user::tables::Family;
use std::net::{IpAddr, SocketAddr};

const UDP: [Net; 2] = [Net::new(Proto::UDP, Family::V4), Net::new(Proto::UDP, Family::V6)];

fn serve(plane: &mut Plane, net: Net, backend: SocketAddr) {
    let frontends = &[(net.vip, CLUSTER_IP)];
    plane.serve(net, "web", Served { cluster: &[backend], frontends, ..Default::default() });
}

#[test]
fn payload_and_ipv4_options_of_any_length_stay_as_they_are() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let backend = net.there[0];
        serve(&mut plane, net, backend);
        let payload: Vec<u8> = (0..1400_u32).map(|i| (i * 7) as u8).collect();
        for (number, len) in (0_u16..).zip([0, 1, 2, 3, 64, 1399, 1400]) {
            for options in [0, 4, 20, 40] {
                let client = SocketAddr::new(net.pod.ip(), 1000 + 100 * number + options as u16);
                let opening = Packet {
                    options: vec![1; options],
                    ..net.opening(client, net.vip).payload(&payload[..len])
                };
                let inside = opening.to(backend);
                assert_eq!(plane.run(Via::Pod, Ingress, &opening), passed(Chosen, &inside));
                let reply = inside.reply();
                let expected = passed(Matched, &reply.from(net.vip));
                assert_eq!(plane.run(Via::Pod, Egress, &reply), expected);
            }
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut plane = Plane::new();
    for net in UDP {
        let backend = net.there[0];
        serve(&mut plane, net, backend);
        let bytes = |packet: &Packet| {
            let mut bytes = packet.bytes();
            bytes[packet.checksum_at()..][..2].fill(0);
            bytes
        };
        let opening = net.opening(net.pod, net.vip);
        let out = plane.run_bytes(Via::Pod, Ingress, &bytes(&opening));
        assert_eq!((out.outcome, out.packet), (Chosen, bytes(&opening.to(backend))));
    }
}

/// RFC 768: a checksum that is computed as zero is sent as 0xffff, since zero means none.
#[test]
fn udp_checksum_that_becomes_zero_is_sent_as_ones() {
    let mut plane = Plane::new();
    for net in UDP {
        let (client, frontend, backend) = (net.pod, net.vip, net.there[0]);
        serve(&mut plane, net, backend);
        let ones = |packet: &Packet| packet.bytes()[packet.checksum_at()..][..2] == [0xff, 0xff];
        let with_word = |word: u16| net.opening(client, frontend).payload(&word.to_be_bytes());
        let mut packets = (0..=u16::MAX).map(with_word);
        // The checksum of the packet that comes out, then of the one that goes in.
        let becomes = packets.clone().find(|packet| ones(&packet.to(backend))).unwrap();
        let was = packets.find(ones).unwrap();
        assert_eq!(plane.run(Via::Pod, Ingress, &becomes), passed(Chosen, &becomes.to(backend)));
        assert_eq!(plane.run(Via::Pod, Ingress, &was), passed(Matched, &was.to(backend)));
    }
}

/// The kernel's test run takes the packet's type from where an Ethernet header has it, whatever
/// the program expects; there, this packet has two bytes of its source address.
#[test]
fn packet_without_a_link_header_is_translated_by_the_programs_for_bare_devices() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let typed = |host: u16, port: u16| {
            let ip: IpAddr = match net.family {
                Family::V4 => [8, 0, 0, host as u8].into(),
                Family::V6 => [0xfd00, 0, 0x86dd, 0, 0, 0, 0, host].into(),
            };
            SocketAddr::new(ip, port)
        };
        let (client, backend) = (typed(1, 40_000), typed(2, 8080));
        serve(&mut plane, net, backend);
        let opening = net.opening(client, net.vip).payload(&[7; 64]);
        let bare = |packet: &Packet| packet.bytes().split_off(ETHERNET);
        let out = plane.run_program("ingress_bare", Via::Pod, Ingress, &bare(&opening));
        assert_eq!((out.outcome, out.packet), (Chosen, bare(&opening.to(backend))));
        let reply = opening.to(backend).reply();
        let out = plane.run_program("egress_bare", Via::Pod, Egress, &bare(&reply));
        assert_eq!((out.outcome, out.packet), (Matched, bare(&reply.from(net.vip))));
    }
}
