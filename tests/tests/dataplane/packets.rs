//! Packets that are more, or less, than a segment or a datagram: refusals, fragments, and ICMP
//! errors where a link on the way is narrow.

use crate::scene::{Path, Scene, answer, node_port, ready, silent, vip};
use crate::udp::endpoints;
use anyhow::{Context, Result};
use lab::cluster::eventually;
use lab::onlooker::{Direction, Onlooker, Place, Tagger};
use lab::{Ask, Cni, Machine, Node, Serve};
use std::net::{IpAddr, SocketAddr};

/// CNIs, and the node's own devices that the packet path is on.
const PLACES: [(Cni, &str); 3] =
    [(Cni::Routed, "eth0"), (Cni::Bridge, "eth0"), (Cni::Bridge, "eth0,cni0")];

/// Kinds of socket that hear of a refusal; an unconnected UDP socket does not.
fn hearing(to: [SocketAddr; 2]) -> Vec<Ask> {
    to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]).collect()
}

async fn refused_at_once(fact: &str, from: &Machine, asks: Vec<Ask>) {
    for ask in asks {
        let failure = from.ask(ask.clone()).await.expect_err(fact);
        assert!(failure.refused_at_once(), "{fact}: {} {ask:?}: {failure}", from.name());
    }
}

/// Scenario 47.
#[tokio::test]
async fn the_packet_path_refuses_at_once_whatever_listens_on_the_node() -> Result<()> {
    for (cni, devices) in PLACES {
        let mut scene = Scene::strict(cni).await?;
        scene.publish(1, &[])?;
        scene.start_with(Path::Packet, &[("--devices", devices)]).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        for addr in [IpAddr::from(node.ipv4()), node.ipv6().into()] {
            node.serve(Serve::tcp(node_port(1)).on(addr)).await?;
            node.serve(Serve::udp(node_port(1)).on(addr)).await?;
        }
        let at_node = node.addrs().at(node_port(1));
        for from in [&*scene.client, &outsider] {
            let fact = format!("{cni:?} {devices}");
            refused_at_once(&format!("{fact}: ClusterIP"), from, hearing(vip(1))).await;
            refused_at_once(&format!("{fact}: NodePort"), from, hearing(at_node)).await;
        }
        assert_eq!(scene.outcome("ingress", "no_endpoint").await?, 16, "{cni:?} {devices}");
        assert_eq!(scene.counter(1, "refused").await?, 16, "{cni:?} {devices}");
    }
    Ok(())
}

/// Scenario 23.
/// The kernel's ICMP errors have a limit for each receiver; resets have none.
#[tokio::test]
async fn every_one_of_many_clients_is_reset_at_once() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[])?;
    scene.start(Path::Packet).await?;
    for to in vip(1) {
        let asks = (0..100).map(|_| Ask::tcp(to)).collect();
        refused_at_once("one of many", &scene.client, asks).await;
    }
    Ok(())
}

/// Where the device does not finish checksums the kernel does, and the receiver checks them.
#[tokio::test]
async fn refusals_have_right_checksums_whoever_makes_them() -> Result<()> {
    for (in_pod, on_node) in [(false, true), (true, false), (true, true)] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        scene.publish(1, &[])?;
        scene.start(Path::Packet).await?;
        if in_pod {
            scene.client.netns().turn_off_checksum_offload().await?;
        }
        if on_node {
            scene.cluster.lab.node(0).netns().turn_off_checksum_offload().await?;
        }
        for bytes in [0, 1, 700, 1_400] {
            let asks = hearing(vip(1)).into_iter().map(|ask| ask.payload(bytes)).collect();
            let fact = format!("offload off: {in_pod}, {on_node}; {bytes} bytes");
            refused_at_once(&fact, &scene.client, asks).await;
        }
    }
    Ok(())
}

/// Scenarios 26; S13.
#[tokio::test]
async fn datagrams_above_the_mtu_are_answered() -> Result<()> {
    for (cni, devices) in PLACES {
        let mut scene = Scene::strict(cni).await?;
        scene.publish(1, &[&scene.web[0]])?;
        scene.publish(2, &[&scene.web[1]])?;
        scene.start_with(Path::Packet, &[("--devices", devices)]).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        for number in [1, 2] {
            let at_node = node.addrs().at(node_port(number));
            for from in [&*scene.client, &outsider] {
                for to in vip(number).into_iter().chain(at_node) {
                    for bytes in [1_473, 2_000, 9_000, 60_000] {
                        let fact = format!("{cni:?} {devices}: {bytes} bytes");
                        answer(&fact, from, &Ask::udp(to).payload(bytes)).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Scenario S13.
///
/// What a backend's kernel says of a closed port is about the service to the one who asked it.
#[tokio::test]
async fn a_backend_that_does_not_listen_refuses_in_the_name_of_the_service() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        for elsewhere in [0, 1] {
            let mut scene = Scene::strict(Cni::Routed).await?;
            let backend = &scene.web[elsewhere].clone();
            scene.publish(1, &[backend])?;
            endpoints(&scene, &[(backend, ready())], 8099)?;
            scene.start(path).await?;
            let outsider = scene.routed_outsider().await?;
            let at_node = scene.cluster.lab.node(0).addrs().at(node_port(1));
            for (from, to) in [
                (&*scene.client, vip(1)),
                (&*scene.client, at_node),
                (&outsider, vip(1)),
                (&outsider, at_node),
            ] {
                let fact = format!("{path:?}: {}", backend.name());
                refused_at_once(&fact, from, hearing(to)).await;
            }
            assert_eq!(scene.counter(1, "refused").await?, 0, "it has an endpoint");
        }
    }
    Ok(())
}

/// A tag for VLAN 0 is a priority and nothing else: the packet is for the device that it comes by.
/// Any other is for the VLAN's device, if there is one, and the parent leaves it alone.
#[tokio::test]
async fn packets_with_a_priority_are_served_and_those_of_a_vlan_are_left_alone() -> Result<()> {
    const PRIORITY: u16 = 5 << 13;
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.publish(3, &[])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    let node = scene.cluster.lab.node(0);
    let at_node = |number| node.addrs().at(node_port(number));
    {
        let _tagger = Tagger::attach(outsider.netns(), "eth0", PRIORITY)?;
        for number in [1, 2] {
            for to in [vip(number), at_node(number)].concat() {
                answer("a priority", &outsider, &Ask::tcp(to).payload(1 << 20)).await?;
                answer("a priority", &outsider, &Ask::udp(to).payload(8_000)).await?;
            }
        }
        for to in [vip(3), at_node(3)] {
            refused_at_once("a priority, no endpoint", &outsider, hearing(to)).await;
        }
    }
    let before = ours(&scene, "ingress").await?;
    let arrived = Onlooker::attach(node.netns(), "eth0", Direction::Ingress, Place::First)?;
    let tagger = Tagger::attach(outsider.netns(), "eth0", PRIORITY | 18)?;
    for number in [1, 2, 3] {
        silent("a VLAN", &outsider, hearing(vip(number))).await?;
        silent("a VLAN", &outsider, hearing(at_node(number))).await?;
    }
    assert!(arrived.packets()? >= 24, "{} packets", arrived.packets()?);
    assert_eq!(ours(&scene, "ingress").await?, before, "no packet of the VLAN is");
    drop(tagger);
    answer("no tag again", &outsider, &Ask::tcp(vip(1)[0])).await.map(drop)
}

/// How many packets `program` did something with, or to, on the first node.
async fn ours(scene: &Scene, program: &str) -> Result<u64> {
    let status = scene.cluster.shunt(0, &["status"]).await?;
    let rows = status["outcomes"].as_array().context("outcomes")?.iter();
    let ours = rows.filter(|row| row["program"] == program && row["outcome"] != "not_ours");
    Ok(ours.filter_map(|row| row["count"].as_u64()).sum())
}

/// What a tunnel carries, and a link with the least MTU of IPv6.
const NARROW: [u32; 2] = [1_400, 1_280];

/// Large answers and questions come through, by TCP and, once the sender has been told, by UDP:
/// as one packet or as fragments.
async fn check_large(
    fact: &str,
    from: &Machine,
    to: impl IntoIterator<Item = SocketAddr>,
) -> Result<()> {
    for to in to {
        answer(fact, from, &Ask::tcp(to).payload(1 << 20)).await?;
        for bytes in [1_400, 2_000, 8_000] {
            let large = async || from.ask(Ask::udp(to).payload(bytes).timeout(SOON)).await;
            let what = format!("{fact}: {} → {to}, {bytes} bytes of UDP", from.name());
            let _reply = eventually(&what, large, Result::is_ok).await??;
        }
    }
    Ok(())
}

const SOON: std::time::Duration = std::time::Duration::from_millis(200);

/// Has `one` reach the networks of `other`'s pods, and `other` itself, by `router` only, whose
/// way there carries packets of `mtu` bytes.
async fn route_by(router: &Machine, one: &Node, other: &Node, mtu: u32) -> Result<()> {
    let ways = other.pod_networks().into_iter().zip(router.addrs().at(0)).zip(other.addrs().at(0));
    for ((pods, by), other) in ways {
        for to in [pods.to_string(), host(other.ip())] {
            one.route(&to, by.ip()).await?;
            router.route_narrow(&to, other.ip(), mtu).await?;
        }
    }
    Ok(())
}

/// The network of one address.
fn host(addr: IpAddr) -> String {
    format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 })
}

/// Scenario S13.
#[tokio::test]
async fn large_transfers_complete_where_the_node_itself_has_a_narrow_way() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    let [one, two] = [0, 1].map(|index| scene.cluster.lab.node(index));
    let [v4, v6] = two.pod_networks().map(|network| network.to_string());
    let at_node = one.addrs().at(node_port(1));
    for mtu in NARROW {
        one.route_narrow(&v4, two.ipv4(), mtu).await?;
        one.route_narrow(&v6, two.ipv6(), mtu).await?;
        let fact = |fact| format!("{mtu}, {fact}");
        check_large(&fact("ClusterIP"), &scene.client, vip(1)).await?;
        check_large(&fact("NodePort of its node"), &scene.client, at_node).await?;
        check_large(&fact("NodePort"), &outsider, at_node).await?;
        check_large(&fact("ClusterIP from outside"), &outsider, vip(1)).await?;
    }
    Ok(())
}

/// Scenario S13.
#[tokio::test]
async fn large_transfers_complete_over_a_narrow_link_between_the_nodes() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        scene.publish(1, &[&scene.web[1]])?;
        scene.start(path).await?;
        let router = scene.cluster.lab.add_client("router").await?;
        router.forward()?;
        let outsider = scene.routed_outsider().await?;
        let [one, two] = [0, 1].map(|index| scene.cluster.lab.node(index));
        let at_node = one.addrs().at(node_port(1));
        for mtu in NARROW {
            route_by(&router, one, two, mtu).await.context("one way")?;
            route_by(&router, two, one, mtu).await.context("the other way")?;
            let fact = |fact| format!("{path:?}, {mtu}, {fact}");
            check_large(&fact("ClusterIP"), &scene.client, vip(1)).await?;
            check_large(&fact("NodePort"), &outsider, at_node).await?;
            check_large(&fact("ClusterIP from outside"), &outsider, vip(1)).await?;
        }
    }
    Ok(())
}

/// Scenario S13.
#[tokio::test]
async fn large_transfers_complete_over_a_narrow_link_to_the_client() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let router = scene.cluster.lab.add_client("router").await?;
    router.forward()?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    let ends = |family: usize| [&**node, &router, &outsider].map(|m| m.addrs().at(0)[family].ip());
    let families = [("10.96.0.0/16", ends(0)), ("fd00:96::/64", ends(1))];
    // All that the client has goes by the router, and all that it gets.
    for (services, [node_addr, router_addr, client]) in families {
        outsider.route(services, router_addr).await?;
        outsider.route(&host(node_addr), router_addr).await?;
        node.route(&host(client), router_addr).await?;
    }
    for mtu in NARROW {
        for (services, [node_addr, _, client]) in families {
            router.route_narrow(services, node_addr, mtu).await?;
            router.route_narrow(&host(node_addr), node_addr, mtu).await?;
            router.route_narrow(&host(client), client, mtu).await?;
        }
        for (number, place) in [(1, "a backend here"), (2, "a backend elsewhere")] {
            let fact = format!("{mtu}, {place}");
            check_large(&fact, &outsider, node.addrs().at(node_port(number))).await?;
            check_large(&fact, &outsider, vip(number)).await?;
        }
    }
    Ok(())
}
