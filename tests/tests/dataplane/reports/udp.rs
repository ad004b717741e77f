//! UDP sockets that live long: older than endpoints or the agent, with many services.

use crate::scene::{Path, Scene, vip};
use anyhow::Result;
use lab::cluster::eventually;
use lab::{Ask, Socket};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SOON: Duration = Duration::from_millis(200);

/// `socket` is answered before long.
async fn is_served(what: &str, socket: &Socket) -> Result<()> {
    let reply = eventually(what, async || socket.ask().await, Result::is_ok).await??;
    assert_eq!(reply.name, "web-1", "{what}");
    Ok(())
}

/// kubernetes/kubernetes#122740.
#[tokio::test]
async fn a_udp_socket_of_the_node_that_is_older_than_the_agent_is_served() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    let node = scene.cluster.lab.node(0);
    let mut open = Vec::new();
    for to in vip(1) {
        for ask in [Ask::udp(to), Ask::udp_unconnected(to)] {
            open.push(node.open(ask.timeout(SOON)).await?);
        }
    }
    scene.start(Path::Socket).await?;
    for socket in &open {
        is_served("a socket from before", socket).await?;
    }
    Ok(())
}

/// kubernetes/kubernetes#48370: clients of statsd and syslog connect once, when they start.
#[tokio::test]
async fn a_udp_socket_that_connects_before_there_is_an_endpoint_is_served_later() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[])?;
    scene.start(Path::Socket).await?;
    let node = scene.cluster.lab.node(0);
    let mut open = Vec::new();
    for from in [&*scene.client, node] {
        for to in vip(1) {
            // Connecting succeeds; asking does not.
            let socket = from.open(Ask::udp(to).timeout(SOON)).await?;
            assert!(socket.ask().await.is_err(), "{} → {to}", from.name());
            open.push(socket);
        }
    }
    scene.publish(1, &[&scene.web[1]])?;
    for socket in &open {
        is_served("a socket from before", socket).await?;
    }
    Ok(())
}

/// cilium/cilium#42658: SNMP, SIP, RADIUS and ntpd ask many servers with one socket.
#[tokio::test]
async fn a_udp_socket_hears_each_of_six_services_and_stays_with_their_backends() -> Result<()> {
    const SERVICES: std::ops::RangeInclusive<u8> = 1..=6;
    let mut scene = Scene::routed().await?;
    for number in SERVICES {
        scene.publish(number, &[&scene.web[0], &scene.web[1]])?;
    }
    scene.start(Path::Socket).await?;
    for from in [&*scene.client, scene.cluster.lab.node(0)] {
        for family in 0..2 {
            let socket = from.open(Ask::udp_unconnected(vip(1)[family])).await?;
            let mut backends: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
            for _ in 0..10 {
                for number in SERVICES {
                    let to = vip(number)[family];
                    let reply = socket.ask_of(to).await?;
                    assert_eq!(reply.peer, to, "{}", from.name());
                    let _ = backends.entry(number).or_default().insert(reply.name);
                }
            }
            assert!(backends.values().all(|names| names.len() == 1), "{backends:?}");
        }
    }
    Ok(())
}

/// kubernetes/kubernetes#139276, cilium/cilium#23604, #10261: the CNI may masquerade a pod to a
/// port that is a NodePort as well.
#[tokio::test]
async fn the_answer_to_a_masqueraded_datagram_is_not_the_node_ports() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    crate::scene::serve(&outsider).await?;
    let node = scene.cluster.lab.node(0);
    node.nft(
        "table inet cni { chain postrouting {
            type nat hook postrouting priority 100;
            oifname eth0 udp dport 8080 masquerade to :31001;
        }; }",
    )
    .await?;
    for to in outsider.addrs().at(8080) {
        let socket = scene.client.open(Ask::udp(to)).await?;
        for _ in 0..3 {
            let reply = socket.ask().await?;
            assert_eq!((reply.name.as_str(), reply.client.port()), ("outsider", 31_001));
        }
    }
    Ok(())
}
