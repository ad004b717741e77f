//! Steps: who reaches the Service, in both families, over TCP and UDP, from inside and outside.

use super::judge::{balanced, count, counted, hidden, named, seen, sticky};
use super::outcome::Outcome;
use super::web::{NODE_PORT, VIPS};
use super::world::{World, ask_often};
use crate::traffic::{Ask, Reply, Transport};
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// How many new connections show a balance over the pods.
const CONNECTIONS: usize = 120;
/// How many of each kind to an IPv4-mapped address.
const MAPPED: usize = 60;
/// How many at each NodePort.
const AT_EACH_NODE: usize = 60;
/// How many UDP sockets, and how often each of them asks.
const SOCKETS: usize = 60;
const DATAGRAMS: usize = 4;

/// The index of a family in pairs of addresses.
const V4: usize = 0;
const V6: usize = 1;

/// New connections from a pod to the ClusterIP get every pod of the Service.
pub(super) async fn cluster_ip(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    balance(world, Ask::tcp(VIPS[V4]), &mut outcome).await?;
    Ok(outcome)
}

/// A pod on another node sees the address of the client pod.
pub(super) async fn source_address(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    see_client(world, V4, &mut outcome).await?;
    Ok(outcome)
}

/// A client outside reaches the Service through both nodes.
pub(super) async fn node_port(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    node_ports(world, Transport::Tcp, V4, &mut outcome).await?;
    Ok(outcome)
}

/// UDP, connected and not, from inside and outside.
pub(super) async fn udp(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    sockets(world, Ask::udp(VIPS[V4]), &mut outcome).await?;
    sockets(world, Ask::udp_unconnected(VIPS[V4]), &mut outcome).await?;
    node_ports(world, Transport::Udp, V4, &mut outcome).await?;
    Ok(outcome)
}

/// All of it over IPv6, and IPv4 over an IPv6 socket.
pub(super) async fn ipv6(world: &mut World) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    balance(world, Ask::tcp(VIPS[V6]), &mut outcome).await?;
    see_client(world, V6, &mut outcome).await?;
    node_ports(world, Transport::Tcp, V6, &mut outcome).await?;
    sockets(world, Ask::udp(VIPS[V6]), &mut outcome).await?;
    sockets(world, Ask::udp_unconnected(VIPS[V6]), &mut outcome).await?;
    node_ports(world, Transport::Udp, V6, &mut outcome).await?;
    let mapped = format!("[::ffff:{}]:80", super::web::CLUSTER_IPS[V4]);
    for ask in [Ask::tcp(&mapped), Ask::udp(&mapped), Ask::udp_unconnected(&mapped)] {
        let replies = ask_often(&world.client, &ask, MAPPED).await?;
        for reply in &replies {
            hidden(reply, &ask.to)?;
            seen(reply, world.client.ipv4())?;
        }
        balanced(&count(&replies), &world.web.ready_names())?;
    }
    outcome.fact(
        format!("TCP and UDP to {mapped}"),
        "served as IPv4, by all pods",
        json!({ "sockets": 3 * MAPPED }),
    );
    Ok(outcome)
}

/// New connections from the client pod get every pod of the Service.
async fn balance(world: &World, ask: Ask, outcome: &mut Outcome) -> Result<()> {
    let replies = ask_often(&world.client, &ask, CONNECTIONS).await?;
    for reply in &replies {
        hidden(reply, &ask.to)?;
    }
    let counts = count(&replies);
    balanced(&counts, &world.web.ready_names())?;
    let did = format!("{CONNECTIONS} connections, pod → {}", ask.to);
    outcome.fact(did, counted(&counts), json!(counts));
    Ok(())
}

/// The pods on the other node see the client pod's own address.
async fn see_client(world: &World, family: usize, outcome: &mut Outcome) -> Result<()> {
    let replies = ask_often(&world.client, &Ask::tcp(VIPS[family]), CONNECTIONS / 2).await?;
    let expected = world.client.addrs().at(0)[family].ip();
    let mut remote = None;
    for reply in &replies {
        seen(reply, expected)?;
        let node = world.node_of(&reply.name)?;
        if node != world.client.node() {
            remote = Some((&reply.name, node));
        }
    }
    let (pod, node) = remote.context("expected answers from the other node; there was none")?;
    let did = format!("whom {pod} on {node} sees as its client");
    let came = format!("{expected}, the client pod on {}", world.client.node());
    outcome.fact(did, came, json!({ "connections": replies.len() }));
    Ok(())
}

/// The client outside reaches every pod through every node; a pod on the node that was asked
/// sees the client's address, one on the other node sees the node's.
async fn node_ports(
    world: &World,
    transport: Transport,
    family: usize,
    outcome: &mut Outcome,
) -> Result<()> {
    let address = |addrs: crate::machine::Addrs| addrs.at(0)[family].ip();
    let client = address(world.outsider.addrs());
    for node in world.cluster.lab.nodes() {
        let to = node.addrs().at(NODE_PORT)[family];
        let ask = Ask { transport, ..Ask::tcp(to) };
        let replies = ask_often(&world.outsider, &ask, AT_EACH_NODE).await?;
        for reply in &replies {
            hidden(reply, &ask.to)?;
            let local = world.node_of(&reply.name)? == node.name();
            seen(reply, if local { client } else { address(node.addrs()) })?;
        }
        let counts = count(&replies);
        balanced(&counts, &world.web.ready_names())?;
        let what = if transport == Transport::Tcp { "connections" } else { "UDP sockets" };
        let did = format!("{AT_EACH_NODE} {what}, outside → {to}");
        outcome.fact(did, callers(&replies, client), json!(counts));
    }
    Ok(())
}

/// Who saw whom as the client, in words.
fn callers(replies: &[Reply], client: IpAddr) -> String {
    let by = |own: bool| {
        let those = replies.iter().filter(|reply| (reply.client.ip() == client) == own);
        those.map(|reply| reply.name.as_str()).collect::<BTreeSet<_>>()
    };
    format!("{} saw the client, {} the node", named(&by(true)), named(&by(false)))
}

/// UDP sockets stay with one pod each, and all pods get some.
async fn sockets(world: &World, ask: Ask, outcome: &mut Outcome) -> Result<()> {
    let kind = match ask.transport {
        Transport::UdpUnconnected => "unconnected UDP sockets",
        _ => "connected UDP sockets",
    };
    let mut first = Vec::with_capacity(SOCKETS);
    for _ in 0..SOCKETS {
        let socket = world.client.open(ask.clone()).await?;
        let mut replies = Vec::with_capacity(DATAGRAMS);
        for _ in 0..DATAGRAMS {
            let reply = socket.ask().await?;
            hidden(&reply, &ask.to)?;
            replies.push(reply);
        }
        sticky(&replies)?;
        first.extend(replies.pop());
        socket.close().await?;
    }
    let counts = count(&first);
    balanced(&counts, &world.web.ready_names())?;
    let did = format!("{SOCKETS} {kind}, {DATAGRAMS} datagrams each");
    outcome.fact(did, format!("one pod each: {}", counted(&counts)), json!(counts));
    Ok(())
}
