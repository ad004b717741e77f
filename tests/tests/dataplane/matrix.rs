//! Every way to a service, for every shape of a node's network: who answers, as whom the backend
//! sees the client, and whether what is large comes whole.
//!
//! A shape is one cluster, with the strictest reverse path filter; its cells are asked side by
//! side, and a failure names all that are wrong.

use crate::scene::{PORTS, SILENCE, Scene, node_port, of_family, ready, serve, vip};
use anyhow::Result;
use futures::future::join_all;
use lab::{Addrs, Ask, Cni, FailureKind, LabConfig, Machine, Pod, RpFilter, Transport, Uplink};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The services: number, whether the backend is on the node that is asked, and the policy of both
/// kinds.
const SERVICES: [(u8, bool, &str); 4] =
    [(1, true, "Cluster"), (2, false, "Cluster"), (3, true, "Local"), (4, false, "Local")];
/// The service whose backend is the client itself.
const ITSELF: u8 = 5;

/// The most that a datagram takes whose sender has yet to learn of a narrow tunnel.
const SOON: Duration = Duration::from_millis(500);

/// One question, and what is to come of it.
struct Cell<'a> {
    what: String,
    from: &'a Machine,
    ask: Ask,
    /// Who answers, and what it sees the client as; nobody if there is none.
    answer: Option<(&'a Machine, Addrs)>,
}

/// A shape of the nodes' network.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    cni: Cni,
    uplink: Uplink,
    /// The node's own devices that the packet path is on.
    devices: &'static str,
    /// As whom the first node speaks to a pod elsewhere, where it puts itself between.
    afar: Addrs,
    /// The same, to a pod of its own.
    at_home: Addrs,
}

impl Shape {
    pub(crate) const ROUTED: Self = Self {
        cni: Cni::Routed,
        uplink: Uplink::Plain,
        devices: "auto",
        afar: NODE,
        at_home: GATEWAY,
    };
    pub(crate) const CALICO: Self = Self { cni: Cni::Calico, at_home: NODE, ..Self::ROUTED };
    pub(crate) const BRIDGE: Self = Self { cni: Cni::Bridge, ..Self::ROUTED };
    /// The end of the tunnel is the address whose answers come back by it.
    pub(crate) const VXLAN: Self = Self { cni: Cni::Vxlan, afar: TUNNEL, ..Self::ROUTED };
    const MACVLAN: Self = Self { uplink: Uplink::Macvlan, ..Self::ROUTED };
    /// The parent sees the VLAN's packets too, and must leave them alone.
    const VLAN: Self = Self { uplink: Uplink::Vlan, devices: "eth0,eth0.18", ..Self::ROUTED };
}

/// Scenarios 17, 19, 20, 26 and 51 to 53; S3.
#[tokio::test]
async fn every_way_to_a_service_with_routed_pods() -> Result<()> {
    check(&prepare(Shape::ROUTED).await?).await
}

#[tokio::test]
async fn every_way_to_a_service_with_a_link_local_gateway() -> Result<()> {
    check(&prepare(Shape::CALICO).await?).await
}

/// Scenarios 17, 19, 20 and 26.
#[tokio::test]
async fn every_way_to_a_service_with_bridged_pods() -> Result<()> {
    check(&prepare(Shape::BRIDGE).await?).await
}

#[tokio::test]
async fn every_way_to_a_service_over_a_tunnel() -> Result<()> {
    check(&prepare(Shape::VXLAN).await?).await
}

#[tokio::test]
async fn every_way_to_a_service_over_a_macvlan() -> Result<()> {
    check(&prepare(Shape::MACVLAN).await?).await
}

#[tokio::test]
async fn every_way_to_a_service_over_a_vlan_and_its_parent() -> Result<()> {
    match prepare(Shape::VLAN).await {
        Err(error) if error.root_cause().to_string().contains("(os error 95)") => {
            println!("skipped: this kernel has no VLANs (CONFIG_VLAN_8021Q): {error:#}");
            Ok(())
        }
        prepared => check(&prepared?).await,
    }
}

const NODE: Addrs = addrs([172, 18, 0, 11], [0xfd00, 0x18, 0, 0, 0, 0, 0, 11]);
const GATEWAY: Addrs = addrs([10, 244, 1, 1], [0xfd00, 0x244, 1, 0, 0, 0, 0, 1]);
const TUNNEL: Addrs = addrs([10, 244, 1, 0], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0]);

const fn addrs(v4: [u8; 4], v6: [u16; 8]) -> Addrs {
    let [a, b, c, d] = v4;
    let [s, t, u, v, w, x, y, z] = v6;
    Addrs { v4: Ipv4Addr::new(a, b, c, d), v6: std::net::Ipv6Addr::new(s, t, u, v, w, x, y, z) }
}

/// A cluster in which every way is open.
pub(crate) struct Ways {
    pub(crate) scene: Scene,
    shape: Shape,
    /// A pod like the scene's client, but the socket path does not see it.
    pub(crate) aside: Pod,
    pub(crate) outsider: Machine,
}

/// Starts a cluster of that shape.
pub(crate) async fn prepare(shape: Shape) -> Result<Ways> {
    let Shape { cni, uplink, devices, .. } = shape;
    let rp_filter = RpFilter::Strict;
    let config = LabConfig { cni, rp_filter, uplink, ..LabConfig::default() };
    let mut scene = Scene::prepare(config).await?;
    let lab = &scene.cluster.lab;
    let aside = lab.add_pod(lab.node(0), "aside").await?;
    serve(&aside).await?;
    for (number, here, policy) in SERVICES {
        let spec = json!({ "internalTrafficPolicy": policy, "externalTrafficPolicy": policy });
        scene.publish_with(number, spec, &[(&scene.web[usize::from(!here)], ready())])?;
    }
    scene.publish(ITSELF, &[&aside])?;
    // To the first agent the cluster's only socket is the client's.
    let socket_path = scene.client.cgroup().display().to_string();
    let starting = scene.cluster.start_agents(|node, options| {
        let options = options.flag("--devices", devices);
        match node.name() {
            "node-1" => options.flag("--cgroup-root", &socket_path),
            _ => options,
        }
    });
    starting.await?;
    let outsider = scene.routed_outsider().await?;
    Ok(Ways { scene, shape, aside, outsider })
}

/// Tries every way, all at once.
pub(crate) async fn check(ways: &Ways) -> Result<()> {
    let cells = cells(ways);
    let retries = if ways.shape.cni == Cni::Vxlan { 3 } else { 0 };
    let wrong = join_all(cells.iter().map(|cell| cell.check(retries))).await;
    let wrong: Vec<_> = wrong.into_iter().filter_map(Result::err).collect();
    let (count, all, list) = (wrong.len(), cells.len(), wrong.join("\n"));
    assert!(wrong.is_empty(), "{:?}: {count} of {all} are wrong:\n{list}", ways.shape.cni);
    // The ways are the ones that they are said to be.
    assert!(ways.scene.outcome("connect", "chosen").await? > 0);
    assert!(ways.scene.outcome("ingress", "chosen").await? > 0);
    Ok(())
}

fn cells(ways: &Ways) -> Vec<Cell<'_>> {
    let Ways { scene, shape, aside, outsider } = ways;
    let mut cells = Vec::new();
    let at_node = |number| scene.cluster.lab.node(0).addrs().at(node_port(number));
    for (number, here, policy) in SERVICES {
        let web: &Machine = &scene.web[usize::from(!here)];
        let place = if here { "here" } else { "elsewhere" };
        let mut add = |way: &str, from, to: [SocketAddr; 2], seen: Option<Addrs>| {
            for (ask, kind) in asks(to) {
                let what = format!("{way} → {place}, {policy}, {kind}");
                cells.push(Cell { what, from, ask, answer: seen.map(|seen| (web, seen)) });
            }
        };
        let served = here || policy == "Cluster";
        let client: &Machine = &scene.client;
        let pod = |pod: &Machine| served.then(|| pod.addrs());
        let outside = if here { outsider.addrs() } else { shape.afar };
        add("ClusterIP, socket path", client, vip(number), pod(client));
        add("ClusterIP, packet path", aside, vip(number), pod(aside));
        add("ClusterIP, outsider", outsider, vip(number), served.then_some(outside));
        // A pod gets all endpoints, whatever the external policy.
        add("NodePort, socket path", client, at_node(number), Some(client.addrs()));
        add("NodePort, packet path", aside, at_node(number), Some(aside.addrs()));
        add("NodePort, outsider", outsider, at_node(number), served.then_some(outside));
    }
    for to in [vip(ITSELF), at_node(ITSELF)] {
        for (ask, kind) in asks(to) {
            let what = format!("itself, packet path, {kind}");
            cells.push(Cell { what, from: aside, ask, answer: Some((aside, shape.at_home)) });
        }
    }
    cells
}

/// Both protocols over both families, with a name each.
fn asks(to: [SocketAddr; 2]) -> impl Iterator<Item = (Ask, String)> {
    let protocols = |to| PORTS.map(|port| (port.protocol, to));
    to.into_iter().flat_map(protocols).map(|(protocol, to)| {
        let ask = if protocol == "TCP" { Ask::tcp(to) } else { Ask::udp(to) };
        (ask, format!("{protocol} {to}"))
    })
}

impl Cell<'_> {
    async fn check(&self, retries: usize) -> Result<(), String> {
        let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", self.what);
        let Some((backend, seen)) = &self.answer else {
            let reply = self.from.ask(self.ask.clone().timeout(SILENCE)).await;
            return match reply {
                Err(failure) if failure.kind == FailureKind::TimedOut => Ok(()),
                other => Err(wrong(&format!("not silent, but {other:?}"))),
            };
        };
        for _ in 0..3 {
            let reply = self.from.ask(self.ask.clone()).await.map_err(|e| wrong(&e))?;
            let found = (reply.name.as_str(), reply.client.ip(), reply.peer.to_string());
            let expected = (backend.name(), of_family(&self.ask, *seen), self.ask.to.clone());
            if found != expected {
                return Err(wrong(&format!("{found:?} instead of {expected:?}")));
            }
        }
        let large = match self.ask.transport {
            Transport::Tcp => self.ask.clone().payload(300_000),
            _ => self.ask.clone().payload(8_000),
        };
        for _ in 0..retries {
            // IPv6 never cuts a datagram on its way: the first is lost, and its sender is told.
            if self.from.ask(large.clone().timeout(SOON)).await.is_ok() {
                break;
            }
        }
        let whole = self.from.ask(large).await;
        whole.map(drop).map_err(|failure| wrong(&format!("large: {failure}")))
    }
}
