//! Steps: everything changes under load, and no request fails.

use super::judge::{counted, named, served};
use super::outcome::{Outcome, millis, shown};
use super::web::{NODE_PORT, State, TARGET, VIPS};
use super::world::World;
use crate::lab::Pod;
use crate::machine::{Machine, RunningLoad};
use crate::traffic::{Ask, Latency, Load, LoadReport};
use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// New connections a second, from each of the two clients.
const RATE: f64 = 1000.0;
/// How many of a client may be under way at once.
const CONCURRENCY: usize = 16;
/// How many requests show that the cluster goes on serving.
const ENOUGH: u64 = 200;
/// How long the load may take to see a change.
const PATIENCE: Duration = Duration::from_secs(10);

/// Scales from three pods to five, then replaces each of them by a new one.
pub(super) async fn rollout(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut load = Loads::start(world, 1).await?;
    let changed = scale_and_roll(world, &mut load, &mut outcome).await;
    let gone = load.stop(changed, &mut outcome).await?;
    delete(world, &gone).await?;
    Ok(outcome)
}

/// Kills the agent of a node, changes the endpoints while it is down, and starts it again.
pub(super) async fn agent_killed(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut load = Loads::start(world, 0).await?;
    let changed = kill_and_restart(world, &mut load, &mut outcome).await;
    let gone = load.stop(changed, &mut outcome).await?;
    delete(world, &[gone]).await?;
    Ok(outcome)
}

async fn scale_and_roll(
    world: &mut World,
    load: &mut Loads,
    outcome: &mut Outcome,
) -> Result<Vec<Pod>> {
    load.reaches_all(world).await?;
    let started = Instant::now();
    world.add(&[("web-4", 1), ("web-5", 0)]).await?;
    world.settled().await?;
    load.reaches_all(world).await?;
    let took = started.elapsed();
    outcome.fact(
        "scale-up under load: 3 → 5 pods",
        format!("both new pods answer after {} ms", took.as_millis()),
        json!({ "ms": millis(took) }),
    );

    let started = Instant::now();
    let old: Vec<_> = world.web.ready().cloned().collect();
    let mut gone = Vec::new();
    for (number, pod) in old.iter().enumerate() {
        let new = format!("web-v2-{}", number + 1);
        world.add(&[(&new, usize::from(pod.node() != world.client.node()))]).await?;
        world.settled().await?;
        load.reaches_all(world).await?;
        world.set(pod.name(), State::Terminating)?;
        world.settled().await?;
        gone.push(retire(world, pod.name()).await?);
        // Who still came to the old one would fail now.
        let _ = load.goes_on().await?;
    }
    let took = started.elapsed();
    let did = format!("rolling update: {} pods, one by one", old.len());
    outcome.fact(
        did,
        format!("new ready → old terminating → old gone, in {:.1} s", took.as_secs_f64()),
        json!({ "ms": millis(took), "replaced": old.len() }),
    );
    Ok(gone)
}

async fn kill_and_restart(
    world: &mut World,
    load: &mut Loads,
    outcome: &mut Outcome,
) -> Result<Pod> {
    load.reaches_all(world).await?;
    world.cluster.kill_agent(0).await?;
    let old = world.web.ready().next().context("web has a ready pod")?.name().to_owned();
    let new = "web-v2-6";
    world.add(&[(new, 1)]).await?;
    world.set(&old, State::Terminating)?;
    let answered = load.goes_on().await?;
    ensure!(
        world.programmed(0).await? != world.web.backends(),
        "expected the maps of node-1 to stay as they are without its agent; they have changed"
    );
    outcome.fact(
        "agent of node-1 killed (SIGKILL) under load",
        format!("{answered} requests answered without it"),
        json!({ "answered": answered }),
    );

    let started = Instant::now();
    let options = world.cluster.options();
    world.cluster.start_agent(0, &options)?.wait_synced().await?;
    let converged = started.elapsed();
    world.settled().await?;
    load.reaches_all(world).await?;
    outcome.fact(
        format!("meanwhile {new} added, {old} taken out"),
        format!("applied {} ms after the agent's restart", converged.as_millis()),
        json!({ "ms": millis(converged) }),
    );
    let gone = retire(world, &old).await?;
    let _ = load.goes_on().await?;
    Ok(gone)
}

/// Ends a pod that no node gives new connections to any more, as its kubelet would; its open
/// connections go on until the pod is deleted.
async fn retire(world: &mut World, pod: &str) -> Result<Pod> {
    let mut replica = world.web.take(pod)?;
    // A server accepts in order: with these answers, it has accepted all that came before.
    for addr in replica.pod.addrs().at(TARGET) {
        let _ = world.client.tcp(addr).await?;
    }
    replica.stop_serving().await?;
    world.publish()?;
    Ok(replica.pod)
}

async fn delete(world: &World, pods: &[Pod]) -> Result<()> {
    try_join_all(pods.iter().map(|pod| world.cluster.lab.delete_pod(pod))).await?;
    Ok(())
}

/// A steady load of new connections from a pod of the first node to the ClusterIP (IPv4), and
/// from outside to the NodePort of a node (IPv6).
struct Loads {
    loads: [(String, RunningLoad); 2],
    /// All pods that were ready at some time of the load.
    pods: BTreeSet<String>,
}

impl Loads {
    async fn start(world: &World, node: usize) -> Result<Self> {
        let node_port = world.cluster.lab.node(node).addrs().at(NODE_PORT)[1].to_string();
        let start = async |what: &str, from: &Machine, to: &str| {
            let load = Load::new(Ask::tcp(to)).concurrency(CONCURRENCY).per_second(RATE);
            anyhow::Ok((format!("{what} → {to}"), from.start_load(load).await?))
        };
        let inside = start("pod", &world.client, VIPS[0]).await?;
        let outside = start("outside", &world.outsider, &node_port).await?;
        Ok(Self { loads: [inside, outside], pods: BTreeSet::new() })
    }

    /// Waits until both clients have had answers from every pod that is ready now.
    async fn reaches_all(&mut self, world: &World) -> Result<()> {
        let ready = world.web.ready_names();
        self.pods.extend(ready.iter().map(ToString::to_string));
        let all = |report: &LoadReport| ready.iter().all(|pod| report.backends.contains_key(*pod));
        for (name, load) in &self.loads {
            drop(
                wait(load, all, &format!("answers from each of {}, {name}", named(&ready))).await?,
            );
        }
        Ok(())
    }

    /// Waits until each client has had some more answers; how many have come meanwhile.
    async fn goes_on(&self) -> Result<u64> {
        let mut meanwhile = 0;
        for (name, load) in &self.loads {
            let before = load.report().await?.answered();
            let more = |report: &LoadReport| report.answered() >= before + ENOUGH;
            meanwhile +=
                wait(load, more, &format!("more answers, {name}")).await?.answered() - before;
        }
        Ok(meanwhile)
    }

    /// Ends the load; an error if `changed` is one, a request failed, or a pod took no part.
    async fn stop<T>(self, changed: Result<T>, outcome: &mut Outcome) -> Result<T> {
        let Self { loads, pods } = self;
        let (names, loads): (Vec<_>, Vec<_>) = loads.into_iter().unzip();
        let reports = try_join_all(loads.into_iter().map(RunningLoad::stop)).await;
        let changed = changed?;
        let pods = pods.iter().map(String::as_str).collect();
        for (name, report) in names.iter().zip(&reports?) {
            served(name, report, &pods)?;
            let Latency { p50, p99, max, .. } = report.latency;
            outcome.fact(
                format!("{} connections, {name}", report.answered()),
                format!("0 failed, {} pods, p50 {}, p99 {}", pods.len(), shown(p50), shown(p99)),
                json!({
                    "requests": report.answered(),
                    "failed": report.failed(),
                    "pods": report.backends.len(),
                    "p50_ms": millis(p50),
                    "p99_ms": millis(p99),
                    "max_ms": millis(max),
                }),
            );
        }
        Ok(changed)
    }
}

/// Waits until `reached` says so of a load.
async fn wait(
    load: &RunningLoad,
    reached: impl Fn(&LoadReport) -> bool,
    what: &str,
) -> Result<LoadReport> {
    match timeout(PATIENCE, load.until(reached)).await {
        Ok(report) => Ok(report?),
        Err(_) => {
            let came = load.report().await?;
            let failures = came.failures.values().next();
            let first = failures.map_or("none failed".to_owned(), |f| f.first.to_string());
            bail!(
                "expected {what}, within {PATIENCE:?}; came: {}; {first}",
                counted(&came.backends)
            )
        }
    }
}
