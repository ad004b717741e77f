//! Ports of clients: used again at once, for several services at a time, for a backend itself.

use crate::scene::{Path, Scene, answer, node_port, vip};
use anyhow::{Context, Result};
use lab::{Ask, Cni, Load, Machine, Pattern, Pod, Reply, Serve};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends attempts that hang before their first retransmission.
const AT_ONCE: Duration = Duration::from_millis(800);

/// Adds a pod on the second node that closes each connection after one reply.
async fn add_closing_pod(scene: &Scene) -> Result<Pod> {
    let pod = scene.cluster.lab.add_pod(scene.cluster.lab.node(1), "closing").await?;
    pod.serve(Serve::tcp(8080).closing_after_one()).await?;
    Ok(pod)
}

/// Has `from` ask `count` times, each time over a new connection; all must be answered.
async fn all_answered(from: &Machine, ask: Ask, pattern: Pattern, count: u64) -> Result<()> {
    let what = format!("{} → {}, {pattern:?}", from.name(), ask.to);
    let load = from.start_load(Load::new(ask.timeout(AT_ONCE)).pattern(pattern)).await?;
    let report = load.until(|report| report.failed() > 0 || report.answered() >= count).await?;
    load.stop().await?;
    assert_eq!(report.failed(), 0, "{what}: {report:?}");
    Ok(())
}

/// How connections end: with a reset by the client, or in order, by the server.
const ENDINGS: [(u8, Pattern); 2] = [(1, Pattern::New), (2, Pattern::NewUntilServerCloses)];

#[tokio::test]
async fn a_client_may_use_its_port_again_at_once() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    let closing = add_closing_pod(&scene).await?;
    scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
    scene.publish(2, &[&closing])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    for from in [&*scene.client, &outsider] {
        for (number, pattern) in ENDINGS {
            for (family, to) in vip(number).into_iter().enumerate() {
                let ask = Ask::tcp(to).from(from.addrs().at(7_000)[family]);
                all_answered(from, ask, pattern, 100).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_used_port_gets_a_backend_that_serves() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Packet).await?;
    for (family, to) in vip(1).into_iter().enumerate() {
        scene.publish(1, &[&scene.web[0]])?;
        let ask = Ask::tcp(to).from(scene.client.addrs().at(7_000)[family]);
        let load = scene.client.start_load(Load::new(ask).per_second(500.0)).await?;
        for pod in &scene.web {
            scene.publish(1, &[pod])?;
            let used = load.until(|report| report.backends.contains_key(pod.name()));
            timeout(PATIENCE, used).await.with_context(|| format!("{to}: {}", pod.name()))??;
        }
        assert_eq!(load.stop().await?.failures, BTreeMap::new(), "{to}");
    }
    Ok(())
}

#[tokio::test]
async fn a_used_port_may_ask_another_service_on_the_same_backend() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    let closing = add_closing_pod(&scene).await?;
    for (number, pod) in [(1, &scene.web[1]), (2, &closing), (3, &scene.web[1]), (4, &closing)] {
        scene.publish(number, &[pod])?;
    }
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    for from in [&*scene.client, &outsider] {
        for (number, pattern) in ENDINGS {
            for (family, (one, two)) in vip(number).into_iter().zip(vip(number + 2)).enumerate() {
                for to in [one, two, one] {
                    let ask = Ask::tcp(to).from(from.addrs().at(7_000)[family]);
                    all_answered(from, ask, pattern, 1).await?;
                }
            }
        }
    }
    Ok(())
}

/// Asks both in turn, twice; `ask` gives the reply of the first or the second.
async fn in_turn(
    what: &str,
    tos: [SocketAddr; 2],
    ask: impl AsyncFn(usize) -> Result<Reply>,
) -> Result<()> {
    let [first, second] = [ask(0).await?, ask(1).await?];
    for (index, before) in [&first, &second].into_iter().enumerate() {
        let reply = ask(index).await?;
        assert_eq!((reply.peer, reply.client), (tos[index], before.client), "{what}");
    }
    assert_eq!(first.local.port(), second.local.port(), "{what}");
    assert_ne!(first.client, second.client, "{what}: the backend tells them apart");
    assert_eq!(first.client.ip(), second.client.ip(), "{what}");
    Ok(())
}

#[tokio::test]
async fn one_client_port_may_ask_two_services_on_one_backend_at_once() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    // On this node, and on the other one.
    for (number, pod) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        scene.publish(number, &[&scene.web[pod]])?;
    }
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    for from in [&*scene.client, &outsider] {
        for number in [1, 3] {
            for (family, (one, two)) in vip(number).into_iter().zip(vip(number + 1)).enumerate() {
                let what = format!("{} → {one} and {two}", from.name());
                let own = from.addrs().at(7_000)[family];
                let open = async |to| from.open(Ask::tcp(to).from(own).timeout(AT_ONCE)).await;
                let sockets = [open(one).await?, open(two).await?];
                let ask = async |index: usize| Ok(sockets[index].ask().await?);
                in_turn(&what, [one, two], ask).await?;

                let socket = from.open(Ask::udp_unconnected(one).timeout(AT_ONCE)).await?;
                let ask = async |index: usize| Ok(socket.ask_of([one, two][index]).await?);
                in_turn(&what, [one, two], ask).await?;
            }
        }
    }
    Ok(())
}

/// Else the answers to the node's own socket would go to the client.
#[tokio::test]
async fn a_hidden_client_never_has_the_port_of_the_nodes_own_connection() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    let backends = scene.web[1].addrs().at(8080);
    for (family, to) in node.addrs().at(node_port(1)).into_iter().enumerate() {
        for ask in [Ask::tcp, Ask::udp] {
            let (own, theirs) =
                (node.addrs().at(7_000)[family], outsider.addrs().at(7_000)[family]);
            let socket = node.open(ask(backends[family]).from(own)).await?;
            assert_eq!(socket.ask().await?.client, own);
            let client = outsider.open(ask(to).from(theirs)).await?;
            for _ in 0..2 {
                let seen = client.ask().await?.client;
                assert_eq!((seen.ip(), seen.port() == 7_000), (own.ip(), false), "{:?}", ask(to));
                assert_eq!(socket.ask().await?.client, own);
            }
        }
    }
    Ok(())
}

/// Else the backend's answers would come from the service, and the client would not know them.
#[tokio::test]
async fn a_port_that_asked_a_service_may_ask_its_backend_next() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    let ways = scene.cluster.lab.node(0);
    for network in scene.cluster.lab.node(1).pod_networks() {
        let via = ways.addrs().at(0)[usize::from(network.is_ipv6())].ip();
        outsider.route(&network.to_string(), via).await?;
    }
    for from in [&*scene.client, &outsider] {
        for (family, to) in vip(1).into_iter().enumerate() {
            let backend = scene.web[1].addrs().at(8080)[family];
            let own = from.addrs().at(7_000)[family];
            for ask in [Ask::tcp, Ask::udp] {
                let _reply = answer("the service", from, &ask(to).from(own)).await?;
                let reply = from.ask(ask(backend).from(own).timeout(AT_ONCE)).await?;
                assert_eq!((reply.name.as_str(), reply.peer), ("web-1", backend));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_client_port_may_ask_one_backend_by_two_frontends_in_turn() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    // Clients of ClusterIPs are hidden then, and those of NodePorts are seen.
    scene.start_with(Path::Socket, &[("--masquerade-all", "true")]).await?;
    let Scene { cluster, client, web: [_, web_1] } = &scene;
    let node = cluster.lab.node(0).addrs();
    for (family, own) in client.addrs().at(7_000).into_iter().enumerate() {
        let asked = [(vip(1)[family], node), (node.at(node_port(1))[family], client.addrs())];
        for (to, seen) in asked.into_iter().cycle().take(8) {
            for ask in [Ask::tcp, Ask::udp] {
                let reply = client.ask(ask(to).from(own).timeout(AT_ONCE)).await;
                let reply = reply.with_context(|| format!("ask {to}"))?;
                assert_eq!(reply.name, web_1.name(), "{to}");
                assert_eq!(reply.client.ip(), seen.at(0)[family].ip(), "{to}");
            }
        }
    }
    Ok(())
}
