//! Queries of names: what the kernel answers, byte by byte, and what it leaves alone.
//!
//! The answers that are due are worked out by the same contract on the host, which has tests of
//! its own: here is whether the program does in the kernel what the contract says, and what stands
//! around the message.

mod hostile;
mod world;

use crate::packet::{ETHERNET, Packet, back};
use crate::plane::{Fate, Plane};
use proxy_ebpf::Proto;
use proxy_ebpf::dns::{Kind, Outcome};
use proxy_ebpf::node::DeviceFlags;
use proxy_user::tables::{DnsName, NameKind, TableDelta};
use std::net::SocketAddr;
use std::sync::Arc;
use world::{POD, SERVICE, World, addrs, edns, query, section, sorted};

/// The stage with the world of the vectors, and a pod.
fn stage() -> (Plane, World) {
    let mut plane = Plane::new();
    let world = World::new();
    plane.writer.apply(world.tables());
    plane.writer.write_zone(Some(&world.row));
    plane.be_pod(DeviceFlags::POD, &POD.map(|pod| pod.parse().unwrap()));
    (plane, world)
}

/// A query that a pod sends to the DNS service of a family.
fn datagram(family: usize, query: &[u8]) -> Packet {
    let src = SocketAddr::new(POD[family].parse().unwrap(), 40_000);
    let dst = SocketAddr::new(SERVICE[family].parse().unwrap(), 53);
    Packet::new(Proto::UDP, src, dst).payload(query)
}

/// The packet that answers `asked` with `message`.
fn reply(asked: &Packet, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let udp = back(asked, 0).udp(asked.dst.port(), asked.src.port());
    udp.write(&mut bytes, message).unwrap();
    if asked.src.is_ipv4() {
        bytes[asked.checksum_at()..][..2].fill(0);
    }
    bytes
}

#[test]
fn vectors_are_answered_in_packets_that_are_right_in_every_byte() {
    let (mut plane, world) = stage();
    for line in section("queries") {
        let (question, wanted) = line.split_once('=').unwrap();
        let question: Vec<&str> = question.split_whitespace().collect();
        let mut message = query(question[0], question[1]);
        let end = message.len();
        if question.contains(&"edns") {
            message = edns(message);
        }
        let due = world.ask(&message);
        let kind = match question[1] {
            "A" => Kind::A,
            "AAAA" => Kind::Aaaa,
            _ => Kind::Other,
        };
        for family in [0, 1] {
            let asked = datagram(family, &message);
            let (fate, packet, counted, outcome) = plane.ask(&asked.bytes());
            assert_eq!(counted, kind, "{line}");
            match &due {
                Ok(due) => {
                    assert_eq!(fate, Fate::Returned, "{line}");
                    let begin = asked.transport() + 8;
                    assert_eq!(sorted(&packet[begin..], end), sorted(due, end), "{line}");
                    assert_eq!(packet, reply(&asked, &packet[begin..]), "{line}");
                    let code = wanted.trim().as_bytes()[0];
                    assert_eq!(outcome == Outcome::NoName, code == b'X', "{line}");
                }
                Err(due) => {
                    assert_eq!((fate, outcome), (Fate::Passed, *due), "{line}");
                    assert_eq!((packet, wanted.trim()), (asked.bytes(), due.name()), "{line}");
                }
            }
        }
    }
}

#[test]
fn the_bytes_of_the_specification_are_answered_with_its_bytes() {
    let (mut plane, _) = stage();
    let question = "037765620473686f700373766307636c7573746572056c6f63616c0000010001";
    let query = hex(&format!("123401000001000000000000{question}"));
    let message =
        hex(&format!("123485000001000100000000{question}c00c000100010000001e00040a600101"));
    let asked = datagram(0, &query);
    let out = plane.ask(&asked.bytes());
    assert_eq!(out, (Fate::Returned, reply(&asked, &message), Kind::A, Outcome::Addresses));
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn a_change_of_a_name_is_answered_at_once() {
    let (mut plane, mut world) = stage();
    let name = DnsName("db-0.db.shop.svc".into());
    let message = query(&name.0, "A");
    let asked = datagram(0, &message);
    let outcomes = [
        (Some(addrs(["10.244.1.99"])), Outcome::Addresses),
        (Some(vec![]), Outcome::NoData),
        (None, Outcome::NoName),
        (Some(addrs(["10.244.1.11"])), Outcome::Addresses),
    ];
    for (addrs, outcome) in outcomes {
        let row = addrs.map(|addrs| Arc::new(world.row(NameKind::Endpoint, &addrs)));
        world.names.retain(|known, _| *known != name);
        world.names.extend(row.clone().map(|row| (name.clone(), row)));
        let names = [(name.clone(), row)].into();
        plane.writer.apply(TableDelta { names, ..Default::default() });
        let (_, packet, _, counted) = plane.ask(&asked.bytes());
        assert_eq!(counted, outcome);
        assert_eq!(packet, reply(&asked, &world.ask(&message).unwrap()));
    }
}

#[test]
fn settings_of_the_zone_and_the_pod_turn_answers_off() {
    let (mut plane, world) = stage();
    let known = datagram(0, &query("web.shop.svc", "A")).bytes();
    let unknown = datagram(0, &query("nosuch.shop.svc", "A")).bytes();
    let outcomes = |plane: &mut Plane| [&known, &unknown].map(|packet| plane.ask(packet).3);
    let mut row = world.row.clone();
    (row.deny, row.shadow) = (false, false);
    plane.writer.write_zone(Some(&row));
    assert_eq!(outcomes(&mut plane), [Outcome::Addresses, Outcome::Unknown]);
    row.shadow = true;
    plane.writer.write_zone(Some(&row));
    assert_eq!(outcomes(&mut plane), [Outcome::Addresses, Outcome::Shadowed]);
    plane.writer.write_zone(None);
    assert_eq!(outcomes(&mut plane), [Outcome::Off; 2]);
    row.zone = "example.org".into();
    plane.writer.write_zone(Some(&row));
    assert_eq!(outcomes(&mut plane), [Outcome::OtherZone; 2]);
    plane.writer.write_zone(Some(&world.row));
    assert_eq!(outcomes(&mut plane), [Outcome::Addresses, Outcome::NoName]);
    plane.writer.write_zone_until(Some(&world.row), 1);
    assert_eq!(outcomes(&mut plane), [Outcome::Off; 2], "nobody vouches for the names");
    plane.writer.write_zone(Some(&world.row));
    let off = DeviceFlags::NAMES_OFF;
    for flags in [DeviceFlags::NODE, off, DeviceFlags::POD.with(off)] {
        plane.be_pod(flags, &POD.map(|pod| pod.parse().unwrap()));
        assert_eq!(outcomes(&mut plane), [Outcome::Off; 2]);
    }
}

#[test]
fn a_pod_that_asks_too_often_is_sent_to_the_service() {
    let limit = proxy_user::loader::DnsLimit { rate: 1, burst: 5 };
    let mut plane = Plane::with_dns_limit(limit);
    let world = World::new();
    plane.writer.apply(world.tables());
    plane.writer.write_zone(Some(&world.row));
    plane.be_pod(DeviceFlags::POD, &POD.map(|pod| pod.parse().unwrap()));
    let packet = datagram(0, &query("web.shop.svc", "A")).bytes();
    let outcomes: Vec<_> = (0..7).map(|_| plane.ask(&packet).3).collect();
    assert_eq!(outcomes[..5], [Outcome::Addresses; 5]);
    assert_eq!(outcomes[5..], [Outcome::Limited; 2]);
}

/// Where the parts of a packet of `family` begin: the network header, UDP, and the message.
fn parts(family: usize) -> [usize; 3] {
    let udp = ETHERNET + [20, 40][family];
    [ETHERNET, udp, udp + 8]
}
