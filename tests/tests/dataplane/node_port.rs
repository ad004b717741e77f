//! NodePorts: at which addresses outsiders reach them.

use crate::scene::{Path, Scene, answer, node_port};
use anyhow::Result;
use lab::cluster::eventually;
use lab::{Ask, FailureKind};

#[tokio::test]
async fn a_node_port_without_an_endpoint_is_refused_to_outsiders() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    for to in scene.cluster.lab.node(0).addrs().at(node_port(1)) {
        for ask in [Ask::tcp(to), Ask::udp(to)] {
            let failure = outsider.ask(ask).await.expect_err("no endpoint");
            assert!(failure.refused_at_once(), "{to}: {failure}");
        }
    }
    assert!(scene.counter(1, "refused").await? >= 4);
    Ok(())
}

/// Scenarios 42 and 50.
#[tokio::test]
async fn an_address_that_is_added_is_accepted_within_the_given_networks_only() -> Result<()> {
    const NETWORKS: &str = "172.18.0.76/31,fd00:18::4c/127";
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start_with(Path::Socket, &[("--node-port-addresses", NETWORKS)]).await?;
    let node = scene.cluster.lab.node(0);
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    for (inside, outside) in
        [("172.18.0.77/16", "172.18.0.78/16"), ("fd00:18::4d/64", "fd00:18::4e/64")]
    {
        // The one outside comes first: it is known when the other one is accepted.
        node.add_addr(outside).await?;
        node.add_addr(inside).await?;
        let [inside, outside] = [inside, outside].map(at_node_port);
        let ask = async || outsider.tcp(&inside).await;
        assert_eq!(eventually(&inside, ask, Result::is_ok).await??.name, "web-1");
        assert_eq!(scene.client.tcp(&inside).await?.name, "web-1", "a pod, by its socket");
        for from in [&outsider, &*scene.client] {
            let failure = from.tcp(&outside).await.expect_err("outside of the networks");
            assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        }
    }
    // The node's own address is not within them either.
    let failure = outsider.tcp(node.addrs().at(node_port(1))[0]).await.expect_err("not inside");
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    Ok(())
}

/// The NodePort of service 1 at `addr`, which ends in a prefix length.
fn at_node_port(addr: &str) -> String {
    let addr = addr.split('/').next().unwrap_or_default();
    let addr = if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() };
    format!("{addr}:{}", node_port(1))
}

/// Scenario 43.
#[tokio::test]
async fn only_the_primary_addresses_accept_node_ports_by_default() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    let node = scene.cluster.lab.node(0);
    // Before the agents start, so that they know it.
    for addr in ["172.18.0.78/16", "fd00:18::4e/64"] {
        node.add_addr(addr).await?;
    }
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    for to in scene.cluster.lab.node(0).addrs().at(node_port(1)) {
        assert_eq!(answer("primary", &outsider, &Ask::tcp(to)).await?.name, "web-1");
    }
    for addr in ["172.18.0.78/16", "fd00:18::4e/64"] {
        for from in [&outsider, &*scene.client] {
            let failure = from.tcp(at_node_port(addr)).await.expect_err(addr);
            assert_eq!(failure.kind, FailureKind::Refused, "{addr}: {failure}");
        }
    }
    Ok(())
}
