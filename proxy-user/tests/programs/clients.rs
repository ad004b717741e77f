//! Who may connect, and who comes back: source ranges and session affinity over made packets.

use crate::net::Net;
use crate::plane::{Plane, Told, Via};
use crate::writer::{CLUSTER_IP, NODE_PORT, Served};
use proxy_ebpf::frontend::FrontendFlags;
use proxy_ebpf::outcome::Outcome::{Chosen, NoEndpoint, NotOurs, SourceNotAllowed};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

const RESTRICTED: FrontendFlags = FrontendFlags::LOAD_BALANCER.with(FrontendFlags::RESTRICTED);

/// How many choices show that there are two: one is missed once in 2²³ times.
const TIMES: u16 = 24;

/// How many connections show that a client stays.
const SOME: u16 = 6;

fn at_port(end: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(end.ip(), port)
}

/// Which of `backends` the client of `from` gets for so many new connections to `to`.
fn gets(
    plane: &mut Plane,
    net: Net,
    (via, from): (Via, SocketAddr),
    to: SocketAddr,
    (times, backends): (u16, &[SocketAddr]),
) -> BTreeSet<SocketAddr> {
    static PORTS: AtomicU16 = AtomicU16::new(1_000);
    let first = PORTS.fetch_add(times, Ordering::Relaxed);
    let got = (first..first + times).map(|port| {
        let out = plane.run(via, &net.opening(at_port(from, port), to));
        let (Chosen, Told::To(backend) | Told::Hidden(backend)) = out else { panic!("{out:?}") };
        assert!(backends.contains(&backend), "{backend} is none of the service");
        backend
    });
    got.collect()
}

/// Scenario 84.
#[test]
fn client_stays_with_its_backend_at_every_frontend_and_others_have_their_own() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, outsider, vip, node_port, there, .. } = net;
        let frontends = &[(vip, CLUSTER_IP), (node_port, NODE_PORT)];
        let served =
            Served { cluster: &there, frontends, affinity_seconds: 10_800, ..Default::default() };
        plane.serve(net, "web", served);
        let by_vip = gets(&mut plane, net, (Via::Pod, pod), vip, (SOME, &there));
        assert_eq!(by_vip.len(), 1, "{net:?}");
        let by_node_port = gets(&mut plane, net, (Via::Pod, pod), node_port, (SOME, &there));
        assert_eq!(by_vip, by_node_port, "{net:?}");

        let mut others = BTreeSet::new();
        for host in 0..TIMES {
            let client = SocketAddr::new(net.nth(host), outsider.port());
            let got = gets(&mut plane, net, (Via::Node, client), node_port, (2, &there));
            assert_eq!(got.len(), 1);
            others.extend(got);
        }
        assert_eq!(others.len(), 2, "clients are independent");
    }
}

#[test]
fn client_without_affinity_gets_every_backend_and_is_not_remembered() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, there, .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        plane.serve(net, "web", Served { cluster: &there, frontends, ..Default::default() });
        assert_eq!(gets(&mut plane, net, (Via::Pod, pod), vip, (TIMES, &there)).len(), 2);
    }
    assert!(plane.clients().is_empty());
}

/// Scenario 89.
#[test]
fn client_of_a_backend_that_went_or_drains_gets_another_and_stays_with_that() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, there, here: [other, _], .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        let served = |cluster, draining| Served {
            cluster,
            draining,
            frontends,
            affinity_seconds: 10_800,
            ..Default::default()
        };
        plane.serve(net, "web", served(&there, &[]));
        let first = *gets(&mut plane, net, (Via::Pod, pod), vip, (SOME, &there)).first().unwrap();
        let rest = there.map(|backend| if backend == first { other } else { backend });
        for draining in [&[first][..], &[]] {
            plane.serve(net, "web", served(&rest, draining));
            assert_eq!(gets(&mut plane, net, (Via::Pod, pod), vip, (SOME, &rest)).len(), 1);
        }
    }
}

/// Scenario S10.
#[test]
fn affinity_to_a_backend_elsewhere_does_not_lead_a_local_policy_off_the_node() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { outsider, vip, node_port, here: [near, _], there: [far, _], .. } = net;
        let local = NODE_PORT.with(FrontendFlags::EXTERNAL_LOCAL);
        plane.serve(
            net,
            "web",
            Served {
                cluster: &[far],
                local: &[near],
                frontends: &[(vip, CLUSTER_IP), (node_port, local)],
                affinity_seconds: 10_800,
                ..Default::default()
            },
        );
        for (to, backend) in [(vip, far), (node_port, near), (vip, far)] {
            let got = gets(&mut plane, net, (Via::Node, outsider), to, (SOME, &[near, far]));
            assert_eq!(got, [backend].into(), "{net:?} {to}");
        }
    }
}

/// Scenarios 86; S9.
#[test]
fn a_record_lives_for_its_timeout_counted_from_the_last_connection() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, vip, there, .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        let served =
            Served { cluster: &there, frontends, affinity_seconds: 10, ..Default::default() };
        plane.serve(net, "web", served);
        gets(&mut plane, net, (Via::Pod, pod), vip, (1, &there));
        let mut aged = BTreeSet::new();
        for _ in 0..TIMES {
            plane.age_clients(5);
            aged.extend(gets(&mut plane, net, (Via::Pod, pod), vip, (1, &there)));
        }
        assert_eq!(aged.len(), 1, "{net:?}");
        let mut expired = BTreeSet::new();
        for _ in 0..TIMES {
            plane.age_clients(11);
            expired.extend(gets(&mut plane, net, (Via::Pod, pod), vip, (1, &there)));
        }
        assert_eq!(expired.len(), 2, "{net:?}");
    }
}

/// Scenario S9.
#[test]
fn packets_of_a_connection_do_not_refresh_its_client() {
    let mut plane = Plane::new();
    for net in Net::ALL.into_iter().filter(|net| net.has_tcp()) {
        let Net { pod, vip, there, .. } = net;
        let frontends = &[(vip, CLUSTER_IP)];
        let served =
            Served { cluster: &there, frontends, affinity_seconds: 1_000, ..Default::default() };
        plane.serve(net, "web", served);
        plane.run(Via::Pod, &net.opening(pod, vip));
        plane.age_clients(500);
        let before = plane.clients();
        assert_eq!(plane.run(Via::Pod, &net.data(pod, vip)).0, NotOurs);
        assert_eq!(plane.clients(), before);
    }
}

/// Scenario 68.
#[test]
fn restricted_address_is_open_to_its_sources_and_other_frontends_to_all() {
    let mut plane = Plane::new();
    for net in Net::ALL {
        let Net { pod, outsider, vip, other_vip, there, .. } = net;
        let frontends = [(vip, RESTRICTED), (other_vip, CLUSTER_IP)];
        let served = |cluster, sources| Served {
            cluster,
            sources,
            frontends: &frontends,
            ..Default::default()
        };
        let (outsiders, pods) = ([outsider], [pod]);
        plane.serve(net, "web", served(&there[..1], &outsiders));
        let [allowed, shut_out] = [net.opening(outsider, vip), net.opening(pod, vip)];
        let hidden = (Chosen, Told::Hidden(there[0]));
        assert_eq!(plane.run(Via::Node, &allowed), hidden);
        for via in [Via::Pod, Via::Node] {
            let out = plane.run(via, &shut_out);
            assert_eq!(out, (SourceNotAllowed, Told::Drop), "{net:?}");
        }
        assert_eq!(plane.counters(net, "web").refused, 2);
        let open = net.opening(pod, other_vip);
        assert_eq!(plane.run(Via::Pod, &open).0, Chosen);

        // Tightened: what is new is dropped, and nothing is said of what is established.
        plane.serve(net, "web", served(&there[..1], &pods));
        if net.has_tcp() {
            let data = net.data(outsider, vip);
            assert_eq!(plane.run(Via::Node, &data), (NotOurs, Told::Nothing));
        }
        assert_eq!(plane.run(Via::Node, &allowed), (SourceNotAllowed, Told::Drop));
        assert_eq!(plane.run(Via::Pod, &shut_out), (Chosen, Told::To(there[0])));

        // Without endpoints, who is allowed is refused, and nobody else learns of it.
        plane.serve(net, "web", served(&[], &pods));
        assert_eq!(plane.run(Via::Pod, &shut_out), (NoEndpoint, Told::Refuse));
        assert_eq!(plane.run(Via::Node, &allowed), (SourceNotAllowed, Told::Drop));
    }
}
