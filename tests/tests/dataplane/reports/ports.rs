//! Clients that use one port for several connections at a time.

use crate::scene::{Path, Scene, answer, node_port, vip};
use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lab::Ask;
use std::time::Duration;

/// A SYN that is lost is sent again after 1 s.
const RETRANSMISSION: Duration = Duration::from_millis(900);

/// How often each way is taken from each of 200 ports, by either path: 20,800 connections in all.
const ROUNDS: usize = 13;

/// cilium/cilium#37566, #47396, #42632.
#[tokio::test]
async fn a_port_with_a_node_port_open_may_ask_the_backend_itself() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let [here, there] = &scene.web;
    scene.publish(1, &[here])?;
    scene.publish(2, &[there])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    for (networks, via) in [("10.244.0.0/16", 0), ("fd00:244::/32", 1)] {
        outsider.route(networks, node.addrs().at(0)[via].ip()).await?;
    }
    for (number, pod) in [(1, &scene.web[0]), (2, &scene.web[1])] {
        for (family, to) in node.addrs().at(node_port(number)).into_iter().enumerate() {
            let own = outsider.addrs().at(7_000 + u16::from(number))[family];
            let backend = pod.addrs().at(8080)[family];
            let open = outsider.open(Ask::tcp(to).from(own)).await?;
            assert_eq!(open.ask().await?.name, pod.name());
            let reply = answer("itself", &outsider, &Ask::tcp(backend).from(own)).await?;
            assert_eq!(reply.name, pod.name());
            assert_eq!(open.ask().await?.peer, to, "the first goes on");

            let socket = outsider.open(Ask::udp_unconnected(to).from(own)).await?;
            for to in [to, backend, to, backend] {
                let reply = socket.ask_of(to).await?;
                assert_eq!((reply.name.as_str(), reply.peer), (pod.name(), to));
            }
        }
    }
    Ok(())
}

/// cilium/cilium#42632, #11810, projectcalico/felix#2983: drivers of Cassandra and Oracle,
/// HAProxy's `source`, and the r-commands bind the port that they connect from.
#[tokio::test]
async fn a_bound_port_may_connect_to_two_services_with_one_backend() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    for (family, (one, two)) in vip(1).into_iter().zip(vip(2)).enumerate() {
        let own = scene.client.addrs().at(7_000)[family];
        let first = scene.client.open(Ask::tcp(one).from(own)).await?;
        let second = scene.client.open(Ask::tcp(two).from(own)).await?;
        for (socket, to) in [(&first, one), (&second, two), (&first, one)] {
            let reply = socket.ask().await?;
            assert_eq!((reply.name.as_str(), reply.peer, reply.local), ("web-1", to, own));
        }
    }
    Ok(())
}

/// A port that is used again meets the entries of its last connections, in conntrack and at the
/// backend: nobody may wait for a second SYN.
#[tokio::test]
async fn ports_are_used_again_for_each_way_to_a_backend() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::routed().await?;
        scene.publish(1, &[&scene.web[1]])?;
        scene.publish(2, &[&scene.web[0], &scene.web[1]])?;
        scene.start(path).await?;
        scene.wait_endpoints(2, 2).await?;
        let (client, nodes) = (&scene.client, scene.cluster.lab.nodes());
        let mut slowest = Duration::ZERO;
        for round in 0..ROUNDS {
            let family = round % 2;
            let number = 1 + u8::try_from(round / 2 % 2)?;
            let ways = [
                nodes[0].addrs().at(node_port(number))[family],
                vip(number)[family],
                scene.web[1].addrs().at(8080)[family],
                nodes[1].addrs().at(node_port(number))[family],
            ];
            for to in ways {
                let connects = stream::iter(7_000..7_200_u16).map(async |port| {
                    let own = client.addrs().at(port)[family];
                    client.ask(Ask::tcp(to).from(own)).await.map(|reply| reply.connect)
                });
                let connects: Vec<_> = connects.buffer_unordered(8).try_collect().await?;
                slowest = connects.into_iter().fold(slowest, Duration::max);
            }
        }
        eprintln!("{path:?}: the slowest of {} connections took {slowest:?}", ROUNDS * 800);
        ensure!(slowest < RETRANSMISSION, "{path:?}: {slowest:?}");
    }
    Ok(())
}
