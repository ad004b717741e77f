//! Clients that use one port for several connections at a time.

use crate::scene::{Path, Scene, answer, node_port, vip};
use anyhow::Result;
use lab::Ask;

/// cilium/cilium#37566, #47396, #42632.
#[tokio::test]
async fn a_port_with_a_node_port_open_may_ask_the_backend_itself() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let [here, there] = &scene.web;
    scene.publish(1, &[here])?;
    scene.publish(2, &[there])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    for (networks, via) in [("10.244.0.0/16", 0), ("fd00:244::/32", 1)] {
        outsider.route(networks, node.addrs().at(0)[via].ip()).await?;
    }
    for (number, pod) in [(1, &scene.web[0]), (2, &scene.web[1])] {
        for (family, to) in node.addrs().at(node_port(number)).into_iter().enumerate() {
            let own = outsider.addrs().at(7_000 + u16::from(number))[family];
            let backend = pod.addrs().at(8080)[family];
            let open = outsider.open(Ask::tcp(to).from(own)).await?;
            assert_eq!(open.ask().await?.name, pod.name());
            let reply = answer("itself", &outsider, &Ask::tcp(backend).from(own)).await?;
            assert_eq!(reply.name, pod.name());
            assert_eq!(open.ask().await?.peer, to, "the first goes on");

            let socket = outsider.open(Ask::udp_unconnected(to).from(own)).await?;
            for to in [to, backend, to, backend] {
                let reply = socket.ask_of(to).await?;
                assert_eq!((reply.name.as_str(), reply.peer), (pod.name(), to));
            }
        }
    }
    Ok(())
}

/// cilium/cilium#42632, #11810, projectcalico/felix#2983: drivers of Cassandra and Oracle,
/// HAProxy's `source`, and the r-commands bind the port that they connect from.
#[tokio::test]
async fn a_bound_port_may_connect_to_two_services_with_one_backend() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    for (family, (one, two)) in vip(1).into_iter().zip(vip(2)).enumerate() {
        let own = scene.client.addrs().at(7_000)[family];
        let first = scene.client.open(Ask::tcp(one).from(own)).await?;
        let second = scene.client.open(Ask::tcp(two).from(own)).await?;
        for (socket, to) in [(&first, one), (&second, two), (&first, one)] {
            let reply = socket.ask().await?;
            assert_eq!((reply.name.as_str(), reply.peer, reply.local), ("web-1", to, own));
        }
    }
    Ok(())
}
