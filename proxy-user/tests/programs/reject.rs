//! Refusals: the packets that answer those to a service without endpoints, byte by byte.
//!
//! Not here: devices without a link header, since the kernel's test run has none.

use crate::net::Net;
use crate::packet::{ACK, ACKNOWLEDGEMENT, ETHERNET, FIN, MACS, Packet, RST, SEQUENCE, SYN};
use crate::plane::{Fate, Out, Plane, Via, passed};
use crate::writer::{CLUSTER_IP, NODE_PORT, REFUSED, Served};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader, icmpv4, icmpv6,
};
use proxy_ebpf::Proto;
use proxy_ebpf::flow::Hook::Ingress;
use proxy_ebpf::outcome::Outcome::{Chosen, NoEndpoint, NoPort, NotOurs};
use proxy_user::tables::Family;
use std::net::{IpAddr, SocketAddr};

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

/// The beginning of an answer to `packet`, on the way back.
pub(crate) fn back(packet: &Packet, tos: u8) -> PacketBuilderStep<IpHeaders> {
    let link = PacketBuilder::ethernet2(MACS[1], MACS[0]);
    link.ip(match (packet.dst.ip(), packet.src.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header::new(0, 64, IpNumber(0), src.octets(), dst.octets());
            let header = Ipv4Header { dscp: (tos >> 2).try_into().unwrap(), ..header.unwrap() };
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (source, destination) = (src.octets(), dst.octets());
            let header = Ipv6Header { hop_limit: 64, source, destination, ..Default::default() };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("{packet:?} is of two families"),
    })
}

/// RFC 9293 section 3.10.7.1.
fn reset(packet: &Packet) -> Vec<u8> {
    let len = packet.payload.len() as u32 + u32::from(packet.flags & SYN != 0);
    let len = len + u32::from(packet.flags & FIN != 0);
    let mut header = TcpHeader::new(packet.dst.port(), packet.src.port(), 0, 0);
    header.rst = true;
    if packet.flags & ACK != 0 {
        header.sequence_number = ACKNOWLEDGEMENT;
    } else {
        header.ack = true;
        header.acknowledgment_number = SEQUENCE + len;
    }
    let mut bytes = Vec::new();
    back(packet, 0).tcp_header(header).write(&mut bytes, &[]).unwrap();
    bytes
}

/// "Port unreachable", which quotes as much of `packet` as fits into the least MTU.
fn unreachable(packet: &Packet, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if packet.src.is_ipv4() {
        let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        let quote = &bytes[ETHERNET..bytes.len().min(ETHERNET + 548)];
        back(packet, 0xc0).icmpv4(kind).write(&mut answer, quote).unwrap();
    } else {
        let kind = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
        let quote = &bytes[ETHERNET..bytes.len().min(ETHERNET + 1232)];
        back(packet, 0).icmpv6(kind).write(&mut answer, quote).unwrap();
    }
    answer
}

fn returned(packet: Vec<u8>) -> Out {
    Out { fate: Fate::Returned, outcome: NoEndpoint, packet }
}

fn answer(packet: &Packet) -> Vec<u8> {
    let bytes = packet.bytes();
    if packet.proto == Proto::TCP { reset(packet) } else { unreachable(packet, &bytes) }
}

#[test]
fn service_without_endpoints_refuses_at_once_at_every_kind_of_address() {
    let mut plane = without_endpoints();
    for net in nets() {
        for (via, src, dst) in
            [(Via::Pod, net.pod, net.vip), (Via::Node, net.outsider, net.node_port)]
        {
            let packet = net.opening(src, dst);
            assert_eq!(plane.run(via, Ingress, &packet), returned(answer(&packet)), "{net:?}");
        }
        let counters = plane.counters(net, "web");
        assert_eq!((counters.refused, counters.connections), (2, 0));
        assert!(plane.entries(net).is_empty());
    }
}

#[test]
fn refused_packets_of_any_length_are_answered() {
    let mut plane = without_endpoints();
    let payload: Vec<u8> = (0..1400_u32).map(|i| (i * 7 + 1) as u8).collect();
    for net in nets() {
        for len in (0..70).chain([500, 519, 520, 521, 1183, 1184, 1185, 1400]) {
            let packet = net.opening(net.pod, net.vip).payload(&payload[..len]);
            let out = plane.run(Via::Pod, Ingress, &packet);
            assert_eq!(out, returned(answer(&packet)), "{net:?}, {len} bytes");
        }
        for options in [4, 12, 40] {
            let packet = Packet { options: vec![1; options], ..net.opening(net.pod, net.vip) };
            let out = plane.run(Via::Pod, Ingress, &packet);
            assert_eq!(out, returned(answer(&packet)), "{net:?}, {options} bytes of options");
        }
        // The link pads short packets.
        let packet = net.opening(net.pod, net.vip).payload(&[]);
        let padded = [packet.bytes(), vec![0; 6]].concat();
        let out = plane.run_bytes(Via::Pod, Ingress, &padded);
        assert_eq!(out, returned(answer(&packet)), "{net:?}, padded");
    }
}

/// Only new flows are refused: what has begun may be another proxy's.
#[test]
fn segments_of_connections_that_nobody_knows_are_left_alone() {
    let mut plane = without_endpoints();
    for net in nets().filter(|net| net.has_tcp()) {
        for flags in [SYN | ACK, ACK, FIN, FIN | ACK, RST] {
            let packet = net.data(net.pod, net.vip).flags(flags);
            let out = plane.run(Via::Pod, Ingress, &packet);
            assert_eq!(out, passed(NotOurs, &packet), "{flags:x}");
        }
        let packet = net.data(net.pod, net.vip).flags(SYN);
        assert_eq!(plane.run(Via::Pod, Ingress, &packet), returned(reset(&packet)));
    }
}

#[test]
fn senders_that_are_many_or_nobody_get_no_answer() {
    let mut plane = without_endpoints();
    for net in nets() {
        let senders: &[&str] = match net.family {
            Family::V4 => &["224.0.0.9", "255.255.255.255", "0.0.0.0", "127.0.0.1"],
            Family::V6 => &["ff02::9", "::", "::1"],
        };
        for sender in senders {
            let src = SocketAddr::new(sender.parse().unwrap(), 40_000);
            let packet = net.opening(src, net.vip);
            let out = plane.run(Via::Node, Ingress, &packet);
            assert_eq!((out.fate, out.outcome), (Fate::Dropped, NoEndpoint), "{sender}");
        }
        // Sent to everyone on the link.
        let packet = net.opening(net.pod, net.vip);
        let mut bytes = packet.bytes();
        bytes[..6].fill(0xff);
        let out = plane.run_bytes(Via::Pod, Ingress, &bytes);
        assert_eq!((out.fate, out.outcome), (Fate::Dropped, NoEndpoint));
    }
}

#[test]
fn what_a_cluster_ip_has_beside_its_frontends_is_refused() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[(net.vip, CLUSTER_IP), (net.vip, REFUSED)];
        plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
        let other_port = SocketAddr::new(net.vip.ip(), net.vip.port() + 1);
        let packet = net.opening(net.pod, other_port);
        let out = plane.run(Via::Pod, Ingress, &packet);
        let expected = Out { outcome: NoPort, ..returned(answer(&packet)) };
        assert_eq!(out, expected, "{net:?}");
        assert_eq!(plane.run(Via::Pod, Ingress, &net.opening(net.pod, net.vip)).outcome, Chosen);
    }
}
