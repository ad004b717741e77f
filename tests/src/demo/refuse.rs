//! Steps: who gets no connection, and who is told so at once.

use super::judge::{balanced, count, counted};
use super::outcome::{Outcome, shown};
use super::web::{State, VIPS};
use super::world::{World, ask_often};
use crate::cluster::eventually;
use crate::machine::Machine;
use crate::objects::{self, Port};
use crate::traffic::{Ask, Failure, Reply};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// A Service that no pod is behind.
pub(super) const EMPTY: &str = "10.96.0.20:80";
const EMPTY_NODE_PORT: u16 = 31776;

/// A pod that fails its readiness probe gets no new connections.
pub(super) async fn unready(world: &mut World) -> Result<Outcome> {
    let pod = world.web.ready().next().context("web has a ready pod")?.name().to_owned();
    world.set(&pod, State::Unready)?;
    let asked = async {
        world.settled().await?;
        ask_often(&world.client, &Ask::tcp(VIPS[0]), 120).await
    };
    let replies = asked.await;
    let others = world.web.ready_names();
    let counts = count(&replies?);
    balanced(&counts, &others)?;
    world.set(&pod, State::Ready)?;
    world.settled().await?;
    let mut outcome = Outcome::default();
    outcome.row(format!("{pod} fails its readiness probe"), counted(&counts));
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
    let took = refused(&world.client, Ask::tcp(EMPTY)).await?;
    outcome.row(format!("TCP, pod → {EMPTY}"), format!("refused after {}", shown(took)));
    outcome.millis("tcp", took);
    let took = refused(&world.client, Ask::udp(EMPTY)).await?;
    outcome.row(format!("UDP, pod → {EMPTY}"), format!("refused after {}", shown(took)));
    outcome.millis("udp", took);
    let node = SocketAddr::from((world.cluster.lab.node(0).ipv4(), EMPTY_NODE_PORT));
    let took = refused(&world.outsider, Ask::tcp(node)).await?;
    outcome.row(format!("TCP, outside → {node}"), format!("refused after {}", shown(took)));
    outcome.millis("node_port", took);
    Ok(outcome)
}

/// How long it takes until the client knows that it is refused.
async fn refused(client: &Machine, ask: Ask) -> Result<Duration> {
    let to = ask.to.clone();
    at_once(&to, client.ask(ask).await)
}

fn at_once(to: &str, answer: Result<Reply, Failure>) -> Result<Duration> {
    match answer {
        Ok(reply) => bail!("expected {to} to refuse; came: an answer from {}", reply.name),
        Err(failure) => {
            ensure!(failure.refused_at_once(), "expected {to} to refuse at once; came: {failure}");
            Ok(failure.elapsed)
        }
    }
}
