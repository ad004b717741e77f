//! Clients: who stays with a backend, and who is let in at all.

use crate::scene::{
    PORTS, Path, SILENCE, Scene, answer, node_port, reaches, ready, silent, sockets, vip,
};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use lab::cluster::eventually;
use lab::{Ask, Cni, Machine, Socket, objects};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;

fn sticky() -> Value {
    json!({
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10_800 } },
    })
}

/// The one who answers all of `asks`, each asked several times.
async fn only(fact: &str, from: &Machine, asks: &[Ask]) -> Result<String> {
    let mut names = BTreeSet::new();
    for ask in asks {
        for _ in 0..5 {
            names.insert(answer(fact, from, ask).await?.name);
        }
    }
    assert_eq!(names.len(), 1, "{fact}: {}: {names:?}", from.name());
    names.pop_first().context("an answer")
}

/// Scenarios 84, 87, 88, 90 and 91.
#[tokio::test]
async fn a_client_stays_with_its_backend() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        let [web_0, web_1] = &scene.web;
        scene.publish_with(1, sticky(), &[(web_0, ready()), (web_1, ready())])?;
        scene.start(path).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        let at_node = node.addrs().at(node_port(1));

        // Each family and protocol is a service port of its own, shared by its frontends.
        let mut chosen = Vec::new();
        for from in [&*scene.client, node, &outsider].map(Machine::clone) {
            for (vip, node) in vip(1).into_iter().zip(at_node) {
                let tcp = [Ask::tcp(vip), Ask::tcp(node), Ask::tcp(vip)];
                let udp = [Ask::udp(vip), Ask::udp_unconnected(node), Ask::udp_unconnected(vip)];
                for asks in [tcp, udp] {
                    let name = only(&format!("{path:?}"), &from, &asks).await?;
                    chosen.push((from.clone(), asks, name));
                }
            }
        }

        scene.restart(path).await?;
        for (from, asks, name) in &chosen {
            let fact = format!("{path:?}: {} after a restart", from.name());
            assert_eq!(only(&fact, from, asks).await?, *name, "{fact}");
        }

        // Another pod makes choices of its own, one for each port: of many, not all are the same.
        let (mut names, mut differ) = (BTreeSet::new(), false);
        for number in 0..20 {
            let lab = &scene.cluster.lab;
            let pod = lab.add_pod(lab.node(0), &format!("client-{number}")).await?;
            let asks = [Ask::tcp(vip(1)[0]), Ask::udp(vip(1)[0])];
            // The packet path has to find the pod's device first; UDP always goes by it.
            for ask in asks.clone().map(|ask| ask.timeout(SILENCE)) {
                let served = async || answer("another pod", &pod, &ask).await;
                let _ = eventually("another pod is served", served, Result::is_ok).await??;
            }
            let tcp = only("another pod", &pod, &asks[..1]).await?;
            differ |= tcp != only("another port", &pod, &asks[1..]).await?;
            names.insert(tcp);
            if names.len() == 2 && differ {
                break;
            }
        }
        assert_eq!(names.len(), 2, "{path:?}: pods are independent");
        assert!(differ, "{path:?}: and so are ports");
    }
    Ok(())
}

/// Scenario 89.
#[tokio::test]
async fn a_client_whose_backend_goes_finds_another_and_stays_there() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        let [web_0, web_1] = &scene.web;
        scene.publish_with(1, sticky(), &[(web_0, ready()), (web_1, ready())])?;
        scene.start(path).await?;
        let Scene { client, web, .. } = &scene;
        let asks = sockets(vip(1));
        for ask in &asks {
            let first = only("both", client, std::slice::from_ref(ask)).await?;
            let (went, left) =
                if first == "web-0" { (&web[0], &web[1]) } else { (&web[1], &web[0]) };
            scene.publish_with(1, sticky(), &[(left, ready())])?;
            scene.wait_endpoints(1, 1).await?;
            let second = only("one went", client, std::slice::from_ref(ask)).await?;
            assert_eq!(second, left.name(), "{path:?}");
            scene.publish_with(1, sticky(), &[(left, ready()), (went, ready())])?;
            scene.wait_endpoints(1, 2).await?;
            let third = only("it is back", client, std::slice::from_ref(ask)).await?;
            assert_eq!(third, second, "{path:?}");
        }
    }
    Ok(())
}

/// Applies a load balancer's Service at 192.0.2.1 and its like, open to `ranges`.
fn balance(scene: &Scene, ranges: &[String]) -> Result<[SocketAddr; 2]> {
    let vips = ["192.0.2.1", "fd00:192::1"];
    let cluster_ips = vip(1).map(|vip| vip.ip().to_string());
    let mut service = objects::service("svc-1", &[&cluster_ips[0], &cluster_ips[1]], &PORTS);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
    for index in 0..PORTS.len() {
        service["spec"]["ports"][index]["nodePort"] = json!(node_port(1));
    }
    service["status"] =
        json!({ "loadBalancer": { "ingress": vips.map(|ip| json!({ "ip": ip })) } });
    scene.cluster.publish(&service, &PORTS, &[&scene.web[1]])?;
    Ok([SocketAddr::new(vips[0].parse()?, 80), SocketAddr::new(vips[1].parse()?, 80)])
}

fn host(machine: &Machine) -> [String; 2] {
    [format!("{}/32", machine.ipv4()), format!("{}/128", machine.ipv6())]
}

/// Scenarios 68 to 70 and 74.
#[tokio::test]
async fn source_ranges_hold_for_the_balancers_addresses_and_nothing_else() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        outsider.route("192.0.2.0/24", node.ipv4()).await?;
        outsider.route("fd00:192::/64", node.ipv6()).await?;
        let to = balance(&scene, &[host(&outsider), host(node)].concat())?;
        scene.start(path).await?;
        let Scene { cluster, client, web: [_, web_1] } = &scene;
        let node = cluster.lab.node(0);

        let outsider_at = [(&**web_1, node.addrs())];
        reaches("in a range", &outsider, sockets(to), &outsider_at).await?;
        silent("a pod in no range", client, sockets(to)).await?;
        assert!(scene.outcome("ingress", "source_not_allowed").await? > 0, "{path:?}");
        let own = [(&**web_1, client.addrs())];
        reaches("the ClusterIP", client, sockets(vip(1)), &own).await?;
        let at_node = node.addrs().at(node_port(1));
        reaches("the NodePort", client, sockets(at_node), &own).await?;
        if path == Path::Socket {
            reaches("the node", node, sockets(to), &[(web_1, node.addrs())]).await?;
        }

        // Tightened: what is established goes on, and the pod is let in.
        let asks = to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]);
        let open = try_join_all(asks.map(|ask| outsider.open(ask))).await?;
        try_join_all(open.iter().map(Socket::ask)).await?;
        balance(&scene, &host(client))?;
        let asked = async || client.ask(Ask::tcp(to[0])).await;
        let _ = eventually("the pod is let in", asked, Result::is_ok).await??;
        let asked = async || outsider.ask(Ask::tcp(to[0])).await;
        let _ = eventually("the outsider is not", asked, Result::is_err).await?;
        try_join_all(open.iter().map(Socket::ask)).await?;
        silent("in no range any more", &outsider, sockets(to)).await?;
        reaches("a pod in a range", client, sockets(to), &own).await?;
    }
    Ok(())
}
