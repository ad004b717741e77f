//! UDP sockets that are connected to a backend which serves no longer: they are moved, those of
//! pods and those of the node, and never talk to nobody.

use crate::addresses::{balanced, balancer};
use crate::scene::{Path, Scene, mapped_sockets, node_port, ready, serve, vip};
use crate::udp::endpoints;
use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use lab::cluster::eventually;
use lab::objects::terminating;
use lab::{Ask, Cni, Failure, LabConfig, Reply, RpFilter, Serve, Socket, Transport};
use serde_json::json;
use std::time::Duration;

/// How long a datagram may take; what has no way fails after it.
const PATIENCE: Duration = Duration::from_millis(300);

/// Connected UDP sockets of the client pod, for both families and the mapped one, to the
/// ClusterIP and the NodePort of service 1.
async fn connected(scene: &Scene) -> Result<Vec<Socket>> {
    let node_port = scene.cluster.lab.node(0).addrs().at(node_port(1));
    let mut asks = [vip(1), node_port].concat().into_iter().map(Ask::udp).collect::<Vec<_>>();
    asks.extend(mapped_sockets(vip(1)));
    asks.retain(|ask| ask.transport == Transport::Udp);
    let mut sockets = Vec::new();
    for ask in asks {
        sockets.push(scene.client.open(ask.timeout(PATIENCE)).await?);
    }
    Ok(sockets)
}

/// `socket` is answered by `name`, and sees the same peer and has the same port as before.
async fn is_moved(socket: &Socket, name: &str) -> Result<()> {
    let moved = |reply: &Result<Reply, Failure>| reply.as_ref().is_ok_and(|r| r.name == name);
    let reply = eventually("another backend", async || socket.ask().await, moved).await??;
    assert_eq!((Some(reply.peer), reply.local), (socket.peer(), socket.local()));
    Ok(())
}

/// Scenario 92.
#[tokio::test]
async fn a_pods_connected_sockets_move_with_their_service() -> Result<()> {
    for cni in [Cni::Routed, Cni::Bridge] {
        let config = LabConfig { cni, rp_filter: RpFilter::Strict, ..LabConfig::default() };
        sockets_move(Scene::prepare(config).await?).await.with_context(|| format!("{cni:?}"))?;
    }
    Ok(())
}

async fn sockets_move(mut scene: Scene) -> Result<()> {
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let sockets = connected(&scene).await?;
    let [web_0, web_1] = &scene.web;
    for socket in &sockets {
        is_moved(socket, web_1.name()).await?;
    }
    // The first has them again in the end.
    for left in [web_0, web_1] {
        scene.publish(1, &[left])?;
        for socket in &sockets {
            is_moved(socket, left.name()).await.context("after a change")?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pods_connected_sockets_leave_a_backend_on_their_bridge() -> Result<()> {
    let config =
        LabConfig { cni: Cni::Bridge, rp_filter: RpFilter::Strict, ..LabConfig::default() };
    for gone in [false, true] {
        let mut scene = Scene::prepare(config).await?;
        let near = scene.cluster.lab.add_pod(scene.cluster.lab.node(0), "near").await?;
        serve(&near).await?;
        scene.publish(1, &[&near])?;
        scene.start(Path::Socket).await?;
        let sockets = connected(&scene).await?;
        for socket in &sockets {
            is_moved(socket, near.name()).await?;
        }
        // Frames have its address on the link, whether it is there or not.
        let still_there = (!gone).then_some(near);
        scene.publish(1, &[&scene.web[1]])?;
        for socket in &sockets {
            is_moved(socket, scene.web[1].name()).await.with_context(|| format!("gone {gone}"))?;
            is_moved(socket, scene.web[1].name()).await.context("again")?;
        }
        drop(still_there);
    }
    Ok(())
}

/// `socket` is answered no longer.
async fn is_alone(socket: &Socket) -> Result<()> {
    eventually("no answer", async || socket.ask().await, Result::is_err).await.map(drop)
}

/// Scenarios 95 and 96; S8.
#[tokio::test]
async fn sockets_stay_while_their_backend_drains_and_leave_it_when_it_is_gone() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let [web_0, web_1] = &scene.web;
    let node = scene.cluster.lab.node(0);
    let mut sockets = connected(&scene).await?;
    sockets.extend(try_join_all(vip(1).map(|to| node.open(Ask::udp(to).timeout(PATIENCE)))).await?);
    for socket in &sockets {
        is_moved(socket, web_0.name()).await?;
    }
    endpoints(&scene, &[(web_0, terminating(true)), (web_1, ready())], 8080)?;
    let new = async || scene.client.udp(vip(1)[0]).await;
    let is_other = |reply: &Result<Reply, Failure>| reply.as_ref().is_ok_and(|r| r.name == "web-1");
    let _reply = eventually("new sockets get the other", new, is_other).await??;
    for socket in &sockets {
        assert_eq!(socket.ask().await.context("it drains")?.name, web_0.name());
    }
    endpoints(&scene, &[], 8080)?;
    for socket in &sockets {
        is_alone(socket).await?;
    }
    endpoints(&scene, &[(web_1, ready())], 8080)?;
    for socket in &sockets {
        is_moved(socket, web_1.name()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_that_asks_for_the_backend_itself_is_left_alone() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let [web_0, web_1] = &scene.web;
    let through = connected(&scene).await?;
    let mut direct = Vec::new();
    for addr in web_0.addrs().at(8080) {
        direct.push(scene.client.open(Ask::udp(addr)).await?);
        direct.push(scene.cluster.lab.node(0).open(Ask::udp(addr)).await?);
    }
    scene.publish(1, &[web_1])?;
    for socket in &through {
        is_moved(socket, web_1.name()).await?;
    }
    for socket in &direct {
        assert_eq!(socket.ask().await?.name, web_0.name());
    }
    Ok(())
}

/// Scenarios 92 and 94.
#[tokio::test]
async fn the_nodes_own_connected_sockets_move_too() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.cluster.api.apply(&balanced(1, &json!({})))?;
    scene.start(Path::Socket).await?;
    let node = scene.cluster.lab.node(0);
    let at_node = node.addrs().at(node_port(1));
    let mut asks: Vec<_> = [vip(1), balancer(1), at_node].concat().iter().map(Ask::udp).collect();
    asks.extend(mapped_sockets(vip(1)).into_iter().filter(|a| a.transport == Transport::Udp));
    let mut sockets = Vec::new();
    for ask in asks {
        let socket = node.open(ask.timeout(PATIENCE)).await?;
        assert_eq!(socket.ask().await?.name, scene.web[0].name());
        sockets.push(socket);
    }
    let [web_0, web_1] = &scene.web;
    web_0.serve(Serve::udp(9090).named("web-0-at-9090")).await?;
    // First the same pod at another port, then another pod.
    for (pod, port, name) in [(web_0, 9090, "web-0-at-9090"), (web_1, 8080, "web-1")] {
        endpoints(&scene, &[(pod, ready())], port)?;
        for socket in &sockets {
            is_moved(socket, name).await?;
        }
    }
    Ok(())
}

/// Scenario 108; S7.
#[tokio::test]
async fn what_changes_while_no_agent_runs_moves_sockets_when_one_does() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let sockets = connected(&scene).await?;
    let own = scene.cluster.lab.node(0).open(Ask::udp(vip(1)[0]).timeout(PATIENCE)).await?;
    let _ = own.ask().await?;
    scene.cluster.kill_agent(0).await?;
    scene.publish(1, &[&scene.web[1]])?;
    let options = scene.cluster.options();
    scene.cluster.start_agent(0, &options)?.wait_synced().await?;
    for socket in sockets.iter().chain([&own]) {
        is_moved(socket, scene.web[1].name()).await?;
    }
    Ok(())
}
