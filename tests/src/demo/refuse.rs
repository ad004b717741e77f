//! Steps: who gets no connection, and who is told so at once.

use super::judge::{balanced, count};
use super::outcome::{Outcome, millis, shown};
use super::web::{State, VIPS};
use super::world::{World, ask_often};
use crate::cluster::eventually;
use crate::objects::{self, Port};
use crate::traffic::{Ask, Failure, Reply};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// How many new connections show that a pod is left out.
const CONNECTIONS: usize = 120;

/// A Service that no pod is behind.
pub(super) const EMPTY: &str = "10.96.0.20:80";
const EMPTY_NODE_PORT: u16 = 31776;

/// A pod that fails its readiness probe gets no new connections.
pub(super) async fn unready(world: &mut World) -> Result<Outcome> {
    let pod = world.web.ready().next().context("web has a ready pod")?.name().to_owned();
    world.set(&pod, State::Unready)?;
    let asked = async {
        world.settled().await?;
        let replies = ask_often(&world.client, &Ask::tcp(VIPS[0]), CONNECTIONS).await?;
        let counts = count(&replies);
        balanced(&counts, &world.web.ready_names()).map(|()| counts)
    };
    // Whatever came: the steps after this one want the pod back.
    let counts = asked.await;
    world.set(&pod, State::Ready)?;
    world.settled().await?;
    let counts = counts?;
    let mut outcome = Outcome::default();
    let did = format!("{pod} fails its readiness probe");
    outcome.fact(
        did,
        format!("0 of {CONNECTIONS} connections; all others share them"),
        json!(counts),
    );
    Ok(outcome)
}

/// A Service without endpoints refuses at once, and does not let its clients wait.
pub(super) async fn no_endpoints(world: &mut World) -> Result<Outcome> {
    let port = Port { name: "http", protocol: "TCP", port: 80, target: 8080 };
    let udp = Port { name: "echo", protocol: "UDP", ..port };
    let mut service = objects::service("empty", &["10.96.0.20"], &[port, udp]);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(EMPTY_NODE_PORT);
    world.cluster.api.apply(&service)?;
    let known = async || world.cluster.shunt(0, &["services", "empty"]).await;
    drop(eventually("node-1 knows default/empty", known, Result::is_ok).await?);

    let mut outcome = Outcome::default();
    let node_port = SocketAddr::from((world.cluster.lab.node(0).ipv4(), EMPTY_NODE_PORT));
    for (what, client, ask) in [
        ("TCP, pod", &*world.client, Ask::tcp(EMPTY)),
        ("UDP, pod", &world.client, Ask::udp(EMPTY)),
        ("TCP, outside", &world.outsider, Ask::tcp(node_port)),
    ] {
        let did = format!("{what} → {}", ask.to);
        let took = refused_at_once(&ask.to, client.ask(ask.clone()).await)?;
        outcome.fact(did, format!("refused after {}", shown(took)), json!({ "ms": millis(took) }));
    }
    Ok(outcome)
}

/// How long it took until the client knew that it is refused.
fn refused_at_once(to: &str, answer: Result<Reply, Failure>) -> Result<Duration> {
    match answer {
        Ok(reply) => bail!("expected {to} to refuse; came: an answer from {}", reply.name),
        Err(failure) => {
            ensure!(failure.refused_at_once(), "expected {to} to refuse at once; came: {failure}");
            Ok(failure.elapsed)
        }
    }
}
