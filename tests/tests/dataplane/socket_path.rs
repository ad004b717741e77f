//! The socket path: a TCP socket is translated as it connects; its datagrams go by packets.

use crate::everyone::only;
use crate::scene::{Path, Scene, answer, mapped_sockets, node_port, reaches, serve, sockets, vip};
use anyhow::Result;
use futures::future::try_join_all;
use lab::cluster::eventually;
use lab::objects::{self, Port};
use lab::{Addrs, Ask, Load, Serve, Transport};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The first node's addresses on the devices of its pods.
const GATEWAY: Addrs =
    Addrs { v4: Ipv4Addr::new(10, 244, 1, 1), v6: Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 1) };
const LOOPBACK: Addrs = Addrs { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };

/// Scenarios 17 and 26.
#[tokio::test]
async fn every_kind_of_socket_reaches_every_backend_and_sees_the_service() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let Scene { client, web: [web_0, web_1], .. } = &scene;
    for asks in [sockets(vip(1)), mapped_sockets(vip(1))] {
        let own = client.addrs();
        reaches("a pod asks", client, asks, &[(web_0, own), (web_1, own)]).await?;
    }
    for ask in sockets(vip(1)) {
        // More than a packet holds.
        let bytes = if ask.transport == Transport::Tcp { 1 << 20 } else { 2_000 };
        answer("large", client, &ask.payload(bytes)).await?;
    }
    Ok(())
}

/// Scenarios 18 and 44.
#[tokio::test]
async fn a_process_of_the_node_reaches_services_as_a_pod_does() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.publish(2, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let (node, [web_0, web_1]) = (scene.cluster.lab.node(0), &scene.web);
    let own = node.addrs();
    for (fact, to) in [("ClusterIP", vip(1)), ("its own NodePort", own.at(node_port(1)))] {
        reaches(fact, node, sockets(to), &[(web_1, own)]).await?;
        reaches(fact, node, mapped_sockets(to), &[(web_1, own)]).await?;
    }
    let loopback = LOOPBACK.at(node_port(1));
    for asks in [sockets(loopback), mapped_sockets(loopback)] {
        let asks = only(Transport::Tcp, asks);
        reaches("the NodePort on loopback", node, asks, &[(web_1, own)]).await?;
    }
    // By TCP it speaks to its own pods from the address of the device that leads to them.
    let tcp = only(Transport::Tcp, sockets(vip(2)));
    reaches("a backend here", node, tcp, &[(web_0, GATEWAY)]).await?;
    for to in vip(2) {
        assert_eq!(answer("a backend here", node, &Ask::udp(to)).await?.name, "web-0");
    }
    Ok(())
}

/// Scenario 44.
#[tokio::test]
async fn a_pods_own_loopback_has_no_node_ports() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let pod = &scene.client;
    pod.serve(Serve::tcp(node_port(1)).named("own")).await?;
    pod.serve(Serve::udp(node_port(1)).named("own")).await?;
    for ask in sockets(LOOPBACK.at(node_port(1))) {
        assert_eq!(answer("loopback", pod, &ask).await?.name, "own", "{ask:?}");
    }
    Ok(())
}

/// Scenario 20.
#[tokio::test]
async fn a_pod_that_is_its_own_backend_reaches_itself() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let client = &scene.client;
    serve(client).await?;
    scene.publish(1, &[client])?;
    scene.start(Path::Socket).await?;
    let client = &scene.client;
    for asks in [sockets(vip(1)), mapped_sockets(vip(1))] {
        for (transport, seen) in [
            (Transport::Tcp, client.addrs()),
            // By packets it would answer itself past the node.
            (Transport::Udp, GATEWAY),
            (Transport::UdpUnconnected, GATEWAY),
        ] {
            let asks = only(transport, asks.clone());
            reaches("itself", client, asks, &[(client, seen)]).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_udp_socket_keeps_its_services_apart() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    for (one, two) in vip(1).into_iter().zip(vip(2)) {
        let socket = scene.client.open(Ask::udp_unconnected(one)).await?;
        for _ in 0..5 {
            for (to, backend) in [(one, "web-0"), (two, "web-1")] {
                let reply = socket.ask_of(to).await?;
                assert_eq!((reply.name.as_str(), reply.peer), (backend, to));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_udp_socket_keeps_services_apart_that_share_a_backend() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    for (one, two) in vip(1).into_iter().zip(vip(2)) {
        let socket = scene.client.open(Ask::udp_unconnected(one)).await?;
        for to in [one, two, one, one, two] {
            assert_eq!(socket.ask_of(to).await?.peer, to);
        }
    }
    Ok(())
}

/// Scenario 92.
#[tokio::test]
async fn a_udp_socket_stays_with_its_backend_until_that_is_gone() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let mut open = Vec::new();
    for ask in [vip(1).map(Ask::udp_unconnected).to_vec(), mapped_sockets(vip(1))].concat() {
        if ask.transport == Transport::UdpUnconnected {
            open.push((scene.client.open(ask.clone()).await?, ask.to));
        }
    }
    for (socket, to) in &open {
        let first = socket.ask().await?;
        for _ in 0..30 {
            let reply = socket.ask().await?;
            assert_eq!((&reply.name, reply.peer.to_string()), (&first.name, to.clone()));
        }
        // The one it has goes, and the other stays.
        let [web_0, web_1] = &scene.web;
        let left = if first.name == "web-0" { web_1 } else { web_0 };
        scene.publish(1, &[left])?;
        let moved = |reply: &Result<lab::Reply, _>| matches!(reply, Ok(r) if r.name == left.name());
        let ask_again = async || {
            let reply = socket.ask().await;
            assert!(reply.as_ref().is_ok_and(|r| r.peer.to_string() == *to), "{reply:?}");
            reply
        };
        let _moved = eventually("the other backend", ask_again, moved).await??;
        scene.publish(1, &[web_0, web_1])?;
    }
    Ok(())
}

/// Scenario 16.
#[tokio::test]
async fn backends_are_chosen_uniformly() -> Result<()> {
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::routed().await?;
        let web_2 = scene.cluster.lab.add_pod(scene.cluster.lab.node(1), "web-2").await?;
        serve(&web_2).await?;
        scene.publish(1, &[&scene.web[0], &scene.web[1], &web_2])?;
        scene.start(path).await?;
        for to in vip(1) {
            let load = scene.client.start_load(Load::new(Ask::tcp(to)).concurrency(4)).await?;
            load.until(|report| report.answered() + report.failed() >= 1_500).await?;
            let report = load.stop().await?;
            assert_eq!(report.failed(), 0, "{path:?}: {report:?}");
            let expected = report.answered() as f64 / 3.0;
            let terms = report.backends.values().map(|&n| (n as f64 - expected).powi(2) / expected);
            // Two degrees of freedom: chance exceeds 30 once in 3 million times.
            let chi_square: f64 = terms.sum();
            let is_even = report.backends.len() == 3 && chi_square < 30.0;
            assert!(is_even, "{path:?}: {chi_square} {report:?}");
        }
    }
    Ok(())
}

/// The Service `web` at 10.96.0.100 with `ports`.
fn web(ports: &[Port<'_>]) -> Value {
    objects::service("web", &["10.96.0.100", "fd00:96::64"], ports)
}

/// Scenario 21.
#[tokio::test]
async fn ports_and_protocols_of_a_service_lead_to_their_own_backends() -> Result<()> {
    const PORTS: [Port<'static>; 3] = [
        Port { name: "one", protocol: "TCP", port: 80, target: 9001 },
        Port { name: "two", protocol: "UDP", port: 80, target: 9002 },
        Port { name: "three", protocol: "TCP", port: 81, target: 9003 },
    ];
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::routed().await?;
        let pod = &scene.web[1];
        for Port { name, protocol, target, .. } in PORTS {
            let serve = if protocol == "TCP" { Serve::tcp(target) } else { Serve::udp(target) };
            pod.serve(serve.named(name)).await?;
        }
        scene.cluster.publish(&web(&PORTS), &PORTS, &[pod])?;
        scene.start(path).await?;
        let outsider = scene.routed_outsider().await?;
        for ip in ["10.96.0.100", "[fd00:96::64]"] {
            for (ask, name) in [
                (Ask::tcp(format!("{ip}:80")), "one"),
                (Ask::udp(format!("{ip}:80")), "two"),
                (Ask::tcp(format!("{ip}:81")), "three"),
            ] {
                for from in [&*scene.client, &outsider] {
                    for _ in 0..5 {
                        let reply = answer("multi-port", from, &ask).await?;
                        assert_eq!(reply.name, name, "{path:?}: {ask:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// Scenario 6.
#[tokio::test]
async fn a_named_port_may_have_another_number_in_each_slice() -> Result<()> {
    const PORTS: [Port<'static>; 1] = [Port { name: "web", protocol: "TCP", port: 80, target: 0 }];
    let mut scene = Scene::routed().await?;
    scene.cluster.api.apply(&web(&PORTS))?;
    for (pod, target) in scene.web.iter().zip([9001, 9002]) {
        pod.serve(Serve::tcp(target)).await?;
        for mut slice in objects::slices("web", &[Port { target, ..PORTS[0] }], &[pod]) {
            let name = format!("{}-{target}", slice["metadata"]["name"]).replace('"', "");
            slice["metadata"]["name"] = json!(name);
            scene.cluster.api.apply(&slice)?;
        }
    }
    scene.start(Path::Socket).await?;
    let asks = ["10.96.0.100:80", "[fd00:96::64]:80"].map(Ask::tcp).to_vec();
    let (client, [web_0, web_1]) = (&scene.client, &scene.web);
    let own = client.addrs();
    reaches("both slices", client, asks, &[(web_0, own), (web_1, own)]).await
}

/// Scenario 29.
#[tokio::test]
async fn an_established_connection_outlives_its_endpoint() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let client = &scene.client;
    let open = try_join_all(vip(1).map(|to| client.open(Ask::tcp(to)))).await?;
    scene.publish(1, &[])?;
    for (socket, to) in open.iter().zip(vip(1)) {
        let refused = eventually("refused", async || client.tcp(to).await, Result::is_err);
        assert!(refused.await?.is_err_and(|failure| failure.refused_at_once()));
        let reply = socket.ask().await?;
        assert_eq!((reply.name.as_str(), reply.peer), ("web-1", to));
    }
    Ok(())
}

/// Scenario 41.
#[tokio::test]
async fn a_pod_reaches_node_ports_of_every_node() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let Scene { cluster, client, web: [web_0, web_1] } = &scene;
    let [own, other] = [0, 1].map(|index| cluster.lab.node(index).addrs());
    let own_node = own.at(node_port(1));
    let pod = client.addrs();
    for asks in [sockets(own_node), mapped_sockets(own_node)] {
        reaches("its own node's", client, asks, &[(web_0, pod), (web_1, pod)]).await?;
    }
    // The other node is a way there like any other: it puts itself between where the reply would
    // not come back by it.
    let asks = sockets(other.at(node_port(1)));
    reaches("the other node's", client, asks, &[(web_0, other), (web_1, pod)]).await?;
    let asks = sockets(other.at(node_port(1)));
    let node = cluster.lab.node(0);
    reaches("from the node itself", node, asks, &[(web_0, other), (web_1, node.addrs())]).await
}
