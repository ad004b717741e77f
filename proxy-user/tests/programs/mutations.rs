//! Packets with random damage: the programs never touch what is not theirs, and what they
//! translate keeps its sums.

use crate::net::Net;
use crate::packet::{ACK, ETHERNET, FIN, Packet, RST, SYN, sum};
use crate::plane::{Fate, Plane, Via};
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proxy_ebpf::flow::Hook;
use proxy_ebpf::outcome::Outcome;
use std::cell::RefCell;

const CASES: u32 = 20_000;
/// The kernel's test run takes no shorter packet.
const WHOLE_IP_HEADER: usize = ETHERNET + 40;

/// Packets of every kind that the plane of this test translates, in both directions.
fn originals() -> Vec<Vec<u8>> {
    let of = |net: Net| {
        let mut ends = vec![];
        for backend in [net.here[0], net.there[0]] {
            ends.extend([(net.pod, net.vip), (net.outsider, net.node_port)]);
            ends.extend([(backend, net.pod), (backend, net.outsider), (net.outsider, backend)]);
        }
        let flags = [SYN, SYN | ACK, ACK, FIN | ACK, RST];
        let packets = flags.map(|flags| {
            ends.clone().into_iter().map(move |(src, dst)| net.data(src, dst).flags(flags))
        });
        let with_options =
            |packet: Packet| [packet.clone(), Packet { options: vec![1; 8], ..packet }];
        packets.into_iter().flatten().flat_map(with_options).map(|packet| packet.bytes())
    };
    Net::ALL.into_iter().flat_map(of).collect()
}

#[derive(Clone, Debug)]
struct Damage {
    original: usize,
    bytes: Vec<(usize, u8)>,
    len: Option<usize>,
    hook: Hook,
}

fn damage(originals: usize) -> impl Strategy<Value = Damage> {
    let at = prop_oneof![3 => ETHERNET..ETHERNET + 64, 1 => 12..100_usize];
    (
        0..originals,
        prop::collection::vec((at, any::<u8>()), 0..3),
        prop::option::weighted(0.2, WHOLE_IP_HEADER..100),
        prop_oneof![Just(Hook::Ingress), Just(Hook::Egress)],
    )
        .prop_map(|(original, bytes, len, hook)| Damage { original, bytes, len, hook })
}

/// Where the checksummed parts of a translated packet lie: the IPv4 header, the addresses, the
/// ports, the transport checksum.
struct Layout {
    ip_header: Option<std::ops::Range<usize>>,
    addr: std::ops::Range<usize>,
    transport: usize,
    checksum: usize,
}

fn layout(packet: &[u8], hook: Hook) -> Layout {
    let is_v4 = packet[ETHERNET] >> 4 == 4;
    let header = if is_v4 { usize::from(packet[ETHERNET] & 0xf) * 4 } else { 40 };
    let transport = ETHERNET + header;
    let (first, size) = if is_v4 { (ETHERNET + 12, 4) } else { (ETHERNET + 8, 16) };
    let start = if hook == Hook::Ingress { first + size } else { first };
    let proto = packet[ETHERNET + if is_v4 { 9 } else { 6 }];
    Layout {
        ip_header: is_v4.then_some(ETHERNET..transport),
        addr: start..start + size,
        transport,
        checksum: transport + if proto == 6 { 16 } else { 6 },
    }
}

/// A translation changes one address, its port and checksums, and leaves the sums as they were.
fn check_translated(before: &[u8], after: &[u8], hook: Hook) -> Result<(), TestCaseError> {
    let Layout { ip_header, addr, transport, checksum } = layout(before, hook);
    let port = if hook == Hook::Ingress { transport + 2 } else { transport };
    let may_change = |i: usize| {
        addr.contains(&i)
            || (port..port + 2).contains(&i)
            || (checksum..checksum + 2).contains(&i)
            || ip_header.is_some() && (ETHERNET + 10..ETHERNET + 12).contains(&i)
    };
    for (i, (old, new)) in before.iter().zip(after).enumerate() {
        prop_assert!(old == new || may_change(i), "byte {} changed", i);
    }
    if let Some(header) = ip_header {
        prop_assert_eq!(sum(&before[header.clone()]), sum(&after[header]));
    }
    let place = u16::from_be_bytes([before[ETHERNET + 6], before[ETHERNET + 7]]);
    if before[ETHERNET] >> 4 == 4 && place & 0x1fff != 0 {
        // A later fragment, by damage: there is no transport header in it.
        prop_assert_eq!(&before[transport..], &after[transport..]);
        return Ok(());
    }
    let is_udp = checksum - transport == 6;
    if is_udp && before[checksum..checksum + 2] == [0, 0] {
        prop_assert_eq!(&after[checksum..checksum + 2], &[0, 0]);
        return Ok(());
    }
    let checksummed = |packet: &[u8]| sum(&[&packet[addr.clone()], &packet[transport..]].concat());
    prop_assert_eq!(checksummed(before), checksummed(after));
    Ok(())
}

#[test]
fn damaged_packets_are_left_alone_or_translated_rightly() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let frontends = &[(net.vip, CLUSTER_IP), (net.node_port, NODE_PORT)];
        let cluster = &[net.here[0], net.there[0]];
        plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
    }
    let originals = originals();
    let (plane, seen) = (RefCell::new(plane), RefCell::new(std::collections::BTreeMap::new()));
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let result = TestRunner::new_with_rng(config, rng).run(&damage(originals.len()), |damage| {
        let mut before = originals[damage.original].clone();
        for (at, byte) in damage.bytes {
            if let Some(target) = before.get_mut(at) {
                *target = byte;
            }
        }
        before.truncate(damage.len.unwrap_or(usize::MAX));
        let out = plane.borrow_mut().run_bytes(Via::Node, damage.hook, &before);
        *seen.borrow_mut().entry(out.outcome.name()).or_insert(0) += 1;
        prop_assert_eq!(out.packet.len(), before.len());
        match out.outcome {
            Outcome::Chosen | Outcome::Matched => {
                prop_assert_eq!(out.fate, Fate::Passed);
                check_translated(&before, &out.packet, damage.hook)
            }
            _ => {
                prop_assert_eq!(out.packet, before);
                Ok(())
            }
        }
    });
    result.unwrap();
    // The damage must not be so great that nothing is translated, nor so small that all is.
    let seen = seen.into_inner();
    for outcome in ["not_ours", "chosen", "matched", "unsupported", "malformed"] {
        assert!(seen.get(outcome).is_some_and(|count| *count > 200), "{outcome}: {seen:?}");
    }
}
