//! The packet path: for pods that the socket hooks do not see, and for outsiders.
//!
//! All of it under the strictest reverse path filter, which a detour would not pass.

use crate::scene::{Path, Scene, answer, node_port, reaches, refused, serve, sockets, vip};
use anyhow::Result;
use lab::cluster::eventually;
use lab::{Addrs, Ask, Cni, Transport};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The first node's addresses on the devices of its pods.
const GATEWAY: Addrs =
    Addrs { v4: Ipv4Addr::new(10, 244, 1, 1), v6: Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 1) };

/// Scenario 27.
#[tokio::test]
async fn masquerade_all_shows_backends_of_cluster_ips_the_node_on_both_paths() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
        scene.start_with(path, &[("--masquerade-all", "true")]).await?;
        let outsider = scene.routed_outsider().await?;
        let Scene { cluster, client, web: [web_0, web_1] } = &scene;
        let node = cluster.lab.node(0).addrs();
        let fact = format!("{path:?}");
        // First, for sockets ask the backend itself, and by chance from a port that the packet path
        // would still know as one that asked the service.
        let own = [(&**web_0, client.addrs()), (web_1, client.addrs())];
        reaches(&fact, client, sockets(node.at(node_port(1))), &own).await?;
        // The node speaks from the address of the device that leads to the backend.
        let hidden = [(&**web_0, GATEWAY), (web_1, node)];
        reaches(&fact, client, sockets(vip(1)), &hidden).await?;
        reaches(&fact, &outsider, sockets(vip(1)), &hidden).await?;
    }
    Ok(())
}

/// What backends see of their clients, with pods connected by `cni` and the packet path on
/// `devices` of the node.
async fn clients_are_seen(cni: Cni, devices: &str) -> Result<()> {
    let mut scene = Scene::strict(cni).await?;
    serve(&scene.client).await?;
    scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
    scene.publish(2, &[&scene.client])?;
    scene.start_with(Path::Packet, &[("--devices", devices)]).await?;
    let outsider = scene.routed_outsider().await?;
    let Scene { cluster, client, web } = &scene;
    let [web_0, web_1] = [&*web[0], &web[1]];
    let nodes = [cluster.lab.node(0), cluster.lab.node(1)];
    let [node, other] = nodes.map(|node| node.addrs());

    let pod = client.addrs();
    let all = [(web_0, pod), (web_1, pod)];
    reaches("a pod as itself", client, sockets(vip(1)), &all).await?;
    reaches("also by a NodePort", client, sockets(node.at(node_port(1))), &all).await?;

    // A backend that asks itself would answer itself, past the node. The node speaks from the
    // address of the device that leads to the pod.
    let itself = [(&**client, GATEWAY)];
    reaches("itself as the node", client, sockets(vip(2)), &itself).await?;
    reaches("also by a NodePort", client, sockets(node.at(node_port(2))), &itself).await?;

    // Where the reply passes the node by itself, nothing hides the client.
    let own = outsider.addrs();
    let through_node = [(web_0, own), (web_1, node)];
    reaches("a routed outsider", &outsider, sockets(vip(1)), &through_node).await?;
    let to = sockets(node.at(node_port(1)));
    reaches("an outsider by NodePort", &outsider, to, &through_node).await?;
    let to = sockets(other.at(node_port(1)));
    reaches("by the other node", &outsider, to, &[(web_0, other), (web_1, own)]).await?;

    // Else sockets were translated, and no packets.
    assert_eq!(scene.outcome("connect", "chosen").await?, 0);
    Ok(())
}

/// Scenarios 17, 19 and 41.
#[tokio::test]
async fn backends_see_their_clients_where_pods_are_routed() -> Result<()> {
    clients_are_seen(Cni::Routed, "eth0").await
}

/// Scenario 20.
#[tokio::test]
async fn backends_see_their_clients_where_pods_are_bridged() -> Result<()> {
    clients_are_seen(Cni::Bridge, "eth0").await
}

#[tokio::test]
async fn backends_see_their_clients_with_programs_on_the_bridge_too() -> Result<()> {
    clients_are_seen(Cni::Bridge, "auto").await
}

/// Scenario 26.
#[tokio::test]
async fn payloads_of_every_size_come_back_whole_whoever_fills_in_the_checksums() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let nodes = scene.cluster.lab.nodes();
    let at_node = nodes[0].addrs().at(node_port(1));
    let ways = [
        ("ClusterIP, without SNAT", &*scene.client, vip(1)),
        ("NodePort, with SNAT", &outsider, at_node),
    ];
    // By default nobody does, veths never look at them. Then those that forward do, from what the
    // programs left to be filled in; then those that send, and the programs repair whole ones.
    let stages =
        [vec![], vec![&*nodes[0], &nodes[1]], vec![&outsider, &scene.client, &scene.web[1]]];
    for (stage, machines) in ["nobody", "nodes", "ends"].iter().zip(stages) {
        for machine in machines {
            machine.netns().turn_off_checksum_offload().await?;
        }
        for (way, from, to) in &ways {
            let fact = format!("{stage}: {way}");
            for to in to {
                answer(&fact, from, &Ask::tcp(to).payload(2 << 20)).await?;
                for bytes in [1, 2, 3, 1_399, 1_400, 2_000, 8_000] {
                    answer(&fact, from, &Ask::udp(to).payload(bytes)).await?;
                }
            }
        }
    }
    Ok(())
}

/// Scenarios 29 and 92; S7 and S8.
#[tokio::test]
async fn an_established_connection_outlives_its_endpoint_and_a_udp_flow_moves() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    let node = scene.cluster.lab.node(0).addrs();
    for (from, to) in [
        (&*scene.client, vip(1)),
        (&outsider, vip(1)),
        (&*scene.client, node.at(node_port(1))),
        (&outsider, node.at(node_port(1))),
    ] {
        for to in to {
            scene.publish(1, &[&scene.web[0]])?;
            let begun = async || from.udp(to).await;
            let is_first =
                |reply: &Result<lab::Reply, _>| matches!(reply, Ok(reply) if reply.name == "web-0");
            let _first = eventually("web-0", begun, is_first).await??;
            let (tcp, udp) = (from.open(Ask::tcp(to)).await?, from.open(Ask::udp(to)).await?);
            assert_eq!((tcp.ask().await?.name, udp.ask().await?.name), both("web-0"));
            scene.publish(1, &[&scene.web[1]])?;
            let moved =
                |reply: &Result<lab::Reply, _>| matches!(reply, Ok(reply) if reply.name == "web-1");
            let _moved = eventually("web-1", async || udp.ask().await, moved).await??;
            assert_eq!(tcp.ask().await?.name, "web-0", "{} → {to}", from.name());
            // Nothing at all is left: what is new is refused, what is established is not.
            let late = from.open(Ask::tcp(to)).await?;
            assert_eq!(late.ask().await?.name, "web-1", "{} → {to}", from.name());
            scene.publish(1, &[])?;
            let refused = eventually("refused", async || from.tcp(to).await, Result::is_err);
            assert!(refused.await?.is_err_and(|failure| failure.refused_at_once()));
            assert_eq!(tcp.ask().await?.name, "web-0", "{} → {to}", from.name());
            assert_eq!(late.ask().await?.name, "web-1", "{} → {to}", from.name());
        }
    }
    Ok(())
}

fn both(name: &str) -> (String, String) {
    (name.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_port_that_is_no_services_is_left_alone() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let pod = &scene.web[1];
    for to in pod.addrs().at(8080) {
        let reply = answer("a pod's own address", &scene.client, &Ask::tcp(to)).await?;
        assert_eq!(reply.name, pod.name());
    }
    let closed = pod.addrs().at(8081);
    let asks: Vec<_> =
        sockets(closed).into_iter().filter(|a| a.transport == Transport::Tcp).collect();
    refused("nobody listens", &scene.client, asks).await;
    Ok(())
}
