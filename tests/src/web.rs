//! A cluster with one Service, and loads on it by every path: what many tests begin with.
//!
//! The Service `web` listens at TCP and UDP port 80 of its ClusterIPs and at NodePort 31775, and
//! has a backend on each node.

use crate::cluster::{Cluster, eventually};
use crate::lab::{LabConfig, Pod};
use crate::machine::{Machine, RunningLoad};
use crate::objects::{self, Port};
use crate::traffic::{Ask, Load, Serve};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

/// The ports of the Service.
pub const PORTS: [Port<'static>; 2] = [
    Port { name: "http", protocol: "TCP", port: 80, target: 8080 },
    Port { name: "dns", protocol: "UDP", port: 80, target: 8080 },
];
/// Its ClusterIPs.
pub const IPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Its ClusterIPs with the port.
pub const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];
/// Its NodePort.
pub const NODE_PORT: u16 = 31775;

/// A cluster with the Service `web`.
pub struct Web {
    /// The cluster.
    pub cluster: Cluster,
    /// Its backends, one on each node.
    pub pods: Vec<Pod>,
    /// A pod on the first node.
    pub client: Pod,
    /// A machine outside the cluster.
    pub outside: Machine,
}

impl Web {
    /// Starts the cluster, without agents.
    pub async fn without_agents(nodes: u8) -> Result<Self> {
        let cluster = Cluster::without_agents(LabConfig { nodes, ..LabConfig::default() }).await?;
        Self::on(cluster).await
    }

    /// Starts the cluster with an agent on each node, and waits until the Service is reached.
    pub async fn start(nodes: u8) -> Result<Self> {
        let cluster = Cluster::start(LabConfig { nodes, ..LabConfig::default() }).await?;
        let web = Self::on(cluster).await?;
        web.wait_reached().await?;
        Ok(web)
    }

    async fn on(cluster: Cluster) -> Result<Self> {
        let lab = &cluster.lab;
        let mut pods = Vec::new();
        for (node, index) in lab.nodes().iter().zip(0..) {
            let pod = lab.add_pod(node, &format!("web-{index}")).await?;
            pod.serve(Serve::tcp(8080)).await?;
            pod.serve(Serve::udp(8080)).await?;
            pods.push(pod);
        }
        let client = lab.add_pod(lab.node(0), "client").await?;
        let outside = lab.add_client("outside").await?;
        for (vip, via) in IPS.into_iter().zip(lab.node(0).addrs().at(0)) {
            let prefix = if via.is_ipv4() { 32 } else { 128 };
            outside.route(&format!("{vip}/{prefix}"), via.ip()).await?;
        }
        let web = Self { cluster, pods, client, outside };
        web.publish(&service())?;
        Ok(web)
    }

    /// Applies `service` with the backends of `web`.
    pub fn publish(&self, service: &Value) -> Result<()> {
        self.cluster.publish(service, &PORTS, &self.pods.iter().collect::<Vec<_>>())
    }

    /// Waits until the Service is reached by every path.
    pub async fn wait_reached(&self) -> Result<()> {
        for (machine, ask) in self.paths() {
            let what = format!("{} reaches {}", machine.name(), ask.to);
            let ask = ask.timeout(Duration::from_millis(200));
            eventually(&what, async || machine.ask(ask.clone()).await, Result::is_ok).await??;
        }
        Ok(())
    }

    /// Who asks whom: a pod by the socket path the ClusterIPs, and an outsider by the packet path of
    /// the first node those and the NodePort, over both families and protocols.
    pub fn paths(&self) -> Vec<(&Machine, Ask)> {
        let mut paths = Vec::new();
        for (vip, to) in VIPS.into_iter().zip(self.cluster.lab.node(0).addrs().at(NODE_PORT)) {
            paths.extend([Ask::tcp(vip), Ask::udp(vip)].map(|ask| (&*self.client, ask)));
            let asks = [Ask::tcp(to), Ask::udp(to), Ask::tcp(vip), Ask::udp(vip)];
            paths.extend(asks.map(|ask| (&self.outside, ask)));
        }
        paths
    }

    /// Starts a load on every path.
    pub async fn start_loads(&self) -> Result<Loads> {
        let mut loads = Vec::new();
        for (machine, ask) in self.paths() {
            let what = format!("{} → {} ({:?})", machine.name(), ask.to, ask.transport);
            let load = Load::new(ask).per_second(100.0).concurrency(4);
            loads.push((what, machine.start_load(load).await?));
        }
        Ok(Loads(loads))
    }
}

/// The Service, for a test that wants another one like it.
pub fn service() -> Value {
    let mut web = objects::service("web", &IPS, &PORTS);
    web["spec"]["type"] = json!("NodePort");
    for port in 0..PORTS.len() {
        web["spec"]["ports"][port]["nodePort"] = json!(NODE_PORT);
    }
    web
}

/// Loads on every path of a [`Web`].
pub struct Loads(Vec<(String, RunningLoad)>);

impl Loads {
    /// Waits until each of them has been answered `count` times more.
    pub async fn go_on(&self, count: u64) -> Result<()> {
        for (what, load) in &self.0 {
            let until = load.report().await?.answered() + count;
            let report = load.until(|report| report.answered() >= until || report.failed() > 0);
            let report = report.await?;
            ensure!(report.failed() == 0, "{what}: {:?}", report.failures);
        }
        Ok(())
    }

    /// Ends them; an error if any request failed. Returns how many were answered.
    pub async fn stop(self) -> Result<u64> {
        let mut answered = 0;
        for (what, load) in self.0 {
            let report = load.stop().await?;
            ensure!(report.failed() == 0, "{what}: {:?}", report.failures);
            answered += report.answered();
        }
        Ok(answered)
    }
}
