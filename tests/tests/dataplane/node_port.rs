//! NodePorts: at which of the nodes' addresses they are reached, over both paths and from outside.

use crate::everyone::Answer::From;
use crate::everyone::Who::{Node, Outsider, Pods};
use crate::everyone::{Everyone, Question};
use crate::scene::{Path, Scene, node_port};
use anyhow::Result;
use lab::{Ask, Serve};
use std::net::SocketAddr;

const AFAR: &[&str] = &["web-1"];
/// A process of the node that listens on the same port.
const HOST: &[&str] = &["node-1"];

/// Scenario 48.
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

/// Gives the first node the address `addr`, with a prefix length, and a process that listens on
/// the NodePort of service 1 there. Returns where that is.
async fn add_addr(everyone: &Everyone, addr: &str) -> Result<SocketAddr> {
    let node = everyone.scene.cluster.lab.node(0);
    node.add_addr(addr).await?;
    let to = parse(addr.split('/').next().unwrap_or_default())?;
    node.serve(Serve::tcp(to.port()).on(to.ip())).await?;
    node.serve(Serve::udp(to.port()).on(to.ip())).await?;
    Ok(to)
}

/// `to` is asked by pods, by the node, and by an outsider.
fn by_all(fact: &'static str, to: SocketAddr, answer: &'static [&'static str]) -> [Question; 3] {
    let asks = vec![Ask::tcp(to), Ask::udp(to)];
    [Pods, Node, Outsider].map(|who| (fact, who, asks.clone(), From(answer)))
}

/// Scenarios 42 and 50.
#[tokio::test]
async fn an_address_that_is_added_is_accepted_within_the_given_networks_only() -> Result<()> {
    const NETWORKS: &str = "172.18.0.76/31,fd00:18::4c/127";
    let mut everyone = Everyone::prepare().await?;
    everyone.scene.publish(1, &[&everyone.scene.web[1]])?;
    everyone.start(&[("--node-port-addresses", NETWORKS)]).await?;
    let mut outside = Vec::new();
    for addr in ["172.18.0.78/16", "fd00:18::4e/64"] {
        outside.push(add_addr(&everyone, addr).await?);
    }
    for addr in ["172.18.0.77/16", "fd00:18::4d/64"] {
        let inside = add_addr(&everyone, addr).await?;
        everyone.wait_until(addr, &by_all("50: within the networks", inside, AFAR)).await?;
    }
    // Those came first: they are known when the others are accepted.
    for outside in outside {
        everyone.check(&by_all("42: outside of them", outside, HOST)).await?;
    }
    let node = everyone.scene.cluster.lab.node(0);
    for addr in node.addrs().at(node_port(1)) {
        node.serve(Serve::tcp(addr.port()).on(addr.ip())).await?;
        node.serve(Serve::udp(addr.port()).on(addr.ip())).await?;
        everyone.check(&by_all("42: the node's own is not within", addr, HOST)).await?;
    }
    // An address that goes to another machine takes its ports along.
    for addr in ["172.18.0.77/16", "fd00:18::4d/64"] {
        everyone.scene.cluster.lab.node(0).delete_addr(addr).await?;
    }
    let moved = [parse("172.18.0.77")?, parse("fd00:18::4d")?];
    everyone.let_pass(moved).await?;
    for to in moved {
        let questions = by_all("50: an address that has gone", to, &["beyond"]);
        everyone.wait_until("it is another machine's", &questions).await?;
    }
    Ok(())
}

/// The NodePort of service 1 at `addr`.
fn parse(addr: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(addr.parse()?, node_port(1)))
}

/// Scenario 41.
#[tokio::test]
async fn every_address_of_a_node_accepts_node_ports_if_all_networks_are_given() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    everyone.scene.publish(1, &[&everyone.scene.web[1]])?;
    let mut all = everyone.scene.cluster.lab.node(0).addrs().at(node_port(1)).to_vec();
    for addr in ["172.18.0.78/16", "fd00:18::4e/64"] {
        all.push(add_addr(&everyone, addr).await?);
    }
    // Those of the devices that lead to its pods.
    all.extend([parse("10.244.1.1")?, parse("fd00:244:1::1")?]);
    everyone.start(&[("--node-port-addresses", "0.0.0.0/0,::/0")]).await?;
    let node = everyone.scene.cluster.lab.node(0);
    for (network, via) in node.pod_networks().iter().zip(node.addrs().at(0)) {
        everyone.outsider.route(&network.to_string(), via.ip()).await?;
    }
    for to in all {
        everyone.check(&by_all("41: any address of the node", to, AFAR)).await?;
    }
    Ok(())
}

/// Scenario 43.
#[tokio::test]
async fn only_the_primary_addresses_accept_node_ports_by_default() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    everyone.scene.publish(1, &[&everyone.scene.web[1]])?;
    let mut others = Vec::new();
    for addr in ["172.18.0.78/16", "fd00:18::4e/64"] {
        // Before the agents start, so that they know it.
        others.push(add_addr(&everyone, addr).await?);
    }
    everyone.start(&[]).await?;
    for to in everyone.scene.cluster.lab.node(0).addrs().at(node_port(1)) {
        everyone.check(&by_all("43: the primary one", to, AFAR)).await?;
    }
    for to in others {
        everyone.check(&by_all("43: another one", to, HOST)).await?;
    }
    Ok(())
}
