//! UDP sockets that stay open while endpoints change: they keep their port, and leave a backend
//! when that no longer serves. Of those that are connected `stale_udp` has more.

use crate::addresses::{balanced, balancer};
use crate::everyone::Answer::{From, Refused};
use crate::everyone::Who::{Node, Outsider, Pods};
use crate::everyone::{Everyone, both};
use crate::scene::{Scene, node_port, ready, slices, vip};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use lab::cluster::eventually;
use lab::objects::terminating;
use lab::{Ask, Failure, Pod, Reply, Serve, Socket};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

/// What has no way for a moment is asked again after it.
const PATIENCE: Duration = Duration::from_millis(300);

/// The addresses of service 1: the ClusterIP's, the load balancer's and the NodePort's, of both
/// families.
fn frontends(everyone: &Everyone) -> Vec<SocketAddr> {
    let node = everyone.scene.cluster.lab.node(0);
    [vip(1), balancer(1), node.addrs().at(node_port(1))].concat()
}

/// Unconnected sockets of pods and of the node, and connected ones where packets are translated,
/// to each frontend.
async fn open(everyone: &Everyone) -> Result<Vec<Socket>> {
    let Everyone { scene, aside, outsider, .. } = everyone;
    let mut sockets = Vec::new();
    for to in frontends(everyone) {
        for from in [&*scene.client, aside, scene.cluster.lab.node(0)] {
            sockets.push(from.open(Ask::udp_unconnected(to).timeout(PATIENCE)).await?);
        }
        for from in [aside, outsider] {
            sockets.push(from.open(Ask::udp(to).timeout(PATIENCE)).await?);
        }
    }
    Ok(sockets)
}

/// Connected sockets of a pod on the socket path to each frontend. They are opened while there is
/// an endpoint, or else refused.
async fn connect(everyone: &Everyone) -> Result<Vec<Socket>> {
    let asks = frontends(everyone).into_iter().map(|to| Ask::udp(to).timeout(PATIENCE));
    Ok(try_join_all(asks.map(|ask| everyone.scene.client.open(ask))).await?)
}

/// All of `sockets` are answered by `name` before long.
async fn move_to(fact: &str, name: &str, sockets: &[Socket]) -> Result<()> {
    for socket in sockets {
        let moved = |reply: &Result<Reply, Failure>| reply.as_ref().is_ok_and(|r| r.name == name);
        let asked = async || socket.ask().await;
        let reply = eventually(name, asked, moved).await.with_context(|| fact.to_owned())??;
        assert_eq!(reply.local.port(), socket.local().port(), "{fact}: the port it has");
    }
    Ok(())
}

/// All of `sockets` are answered by `name`, now.
async fn stay_with(fact: &str, name: &str, sockets: &[Socket]) -> Result<()> {
    for socket in sockets {
        let reply = socket.ask().await.with_context(|| fact.to_owned())?;
        assert_eq!(reply.name, name, "{fact}: {} from {}", reply.peer, reply.local);
    }
    Ok(())
}

/// Publishes the slices of service 1 with endpoints in the given conditions, at `port`.
pub(crate) fn endpoints(scene: &Scene, endpoints: &[(&Pod, Value)], port: u16) -> Result<()> {
    for mut slice in slices(1, endpoints) {
        for index in 0..2 {
            slice["ports"][index]["port"] = json!(port);
        }
        scene.cluster.api.apply(&slice)?;
    }
    Ok(())
}

/// Scenarios 92 and 94; S7.
#[tokio::test]
async fn udp_leaves_a_backend_that_is_replaced_or_gets_another_port() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let [web_0, _] = &everyone.scene.web;
    web_0.serve(Serve::udp(9090).named("web-0-at-9090")).await?;
    everyone.scene.cluster.api.apply(&balanced(1, &json!({})))?;
    endpoints(&everyone.scene, &[(web_0, ready())], 8080)?;
    everyone.start(&[]).await?;
    let [web_0, web_1] = &everyone.scene.web;
    let mut sockets = open(&everyone).await?;
    sockets.extend(connect(&everyone).await?);
    stay_with("at first", "web-0", &sockets).await?;
    endpoints(&everyone.scene, &[(web_1, ready())], 8080)?;
    move_to("92: replaced", "web-1", &sockets).await?;
    endpoints(&everyone.scene, &[(web_0, ready())], 8080)?;
    move_to("92: and back", "web-0", &sockets).await?;
    endpoints(&everyone.scene, &[(web_0, ready())], 9090)?;
    move_to("94: another port", "web-0-at-9090", &sockets).await
}

/// Scenarios 93, 95 and 96; S8.
#[tokio::test]
async fn udp_stays_with_what_serves_and_is_refused_when_nothing_does() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    everyone.scene.cluster.api.apply(&balanced(1, &json!({})))?;
    everyone.start(&[]).await?;
    let [web_0, web_1] = &everyone.scene.web;
    let mut sockets = open(&everyone).await?;
    for socket in &sockets {
        let early = socket.ask().await;
        assert!(early.is_err(), "93: before there is an endpoint: {early:?}");
    }
    let new = |answer| [Pods, Node, Outsider].map(|who| ("a new flow", who, both(vip(1)), answer));
    endpoints(&everyone.scene, &[(web_0, ready())], 8080)?;
    move_to("93: the first endpoint", "web-0", &sockets).await?;
    sockets.extend(connect(&everyone).await?);
    move_to("a flow begins with its first datagram", "web-0", &sockets).await?;

    endpoints(&everyone.scene, &[(web_0, terminating(true)), (web_1, ready())], 8080)?;
    everyone.wait_until("the first one drains", &new(From(&["web-1"]))).await?;
    stay_with("96: it still serves", "web-0", &sockets).await?;
    endpoints(&everyone.scene, &[(web_1, ready())], 8080)?;
    move_to("it has ended", "web-1", &sockets).await?;

    endpoints(&everyone.scene, &[], 8080)?;
    everyone.wait_until("all gone", &new(Refused)).await?;
    for socket in &sockets {
        let gone = async || socket.ask().await;
        let _gone = eventually("95: all gone", gone, Result::is_err).await?;
    }
    endpoints(&everyone.scene, &[(web_0, ready())], 8080)?;
    move_to("95: one returns", "web-0", &sockets).await
}
