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

/// As whom a node speaks.
#[derive(Clone, Copy)]
struct Seen {
    /// To a pod elsewhere.
    afar: Addrs,
    /// To a pod of its own.
    at_home: Addrs,
}

#[tokio::test]
async fn every_way_to_a_service_with_routed_pods() -> Result<()> {
    check(Cni::Routed, Uplink::Plain, "auto", Seen { afar: NODE, at_home: GATEWAY }).await
}

#[tokio::test]
async fn every_way_to_a_service_with_a_link_local_gateway() -> Result<()> {
    check(Cni::Calico, Uplink::Plain, "auto", Seen { afar: NODE, at_home: NODE }).await
}

#[tokio::test]
async fn every_way_to_a_service_with_bridged_pods() -> Result<()> {
    check(Cni::Bridge, Uplink::Plain, "auto", Seen { afar: NODE, at_home: GATEWAY }).await
}

/// The end of the tunnel is the address whose answers come back by it.
#[tokio::test]
async fn every_way_to_a_service_over_a_tunnel() -> Result<()> {
    check(Cni::Vxlan, Uplink::Plain, "auto", Seen { afar: TUNNEL, at_home: GATEWAY }).await
}

/// The parent sees the VLAN's packets too, and must leave them alone.
#[tokio::test]
async fn every_way_to_a_service_over_a_vlan_and_its_parent() -> Result<()> {
    let seen = Seen { afar: NODE, at_home: GATEWAY };
    match check(Cni::Routed, Uplink::Vlan, "eth0,eth0.18", seen).await {
        Err(error) if error.root_cause().to_string().contains("(os error 95)") => {
            println!("skipped: this kernel has no VLANs (CONFIG_VLAN_8021Q): {error:#}");
            Ok(())
        }
        checked => checked,
    }
}

#[tokio::test]
async fn every_way_to_a_service_over_a_macvlan() -> Result<()> {
    let seen = Seen { afar: NODE, at_home: GATEWAY };
    check(Cni::Routed, Uplink::Macvlan, "auto", seen).await
}

const NODE: Addrs = addrs([172, 18, 0, 11], [0xfd00, 0x18, 0, 0, 0, 0, 0, 11]);
const GATEWAY: Addrs = addrs([10, 244, 1, 1], [0xfd00, 0x244, 1, 0, 0, 0, 0, 1]);
const TUNNEL: Addrs = addrs([10, 244, 1, 0], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0]);

const fn addrs(v4: [u8; 4], v6: [u16; 8]) -> Addrs {
    let [a, b, c, d] = v4;
    let [s, t, u, v, w, x, y, z] = v6;
    Addrs { v4: Ipv4Addr::new(a, b, c, d), v6: std::net::Ipv6Addr::new(s, t, u, v, w, x, y, z) }
}

async fn check(cni: Cni, uplink: Uplink, devices: &str, seen: Seen) -> Result<()> {
    let rp_filter = RpFilter::Strict;
    let config = LabConfig { cni, rp_filter, uplink, ..LabConfig::default() };
    let mut scene = Scene::prepare(config).await?;
    let lab = &scene.cluster.lab;
    // The socket path sees one pod's cgroup only: the other client takes the packet path.
    let aside = lab.add_pod(lab.node(0), "aside").await?;
    serve(&aside).await?;
    for (number, here, policy) in SERVICES {
        let spec = json!({ "internalTrafficPolicy": policy, "externalTrafficPolicy": policy });
        scene.publish_with(number, spec, &[(&scene.web[usize::from(!here)], ready())])?;
    }
    scene.publish(ITSELF, &[&aside])?;
    let socket_path = scene.client.cgroup().display().to_string();
    let starting = scene.cluster.start_agents(|node, options| {
        let options = options.flag("--devices", devices);
        if node.name() == "node-1" { options.flag("--cgroup-root", &socket_path) } else { options }
    });
    starting.await?;
    let outsider = scene.routed_outsider().await?;
    let cells = cells(&scene, &aside, &outsider, seen);
    let retries = if cni == Cni::Vxlan { 3 } else { 0 };
    let wrong = join_all(cells.iter().map(|cell| cell.check(retries))).await;
    let wrong: Vec<_> = wrong.into_iter().filter_map(Result::err).collect();
    assert!(
        wrong.is_empty(),
        "{cni:?}: {} of {} are wrong:\n{}",
        wrong.len(),
        cells.len(),
        wrong.join("\n")
    );
    // The ways are the ones that they are said to be.
    assert!(scene.outcome("connect", "chosen").await? > 0);
    assert!(scene.outcome("ingress", "chosen").await? > 0);
    Ok(())
}

fn cells<'a>(scene: &'a Scene, aside: &'a Pod, outsider: &'a Machine, seen: Seen) -> Vec<Cell<'a>> {
    let mut cells = Vec::new();
    let at_node = |number| scene.cluster.lab.node(0).addrs().at(node_port(number));
    for (number, here, policy) in SERVICES {
        let web: &Machine = &scene.web[usize::from(!here)];
        let place = if here { "here" } else { "elsewhere" };
        let mut add = |way: &str, from: &'a Machine, to: [SocketAddr; 2], seen: Option<Addrs>| {
            for (ask, kind) in asks(to) {
                let what = format!("{way} → {place}, {policy}, {kind}");
                cells.push(Cell { what, from, ask, answer: seen.map(|seen| (web, seen)) });
            }
        };
        let served = here || policy == "Cluster";
        let client: &Machine = &scene.client;
        let pod = |pod: &Machine| served.then(|| pod.addrs());
        let outside = if here { outsider.addrs() } else { seen.afar };
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
            cells.push(Cell { what, from: aside, ask, answer: Some((aside, seen.at_home)) });
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
