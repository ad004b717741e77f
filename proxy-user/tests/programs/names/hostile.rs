//! Packets that must not be answered, or only rightly.

use super::world::{POD, SERVICE, edns, query, section, sorted};
use super::{datagram, parts, reply, stage};
use crate::packet::{ETHERNET, Packet, extended, fragments};
use crate::plane::Fate;
use proxy_ebpf::Proto;
use proxy_ebpf::dns::Outcome;
use std::net::SocketAddr;

/// Hop-by-hop options and destination options of IPv6.
const EXTENSIONS: [u8; 2] = [0, 60];

#[test]
fn packets_around_a_good_query_that_are_odd_pass_unchanged() {
    let (mut plane, _) = stage();
    let message = query("web.shop.svc", "A");
    let mut cases: Vec<(String, Vec<u8>, Outcome)> = vec![];
    for family in [0, 1] {
        let good = datagram(family, &message);
        let bytes = good.bytes();
        assert_eq!(plane.ask(&bytes).0, Fate::Returned);
        let [ip, udp, _] = parts(family);
        let with = |at: usize, value: &[u8]| {
            let mut packet = bytes.clone();
            packet[at..at + value.len()].copy_from_slice(value);
            packet
        };
        let end = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
        let longer = |by: usize| [&bytes[..], &vec![0; by]].concat();
        let len = (bytes.len() - udp) as u16;
        let mut add = |what: &str, packet: Vec<u8>, outcome| {
            cases.push((format!("{what}, family {family}"), packet, outcome));
        };
        use Outcome::{Malformed, NotPod, NotQuery};
        add("padding", longer(1), Malformed);
        add("a short packet", bytes[..bytes.len() - 1].to_vec(), Malformed);
        add("UDP shorter than IP", with(udp + 4, &(len - 1).to_be_bytes()), Malformed);
        add("UDP longer than IP", with(udp + 4, &(len + 1).to_be_bytes()), Malformed);
        add("UDP of 7 bytes", with(udp + 4, &[0, 7]), Malformed);
        add("no payload", good.clone().payload(&[]).bytes(), Malformed);
        let mut tcp = good.clone();
        tcp.proto = Proto::TCP;
        add("TCP", tcp.bytes(), NotQuery);
        add("another port", good.to(SocketAddr::new(good.dst.ip(), 54)).bytes(), NotQuery);
        let other = ["10.96.0.11", "fd00:10:96::b"][family];
        add("another service", good.to(end(other, 53)).bytes(), NotQuery);
        add("no address", good.to(end(["0.0.0.0", "::"][family], 53)).bytes(), NotQuery);
        let spoofed = ["10.244.1.6", "fd00:244:1::6"][family];
        add("another pod's source", good.from(end(spoofed, 40_000)).bytes(), NotPod);
        add("the service's source", good.from(end(SERVICE[family], 40_000)).bytes(), NotPod);
        let many = ["224.0.0.1", "ff02::1"][family];
        add("a source that is many", good.from(end(many, 40_000)).bytes(), NotPod);
        add("an ethertype that is none", with(12, &[0x12, 0x34]), NotQuery);
        let long = good.clone().payload(&[&message[..], &[0; 900]].concat());
        for (index, fragment) in fragments(&long, 800, 5).into_iter().enumerate() {
            let first = [Malformed, NotQuery][family];
            let outcome = if index == 0 || family == 1 { first } else { NotQuery };
            add("a fragment", fragment, outcome);
        }
        add("multicast on the link", with(0, &[0x33, 0x33, 0, 0, 0, 1]), Malformed);
        add("broadcast on the link", with(0, &[0xff; 6]), Malformed);
        if family == 0 {
            let options = Packet { options: vec![1; 4], ..good.clone() };
            // What would be the port is not; it passes all the same.
            add("options", options.bytes(), NotQuery);
            add("options that look like a port", with(ip, &[0x46]), Malformed);
            add("version 6 in IPv4", with(ip, &[0x65]), Malformed);
            add("MF", with(ip + 6, &[0x20, 0]), Malformed);
        } else {
            add("extension headers", extended(&good, &EXTENSIONS), NotQuery);
            add("no checksum", with(udp + 6, &[0, 0]), Malformed);
            add("version 4 in IPv6", with(ip, &[0x40]), Malformed);
            add("a mapped source", good.from(end("::ffff:10.244.1.5", 40_000)).bytes(), Malformed);
        }
    }
    for (what, packet, outcome) in cases {
        let (fate, after, _, counted) = plane.ask(&packet);
        assert_eq!((fate, counted), (Fate::Passed, outcome), "{what}");
        assert_eq!(after, packet, "{what}");
    }
}

/// The kernel runs tests on no shorter packets: link and network header.
const SHORTEST: usize = ETHERNET + 40;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit.max(1)
    }
}

#[test]
fn mutated_messages_are_answered_as_the_contract_says() {
    let (plane, world) = stage();
    let seeds: Vec<Vec<u8>> = section("queries")
        .flat_map(|line| {
            let mut words = line.split_whitespace();
            let query = query(words.next().unwrap(), words.next().unwrap());
            [query.clone(), edns(query)]
        })
        .collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut answered = 0;
    for round in 0..20_000 {
        let mut message = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(3) {
            let at = random.below(message.len());
            match random.below(6) {
                0 => message[at] = random.below(256) as u8,
                1 => message[at] ^= 1 << random.below(8),
                2 => message[at] ^= 0x20,
                3 => message.truncate(at.max(1)),
                4 => message.insert(at, random.below(64) as u8),
                _ => message.extend(vec![0; random.below(600)]),
            }
        }
        let family = round % 2;
        let asked = datagram(family, &message);
        let (fate, packet, _) = plane.run_uncounted("names", 0, &asked.bytes());
        let Ok(due) = world.ask(&message) else {
            assert_eq!((fate, packet), (Fate::Passed, asked.bytes()), "{message:x?}");
            continue;
        };
        assert_eq!(fate, Fate::Returned, "{message:x?}");
        let begin = asked.transport() + 8;
        let end = question_end(&message);
        assert_eq!(sorted(&packet[begin..], end), sorted(&due, end), "{message:x?}");
        assert_eq!(packet, reply(&asked, &packet[begin..]));
        answered += 1;
    }
    assert!(answered > 5_000, "{answered}");
}

fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += usize::from(message[at]) + 1;
    }
    at + 5
}

#[test]
fn packets_that_are_damaged_anywhere_pass_unchanged_or_come_back_to_the_pod() {
    let (plane, _) = stage();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut returned = 0;
    for round in 0..20_000 {
        let family = round % 2;
        let mut before = datagram(family, &query("web.shop.svc", "A")).bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(before.len());
            before[at] = random.below(256) as u8;
        }
        if random.below(8) == 0 {
            before.truncate(random.below(before.len()).max(SHORTEST));
        }
        let (fate, after, _) = plane.run_uncounted("names", 0, &before);
        match fate {
            Fate::Passed => assert_eq!(after, before),
            Fate::Dropped => panic!("dropped: {before:x?}"),
            Fate::Returned => {
                let [ip, udp, _] = parts(family);
                let (from, len) = if family == 0 { (12, 4) } else { (8, 16) };
                let [src, dst] = [ip + from, ip + from + len].map(|at| at..at + len);
                assert_eq!(
                    (&after[src.clone()], &after[dst.clone()]),
                    (&before[dst], &before[src])
                );
                assert_eq!((&after[..6], &after[6..12]), (&before[6..12], &before[..6]));
                assert_eq!(after[udp..udp + 2], before[udp + 2..udp + 4]);
                assert_eq!(after[udp + 2..udp + 4], before[udp..udp + 2]);
                let pod: std::net::IpAddr = POD[family].parse().unwrap();
                let own = match pod {
                    std::net::IpAddr::V4(pod) => pod.octets().to_vec(),
                    std::net::IpAddr::V6(pod) => pod.octets().to_vec(),
                };
                assert_eq!(after[ip + from + len..][..len], own);
                returned += 1;
            }
        }
    }
    assert!(returned > 2_000, "{returned}");
}
