//! What the tests share: two nodes, a client and two servers, services by number, every kind of
//! socket, and the three ways an attempt can end: answered, refused, silent.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use lab::cluster::{Cluster, eventually};
use lab::objects::{self, Port};
use lab::{
    Addrs, Ask, Cni, Failure, FailureKind, LabConfig, Machine, Pod, Reply, RpFilter, Serve,
    Transport,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The ports of every service: TCP and UDP of one number.
pub(crate) const PORTS: [Port<'static>; 2] = [
    Port { name: "web", protocol: "TCP", port: 80, target: 8080 },
    Port { name: "web-udp", protocol: "UDP", port: 80, target: 8080 },
];

/// How often a service is asked to see all that it does: one of two backends is missed once in
/// 10⁹ times.
const TIMES: usize = 30;

/// How long silence must last to be told from a refusal; a dropped SYN is sent again after 1 s.
pub(crate) const SILENCE: Duration = Duration::from_millis(250);

/// Which path serves the pods' sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// The hooks of the cgroup.
    Socket,
    /// tcx on their devices: the agent is told a cgroup that has only the node's own processes.
    Packet,
}

/// A cluster of two nodes, and three pods.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    /// On the first node; it asks.
    pub(crate) client: Pod,
    /// `web-0` on the first node and `web-1` on the second; they answer at port 8080.
    pub(crate) web: [Pod; 2],
}

impl Scene {
    /// Starts everything but the agents: what is published before they start is served once they
    /// have.
    pub(crate) async fn prepare(config: LabConfig) -> Result<Self> {
        let cluster = Cluster::without_agents(config).await?;
        let lab = &cluster.lab;
        let (one, two) = (lab.node(0), lab.node(1));
        let (client, web_0, web_1) = futures::try_join!(
            lab.add_pod(one, "client"),
            lab.add_pod(one, "web-0"),
            lab.add_pod(two, "web-1")
        )?;
        let scene = Self { cluster, client, web: [web_0, web_1] };
        for pod in &scene.web {
            serve(pod).await?;
        }
        Ok(scene)
    }

    /// With routed pods, for the socket path.
    pub(crate) async fn routed() -> Result<Self> {
        Self::prepare(LabConfig::default()).await
    }

    /// With pods connected by `cni` and the strictest reverse path filter, for the packet path.
    pub(crate) async fn strict(cni: Cni) -> Result<Self> {
        Self::prepare(LabConfig { cni, rp_filter: RpFilter::Strict, ..LabConfig::default() }).await
    }

    /// Starts the agents.
    pub(crate) async fn start(&mut self, path: Path) -> Result<()> {
        self.start_with(path, &[]).await
    }

    /// Kills the agents and starts others.
    pub(crate) async fn restart(&mut self, path: Path) -> Result<()> {
        for index in 0..self.cluster.lab.nodes().len() {
            self.cluster.kill_agent(index).await?;
        }
        self.start(path).await
    }

    /// Starts the agents with more flags.
    pub(crate) async fn start_with(&mut self, path: Path, flags: &[(&str, &str)]) -> Result<()> {
        let starting = self.cluster.start_agents(|node, options| {
            let options = match path {
                Path::Socket => options,
                Path::Packet => options.flag("--cgroup-root", &node.cgroup().display().to_string()),
            };
            flags.iter().fold(options, |options, (flag, value)| options.flag(flag, value))
        });
        starting.await
    }

    /// Publishes the service `number` with ready endpoints at `pods`.
    pub(crate) fn publish(&self, number: u8, pods: &[&Pod]) -> Result<()> {
        let pods: Vec<_> = pods.iter().map(|pod| (*pod, ready())).collect();
        self.publish_with(number, json!({}), &pods)
    }

    /// Publishes the service `number`, with more fields of its `spec`, and endpoints in the given
    /// conditions.
    pub(crate) fn publish_with(
        &self,
        number: u8,
        spec: Value,
        endpoints: &[(&Pod, Value)],
    ) -> Result<()> {
        let mut service = service(number);
        for (field, value) in spec.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        self.cluster.api.apply(&service)?;
        slices(number, endpoints).iter().try_for_each(|slice| self.cluster.api.apply(slice))
    }

    /// Waits until each port of the service `number` has so many endpoints on the first node.
    pub(crate) async fn wait_endpoints(&self, number: u8, count: usize) -> Result<()> {
        let name = format!("svc-{number}");
        let rows = async || self.cluster.shunt(0, &["services", &name]).await;
        let all = |rows: &Result<Value>| {
            let rows = rows.as_ref().ok().and_then(Value::as_array);
            rows.is_some_and(|rows| rows.iter().all(|row| row["cluster"] == count))
        };
        eventually("the endpoints", rows, all).await?.map(drop)
    }

    /// A client outside the cluster that reaches ClusterIPs by the first node.
    pub(crate) async fn routed_outsider(&self) -> Result<Machine> {
        let outsider = self.cluster.lab.add_client("outsider").await?;
        let node = self.cluster.lab.node(0);
        outsider.route("10.96.0.0/16", node.ipv4()).await?;
        outsider.route("fd00:96::/64", node.ipv6()).await?;
        Ok(outsider)
    }

    /// The counters of the service `number` on the first node, summed over its ports and
    /// families.
    pub(crate) async fn counter(&self, number: u8, counter: &str) -> Result<u64> {
        let rows = self.cluster.shunt(0, &["services", &format!("svc-{number}")]).await?;
        let rows = rows.as_array().context("rows")?;
        Ok(rows.iter().filter_map(|row| row[counter].as_u64()).sum())
    }

    /// How often `program` ended with `outcome` on the first node.
    pub(crate) async fn outcome(&self, program: &str, outcome: &str) -> Result<u64> {
        let status = self.cluster.shunt(0, &["status"]).await?;
        let rows = status["outcomes"].as_array().context("outcomes")?;
        let row = rows.iter().find(|row| row["program"] == program && row["outcome"] == outcome);
        Ok(row.and_then(|row| row["count"].as_u64()).unwrap_or(0))
    }
}

/// Has `machine` answer at port 8080, over both families and protocols.
pub(crate) async fn serve(machine: &Machine) -> Result<()> {
    machine.serve(Serve::tcp(8080)).await?;
    machine.serve(Serve::udp(8080)).await?;
    Ok(())
}

/// The Service `number`, which has NodePorts too.
pub(crate) fn service(number: u8) -> Value {
    let ips = vip(number).map(|vip| vip.ip().to_string());
    let mut service = objects::service(&format!("svc-{number}"), &[&ips[0], &ips[1]], &PORTS);
    service["spec"]["type"] = json!("NodePort");
    for index in 0..PORTS.len() {
        service["spec"]["ports"][index]["nodePort"] = json!(node_port(number));
    }
    service
}

/// The slices of the service `number`, one of each family, with endpoints in the given conditions.
pub(crate) fn slices(number: u8, endpoints: &[(&Pod, Value)]) -> [Value; 2] {
    let pods: Vec<_> = endpoints.iter().map(|(pod, _)| *pod).collect();
    objects::slices(&format!("svc-{number}"), &PORTS, &pods).map(|mut slice| {
        for (index, (_, conditions)) in endpoints.iter().enumerate() {
            slice["endpoints"][index]["conditions"] = conditions.clone();
        }
        slice
    })
}

/// The ClusterIPs of the service `number`, and its port.
pub(crate) fn vip(number: u8) -> [SocketAddr; 2] {
    [
        SocketAddr::from(([10, 96, 0, number], 80)),
        SocketAddr::from(([0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()], 80)),
    ]
}

/// The NodePort of the service `number`, the same for TCP and UDP.
pub(crate) fn node_port(number: u8) -> u16 {
    31_000 + u16::from(number)
}

/// The conditions of an endpoint that is ready.
pub(crate) fn ready() -> Value {
    json!({ "ready": true, "serving": true, "terminating": false })
}

/// The conditions of an endpoint that fails its readiness probe.
pub(crate) fn unready() -> Value {
    json!({ "ready": false, "serving": false, "terminating": false })
}

/// Every kind of socket, for both families.
pub(crate) fn sockets(to: [SocketAddr; 2]) -> Vec<Ask> {
    to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to), Ask::udp_unconnected(to)]).collect()
}

/// Every kind of IPv6 socket, asking for the IPv4-mapped form of `to`.
pub(crate) fn mapped_sockets([to, _]: [SocketAddr; 2]) -> Vec<Ask> {
    let to = format!("[::ffff:{}]:{}", to.ip(), to.port());
    vec![Ask::tcp(&to), Ask::udp(&to), Ask::udp_unconnected(&to)]
}

/// The address of the family that `ask` goes by.
pub(crate) fn of_family(ask: &Ask, addrs: Addrs) -> IpAddr {
    let to: SocketAddr = ask.to.parse().expect("tests write it as ADDRESS:PORT");
    let is_v4 = to.ip().to_canonical().is_ipv4();
    if is_v4 { addrs.v4.into() } else { addrs.v6.into() }
}

/// Asks once; the one who answers must seem to be the one who was asked.
pub(crate) async fn answer(fact: &str, from: &Machine, ask: &Ask) -> Result<Reply> {
    let reply = from.ask(ask.clone()).await;
    let reply = reply.with_context(|| format!("{fact}: {}", describe(from, ask)))?;
    assert_eq!(reply.peer.to_string(), ask.to, "{fact}: the peer of {}", describe(from, ask));
    Ok(reply)
}

/// `from` reaches all of `backends` and no others, by each of `asks`; each backend sees the client
/// at the address that is given with it.
pub(crate) async fn reaches(
    fact: &str,
    from: &Machine,
    asks: Vec<Ask>,
    backends: &[(&Machine, Addrs)],
) -> Result<()> {
    for ask in asks {
        let mut seen = BTreeSet::new();
        let times = if backends.len() > 1 { TIMES } else { 3 };
        for _ in 0..times {
            let reply = answer(fact, from, &ask).await?;
            seen.insert((reply.name, reply.client.ip()));
        }
        let expected = backends
            .iter()
            .map(|(backend, addrs)| (backend.name().to_owned(), of_family(&ask, *addrs)));
        assert_eq!(seen, expected.collect(), "{fact}: {}", describe(from, &ask));
    }
    Ok(())
}

/// Each of `asks` is refused at once, if its sender can hear of it: the kernel tells an
/// unconnected UDP socket of no ICMP message.
pub(crate) async fn refused(fact: &str, from: &Machine, asks: Vec<Ask>) {
    for ask in hearing(asks) {
        let what = format!("{fact}: {}", describe(from, &ask));
        let failure = from.ask(ask.clone()).await.expect_err(&what);
        assert!(is_refused(from, &ask, &failure), "{what}: {failure}");
    }
}

/// Those of `asks` whose socket hears of a refusal.
pub(crate) fn hearing(mut asks: Vec<Ask>) -> Vec<Ask> {
    asks.retain(|ask| ask.transport != Transport::UdpUnconnected);
    asks
}

/// Whether `from` was refused at once. The node's own datagrams end at its own rules, which
/// send(2) says with EPERM, as it does with kube-proxy.
pub(crate) fn is_refused(from: &Machine, ask: &Ask, failure: &Failure) -> bool {
    failure.refused_at_once() || is_unsent(from, ask, failure)
}

/// Whether nobody answered `from`, and nobody refused it.
pub(crate) fn is_silent(from: &Machine, ask: &Ask, failure: &Failure) -> bool {
    failure.kind == FailureKind::TimedOut || is_unsent(from, ask, failure)
}

fn is_unsent(from: &Machine, ask: &Ask, failure: &Failure) -> bool {
    let is_own_datagram = from.name().starts_with("node-") && ask.transport != Transport::Tcp;
    is_own_datagram && failure.kind == FailureKind::NotPermitted
}

/// None of `asks` is answered, or refused.
pub(crate) async fn silent(fact: &str, from: &Machine, asks: Vec<Ask>) -> Result<()> {
    let asking = asks.into_iter().map(|ask| async move {
        let what = format!("{fact}: {}", describe(from, &ask));
        let asked = ask.clone().timeout(SILENCE);
        let failure = from.ask(asked).await.err().context(what.clone())?;
        assert!(is_silent(from, &ask, &failure), "{what}: {failure}");
        anyhow::Ok(())
    });
    try_join_all(asking).await.map(drop)
}

fn describe(from: &Machine, ask: &Ask) -> String {
    format!("{} → {} {:?}", from.name(), ask.to, ask.transport)
}
