//! UDP sockets whose backend is gone: conntrack forgets the flow, so the next datagram moves or is
//! refused, whatever the socket is and whoever has it.

use crate::scene::{Path, Scene, mapped_sockets, node_port, ready, service, vip};
use crate::udp::endpoints;
use anyhow::{Context as _, Result};
use lab::cluster::eventually;
use lab::objects::terminating;
use lab::{
    Ask, Cni, Failure, FailureKind, LabConfig, Machine, Reply, RpFilter, Serve, Socket, Transport,
};
use std::time::Duration;
use tokio::time::sleep;

/// How long a datagram may take; what has no way fails after it.
const PATIENCE: Duration = Duration::from_millis(300);

/// UDP sockets of `from`, connected and not, to `to` in both families.
async fn open(from: &Machine, to: [std::net::SocketAddr; 2]) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for to in to {
        for ask in [Ask::udp(to), Ask::udp_unconnected(to)] {
            sockets.push(from.open(ask.timeout(PATIENCE)).await?);
        }
    }
    Ok(sockets)
}

/// Those of the client pod and of its node to the ClusterIP and the NodePort of service 1, and
/// of `outsider` to the NodePort.
async fn everyones(scene: &Scene, outsider: &Machine) -> Result<Vec<Socket>> {
    let node = scene.cluster.lab.node(0);
    let at_node = node.addrs().at(node_port(1));
    let mut sockets = open(outsider, at_node).await?;
    for from in [&*scene.client, node] {
        for to in [vip(1), at_node] {
            sockets.extend(open(from, to).await?);
        }
        for ask in mapped_sockets(vip(1)) {
            if ask.transport != Transport::Tcp {
                sockets.push(from.open(ask.timeout(PATIENCE)).await?);
            }
        }
    }
    Ok(sockets)
}

/// A service that `web-0` serves, and everyone's sockets to it.
async fn all_to_web_0() -> Result<(Scene, Vec<Socket>)> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let sockets = everyones(&scene, &outsider).await?;
    Ok((scene, sockets))
}

/// `socket` is answered by `name`, and its peer and its port are what they were.
async fn is_served_by(socket: &Socket, name: &str) -> Result<()> {
    let served = |reply: &Result<Reply, Failure>| reply.as_ref().is_ok_and(|r| r.name == name);
    let reply = eventually(name, async || socket.ask().await, served).await??;
    if let Some(peer) = socket.peer() {
        assert_eq!((reply.peer, reply.local), (peer, socket.local()));
    }
    Ok(())
}

/// `socket` is answered no more; a connected one is refused. The node's own rules say so with EPERM.
async fn is_refused(socket: &Socket) -> Result<()> {
    let refused = |reply: &Result<Reply, Failure>| {
        let kind = reply.as_ref().err().map(|failure| failure.kind);
        matches!(kind, Some(FailureKind::Refused | FailureKind::NotPermitted))
            || socket.peer().is_none() && kind == Some(FailureKind::TimedOut)
    };
    eventually("refused", async || socket.ask().await, refused).await.map(drop)
}

/// Scenario 92.
#[tokio::test]
async fn everyones_sockets_move_with_their_service() -> Result<()> {
    for cni in [Cni::Routed, Cni::Bridge] {
        let config = LabConfig { cni, rp_filter: RpFilter::Strict, ..LabConfig::default() };
        sockets_move(Scene::prepare(config).await?).await.with_context(|| format!("{cni:?}"))?;
    }
    Ok(())
}

async fn sockets_move(mut scene: Scene) -> Result<()> {
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let sockets = everyones(&scene, &outsider).await?;
    let [web_0, web_1] = &scene.web;
    // The first has them again in the end.
    for pod in [web_1, web_0, web_1] {
        scene.publish(1, &[pod])?;
        for socket in &sockets {
            is_served_by(socket, pod.name()).await?;
        }
    }
    // Counted once all of them are deleted.
    let node = scene.cluster.lab.node(0);
    let name = "kubeproxy_conntrack_reconciler_deleted_entries_total";
    let deleted = async || lab::metrics::value(&lab::metrics::text(node)?, name).context(name);
    let all = |deleted: &Result<f64>| matches!(deleted, Ok(n) if *n >= sockets.len() as f64);
    eventually("all entries are counted", deleted, all).await?.map(drop)
}

/// Scenario 94.
#[tokio::test]
async fn sockets_follow_a_change_of_the_backends_port() -> Result<()> {
    let (scene, sockets) = all_to_web_0().await?;
    let [web_0, _] = &scene.web;
    web_0.serve(Serve::udp(9090).named("web-0-at-9090")).await?;
    for (port, name) in [(8080, "web-0"), (9090, "web-0-at-9090")] {
        endpoints(&scene, &[(web_0, ready())], port)?;
        for socket in &sockets {
            is_served_by(socket, name).await?;
        }
    }
    Ok(())
}

/// Scenarios 93, 95; S8.
#[tokio::test]
async fn without_endpoints_sockets_are_refused_until_there_are_some() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let sockets = everyones(&scene, &outsider).await?;
    let [web_0, web_1] = &scene.web;
    for pods in [&[][..], &[web_0], &[], &[web_1]] {
        scene.publish(1, pods)?;
        for socket in &sockets {
            match pods.first() {
                Some(pod) => is_served_by(socket, pod.name()).await?,
                None => is_refused(socket).await?,
            }
        }
    }
    Ok(())
}

/// Scenario 28.
#[tokio::test]
async fn flows_of_a_deleted_service_stop_and_find_it_when_it_is_made_anew() -> Result<()> {
    let (scene, sockets) = all_to_web_0().await?;
    let [web_0, web_1] = &scene.web;
    for socket in &sockets {
        is_served_by(socket, web_0.name()).await?;
    }
    assert!(scene.cluster.api.delete("services", "default", "svc-1"));
    for socket in &sockets {
        eventually("it stops", async || socket.ask().await, Result::is_err).await?.err();
    }
    endpoints(&scene, &[(web_1, ready())], 8080)?;
    scene.cluster.api.apply(&service(1))?;
    for socket in &sockets {
        is_served_by(socket, web_1.name()).await?;
    }
    Ok(())
}

/// Scenario 96.
#[tokio::test]
async fn sockets_stay_with_a_backend_that_drains_until_it_is_gone() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let [web_0, web_1] = &scene.web;
    let sockets = everyones(&scene, &outsider).await?;
    let witness = &open(&scene.client, vip(2)).await?[0];
    for socket in sockets.iter().chain([witness]) {
        is_served_by(socket, web_0.name()).await?;
    }
    endpoints(&scene, &[(web_0, terminating(true)), (web_1, ready())], 8080)?;
    let moved = |reply: &Result<Reply, Failure>| reply.as_ref().is_ok_and(|r| r.name == "web-1");
    eventually("new ones move", async || scene.client.udp(vip(1)[0]).await, moved).await??;
    // Once the flow that has to go is gone, all have been looked at.
    scene.publish(2, &[web_1])?;
    is_served_by(witness, web_1.name()).await.context("the witness")?;
    for socket in &sockets {
        assert_eq!(socket.ask().await?.name, web_0.name());
    }
    // That service 2 once had it, and another one has, is nothing to those who asked service 1.
    scene.publish(2, &[web_0])?;
    scene.publish(1, &[web_1])?;
    for socket in &sockets {
        is_served_by(socket, web_1.name()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_that_asks_for_the_backend_itself_is_left_alone() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let [web_0, web_1] = &scene.web;
    let node = scene.cluster.lab.node(0);
    let through = open(&scene.client, vip(1)).await?;
    let mut direct = open(&scene.client, web_0.addrs().at(8080)).await?;
    direct.extend(open(node, web_0.addrs().at(8080)).await?);
    for socket in through.iter().chain(&direct) {
        is_served_by(socket, web_0.name()).await?;
    }
    scene.publish(1, &[web_1])?;
    for socket in &through {
        is_served_by(socket, web_1.name()).await?;
    }
    for socket in &direct {
        assert_eq!(socket.ask().await?.name, web_0.name());
    }
    Ok(())
}

/// Scenario 93. Conntrack has an entry of what went nowhere, which is not translated.
#[tokio::test]
async fn sockets_from_before_the_agent_are_served() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    lead_nowhere(&scene).await?;
    let mut sockets = open(&scene.client, vip(1)).await?;
    sockets.extend(open(scene.cluster.lab.node(0), vip(1)).await?);
    for socket in &sockets {
        assert!(socket.ask().await.is_err());
    }
    scene.start(Path::Socket).await?;
    for socket in &sockets {
        is_served_by(socket, scene.web[0].name()).await?;
    }
    Ok(())
}

/// A pod asks before the agent has seen its device, as a node may be busy while pods start.
#[tokio::test]
async fn sockets_from_before_their_device_was_seen_are_served() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    lead_nowhere(&scene).await?;
    scene.start(Path::Socket).await?;
    // Until nothing is left to look for after the start.
    sleep(Duration::from_millis(1500)).await;
    scene.cluster.agent(0)?.freeze(true)?;
    let lab = &scene.cluster.lab;
    let pod = lab.add_pod(lab.node(0), "early").await?;
    let sockets = open(&pod, vip(1)).await?;
    for socket in &sockets {
        assert!(socket.ask().await.is_err());
    }
    scene.cluster.agent(0)?.freeze(false)?;
    for socket in &sockets {
        is_served_by(socket, scene.web[0].name()).await?;
    }
    Ok(())
}

/// Packets to service addresses that are not translated leave the first node, and never come back.
async fn lead_nowhere(scene: &Scene) -> Result<()> {
    let node = scene.cluster.lab.node(0);
    let nowhere = scene.cluster.lab.add_client("nowhere").await?;
    node.route("10.96.0.0/16", nowhere.ipv4()).await?;
    node.route("fd00:96::/64", nowhere.ipv6()).await
}

/// Scenario 108; S7.
#[tokio::test]
async fn what_changes_while_no_agent_runs_moves_sockets_when_one_does() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let [web_0, web_1] = &scene.web;
    let sockets = everyones(&scene, &outsider).await?;
    let gone = open(&scene.client, vip(2)).await?;
    for socket in sockets.iter().chain(&gone) {
        is_served_by(socket, web_0.name()).await?;
    }
    scene.cluster.kill_agent(0).await?;
    scene.publish(1, &[web_1])?;
    assert!(scene.cluster.api.delete("services", "default", "svc-2"));
    let options = scene.cluster.options();
    scene.cluster.start_agent(0, &options)?.wait_synced().await?;
    for socket in &sockets {
        is_served_by(socket, scene.web[1].name()).await?;
    }
    for socket in &gone {
        eventually("it stops", async || socket.ask().await, Result::is_err).await?.err();
    }
    Ok(())
}
