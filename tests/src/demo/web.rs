//! The Service `web` and the pods behind it: what a Deployment, a kubelet and the EndpointSlice
//! controller would do.
//!
//! Holds what the API server is told; never looks at what Shunt makes of it.

use crate::lab::{Lab, Pod};
use crate::machine::Server;
use crate::objects::{self, Port};
use crate::traffic::{Failure, Serve};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Its ClusterIPs.
pub(super) const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// The same with its port.
pub(super) const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];
/// Its NodePort, TCP and UDP.
pub(super) const NODE_PORT: u16 = 31775;

/// Where its pods listen.
pub(super) const TARGET: u16 = 8080;
const PORTS: [Port<'static>; 2] = [
    Port { name: "http", protocol: "TCP", port: 80, target: TARGET },
    Port { name: "echo", protocol: "UDP", port: 80, target: TARGET },
];

/// The pods of the Service.
#[derive(Default)]
pub(super) struct Web {
    replicas: Vec<Replica>,
}

/// A pod, its servers, and what its endpoint says of it.
pub(super) struct Replica {
    /// The pod.
    pub(super) pod: Pod,
    servers: Vec<Server>,
    state: State,
}

/// The conditions of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It passes its readiness probe.
    Ready,
    /// It does not.
    Unready,
    /// Its pod is being deleted, and still serves.
    Terminating,
}

impl Web {
    /// The Service object.
    pub(super) fn service() -> Value {
        let mut service = objects::service("web", &CLUSTER_IPS, &PORTS);
        service["spec"]["type"] = json!("NodePort");
        for port in 0..PORTS.len() {
            service["spec"]["ports"][port]["nodePort"] = json!(NODE_PORT);
        }
        service
    }

    /// The EndpointSlices of its pods.
    pub(super) fn slices(&self) -> [Value; 2] {
        let pods: Vec<_> = self.replicas.iter().map(|replica| &replica.pod).collect();
        objects::slices("web", &PORTS, &pods).map(|mut slice| {
            for (index, replica) in self.replicas.iter().enumerate() {
                slice["endpoints"][index]["conditions"] = replica.state.conditions();
            }
            slice
        })
    }

    /// Starts pods, each on the node that is given with its name, and adds them as ready once
    /// they serve.
    pub(super) async fn add(&mut self, lab: &Lab, pods: &[(&str, usize)]) -> Result<()> {
        let starting = pods.iter().map(|(name, node)| Replica::start(lab, name, *node));
        self.replicas.extend(try_join_all(starting).await?);
        Ok(())
    }

    /// Changes what the endpoint of a pod says.
    pub(super) fn set(&mut self, pod: &str, state: State) -> Result<()> {
        let replica = self.replicas.iter_mut().find(|replica| replica.pod.name() == pod);
        replica.with_context(|| format!("web has no pod {pod}"))?.state = state;
        Ok(())
    }

    /// Gives a pod up: its endpoint is gone with the next slices.
    pub(super) fn take(&mut self, pod: &str) -> Result<Replica> {
        let index = self.replicas.iter().position(|replica| replica.pod.name() == pod);
        Ok(self.replicas.remove(index.with_context(|| format!("web has no pod {pod}"))?))
    }

    /// The pods that are ready, in the order in which they were added.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Pod> {
        let ready = self.replicas.iter().filter(|replica| replica.state == State::Ready);
        ready.map(|replica| &replica.pod)
    }

    /// The names of the pods that are ready.
    pub(super) fn ready_names(&self) -> BTreeSet<&str> {
        self.ready().map(|pod| pod.name()).collect()
    }

    /// The backends that new connections ought to get, as `PROTOCOL ADDRESS:PORT`.
    pub(super) fn backends(&self) -> BTreeSet<String> {
        let addrs = self.ready().flat_map(|pod| pod.addrs().at(TARGET));
        addrs.flat_map(|addr| PORTS.map(|port| backend(port.protocol, addr))).collect()
    }
}

/// A backend, as [`Web::backends`] writes it.
pub(super) fn backend(protocol: &str, addr: SocketAddr) -> String {
    format!("{protocol} {addr}")
}

impl Replica {
    async fn start(lab: &Lab, name: &str, node: usize) -> Result<Self> {
        let pod = lab.add_pod(lab.node(node), name).await?;
        let servers =
            vec![pod.serve(Serve::tcp(TARGET)).await?, pod.serve(Serve::udp(TARGET)).await?];
        Ok(Self { pod, servers, state: State::Ready })
    }

    /// Closes the listening sockets: who comes now is refused, who is here is served.
    pub(super) async fn stop_serving(&mut self) -> Result<(), Failure> {
        for server in self.servers.drain(..) {
            let _ = server.stop().await?;
        }
        Ok(())
    }
}

impl State {
    fn conditions(self) -> Value {
        match self {
            Self::Ready => json!({ "ready": true, "serving": true, "terminating": false }),
            Self::Unready => json!({ "ready": false, "serving": false, "terminating": false }),
            Self::Terminating => objects::terminating(true),
        }
    }
}
