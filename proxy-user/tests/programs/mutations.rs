//! Packets with random damage, in worlds of every policy: what the program in the kernel says of
//! each is what the contract says of it in user space, over the same maps.

use crate::net::Net;
use crate::packet::{ACK, ETHERNET, FIN, Packet, RST, SYN, extended, fragments};
use crate::plane::{NODE_PORTS, Plane, Via};
use crate::writer::{CLUSTER_IP, NODE_PORT, REFUSED, Served};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proxy_ebpf::Proto;
use proxy_ebpf::choose::{
    Choice, Destination, Sender, caller, choose, find_frontend, hides_client, refusal, shut_out,
};
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::outcome::Outcome;
use proxy_ebpf::packet::{self, Headers, Unread};
use proxy_ebpf::priority::Priority;
use proxy_user::pinned::PinnedMaps;
use proxy_user::tables::Family;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// By each kind of device.
const CASES: u32 = 3_000;
/// The kernel's test run takes no shorter packet.
const WHOLE_IP_HEADER: usize = ETHERNET + 40;

fn nets() -> impl Iterator<Item = Net> {
    let sctp = [Family::V4, Family::V6].map(|family| Net::new(Proto::SCTP, family));
    Net::ALL.into_iter().chain(sctp)
}

/// The service's own address, but for its last byte.
fn vip(net: Net, port: u16) -> SocketAddr {
    SocketAddr::new(net.vip.ip(), port)
}

/// A plane with frontends of every kind, in every net: the ports of one address tell the policies.
fn world() -> Plane {
    use FrontendFlags as F;
    let mut plane = Plane::new();
    plane.know_pods();
    plane.know_services();
    for net in nets() {
        let [here, there] = [net.here[0], net.there[0]];
        let restricted = F::LOAD_BALANCER.with(F::RESTRICTED);
        let frontends = [
            (vip(net, 80), CLUSTER_IP),
            (vip(net, 81), F::INTERNAL_LOCAL),
            (vip(net, 82), restricted),
            (vip(net, 83), F::EXTERNAL_IP.with(F::EXTERNAL_LOCAL)),
            (net.node_port, NODE_PORT.with(F::EXTERNAL_LOCAL)),
        ];
        let served = Served {
            cluster: &[here, there],
            local: &[here],
            sources: &[net.outsider],
            frontends: &frontends,
            ..Default::default()
        };
        plane.serve(net, "web", served);
        let far = [(vip(net, 84), F::INTERNAL_LOCAL), (vip(net, 0), REFUSED)];
        plane.serve(
            net,
            "far",
            Served { cluster: &net.there, frontends: &far, ..Default::default() },
        );
        let empty = [(vip(net, 85), CLUSTER_IP)];
        plane.serve(net, "empty", Served { frontends: &empty, ..Default::default() });
        let affine = [(vip(net, 86), CLUSTER_IP)];
        let served = Served {
            cluster: &[here, there],
            frontends: &affine,
            affinity_seconds: 10,
            ..Default::default()
        };
        plane.serve(net, "affine", served);
    }
    plane
}

/// Packets of every kind to every frontend, and between others.
fn originals() -> Vec<Vec<u8>> {
    let of = |net: Net| {
        let mut ends = vec![(net.pod, net.other_vip), (net.pod, net.outsider)];
        for client in [net.pod, net.outsider, net.here[0], net.there[1]] {
            ends.extend((80..=87).map(|port| (client, vip(net, port))));
            ends.push((client, net.node_port));
        }
        let flags = [SYN, SYN, SYN, SYN | ACK, ACK, FIN | ACK, RST];
        let packets = ends
            .into_iter()
            .flat_map(move |(src, dst)| flags.map(|flags| net.data(src, dst).flags(flags)));
        packets.flat_map(move |packet| {
            let other = match net.family {
                Family::V4 => Packet { options: vec![1; 8], ..packet.clone() }.bytes(),
                Family::V6 => extended(&packet, &[0, 60]),
            };
            let parts = fragments(&packet.clone().payload(&[7; 100]), 64, 5);
            [vec![packet.bytes(), packet.bytes(), other], parts].concat()
        })
    };
    nets().flat_map(of).collect()
}

#[derive(Clone, Debug)]
struct Damage {
    original: usize,
    bytes: Vec<(usize, u8)>,
    len: Option<usize>,
    priority: u32,
}

fn damage(originals: usize) -> impl Strategy<Value = Damage> {
    let at = prop_oneof![3 => ETHERNET..ETHERNET + 64, 1 => 12..100_usize];
    let byte = prop_oneof![any::<u8>(), 0..8_u8, 80..90_u8];
    (
        0..originals,
        prop::collection::vec((at, byte), 0..3),
        prop::option::weighted(0.2, WHOLE_IP_HEADER..100),
        prop_oneof![Just(0), any::<u32>(), (0..=u32::MAX >> 8).prop_map(|low| Priority::TAG | low)],
    )
        .prop_map(|(original, bytes, len, priority)| Damage { original, bytes, len, priority })
}

/// A packet in user space.
struct Bytes<'a>(&'a [u8]);

impl packet::Packet for Bytes<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            let bytes = self.0.get(offset + 4 * index..)?.get(..4)?;
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }
}

/// What may come of a packet: every outcome, with what it says.
type Allowed = BTreeSet<(&'static str, u32)>;

/// What the contract says over `maps` of a packet that came in by `via`, where `pods` and
/// `services` are the networks.
fn expected(maps: &PinnedMaps, via: Via, bytes: &[u8], networks: [&[IpNetwork]; 2]) -> Allowed {
    let silent = |outcome: Outcome| Allowed::from([(outcome.name(), 0)]);
    let unread = |unread| match unread {
        Unread::NotOurs => silent(Outcome::NotOurs),
        Unread::Unsupported => silent(Outcome::Unsupported),
        Unread::Malformed => silent(Outcome::Malformed),
    };
    let packet = Bytes(bytes);
    let ethertype = u16::from_be_bytes([bytes[12], bytes[13]]);
    let headers = packet::peek(&packet, ethertype, ETHERNET)
        .map_or_else(|| packet::read(&packet, ethertype, ETHERNET), Ok);
    let headers = match headers {
        Ok(headers) => headers,
        Err(error) => return unread(error),
    };
    let Headers { src, dst, proto, .. } = headers;
    let [pods, services] = networks
        .map(|networks| move |addr: IpAddr| networks.iter().any(|network| network.contains(addr)));
    let to = Destination { addr: dst.addr, port: dst.port, proto };
    let found = find_frontend(maps, to, NODE_PORTS, false);
    let is_service = services(dst.addr.into());
    match packet::opens(&packet, &headers) {
        Ok(true) => {}
        Ok(false) => return silent(Outcome::NotOurs),
        // What the filter of addresses does not know is not read so far.
        Err(error) if found.is_none() && !is_service => {
            return &unread(error) | &silent(Outcome::NotOurs);
        }
        Err(error) => return unread(error),
    }
    let Some((_, value)) = found else {
        return match is_service {
            true => Allowed::from([(Outcome::Unallocated.name(), Priority::DROP.0)]),
            false => silent(Outcome::NotOurs),
        };
    };
    if shut_out(maps, value, src.addr).is_some() {
        return Allowed::from([(Outcome::SourceNotAllowed.name(), Priority::DROP.0)]);
    }
    let flags = value.flags();
    let sender = Sender { addr: src.addr, device: via.flags() };
    let caller = caller(flags, sender.device, || pods(src.addr.into()));
    let choices = [0, u32::MAX / 3, u32::MAX / 3 * 2, u32::MAX].map(|random| {
        match choose(maps, value, caller, random, |_, _| None).unwrap() {
            Choice::Backend(_, slot) => {
                // No route of the test's network leaves the node.
                let hide = hides_client(flags, sender, &slot, false, || false);
                (Outcome::Chosen.name(), Priority::backend(slot.backend, hide).0)
            }
            Choice::Refuse(_) => (refusal(flags).name(), Priority::REFUSE.0),
            Choice::Drop(_) => (Outcome::NoLocalEndpoint.name(), Priority::DROP.0),
        }
    });
    choices.into()
}

#[test]
fn damaged_packets_get_what_the_contract_says_and_go_on_as_they_were() {
    let plane = world();
    let (pods, services) = (plane.cluster_cidrs.clone(), plane.service_cidrs.clone());
    let originals = originals();
    let (plane, seen) = (RefCell::new(plane), RefCell::new(BTreeMap::new()));
    let check = |via: Via, damage: Damage| {
        let mut packet = originals[damage.original].clone();
        for (at, byte) in damage.bytes {
            if let Some(target) = packet.get_mut(at) {
                *target = byte;
            }
        }
        packet.truncate(damage.len.unwrap_or(usize::MAX));
        let mut plane = plane.borrow_mut();
        let (outcome, told) = plane.run_program("ingress", via, damage.priority, &packet);
        *seen.borrow_mut().entry(outcome.name()).or_insert(0) += 1;
        // Nobody else's number passes for one of Shunt's, and others are not touched.
        let is_foreign = !Priority(damage.priority).is_tagged() && told == damage.priority;
        let told = if is_foreign { 0 } else { told };
        let allowed = expected(&plane.maps, via, &packet, [&pods, &services]);
        let is_allowed = allowed.contains(&(outcome.name(), told));
        prop_assert!(is_allowed, "{:?} {:x}, but {:x?}", outcome, told, allowed);
        Ok(())
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    for via in Via::ALL {
        runner.run(&damage(originals.len()), |damage| check(via, damage)).unwrap();
    }
    // The damage must not be so great that nothing is chosen, nor so small that all is.
    let seen = seen.into_inner();
    for outcome in [
        Outcome::NotOurs,
        Outcome::Chosen,
        Outcome::NoEndpoint,
        Outcome::NoPort,
        Outcome::NoLocalEndpoint,
        Outcome::SourceNotAllowed,
        Outcome::Unallocated,
        Outcome::Malformed,
    ] {
        let is_common = seen.get(outcome.name()).is_some_and(|count| *count > 50);
        assert!(is_common, "{outcome:?}: {seen:?}");
    }
}
