//! A cluster: a lab with a Kubernetes API and an agent on each node.

use crate::agent::{Agent, AgentOptions};
use crate::api::ApiServer;
use crate::kube_proxy::{KubeProxy, Mode};
use crate::lab::{Lab, LabConfig, Node, Pod};
use crate::objects::{self, Port};
use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::Value;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a change may take to be effective, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab with a Kubernetes API and an agent on each node.
pub struct Cluster {
    // The order is that of the end.
    agents: Vec<Option<Agent>>,
    /// The Kubernetes API, on the wire of the nodes.
    pub api: ApiServer,
    /// The machines.
    pub lab: Lab,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Starts a lab and an API that knows its nodes; no agents yet.
    pub async fn without_agents(config: LabConfig) -> Result<Self> {
        let lab = Lab::start(config).await?;
        let api = ApiServer::start(lab.listen(6443)?)?;
        for node in lab.nodes() {
            api.apply(&objects::node(node))?;
        }
        let kubeconfig = lab.scratch().join("kubeconfig");
        fs::write(&kubeconfig, ApiServer::kubeconfig(&api.url(), None))
            .with_context(|| format!("write {}", kubeconfig.display()))?;
        let agents = lab.nodes().iter().map(|_| None).collect();
        Ok(Self { agents, api, lab, kubeconfig })
    }

    /// Starts a lab, an API, and agents that have synced.
    pub async fn start(config: LabConfig) -> Result<Self> {
        let mut cluster = Self::without_agents(config).await?;
        cluster.start_agents(|_, options| options).await?;
        Ok(cluster)
    }

    /// Starts an agent on each node, with what `adjust` makes of its options, and waits until
    /// each has synced and serves its node's devices.
    pub async fn start_agents(
        &mut self,
        adjust: impl Fn(&Node, AgentOptions) -> AgentOptions,
    ) -> Result<()> {
        for index in 0..self.agents.len() {
            let options = adjust(self.lab.node(index), self.options());
            self.start_agent(index, &options)?;
        }
        let uplink = self.lab.node(0).uplink();
        let is_up = |status: &Value| !status["synced"].is_null() && is_attached(status, uplink);
        let up = self.agents.iter_mut().flatten().map(|agent| agent.wait_status(is_up));
        try_join_all(up).await.context("wait for the agents")?;
        Ok(())
    }

    /// How agents are started: with the API as their source.
    pub fn options(&self) -> AgentOptions {
        AgentOptions::kube(&self.kubeconfig)
    }

    /// Starts the agent of a node, without waiting for its sync.
    pub fn start_agent(&mut self, index: usize, options: &AgentOptions) -> Result<&mut Agent> {
        let agent = self.lab.start_agent(self.lab.node(index), options)?;
        Ok(self.agents[index].insert(agent))
    }

    /// Starts a real kube-proxy on a node, without waiting for its sync.
    pub fn start_kube_proxy(&self, index: usize, program: &Path, mode: Mode) -> Result<KubeProxy> {
        KubeProxy::start(self.lab.node(index), program, mode, &self.kubeconfig)
    }

    /// The agent of a node.
    pub fn agent(&mut self, index: usize) -> Result<&mut Agent> {
        self.agents[index].as_mut().with_context(|| format!("no agent runs on node {index}"))
    }

    /// Hands over the agent of a node, to end it.
    pub fn take_agent(&mut self, index: usize) -> Result<Agent> {
        self.agents[index].take().with_context(|| format!("no agent runs on node {index}"))
    }

    /// Kills the agent of a node, as an out-of-memory killer would.
    pub async fn kill_agent(&mut self, index: usize) -> Result<()> {
        self.take_agent(index)?.kill().await
    }

    /// Applies a Service and the EndpointSlices of `pods`, all of them ready.
    pub fn publish(&self, service: &Value, ports: &[Port<'_>], pods: &[&Pod]) -> Result<()> {
        let metadata = &service["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
        self.api.apply(service)?;
        objects::slices(&name, ports, pods).iter().try_for_each(|slice| self.api.apply(slice))
    }

    /// What the agent of a node says with `shunt ARGS -o json`.
    pub async fn shunt(&self, index: usize, args: &[&str]) -> Result<Value> {
        let args = [args, &["-o", "json"]].concat();
        let output = self.lab.node(index).shunt(&args).await?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("shunt {args:?}: {} {}", output.stdout, output.stderr))
    }
}

/// Whether a program is attached to `target`, by an agent's own status.
fn is_attached(status: &Value, target: &str) -> bool {
    let attachments = status["attachments"].as_array();
    attachments.is_some_and(|attachments| attachments.iter().any(|a| a["target"] == target))
}

/// Asks again until the answer is `reached`, and gives it; an error if that takes too long.
pub async fn eventually<T: Debug, E: Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
    reached: impl Fn(&Result<T, E>) -> bool,
) -> Result<Result<T, E>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if reached(&answer) {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("not in {PATIENCE:?}: {what}; the last answer: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
