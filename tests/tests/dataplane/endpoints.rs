//! Endpoints: which of them are used, by their conditions, and what happens without any.

use crate::scene::{
    Path, Scene, answer, mapped_sockets, node_port, reaches, ready, refused, silent, sockets,
    unready, vip,
};
use anyhow::Result;
use futures::future::try_join_all;
use lab::cluster::eventually;
use lab::objects::terminating;
use lab::{Ask, Cni, Serve};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long a packet that is dropped is waited for.
const SOON: Duration = Duration::from_millis(50);

/// Scenario 23.
#[tokio::test]
async fn a_service_without_a_usable_endpoint_is_refused_at_once() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let [web_0, web_1] = &scene.web;
    let facts = [
        (1, "no endpoint at all", vec![]),
        (2, "only unready ones", vec![(web_0, unready()), (web_1, unready())]),
        (3, "only one that terminates and does not serve", vec![(web_0, terminating(false))]),
    ];
    let numbers = facts.map(|(number, fact, endpoints)| {
        scene.publish_with(number, json!({}), &endpoints).map(|()| (number, fact))
    });
    scene.start(Path::Socket).await?;
    let node = scene.cluster.lab.node(0);
    for published in numbers {
        let (number, fact) = published?;
        refused(fact, &scene.client, sockets(vip(number))).await;
        refused(fact, &scene.client, mapped_sockets(vip(number))).await;
        refused(fact, &scene.client, sockets(node.addrs().at(node_port(number)))).await;
        refused(fact, node, sockets(vip(number))).await;
    }
    Ok(())
}

/// Scenario 24.
#[tokio::test]
async fn a_port_that_a_cluster_ip_does_not_have_is_refused_at_once() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        scene.publish(1, &[&scene.web[0]])?;
        scene.start(path).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        // A port like any other, and one that could be a NodePort's.
        for port in [81, node_port(1)] {
            let to = vip(1).map(|vip| SocketAddr::new(vip.ip(), port));
            if path == Path::Socket {
                refused("a socket", &scene.client, sockets(to)).await;
                refused("a socket", &scene.client, mapped_sockets(to)).await;
                refused("a process of the node", node, sockets(to)).await;
            }
            for ask in to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]) {
                for from in [&*scene.client, &outsider] {
                    let failure = from.ask(ask.clone()).await.expect_err("no such port");
                    assert!(failure.refused_at_once(), "{path:?} {}: {failure}", from.name());
                }
            }
        }
        let program = if path == Path::Socket { "connect" } else { "ingress" };
        assert!(scene.outcome(program, "no_port").await? >= 4, "{path:?}");
        answer("the port that it has", &scene.client, &Ask::tcp(vip(1)[0])).await?;
    }
    Ok(())
}

/// Scenario 25.
#[tokio::test]
async fn an_address_that_no_service_has_is_silent() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        scene.publish(1, &[&scene.web[0]])?;
        scene.cluster.api.apply(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": ["10.96.0.0/16", "fd00:96::/64"] },
        }))?;
        scene.start(path).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        // The node sends what it has no better route for to a stranger.
        node.route("10.96.0.0/16", outsider.ipv4()).await?;
        node.route("fd00:96::/64", outsider.ipv6()).await?;
        // The ranges come when they come; nothing waits for them.
        let to = vip(9)[0];
        let dropped = async || {
            let _silent = scene.client.ask(Ask::udp(to).timeout(SOON)).await;
            scene.outcome("ingress", "unallocated").await
        };
        eventually("the ranges", dropped, |count| count.as_ref().is_ok_and(|n| *n > 0)).await??;
        for from in [&*scene.client, &outsider] {
            silent(&format!("{path:?}"), from, sockets(vip(9))).await?;
        }
        // What the node itself sends by UDP ends at its own rules, and says so at once.
        silent(&format!("{path:?}"), node, vip(9).map(Ask::tcp).into()).await?;
        answer("a service", &scene.client, &Ask::tcp(vip(1)[0])).await?;
    }
    Ok(())
}

/// Scenarios 30, 31 and 35.
#[tokio::test]
async fn ready_endpoints_come_first_and_terminating_ones_that_serve_second() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let [web_0, web_1] = &scene.web;
    let facts = [
        (1, "an unready one is left out", [unready(), ready()], "web-1"),
        (2, "a terminating one is left out", [ready(), terminating(true)], "web-0"),
        (3, "a terminating one serves as the last", [unready(), terminating(true)], "web-1"),
    ];
    for (number, _, [one, two], _) in facts.clone() {
        scene.publish_with(number, json!({}), &[(web_0, one), (web_1, two)])?;
    }
    scene.start(Path::Socket).await?;
    let Scene { client, web, .. } = &scene;
    for (number, fact, _, expected) in facts {
        let used = web.iter().find(|pod| pod.name() == expected).expect("one of the two");
        // A single backend: asked as often as if there were two.
        for _ in 0..6 {
            reaches(fact, client, sockets(vip(number)), &[(used, client.addrs())]).await?;
        }
    }
    Ok(())
}

/// Scenario 22.
#[tokio::test]
async fn a_backend_may_be_a_process_of_a_node() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        let node = scene.cluster.lab.node(0);
        node.serve(Serve::tcp(8080)).await?;
        for addr in node.addrs().at(0) {
            node.serve(Serve::udp(8080).on(addr.ip())).await?;
        }
        scene.publish(1, &[&scene.web[0]])?;
        for slice in scene.cluster.api.objects("endpointslices") {
            let addr: IpAddr = match slice["addressType"].as_str() {
                Some("IPv4") => node.ipv4().into(),
                _ => node.ipv6().into(),
            };
            let mut slice = slice;
            slice["endpoints"][0]["addresses"] = json!([addr]);
            scene.cluster.api.apply(&slice)?;
        }
        scene.start(path).await?;
        let outsider = scene.cluster.lab.add_client("outsider").await?;
        let Scene { cluster, client, web } = &scene;
        let [node, other] = [cluster.lab.node(0), cluster.lab.node(1)];
        for (fact, from, to, seen) in [
            ("a pod of the node", &**client, vip(1), client.addrs()),
            ("a pod elsewhere", &web[1], vip(1), web[1].addrs()),
            ("the node itself", node, vip(1), node.addrs()),
            ("an outsider", &outsider, node.addrs().at(node_port(1)), outsider.addrs()),
            ("an outsider, by the other", &outsider, other.addrs().at(node_port(1)), other.addrs()),
        ] {
            let fact = format!("{path:?}: {fact}");
            reaches(&fact, from, sockets(to), &[(node, seen)]).await?;
        }
    }
    Ok(())
}

/// Scenarios 93 and 95.
#[tokio::test]
async fn udp_begins_with_the_first_endpoint_and_ends_with_the_last() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        scene.publish(1, &[])?;
        scene.start(path).await?;
        let opening = vip(1).map(|to| {
            scene.client.open(Ask::udp_unconnected(to).timeout(Duration::from_millis(100)))
        });
        let open = try_join_all(opening).await?;
        for socket in &open {
            socket.ask().await.expect_err("no endpoint yet");
        }
        scene.publish(1, &[&scene.web[1]])?;
        for socket in &open {
            let served = eventually("served", async || socket.ask().await, Result::is_ok).await??;
            assert_eq!(served.name, "web-1", "{path:?}");
        }
        scene.publish(1, &[])?;
        for socket in &open {
            let gone = async || socket.ask().await;
            let _gone = eventually("no endpoint any more", gone, Result::is_err).await?;
        }
    }
    Ok(())
}

/// Scenario 23.
#[tokio::test]
async fn the_packet_path_refuses_as_soon_as_the_socket_path() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    let at_node = scene.cluster.lab.node(0).addrs().at(node_port(1));
    for (from, to) in [(&*scene.client, vip(1)), (&outsider, vip(1)), (&outsider, at_node)] {
        for to in to {
            // The kernel tells an unconnected socket of no ICMP message.
            for ask in [Ask::tcp(to), Ask::udp(to)] {
                let what = format!("{} → {to} {:?}", from.name(), ask.transport);
                let failure = from.ask(ask).await.expect_err(&what);
                assert!(failure.refused_at_once(), "{what}: {failure}");
            }
        }
    }
    Ok(())
}
