//! The life of a flow: when it keeps its backend, when it gets another one, what it remembers,
//! and which source port SNAT gives it.

use crate::net::Net;
use crate::packet::{ACK, FIN, Packet, RST, SYN};
use crate::plane::{Fate, Plane, Via, flow_key, passed};
use crate::services::snat_source;
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::flow::Hook::{self, Egress, Ingress};
use proxy_ebpf::flow::{FlowFlags, Stamp};
use proxy_ebpf::outcome::Outcome::{Chosen, Matched, NoEndpoint, NotOurs};
use proxy_user::tables::Family;
use std::collections::BTreeSet;
use std::net::SocketAddr;

const TCP: [Net; 2] = [Net::new(Proto::TCP, Family::V4), Net::new(Proto::TCP, Family::V6)];
const UDP: [Net; 2] = [Net::new(Proto::UDP, Family::V4), Net::new(Proto::UDP, Family::V6)];

/// Makes the service `web` at `vip` and `node_port` have the cluster set `cluster`.
fn serve(plane: &mut Plane, net: Net, cluster: &[SocketAddr]) {
    let frontends = &[(net.vip, CLUSTER_IP), (net.node_port, NODE_PORT)];
    plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
}

fn client(net: Net, port: u16) -> SocketAddr {
    SocketAddr::new(net.pod.ip(), port)
}

/// The backend of `cluster` that a packet from a pod to `packet.dst` is sent to.
fn backend_of(plane: &mut Plane, packet: &Packet, cluster: &[SocketAddr]) -> SocketAddr {
    let out = plane.run(Via::Pod, Ingress, packet);
    assert_eq!(out.fate, Fate::Passed, "{packet:?}: {:?}", out.outcome);
    let is_it = |backend: &&SocketAddr| packet.to(**backend).bytes() == out.packet;
    *cluster.iter().find(is_it).unwrap_or_else(|| panic!("{packet:?} goes to no backend"))
}

/// Scenario 16.
#[test]
fn new_flows_are_spread_evenly() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        serve(&mut plane, net, &net.there);
        let firsts = (1..=400)
            .map(|port| net.opening(client(net, port), net.vip))
            .filter(|packet| backend_of(&mut plane, packet, &net.there) == net.there[0])
            .count();
        // Outside by chance once in 10 million runs.
        assert!((146..=254).contains(&firsts), "{firsts} of 400");
    }
}

/// Scenario S8.
#[test]
fn established_connection_outlives_its_endpoint_and_its_service() {
    let mut plane = Plane::new();
    for net in TCP {
        let Net { pod, vip, there: [first, second], .. } = net;
        serve(&mut plane, net, &[first]);
        let data = net.data(pod, vip);
        let reply = data.to(first).reply();
        let goes_on = |plane: &mut Plane| {
            assert_eq!(plane.run(Via::Pod, Ingress, &data), passed(Matched, &data.to(first)));
            assert_eq!(plane.run(Via::Pod, Egress, &reply), passed(Matched, &reply.from(vip)));
        };
        plane.run(Via::Pod, Ingress, &net.opening(pod, vip));
        goes_on(&mut plane);
        serve(&mut plane, net, &[second]);
        goes_on(&mut plane);
        let newcomer = net.opening(client(net, 1), vip);
        assert_eq!(plane.run(Via::Pod, Ingress, &newcomer), passed(Chosen, &newcomer.to(second)));
        serve(&mut plane, net, &[]);
        goes_on(&mut plane);
        plane.writer.withdraw(net, vip, CLUSTER_IP);
        goes_on(&mut plane);
    }
}

#[test]
fn syn_that_is_sent_again_keeps_its_backend_while_that_serves() {
    let mut plane = Plane::new();
    for net in TCP {
        let [first, second] = net.there;
        serve(&mut plane, net, &net.there);
        let syn = net.opening(net.pod, net.vip);
        let chosen = backend_of(&mut plane, &syn, &net.there);
        for _ in 0..20 {
            assert_eq!(plane.run(Via::Pod, Ingress, &syn), passed(Matched, &syn.to(chosen)));
        }
        let other = if chosen == first { second } else { first };
        serve(&mut plane, net, &[other]);
        assert_eq!(plane.run(Via::Pod, Ingress, &syn), passed(Chosen, &syn.to(other)));
    }
}

#[test]
fn connection_that_was_refused_is_over() {
    let mut plane = Plane::new();
    for net in TCP {
        let Net { pod, vip, there: [first, second], .. } = net;
        serve(&mut plane, net, &[first]);
        let syn = net.opening(pod, vip);
        plane.run(Via::Pod, Ingress, &syn);
        let refusal = syn.to(first).reply().flags(RST | ACK);
        assert_eq!(plane.run(Via::Pod, Egress, &refusal), passed(Matched, &refusal.from(vip)));
        // The backend still serves, so that a SYN sent again would stay with it.
        let draining = Served { cluster: &[second], draining: &[first], ..Default::default() };
        plane.serve(net, "web", draining);
        assert_eq!(plane.run(Via::Pod, Ingress, &syn), passed(Chosen, &syn.to(second)));
    }
}

#[test]
fn syn_after_data_begins_another_connection() {
    let mut plane = Plane::new();
    for net in TCP {
        let Net { pod, vip, there: [first, second], .. } = net;
        serve(&mut plane, net, &[first]);
        plane.run(Via::Pod, Ingress, &net.opening(pod, vip));
        plane.run(Via::Pod, Ingress, &net.data(pod, vip));
        serve(&mut plane, net, &[second]);
        let syn = net.opening(pod, vip);
        assert_eq!(plane.run(Via::Pod, Ingress, &syn), passed(Chosen, &syn.to(second)));
        assert_eq!(plane.counters(net, "web").connections, 2);
        let reply = |from| syn.to(from).reply();
        let expected = passed(Matched, &reply(second).from(vip));
        assert_eq!(plane.run(Via::Pod, Egress, &reply(second)), expected);
    }
}

#[test]
fn another_connection_leaves_replies_alone_that_are_of_a_third() {
    let mut plane = Plane::new();
    for net in TCP {
        let Net { pod, vip, node_port, there: [first, second], .. } = net;
        serve(&mut plane, net, &[first]);
        plane.run(Via::Pod, Ingress, &net.opening(pod, vip));
        plane.run(Via::Pod, Ingress, &net.data(pod, vip).flags(RST));
        // The first connection is over, so that its replies' entry is free for this one.
        let other = net.opening(pod, node_port);
        assert_eq!(plane.run(Via::Pod, Ingress, &other), passed(Chosen, &other.to(first)));
        serve(&mut plane, net, &[second]);
        let syn = net.opening(pod, vip);
        assert_eq!(plane.run(Via::Pod, Ingress, &syn), passed(Chosen, &syn.to(second)));
        for (frontend, backend) in [(node_port, first), (vip, second)] {
            let reply = net.opening(pod, backend).reply();
            let expected = passed(Matched, &reply.from(frontend));
            assert_eq!(plane.run(Via::Pod, Egress, &reply), expected);
        }
    }
}

/// Scenario 92.
#[test]
fn udp_flow_leaves_a_backend_that_no_longer_serves_unless_nothing_else_does() {
    let mut plane = Plane::new();
    for net in UDP {
        let Net { pod, vip, there: [first, second], .. } = net;
        let packet = net.data(pod, vip);
        let expect = |plane: &mut Plane, outcome, backend| {
            let out = plane.run(Via::Pod, Ingress, &packet);
            assert_eq!(out, passed(outcome, &packet.to(backend)));
        };
        serve(&mut plane, net, &[first]);
        expect(&mut plane, Chosen, first);
        let draining = Served { cluster: &[second], draining: &[first], ..Default::default() };
        plane.serve(net, "web", draining);
        expect(&mut plane, Matched, first);
        serve(&mut plane, net, &[second]);
        expect(&mut plane, Chosen, second);
        serve(&mut plane, net, &[]);
        expect(&mut plane, Matched, second);
        serve(&mut plane, net, &[first]);
        expect(&mut plane, Chosen, first);
        expect(&mut plane, Matched, first);

        serve(&mut plane, net, &[]);
        plane.writer.withdraw(net, vip, CLUSTER_IP);
        assert_eq!(plane.run(Via::Pod, Ingress, &packet), passed(NotOurs, &packet));
    }
}

/// A datagram and its answer, as each hook sees them.
fn exchange(plane: &mut Plane, net: Net, from: SocketAddr, ends: [SocketAddr; 2]) {
    let [frontend, backend] = ends;
    let there = net.data(from, frontend);
    let out = plane.run(Via::Pod, Ingress, &there);
    assert_eq!((out.fate, out.packet), (Fate::Passed, there.to(backend).bytes()));
    let back = there.to(backend).reply();
    let out = plane.run(Via::Pod, Egress, &back);
    assert_eq!((out.fate, out.packet), (Fate::Passed, back.from(frontend).bytes()));
}

#[test]
fn port_that_asks_a_backend_through_a_service_and_past_it_is_answered_by_whom_it_asked() {
    let mut plane = Plane::new();
    for net in UDP {
        let Net { pod, vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, &[backend]);
        for _ in 0..3 {
            exchange(&mut plane, net, pod, [vip, backend]);
            exchange(&mut plane, net, pod, [vip, backend]);
            exchange(&mut plane, net, pod, [backend, backend]);
            exchange(&mut plane, net, pod, [backend, backend]);
        }
        assert_eq!(plane.counters(net, "web").connections, 1, "its flow stays with its backend");
    }
}

#[test]
fn node_hides_a_client_that_also_asks_the_backend_itself_where_it_has_to() {
    let mut plane = Plane::with(|settings| settings.masquerade_all = true);
    for net in UDP {
        let Net { pod, vip, there: [backend, _], .. } = net;
        serve(&mut plane, net, &[backend]);
        for _ in 0..3 {
            let inside = net.data(pod, backend);
            for _ in 0..2 {
                plane.run(Via::Pod, Ingress, &net.data(pod, vip));
                let out = plane.run(Via::Node, Egress, &inside);
                let source = snat_source(net, &out, &inside);
                let heard = net.data(backend, source);
                let out = plane.run(Via::Node, Ingress, &heard);
                assert_eq!(out, passed(Matched, &heard.to(pod)));
                let back = net.data(backend, pod);
                assert_eq!(plane.run(Via::Pod, Egress, &back), passed(Matched, &back.from(vip)));
            }
            exchange(&mut plane, net, pod, [backend, backend]);
            assert_eq!(plane.run(Via::Node, Egress, &inside), passed(NotOurs, &inside));
            assert!(plane.entries(net).is_empty(), "its port is free again");
        }
    }
}

/// Scenario 93.
#[test]
fn datagrams_before_the_first_endpoint_do_not_spoil_those_after_it() {
    let mut plane = Plane::new();
    for net in UDP {
        serve(&mut plane, net, &[]);
        let packet = net.opening(net.pod, net.vip);
        assert_eq!(plane.run(Via::Pod, Ingress, &packet).outcome, NoEndpoint);
        serve(&mut plane, net, &[net.there[0]]);
        let expected = passed(Chosen, &packet.to(net.there[0]));
        assert_eq!(plane.run(Via::Pod, Ingress, &packet), expected);
    }
}

#[test]
fn reset_of_a_forgotten_connection_begins_nothing() {
    let mut plane = Plane::new();
    for net in TCP {
        serve(&mut plane, net, &net.there);
        for flags in [RST, RST | ACK] {
            let packet = net.opening(net.pod, net.vip).flags(flags);
            assert_eq!(plane.run(Via::Pod, Ingress, &packet), passed(NotOurs, &packet));
        }
        assert!(plane.entries(net).is_empty());
    }
}

/// All packets of one flow through a NodePort to another node, and the hooks they meet: the
/// request at ingress and egress, the reply at ingress and egress.
fn round_trip(plane: &mut Plane, net: Net, client: SocketAddr, flags: u8) -> [(Hook, Packet); 4] {
    let request = net.opening(client, net.node_port).flags(flags);
    plane.run(Via::Node, Ingress, &request);
    let inside = request.to(net.there[0]);
    let snat = snat_source(net, &plane.run(Via::Node, Egress, &inside), &inside);
    let reply = inside.from(snat).reply();
    let back = reply.to(client);
    plane.run(Via::Node, Ingress, &reply);
    plane.run(Via::Node, Egress, &back);
    [(Ingress, request), (Egress, inside), (Ingress, reply), (Egress, back)]
}

#[test]
fn flags_of_a_connection_are_noted_in_the_direction_that_sent_them() {
    let mut plane = Plane::new();
    let all = FlowFlags::ESTABLISHED.with(FlowFlags::FIN).with(FlowFlags::RST);
    let noted = |plane: &Plane, trip: &[(Hook, Packet); 4]| {
        trip.each_ref().map(|(hook, packet)| plane.entry(*hook, packet).unwrap().flags.0 & all.0)
    };
    for net in TCP {
        serve(&mut plane, net, &[net.there[0]]);
        let trip = round_trip(&mut plane, net, net.outsider, SYN);
        assert_eq!(noted(&plane, &trip), [0; 4], "a SYN establishes nothing, nor does its answer");
        for (flags, expected) in [
            (ACK, FlowFlags::ESTABLISHED),
            (FIN | ACK, FlowFlags::ESTABLISHED.with(FlowFlags::FIN)),
            (RST, all),
        ] {
            for (half, entries) in [(0, 0..2), (2, 2..4)] {
                let before = noted(&plane, &trip);
                for (hook, packet) in &trip[half..half + 2] {
                    plane.run(Via::Node, *hook, &packet.clone().flags(flags));
                }
                let after = noted(&plane, &trip);
                assert_eq!(after[entries.clone()], [expected.0; 2]);
                let other = 2 - half;
                assert_eq!(after[other..other + 2], before[other..other + 2]);
            }
        }
    }
}

#[test]
fn connection_does_not_inherit_the_end_of_the_one_before() {
    let mut plane = Plane::new();
    for net in TCP {
        serve(&mut plane, net, &[net.there[0]]);
        let old = round_trip(&mut plane, net, net.outsider, SYN);
        for (hook, packet) in &old {
            plane.run(Via::Node, *hook, &packet.clone().flags(RST));
        }
        let new = round_trip(&mut plane, net, net.outsider, SYN);
        for (hook, packet) in &new {
            let flags = plane.entry(*hook, packet).unwrap().flags;
            assert!(!flags.has(FlowFlags::RST), "{hook:?} {packet:?}");
        }
    }
}

#[test]
fn evicted_entry_is_made_again_by_the_other_direction() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        serve(&mut plane, net, &[net.there[0]]);
        let trip = round_trip(&mut plane, net, net.outsider, SYN);
        let entries = plane.entries(net);
        assert_eq!(entries.len(), 4);
        // The pairs: the request outside and the reply outside, and the two inside.
        for (kept, lost) in [(0, 3), (3, 0), (1, 2), (2, 1)] {
            let ((hook, packet), (lost_hook, lost)) = (&trip[kept], &trip[lost]);
            let mut value = plane.entry(*hook, packet).unwrap();
            value.seen = Stamp(0);
            plane.write_raw("flows", flow_key(*hook, packet), value);
            plane.evict(*lost_hook, lost);
            assert_eq!(plane.entries(net).len(), 3);
            assert_eq!(plane.run(Via::Node, *hook, packet).outcome, Matched);
            assert_eq!(plane.entries(net), entries);
            assert_ne!(plane.entry(*hook, packet).unwrap().seen, Stamp(0));
        }
    }
}

#[test]
fn snat_keeps_a_client_port_of_its_range_and_gives_every_other_flow_its_own() {
    let mut plane = Plane::with_snat_ports(61_000..=61_049);
    for net in Net::ALL {
        serve(&mut plane, net, &[net.there[0]]);
        let mut port_for = |client| round_trip(&mut plane, net, client, SYN)[2].1.dst.port();
        let in_range = SocketAddr::new(net.outsider.ip(), 61_030);
        assert_eq!(port_for(in_range), 61_030);
        let rival = SocketAddr::new(net.there[1].ip(), 61_030);
        let mut ports = BTreeSet::from([61_030, port_for(rival)]);
        assert_eq!(ports.len(), 2);
        ports.extend((1..=30).map(|port| port_for(SocketAddr::new(net.outsider.ip(), port))));
        assert_eq!(ports.len(), 32);
        assert!(ports.iter().all(|port| (61_000..=61_049).contains(port)), "{ports:?}");
    }
}

/// The port that SNAT gives to a connection of `client`, whose entries are then lost.
fn lost_port(plane: &mut Plane, net: Net, client: SocketAddr) -> u16 {
    let trip = round_trip(plane, net, client, SYN);
    trip.iter().for_each(|(hook, packet)| plane.evict(*hook, packet));
    trip[2].1.dst.port()
}

#[test]
fn a_client_port_has_the_same_snat_port_after_its_entries_are_lost() {
    let mut plane = Plane::with_snat_ports(61_000..=61_009);
    for net in Net::ALL {
        serve(&mut plane, net, &[net.there[0]]);
        let mut port_for =
            |port| lost_port(&mut plane, net, SocketAddr::new(net.outsider.ip(), port));
        let ports: Vec<_> = (1..=10).map(&mut port_for).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 10);
        let again: Vec<_> = (1..=10).rev().map(port_for).collect();
        assert!(again.iter().eq(ports.iter().rev()), "{ports:?}, {again:?}");
    }
}

#[test]
fn a_snat_port_that_a_connection_has_left_is_anothers_after_all_others() {
    let mut plane = Plane::with_snat_ports(61_000..=61_009);
    for net in TCP {
        serve(&mut plane, net, &[net.there[0]]);
        let first = round_trip(&mut plane, net, net.outsider, SYN);
        drop(round_trip(&mut plane, net, net.outsider, RST));
        let left = first[2].1.dst.port();
        // One of these ten has the same place as the first.
        let other = |port| SocketAddr::new(net.there[1].ip(), port);
        let ports: Vec<_> = (1..=10).map(|port| lost_port(&mut plane, net, other(port))).collect();
        assert!(!ports.contains(&left), "{left} of {ports:?}");
        // Where all the others are taken, it is given out.
        let taken = (1..=10).map(|port| round_trip(&mut plane, net, other(port), SYN));
        assert!(taken.map(|trip| trip[2].1.dst.port()).any(|port| port == left));
    }
}

/// Scenario 21.
#[test]
fn sctp_goes_on_with_a_backend_that_is_gone_until_an_init_begins_anew() {
    let mut plane = Plane::new();
    for net in [Family::V4, Family::V6].map(|family| Net::new(Proto::SCTP, family)) {
        let Net { pod, there: [first, _], .. } = net;
        // SCTP's checksum covers the ports, so they must be the same everywhere.
        let second = SocketAddr::new(net.there[1].ip(), first.port());
        let vip = SocketAddr::new(net.vip.ip(), first.port());
        let frontends = &[(vip, CLUSTER_IP)];
        let serve = |plane: &mut Plane, cluster: &[SocketAddr]| {
            plane.serve(net, "web", Served { cluster, frontends, ..Default::default() });
        };
        let (init, data) = (net.opening(pod, vip), net.data(pod, vip));
        serve(&mut plane, &[first]);
        let out = plane.run(Via::Pod, Ingress, &data);
        assert_eq!(out, passed(NotOurs, &data), "of an association that is not known");

        // While it is being opened, it keeps a backend that serves.
        assert_eq!(plane.run(Via::Pod, Ingress, &init), passed(Chosen, &init.to(first)));
        serve(&mut plane, &[first, second]);
        for _ in 0..8 {
            assert_eq!(plane.run(Via::Pod, Ingress, &init), passed(Matched, &init.to(first)));
        }
        serve(&mut plane, &[second]);
        assert_eq!(plane.run(Via::Pod, Ingress, &data), passed(Matched, &data.to(first)));
        assert_eq!(plane.run(Via::Pod, Ingress, &init), passed(Chosen, &init.to(second)));
        assert_eq!(plane.run(Via::Pod, Ingress, &data), passed(Matched, &data.to(second)));
        let reply = data.to(second).reply();
        assert_eq!(plane.run(Via::Pod, Egress, &reply), passed(Matched, &reply.from(vip)));
    }
}
