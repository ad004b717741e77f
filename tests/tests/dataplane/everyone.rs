//! Everyone who may ask a service, in one cluster: pods on either path, the node's own processes,
//! pods of the other node, and an outsider. What no node takes for a service's goes beyond, to a
//! machine that says so.
//!
//! A test publishes what it needs, lists who asks what and who is to answer, and has all of it
//! asked at once; a failure names every wrong answer.

use crate::scene::{Path, SILENCE, Scene, is_refused, is_silent, node_port, serve};
use anyhow::Result;
use futures::future::{join_all, try_join_all};
use lab::cluster::eventually;
use lab::{Ask, LabConfig, Machine, Pod, RpFilter, Serve, Transport};
use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

/// The networks of ClusterIPs, of load balancers and of external IPs.
const NETWORKS: [[&str; 2]; 3] = [
    ["10.96.0.0/16", "fd00:96::/64"],
    ["192.0.2.0/24", "fd00:192::/64"],
    ["198.51.100.0/24", "fd00:198::/64"],
];

/// The name of the machine to which nodes send what is no service's.
pub(crate) const BEYOND: Answer = Answer::From(&["beyond"]);

/// How often a service is asked for each backend that it may have; one of two that must not answer
/// hides once in 10⁷ times.
const TIMES: usize = 24;

/// A cluster with everyone who may ask.
pub(crate) struct Everyone {
    /// Its client is a pod on the socket path.
    pub(crate) scene: Scene,
    /// A pod like the client, but its process is in no cgroup of the node.
    pub(crate) aside: Pod,
    /// It reaches services by the first node.
    pub(crate) outsider: Machine,
    /// It has the addresses that it is given with [`Everyone::let_pass`].
    beyond: Machine,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// A pod on the socket path, and one on the packet path; both on the first node.
    Pods,
    /// A process of the first node, on the socket path.
    Node,
    /// A pod of the second node, where `web-1` is.
    Elsewhere,
    /// Somebody outside of the cluster.
    Outsider,
}

/// What is to come of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// All of these answer, and nobody else.
    From(&'static [&'static str]),
    /// ECONNREFUSED at once; EPERM for the node's own datagrams.
    Refused,
    /// Nothing at all.
    Silence,
}

/// A fact, who shows it, by asking what, and what comes of it.
pub(crate) type Question = (&'static str, Who, Vec<Ask>, Answer);

impl Everyone {
    /// Starts everything but the agents.
    pub(crate) async fn prepare() -> Result<Self> {
        let config = LabConfig { rp_filter: RpFilter::Strict, ..LabConfig::default() };
        let scene = Scene::prepare(config).await?;
        let lab = &scene.cluster.lab;
        let (aside, outsider, beyond) = futures::try_join!(
            lab.add_pod(lab.node(0), "aside"),
            lab.add_client("outsider"),
            lab.add_client("beyond")
        )?;
        let cgroup = lab.cgroup().join("aside");
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join("cgroup.procs"), aside.pid().to_string())?;
        serve(&aside).await?;
        for networks in NETWORKS {
            for (family, network) in networks.into_iter().enumerate() {
                let at = |machine: &Machine| machine.addrs().at(0)[family].ip();
                outsider.route(network, at(lab.node(0))).await?;
                for node in lab.nodes() {
                    node.route(network, at(&beyond)).await?;
                }
            }
        }
        for node in lab.nodes() {
            for (network, via) in node.pod_networks().iter().zip(node.addrs().at(0)) {
                beyond.route(&network.to_string(), via.ip()).await?;
            }
        }
        Ok(Self { scene, aside, outsider, beyond })
    }

    /// Has somebody beyond the nodes answer at `addrs`.
    pub(crate) async fn let_pass(&self, addrs: [SocketAddr; 2]) -> Result<()> {
        for addr in addrs {
            let prefix = if addr.is_ipv4() { 32 } else { 128 };
            self.beyond.add_addr(&format!("{}/{prefix}", addr.ip())).await?;
            self.beyond.serve(Serve::tcp(addr.port()).on(addr.ip())).await?;
            self.beyond.serve(Serve::udp(addr.port()).on(addr.ip())).await?;
        }
        Ok(())
    }

    /// Starts the agents, with more flags.
    pub(crate) async fn start(&mut self, flags: &[(&str, &str)]) -> Result<()> {
        self.scene.start_with(Path::Socket, flags).await
    }

    /// TCP and UDP to the NodePort of the service `number` at the node `index`.
    pub(crate) fn node_ports(&self, index: usize, number: u8) -> Vec<Ask> {
        both(self.scene.cluster.lab.node(index).addrs().at(node_port(number)))
    }

    /// Asks all `questions`, which have the right answers now.
    pub(crate) async fn check(&self, questions: &[Question]) -> Result<()> {
        let wrong = self.wrong(questions).await.err().unwrap_or_default();
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        // Else the two pods would show the same.
        let is_answered =
            |(_, who, _, answer): &Question| *who == Who::Pods && matches!(answer, Answer::From(_));
        if questions.iter().any(is_answered) {
            assert!(self.scene.outcome("ingress", "chosen").await? > 0, "no choice for a packet");
            assert!(self.scene.outcome("connect", "chosen").await? > 0, "no choice for a socket");
        }
        Ok(())
    }

    /// Asks all `questions` until they have the right answers.
    pub(crate) async fn wait_until(&self, what: &str, questions: &[Question]) -> Result<()> {
        let asked = async || self.wrong(questions).await;
        let _right = eventually(what, asked, Result::is_ok).await?;
        Ok(())
    }

    /// What is wrong, if anything is.
    async fn wrong(&self, questions: &[Question]) -> Result<(), Vec<String>> {
        let asking = questions.iter().flat_map(|(fact, who, asks, answer)| {
            let each = move |from| asks.iter().map(move |ask| (*fact, from, ask, *answer));
            self.machines(*who).into_iter().flat_map(each)
        });
        let asking = asking.map(|(fact, from, ask, answer)| async move {
            let heard = hear(from, ask, answer).await;
            let line = || format!("{fact}: {} → {} {:?}", from.name(), ask.to, ask.transport);
            heard.map_err(|heard| format!("{}: {heard} instead of {answer:?}", line()))
        });
        let wrong: Vec<_> = join_all(asking).await.into_iter().filter_map(Result::err).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn machines(&self, who: Who) -> Vec<&Machine> {
        match who {
            Who::Pods => vec![&*self.scene.client, &self.aside],
            Who::Node => vec![self.scene.cluster.lab.node(0)],
            Who::Elsewhere => vec![&self.scene.web[1]],
            Who::Outsider => vec![&self.outsider],
        }
    }
}

/// Asks often enough to hear all who answer; an error says what was heard that is not `expected`.
async fn hear(from: &Machine, ask: &Ask, expected: Answer) -> Result<(), String> {
    let names = match expected {
        Answer::From(names) => names,
        Answer::Refused => {
            let asked = try_join_all([(); 2].map(|()| from.ask(afresh(ask)))).await;
            return match asked {
                Err(failure) if is_refused(from, ask, &failure) => Ok(()),
                other => Err(format!("{other:?}")),
            };
        }
        Answer::Silence => {
            return match from.ask(afresh(ask).timeout(SILENCE)).await {
                Err(failure) if is_silent(from, ask, &failure) => Ok(()),
                other => Err(format!("{other:?}")),
            };
        }
    };
    let mut heard = BTreeSet::new();
    for _ in 0..TIMES * names.len() {
        let reply = from.ask(afresh(ask)).await.map_err(|failure| failure.to_string())?;
        if reply.peer.to_string() != ask.to {
            return Err(format!("the peer {}", reply.peer));
        }
        let _ = heard.insert(reply.name);
    }
    let is_right = heard.iter().map(String::as_str).eq(names.iter().copied());
    if is_right { Ok(()) } else { Err(format!("{heard:?}")) }
}

/// The question from a port that has asked nothing yet: a datagram of a port that just asked, by
/// chance, belongs to the flow that it began.
fn afresh(ask: &Ask) -> Ask {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ask = ask.clone();
    if ask.transport == Transport::Tcp {
        return ask;
    }
    // Neither the kernel's own choice nor a NodePort.
    let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
    let is_v6 = ask.to.starts_with('[');
    let any = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    ask.from(SocketAddr::new(any, port))
}

/// TCP and UDP to both addresses.
pub(crate) fn both(to: [SocketAddr; 2]) -> Vec<Ask> {
    to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]).collect()
}

/// Those of `asks` that go by `transport`.
pub(crate) fn only(transport: Transport, mut asks: Vec<Ask>) -> Vec<Ask> {
    asks.retain(|ask| ask.transport == transport);
    asks
}
