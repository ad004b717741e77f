//! A cluster of two nodes with one proxy or the other; who is where has the same address in each.

use crate::population::{BACKENDS, Endpoint, FIRST_NODES, Frontend, Kind, Ranges, Service, State};
use crate::question::{Answer, Client, Question};
use crate::rules::{View, table};
use anyhow::{Result, bail};
use lab::cluster::Cluster;
use lab::kube_proxy::{KubeProxy, Mode, SETTLED, is_in_sync};
use lab::objects::{self, Port};
use lab::{
    Addrs, AgentOptions, Ask, Cni, FABRIC, Failure, FailureKind, Lab, LabConfig, Machine, Node,
    Pod, Reply, Serve, Transport,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What balances.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Proxy {
    /// kube-proxy's rules, as `rules` writes them.
    Rules,
    /// A real kube-proxy, by its program.
    Real(PathBuf, Mode),
    /// Shunt, whose socket path serves pods and nodes.
    SocketPath,
    /// Shunt, whose socket path serves the nodes' own processes only.
    PacketPath,
}

impl Proxy {
    /// Which of kube-proxy's modes it is or is like.
    pub(crate) const fn mode(&self) -> Mode {
        match self {
            Self::Real(_, mode) => *mode,
            _ => Mode::Nftables,
        }
    }
}

/// The ports of every Service.
const PORTS: [Port<'static>; 2] = [
    Port { name: "tcp", protocol: "TCP", port: 80, target: 8080 },
    Port { name: "udp", protocol: "UDP", port: 80, target: 8080 },
];
/// A port that no Service has.
const UNSERVED: u16 = 81;
/// How long a kube-proxy may take to write its rules.
const WRITTEN: Duration = Duration::from_secs(60);

/// A running cluster.
pub(crate) struct World {
    pub(crate) proxy: Proxy,
    _kube_proxies: Vec<KubeProxy>,
    cluster: Cluster,
    clients: [Pod; 2],
    pods: Vec<Pod>,
    outsider: Machine,
}

impl World {
    /// Starts a cluster in which `proxy` serves `services`, and `cni` connects the pods.
    pub(crate) async fn start(proxy: Proxy, cni: Cni, services: &[Service]) -> Result<Self> {
        let mut cluster =
            Cluster::without_agents(LabConfig { cni, ..LabConfig::default() }).await?;
        let lab = &cluster.lab;
        let clients = [
            lab.add_pod(lab.node(0), "client-1").await?,
            lab.add_pod(lab.node(1), "client-2").await?,
        ];
        let mut pods = Vec::new();
        for (name, node) in BACKENDS.into_iter().filter(|(name, _)| !name.starts_with("node")) {
            pods.push(lab.add_pod(lab.node(usize::from(node) - 1), name).await?);
        }
        let backends = backends(lab, &pods);
        for backend in &backends {
            // A node would answer datagrams with the address that is nearest.
            for addr in [true, false].map(|v4| of_family(v4, backend.addrs())) {
                backend.serve(Serve::tcp(8080).on(addr)).await?;
                backend.serve(Serve::udp(8080).on(addr)).await?;
            }
        }
        for (index, node) in lab.nodes().iter().enumerate() {
            let mut object = objects::node(node);
            object["metadata"]["labels"]["topology.kubernetes.io/zone"] =
                zone(index as u8 + 1).into();
            cluster.api.apply(&object)?;
        }
        let outsider = lab.add_client("outsider").await?;
        for (to, via) in ["10.96.0.0/14", "fd00:96::/64", "fd00:97::/64", "fd00:98::/64"]
            .map(|to| (to, lab.node(0).addrs()))
        {
            outsider.route(to, of_family(!to.contains(':'), via)).await?;
        }
        for node in lab.nodes() {
            // As every node has one: netfilter sees only what has a route.
            node.route("0.0.0.0/0", FABRIC.v4).await?;
            node.route("::/0", FABRIC.v6).await?;
            // Else netfilter's refusals come at a rate.
            node.netns().sysctl("ipv4/icmp_ratelimit", "0")?;
            node.netns().sysctl("ipv4/icmp_msgs_per_sec", "1000000")?;
            node.netns().sysctl("ipv6/icmp/ratelimit", "0")?;
        }
        for service in services {
            publish(&cluster, service, &backends, &outsider)?;
        }
        let mut kube_proxies = Vec::new();
        match &proxy {
            Proxy::Real(program, mode) => {
                for index in 0..cluster.lab.nodes().len() {
                    kube_proxies.push(cluster.start_kube_proxy(index, program, *mode)?);
                }
                for (node, kube_proxy) in cluster.lab.nodes().iter().zip(&mut kube_proxies) {
                    wait_written(node, kube_proxy, services).await?;
                }
            }
            Proxy::Rules => {
                for (node, number) in lab.nodes().iter().zip(1..) {
                    for v4 in [true, false] {
                        let addr = |machine: &Machine| of_family(v4, machine.addrs());
                        let view = View {
                            node: number,
                            node_addr: addr(node),
                            pods: backends.iter().map(|backend| addr(backend)).collect(),
                            outsider: addr(&outsider),
                        };
                        node.nft(&table(services, &view)).await?;
                    }
                }
            }
            Proxy::SocketPath => {
                cluster.start_agents(|_, options| options.flag("--devices", "auto")).await?;
            }
            Proxy::PacketPath => {
                let own = |node: &Node| node.cgroup().display().to_string();
                let options = |node: &Node, options: AgentOptions| {
                    options.flag("--devices", "auto").flag("--cgroup-root", &own(node))
                };
                cluster.start_agents(options).await?;
            }
        }
        Ok(Self { proxy, _kube_proxies: kube_proxies, cluster, clients, pods, outsider })
    }

    /// Gives the same number of Services, in place of those that there are, to a kube-proxy or
    /// Shunt.
    pub(crate) async fn change(&mut self, services: &[Service]) -> Result<()> {
        let backends = backends(&self.cluster.lab, &self.pods);
        for service in services {
            publish(&self.cluster, service, &backends, &self.outsider)?;
        }
        let mut settled = Instant::now();
        while settled.elapsed() < SETTLED {
            for node in self.cluster.lab.nodes() {
                // Shunt says the same of itself.
                if !is_in_sync(node)? {
                    settled = Instant::now();
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Asks up to `times` times; everything that comes of it. Who is refused or ignored is so
    /// again.
    pub(crate) async fn ask(
        &self,
        question: &Question<'_>,
        times: usize,
        patience: Duration,
    ) -> BTreeSet<Answer> {
        let from: &Machine = match question.client {
            Client::Pod(node) => &self.clients[usize::from(node) - 1],
            Client::Backend => &self.pods[0],
            Client::Node => self.cluster.lab.node(0),
            Client::Outsider => &self.outsider,
        };
        let to = self.destination(question);
        let ask = if question.transport == Transport::Tcp { Ask::tcp(to) } else { Ask::udp(to) };
        let ask = ask.timeout(patience);
        let mut answers = BTreeSet::new();
        for turn in 0..times {
            let answer = answer(from.ask(ask.clone()).await);
            let is_served = matches!(answer, Answer::From(..));
            let _ = answers.insert(answer);
            if !is_served && turn > 0 {
                break;
            }
        }
        answers
    }

    /// How often Shunt's programs ended in each way, for who reads of a fault.
    pub(crate) async fn outcomes(&self) -> Result<String> {
        let mut text = String::new();
        for (index, node) in self.cluster.lab.nodes().iter().enumerate() {
            let status = self.cluster.shunt(index, &["status"]).await?;
            for row in status["outcomes"].as_array().into_iter().flatten() {
                let (program, outcome, count) = (&row["program"], &row["outcome"], &row["count"]);
                writeln!(text, "{:?}, {}: {program} {outcome} {count}", self.proxy, node.name())?;
            }
        }
        Ok(text)
    }

    fn destination(&self, question: &Question<'_>) -> SocketAddr {
        let Question { service, frontend, v4, .. } = *question;
        match frontend {
            Frontend::NodePort(node) => {
                let node = self.cluster.lab.node(usize::from(node) - 1);
                SocketAddr::new(of_family(v4, node.addrs()), service.node_port())
            }
            Frontend::UnservedPort => SocketAddr::new(service.addr(frontend, v4), UNSERVED),
            _ => SocketAddr::new(service.addr(frontend, v4), 80),
        }
    }
}

/// Waits until a kube-proxy has written rules for every Service, in both families.
async fn wait_written(node: &Node, kube_proxy: &mut KubeProxy, services: &[Service]) -> Result<()> {
    let addrs: Vec<_> = services
        .iter()
        .flat_map(|service| [true, false].map(|v4| service.addr(Frontend::ClusterIp, v4)))
        .map(|addr| addr.to_string())
        .collect();
    let deadline = Instant::now() + WRITTEN;
    loop {
        kube_proxy.ensure_running()?;
        let ruleset = node.exec("nft", &["list", "ruleset"]).await?.stdout;
        let missing = addrs.iter().find(|addr| !ruleset.contains(addr.as_str()));
        match missing {
            None if is_in_sync(node).is_ok_and(|synced| synced) => return Ok(()),
            _ if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
            _ => bail!("no rules for {missing:?} after {WRITTEN:?}; {}", kube_proxy.log_end()),
        }
    }
}

fn answer(result: Result<Reply, Failure>) -> Answer {
    match result {
        Ok(reply) => Answer::From(reply.name, reply.client.ip()),
        Err(failure) => match failure.kind {
            FailureKind::Refused => Answer::Refusal,
            FailureKind::TimedOut => Answer::Silence,
            FailureKind::NotPermitted => Answer::Forbidden,
            _ => Answer::Failure(failure.message),
        },
    }
}

fn of_family(v4: bool, addrs: Addrs) -> IpAddr {
    if v4 { addrs.v4.into() } else { addrs.v6.into() }
}

/// What [`BACKENDS`] are.
fn backends<'a>(lab: &'a Lab, pods: &'a [Pod]) -> Vec<&'a Machine> {
    let nodes = lab.nodes().iter().map(|node| -> &Machine { node });
    pods.iter().map(|pod| -> &Machine { pod }).chain(nodes).collect()
}

/// Tells the API of a Service and its endpoints.
fn publish(
    cluster: &Cluster,
    service: &Service,
    backends: &[&Machine],
    outsider: &Machine,
) -> Result<()> {
    let name = format!("svc-{}", service.number);
    let both = |frontend| [true, false].map(|v4| service.addr(frontend, v4).to_string());
    let [v4, v6] = both(Frontend::ClusterIp);
    let mut object = objects::service(&name, &[&v4, &v6], &PORTS);
    // Versions before 1.33 follow hints only where they are asked to.
    object["metadata"]["annotations"] = json!({ "service.kubernetes.io/topology-mode": "Auto" });
    let spec = &mut object["spec"];
    if service.is_sticky {
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 10_800 } });
    }
    let local = |is_local| if is_local { "Local" } else { "Cluster" };
    spec["type"] = json!(format!("{:?}", service.kind).replace("ClusterIp", "ClusterIP"));
    spec["internalTrafficPolicy"] = json!(local(service.internal_local));
    if service.kind != Kind::ClusterIp || !service.external().is_empty() {
        spec["externalTrafficPolicy"] = json!(local(service.external_local));
    }
    if service.has_node_ports() {
        for index in 0..PORTS.len() {
            spec["ports"][index]["nodePort"] = json!(service.node_port());
        }
    }
    spec["allocateLoadBalancerNodePorts"] = json!(!service.without_node_ports);
    let external = service.external().into_iter().filter(|to| *to != Frontend::LoadBalancer);
    spec["externalIPs"] = external.flat_map(both).collect();
    let Addrs { v4, v6 } = outsider.addrs();
    spec["loadBalancerSourceRanges"] = match service.ranges {
        Ranges::Everybody => json!([]),
        Ranges::Outsider => json!([format!("{v4}/32"), format!("{v6}/128")]),
        Ranges::OutsiderByIpv4 => json!([format!(" {v4}/32")]),
        Ranges::FirstNode => json!(FIRST_NODES.concat()),
    };
    if service.kind == Kind::LoadBalancer {
        let mode = if service.is_proxied { "Proxy" } else { "VIP" };
        let ingress = both(Frontend::LoadBalancer).map(|ip| json!({ "ip": ip, "ipMode": mode }));
        object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    }
    cluster.api.apply(&object)?;
    for (mut slice, v4) in objects::slices(&name, &PORTS, &[]).into_iter().zip([true, false]) {
        let endpoint = |endpoint: &Endpoint| {
            let zones = endpoint.hint.map(|node| json!({ "name": zone(node) }));
            json!({
                "addresses": [of_family(v4, backends[endpoint.backend].addrs())],
                "nodeName": format!("node-{}", BACKENDS[endpoint.backend].1),
                "conditions": conditions(endpoint.state),
                "hints": { "forZones": Vec::from_iter(zones) },
            })
        };
        slice["endpoints"] = service.endpoints.iter().map(endpoint).collect();
        cluster.api.apply(&slice)?;
    }
    Ok(())
}

fn zone(node: u8) -> String {
    format!("zone-{node}")
}

fn conditions(state: State) -> Value {
    match state {
        State::Ready => json!({ "ready": true, "serving": true, "terminating": false }),
        State::Unstated => json!({}),
        State::Published => json!({ "ready": true, "serving": false, "terminating": true }),
        State::Unready => json!({ "ready": false, "serving": false, "terminating": false }),
        State::Draining => objects::terminating(true),
        State::Dead => objects::terminating(false),
    }
}
