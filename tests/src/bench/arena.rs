//! The arena: one lab in which all contenders run side by side.
//!
//! The first node has no proxy and holds the pods that are elsewhere. Each contender has a node
//! of its own, with a client pod and as many backends. A client outside asks for NodePorts. All
//! servers run from the beginning to the end, and only one contender is under load at a time.

use super::contender::Contender;
use super::measure::Way;
use super::population::{Endpoint, Entry, cluster_port};
use crate::cluster::Cluster;
use crate::lab::{LabConfig, Node, Pod};
use crate::machine::Machine;
use crate::sprint::Service;
use anyhow::{Context, Result};
use futures::future::try_join_all;
use std::net::{Ipv4Addr, SocketAddr};

/// Pods behind each measured Service.
pub(super) const BACKENDS: u16 = 10;
/// The first NodePort of a measured Service; each of them takes a few.
const NODE_PORTS: u16 = 31_000;

/// The lab, and who is in it.
pub(super) struct Arena {
    /// The machines and the Kubernetes API.
    pub(super) cluster: Cluster,
    /// The contenders.
    pub(super) corners: Vec<Corner>,
    outside: Machine,
    there: Vec<Pod>,
}

/// A contender's node, its client and its backends.
pub(super) struct Corner {
    /// Who.
    pub(super) contender: Contender,
    /// The index of its node.
    pub(super) node: usize,
    client: Pod,
    here: Vec<Pod>,
}

impl Arena {
    /// Starts the machines and the servers; no proxies yet.
    pub(super) async fn start(field: &[Contender]) -> Result<Self> {
        let nodes = 1 + field.len() as u8;
        let cluster = Cluster::without_agents(LabConfig { nodes, ..Default::default() }).await?;
        let lab = &cluster.lab;
        let there = backends(&cluster, 0).await?;
        let mut corners = Vec::new();
        for (index, contender) in field.iter().enumerate() {
            let node = index + 1;
            let client = lab.add_pod(lab.node(node), &format!("client-{node}")).await?;
            let here = backends(&cluster, node).await?;
            corners.push(Corner { contender: *contender, node, client, here });
        }
        let outside = lab.add_client("outside").await?;
        let arena = Self { cluster, corners, outside, there };
        arena.route_the_direct_path().await?;
        Ok(arena)
    }

    /// Without a proxy, the client outside reaches pods by the node that it would have asked,
    /// in both directions.
    async fn route_the_direct_path(&self) -> Result<()> {
        let Some(corner) = self.corners.iter().find(|c| c.contender == Contender::Direct) else {
            return Ok(());
        };
        let node = self.node(corner);
        let first = self.cluster.lab.node(0);
        for pods in [first, node] {
            let [network, _] = pods.pod_networks();
            self.outside.route(&network.to_string(), node.ipv4()).await?;
        }
        first.route(&format!("{}/32", self.outside.ipv4()), node.ipv4()).await
    }

    /// Lets the direct path and Shunt change places, so that neither has the better one for long:
    /// what a place is worth (its processes, its memory) is a few hundredths. Nobody is told.
    pub(super) async fn exchange(&mut self) -> Result<()> {
        for corner in &mut self.corners {
            corner.contender = match corner.contender {
                Contender::Direct => Contender::Shunt,
                Contender::Shunt => Contender::Direct,
                other => other,
            };
        }
        self.route_the_direct_path().await
    }

    /// The node of a contender.
    pub(super) fn node(&self, corner: &Corner) -> &Node {
        self.cluster.lab.node(corner.node)
    }

    /// The corner of a contender, if it takes part.
    pub(super) fn corner(&self, contender: Contender) -> Option<&Corner> {
        self.corners.iter().find(|corner| corner.contender == contender)
    }

    /// The measured Services of a contender: with the pods on its node, and with those elsewhere.
    pub(super) fn measured(&self, corner: &Corner) -> [Entry; 2] {
        [(Way::ClusterIp, "here"), (Way::NodePortThere, "there")].map(|(way, name)| {
            let endpoints = self
                .pods(corner, way)
                .iter()
                .map(|pod| Endpoint { addr: pod.ipv4(), node: pod.node().to_owned() });
            let name = format!("{name}-{}", corner.node);
            Entry::measured(&name, vip(corner, way), node_port(corner, way), endpoints.collect())
        })
    }

    /// Who asks, on this way.
    pub(super) fn client<'a>(&'a self, corner: &'a Corner, way: Way) -> &'a Machine {
        match way {
            Way::ClusterIp | Way::Neighbour => &corner.client,
            Way::NodePortHere | Way::NodePortThere => &self.outside,
        }
    }

    /// Whom it asks for `service`: the pods themselves on the direct path, the frontend else.
    pub(super) fn targets(&self, corner: &Corner, way: Way, service: Service) -> Vec<SocketAddr> {
        match way {
            _ if way == Way::Neighbour || corner.contender == Contender::Direct => {
                let pods = self.pods(corner, way).iter();
                pods.map(|pod| (pod.ipv4(), service.port()).into()).collect()
            }
            Way::ClusterIp => vec![(vip(corner, way), cluster_port(service)).into()],
            _ => {
                let port = node_port(corner, way) + service as u16;
                vec![(self.node(corner).ipv4(), port).into()]
            }
        }
    }

    /// The ids of the servers that may answer on this way.
    pub(super) fn ids(&self, corner: &Corner, way: Way) -> Vec<u16> {
        let node = if way == Way::NodePortThere { 0 } else { corner.node };
        (0..BACKENDS).map(|index| id(node, index)).collect()
    }

    fn pods<'a>(&'a self, corner: &'a Corner, way: Way) -> &'a [Pod] {
        if way == Way::NodePortThere { &self.there } else { &corner.here }
    }
}

async fn backends(cluster: &Cluster, node: usize) -> Result<Vec<Pod>> {
    let lab = &cluster.lab;
    let start = |index: u16| async move {
        let id = id(node, index);
        let pod = lab.add_pod(lab.node(node), &format!("server-{id}")).await?;
        pod.serve_sprints(id).await.with_context(|| format!("start the servers of {id}"))?;
        anyhow::Ok(pod)
    };
    try_join_all((0..BACKENDS).map(start)).await
}

fn id(node: usize, index: u16) -> u16 {
    100 * node as u16 + index
}

fn vip(corner: &Corner, way: Way) -> Ipv4Addr {
    Ipv4Addr::new(10, 111, u8::from(way == Way::NodePortThere), corner.node as u8)
}

fn node_port(corner: &Corner, way: Way) -> u16 {
    NODE_PORTS + 20 * corner.node as u16 + if way == Way::NodePortThere { 10 } else { 0 }
}
