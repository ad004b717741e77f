//! The world of the demo: a cluster, the Service `web`, a client pod, a client outside.
//!
//! Tells the API server what changes, and waits until the maps of the nodes say the same.

use super::outcome::{Outcome, millis};
use super::web::{State, Web, backend};
use crate::cluster::{Cluster, eventually};
use crate::lab::{LabConfig, Pod};
use crate::machine::Machine;
use crate::traffic::{Ask, Reply};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// The cluster, and who lives in it.
pub(super) struct World {
    // The order is that of the end: the lab kills all at once.
    /// Two nodes with an agent each, and a Kubernetes API.
    pub(super) cluster: Cluster,
    /// The Service and its pods.
    pub(super) web: Web,
    /// A pod on the first node.
    pub(super) client: Pod,
    /// A client outside the cluster, on the wire of the nodes.
    pub(super) outsider: Machine,
}

impl World {
    /// Starts it all, with three pods behind the Service.
    pub(super) async fn start() -> Result<(Self, Outcome)> {
        let mut outcome = Outcome::default();
        let started = Instant::now();
        let cluster = Cluster::start(LabConfig::default()).await?;
        let took = started.elapsed();
        outcome.fact(
            "2 nodes, an agent on each, a Kubernetes API",
            format!("in sync after {} ms", took.as_millis()),
            json!({ "ms": millis(took) }),
        );
        let lab = &cluster.lab;
        let (client, outsider) =
            futures::try_join!(lab.add_pod(lab.node(0), "client"), lab.add_client("outside"))?;
        let mut world = Self { cluster, web: Web::default(), client, outsider };
        world.cluster.api.apply(&Web::service())?;
        world.add(&[("web-1", 0), ("web-2", 1), ("web-3", 0)]).await?;
        world.settled().await?;
        outcome.fact("Service default/web with 3 pods", "programmed on both nodes", Value::Null);
        Ok((world, outcome))
    }

    /// Adds ready pods, each on the node that is given with its name.
    pub(super) async fn add(&mut self, pods: &[(&str, usize)]) -> Result<()> {
        self.web.add(&self.cluster.lab, pods).await?;
        self.publish()
    }

    /// Changes the conditions of a pod's endpoint.
    pub(super) fn set(&mut self, pod: &str, state: State) -> Result<()> {
        self.web.set(pod, state)?;
        self.publish()
    }

    /// Tells the API server of the endpoints as they are now.
    pub(super) fn publish(&self) -> Result<()> {
        self.web.slices().iter().try_for_each(|slice| self.cluster.api.apply(slice))
    }

    /// Waits until both nodes give new connections to the ready pods and to no others.
    pub(super) async fn settled(&self) -> Result<()> {
        let expected = self.web.backends();
        for (index, node) in self.cluster.lab.nodes().iter().enumerate() {
            let what = format!("{} balances over {expected:?}", node.name());
            let reached = |answer: &Result<_>| answer.as_ref().is_ok_and(|came| *came == expected);
            drop(eventually(&what, async || self.programmed(index).await, reached).await?);
        }
        Ok(())
    }

    /// The backends that a node gives new connections to, read from the maps of its kernel
    /// programs.
    pub(super) async fn programmed(&self, node: usize) -> Result<BTreeSet<String>> {
        let rows = self.cluster.shunt(node, &["backends", "web"]).await?;
        let rows = rows.as_array().context("`shunt backends` gives a list")?;
        let chosen = rows.iter().filter(|row| {
            row["sets"].as_array().is_some_and(|sets| sets.contains(&Value::from("cluster")))
        });
        chosen.map(named).collect()
    }

    /// The name of the node that one of the ready pods runs on.
    pub(super) fn node_of(&self, pod: &str) -> Result<&str> {
        let pod = self.web.ready().find(|ready| ready.name() == pod);
        Ok(pod.context("an answer from a pod that is not ready")?.node())
    }
}

fn named(row: &Value) -> Result<String> {
    let addr: IpAddr = serde_json::from_value(row["address"].clone())?;
    let port = serde_json::from_value(row["port"].clone())?;
    let protocol = row["protocol"].as_str().context("a protocol")?;
    Ok(backend(protocol, SocketAddr::new(addr, port)))
}

/// Asks again and again, with a new socket each time.
pub(super) async fn ask_often(from: &Machine, ask: &Ask, times: usize) -> Result<Vec<Reply>> {
    let mut replies = Vec::with_capacity(times);
    for _ in 0..times {
        let reply = from.ask(ask.clone()).await;
        replies.push(reply.with_context(|| format!("expected an answer from {}; came", ask.to))?);
    }
    Ok(replies)
}
