//! The decision, over tables in memory.

extern crate std;
use super::*;
use crate::slot::{BackendFlags, BackendId};
use std::collections::HashMap;
use std::vec::Vec;

#[derive(Default)]
struct Fake {
    frontends: HashMap<FrontendKey, FrontendValue>,
    slots: Vec<Slot>,
    node_addrs: HashMap<Addr, NodeAddr>,
    sources: Vec<Source>,
}

impl Tables for Fake {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(key).copied()
    }
    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.get(index as usize).copied()
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.node_addrs.get(addr).copied()
    }
    fn admits(&self, source: &Source) -> bool {
        self.sources.contains(source)
    }
}

const NODE_PORTS: NodePortRange = NodePortRange { first: 30000, last: 32767 };

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn to(text: &str, port: u16) -> Destination {
    Destination { addr: addr(text), port: Port::new(port), proto: Proto::TCP }
}

impl Fake {
    fn publish(&mut self, key: FrontendKey, flags: FrontendFlags, cluster: u32, local: u32) {
        let range = self.slots.len() as u32;
        let service = ServiceId(7);
        let header =
            RangeHeader { service, cluster, local, affinity_seconds: 0, draining: 0, zero: 0 };
        self.slots.push(header.to_slot());
        for id in 0..cluster + local {
            let flags = BackendFlags::SERVING;
            let addr = Addr::from_v4_word(id.to_be());
            self.slots.push(Slot { addr, port: Port::new(80), flags, backend: BackendId(id) });
        }
        self.frontends.insert(key, FrontendValue::new(&key, range, flags));
    }

    fn backend(&self, to: Destination, caller: Caller, random: u32) -> Option<Choice> {
        let (_, value) = find_frontend(self, to, NODE_PORTS, false)?;
        choose(self, value, caller, random, |_, _| None)
    }
}

fn cluster_ip(text: &str) -> FrontendKey {
    FrontendKey::service(addr(text), Port::new(80), Proto::TCP)
}

#[test]
fn every_backend_is_chosen_and_evenly() {
    for vip in ["10.96.0.1", "fd00::1"] {
        let mut tables = Fake::default();
        tables.publish(cluster_ip(vip), FrontendFlags::NONE, 3, 0);
        let mut seen = [0_u32; 3];
        for step in 0..3000_u32 {
            let random = step.wrapping_mul(u32::MAX / 3000);
            match tables.backend(to(vip, 80), Caller::Internal, random) {
                Some(Choice::Backend(ServiceId(7), slot)) => seen[slot.backend.0 as usize] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(seen.iter().all(|&n| n.abs_diff(1000) <= 1), "{seen:?}");
        assert!(tables.backend(to(vip, 80), Caller::Internal, u32::MAX).is_some());
    }
}

#[test]
fn local_set_follows_policy_and_caller() {
    use FrontendFlags as F;
    let cases = [
        (F::NONE, Caller::External, false),
        (F::INTERNAL_LOCAL, Caller::Internal, true),
        (F::EXTERNAL_LOCAL, Caller::External, true),
        (F::EXTERNAL_LOCAL, Caller::Internal, false),
    ];
    for (flags, caller, local) in cases {
        let mut tables = Fake::default();
        tables.publish(cluster_ip("10.96.0.1"), flags, 2, 1);
        let choice = tables.backend(to("10.96.0.1", 80), caller, u32::MAX);
        let Some(Choice::Backend(_, slot)) = choice else { panic!("{choice:?}") };
        assert_eq!(slot.backend == BackendId(2), local, "{flags:?} {caller:?}");
    }
}

#[test]
fn no_endpoint_anywhere_is_refused_and_none_here_is_dropped() {
    let mut tables = Fake::default();
    tables.publish(cluster_ip("10.96.0.1"), FrontendFlags::INTERNAL_LOCAL, 0, 0);
    tables.publish(cluster_ip("10.96.0.2"), FrontendFlags::INTERNAL_LOCAL, 2, 0);
    let choice = |vip| tables.backend(to(vip, 80), Caller::Internal, 0);
    assert_eq!(choice("10.96.0.1"), Some(Choice::Refuse(ServiceId(7))));
    assert_eq!(choice("10.96.0.2"), Some(Choice::Drop(ServiceId(7))));
    assert_eq!(choice("10.96.0.3"), None);
}

#[test]
fn node_port_is_found_at_accepted_addresses_only() {
    let mut tables = Fake::default();
    let key = FrontendKey::node_port(Addr::UNSPECIFIED_V4, Port::new(31775), Proto::TCP);
    tables.publish(key, FrontendFlags::NODE_PORT, 1, 0);
    tables.node_addrs.insert(addr("192.168.0.1"), NodeAddr::NODE_PORT);
    tables.node_addrs.insert(addr("192.168.9.1"), NodeAddr(0));
    tables.node_addrs.insert(addr("fd00::1"), NodeAddr::NODE_PORT);
    let found = |text, port, loopback| {
        find_frontend(&tables, to(text, port), NODE_PORTS, loopback).is_some()
    };
    assert!(found("192.168.0.1", 31775, false));
    assert!(!found("192.168.0.1", 31776, false));
    assert!(!found("192.168.9.1", 31775, false));
    assert!(!found("192.168.7.7", 31775, false));
    assert!(!found("fd00::1", 31775, false), "a NodePort of one family is not in the other");
    assert!(found("127.0.0.1", 31775, true) && !found("127.0.0.1", 31775, false));
}

#[test]
fn what_a_cluster_ip_has_beside_its_frontends_is_refused_whatever_endpoints_there_are() {
    let mut tables = Fake::default();
    let (web, node) = (addr("10.96.0.1"), addr("192.168.0.1"));
    let frontend = FrontendKey::service(web, Port::new(80), Proto::TCP);
    tables.publish(frontend, FrontendFlags::NONE, 2, 0);
    tables.publish(FrontendKey::address(web), FrontendFlags::REFUSED, 2, 0);
    tables.node_addrs.insert(node, NodeAddr::NODE_PORT);
    let verdict = |to: Destination| {
        let (_, value) = find_frontend(&tables, to, NODE_PORTS, false)?;
        let refused = matches!(
            choose(&tables, value, Caller::Internal, 0, |_, _| None),
            Some(Choice::Refuse(_))
        );
        Some(refused.then(|| refusal(value.flags())))
    };
    assert_eq!(verdict(to("10.96.0.1", 80)), Some(None));
    assert_eq!(verdict(to("10.96.0.1", 81)), Some(Some(Outcome::NoPort)));
    assert_eq!(verdict(to("10.96.0.1", 31000)), Some(Some(Outcome::NoPort)));
    let udp = Destination { proto: Proto::UDP, ..to("10.96.0.1", 80) };
    assert_eq!(verdict(udp), Some(Some(Outcome::NoPort)));
    assert_eq!(verdict(to("10.96.0.2", 80)), None);
    assert_eq!(verdict(to("192.168.0.1", 31000)), None);
}

#[test]
fn only_its_sources_reach_a_restricted_frontend_and_all_reach_another() {
    let mut tables = Fake::default();
    tables.publish(cluster_ip("192.0.2.1"), FrontendFlags::RESTRICTED, 0, 0);
    tables.publish(cluster_ip("10.96.0.1"), FrontendFlags::NONE, 0, 0);
    let (friend, stranger) = (addr("203.0.113.1"), addr("203.0.113.2"));
    tables.sources = [(7, friend), (8, stranger)]
        .map(|(service, addr)| Source { service: ServiceId(service), addr })
        .into();
    let shut_out =
        |vip: &str, source| shut_out(&tables, tables.frontends[&cluster_ip(vip)], source);
    assert_eq!(shut_out("192.0.2.1", friend), None);
    assert_eq!(shut_out("192.0.2.1", stranger), Some(ServiceId(7)));
    assert_eq!(shut_out("10.96.0.1", stranger), None);
}

#[test]
fn client_keeps_the_backend_that_is_recalled_and_others_are_never_asked() {
    use FrontendFlags as F;
    let mut tables = Fake::default();
    let [sticky, plain] = [cluster_ip("10.96.0.1"), cluster_ip("10.96.0.2")];
    tables.publish(sticky, F::EXTERNAL_LOCAL, 2, 1);
    let mut header = RangeHeader::from_slot(&tables.slots[0]);
    header.affinity_seconds = 5;
    tables.slots[0] = header.to_slot();
    tables.publish(plain, F::NONE, 2, 0);
    let known = tables.slots[2];
    for (caller, set) in [
        (Caller::Internal, BackendFlags::IN_CLUSTER_SET),
        (Caller::External, BackendFlags::IN_LOCAL_SET),
    ] {
        let choice = choose(&tables, tables.frontends[&sticky], caller, 0, |header, asked| {
            assert_eq!((header.affinity_seconds, asked), (5, set));
            Some(known)
        });
        assert_eq!(choice, Some(Choice::Backend(ServiceId(7), known)));
    }
    let recall = |_: &RangeHeader, _| panic!("a service without affinity asks nobody");
    let choice = choose(&tables, tables.frontends[&plain], Caller::Internal, 0, recall);
    assert!(matches!(choice, Some(Choice::Backend(_, slot)) if slot.backend == BackendId(0)));
}

#[test]
fn value_of_another_key_is_never_used() {
    let mut tables = Fake::default();
    tables.publish(cluster_ip("10.96.0.1"), FrontendFlags::NONE, 1, 0);
    let foreign = tables.frontends[&cluster_ip("10.96.0.1")];
    tables.frontends.insert(cluster_ip("10.96.0.2"), foreign);
    assert_eq!(find_frontend(&tables, to("10.96.0.2", 80), NODE_PORTS, false), None);
}

#[test]
fn client_is_hidden_where_the_answer_would_not_come_back_through_this_node() {
    let here = Slot { addr: addr("10.244.1.2"), flags: BackendFlags::LOCAL, ..Slot::default() };
    let there = Slot { addr: addr("10.244.2.2"), ..Slot::default() };
    let pod = DeviceFlags::POD;
    let bridged = pod.with(DeviceFlags::UNSEEN_BRIDGE);
    let hidden = |flags, from: &str, device, slot: &Slot, all| {
        hides_client(flags, Sender { addr: addr(from), device }, slot, all, || false)
    };
    let (vip, node_port) = (FrontendFlags::NONE, FrontendFlags::NODE_PORT);
    for flags in [vip, node_port] {
        assert!(!hidden(flags, "10.244.1.9", pod, &here, false));
        assert!(!hidden(flags, "10.244.1.9", pod, &there, false));
        assert!(!hidden(flags, "172.18.0.9", DeviceFlags::NODE, &here, false));
        assert!(hidden(flags, "172.18.0.9", DeviceFlags::NODE, &there, false));
        assert!(hidden(flags, "10.244.9.9", DeviceFlags::LOCAL, &there, false));
        assert!(hidden(flags, "10.244.1.2", pod, &here, false), "a backend that asks itself");
        assert!(hidden(flags, "10.244.1.9", bridged, &here, false));
        assert!(!hidden(flags, "10.244.1.9", bridged, &there, false));
    }
    assert!(hidden(vip, "10.244.1.9", pod, &here, true));
    assert!(!hidden(node_port, "10.244.1.9", pod, &here, true));

    let outsider = Sender { addr: addr("172.18.0.9"), device: DeviceFlags::NODE };
    assert!(hides_client(node_port, outsider, &here, false, || true));
    let local = node_port.with(FrontendFlags::EXTERNAL_LOCAL);
    assert!(!hides_client(local, outsider, &here, false, || true));
}

#[test]
fn datagrams_of_one_flow_are_chosen_alike_and_flows_spread_evenly() {
    let end =
        |last: u32, port| End { addr: Addr::from_v4_word(last.to_be()), port: Port::new(port) };
    let service = end(0x0a60_000a, 53);
    let digest = |port| datagram_digest(7, end(0x0af4_0102, port), service);
    assert_eq!(digest(40_000), digest(40_000));
    assert_ne!(digest(40_000), datagram_digest(8, end(0x0af4_0102, 40_000), service));
    let mut counts = [0_u32; 10];
    for port in 20_000..60_000 {
        counts[((u64::from(digest(port)) * 10) >> 32) as usize] += 1;
    }
    // 4,000 each; five standard deviations are 300.
    assert!(counts.iter().all(|count| (3_700..4_300).contains(count)), "{counts:?}");
}
