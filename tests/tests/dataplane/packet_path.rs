//! The packet path to a ClusterIP: for pods that the socket hooks do not see, and for outsiders
//! whose packets a node routes.

use crate::scene::{PLACES, Path, Scene, answer, node_port, reaches, refused, serve, sockets, vip};
use anyhow::Result;
use lab::cluster::eventually;
use lab::{Addrs, Ask, Cni, Transport};

#[tokio::test]
async fn a_pod_is_seen_as_itself_by_backends_on_every_node() -> Result<()> {
    for (cni, devices) in PLACES {
        let mut scene = Scene::strict(cni).await?;
        scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
        scene.start_with(Path::Packet, &[("--devices", devices)]).await?;
        let Scene { cluster, client, web: [web_0, web_1] } = &scene;
        let own = client.addrs();
        let fact = format!("{cni:?} {devices}: ClusterIP");
        reaches(&fact, client, sockets(vip(1)), &[(web_0, own), (web_1, own)]).await?;
        let to = cluster.lab.node(0).addrs().at(node_port(1));
        let fact = format!("{cni:?} {devices}: NodePort of its node");
        reaches(&fact, client, sockets(to), &[(web_0, own), (web_1, own)]).await?;
        // Else the sockets were translated, and no packet.
        assert_eq!(scene.outcome("connect", "chosen").await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_its_own_backend_sees_the_node_as_its_client() -> Result<()> {
    for (cni, devices) in PLACES {
        let mut scene = Scene::strict(cni).await?;
        serve(&scene.client).await?;
        scene.publish(1, &[&scene.client])?;
        scene.start_with(Path::Packet, &[("--devices", devices)]).await?;
        let (client, node) = (&scene.client, scene.cluster.lab.node(0));
        // The node speaks from the address of the device that leads to the pod, if that has one.
        let seen = match (cni, devices) {
            (Cni::Bridge, "eth0") => node.addrs(),
            _ => Addrs { v4: [10, 244, 1, 1].into(), v6: "fd00:244:1::1".parse()? },
        };
        reaches(&format!("{cni:?} {devices}"), client, sockets(vip(1)), &[(client, seen)]).await?;
        let at_node = sockets(node.addrs().at(node_port(1)));
        reaches(&format!("{cni:?} {devices}: NodePort"), client, at_node, &[(client, seen)])
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_outsider_is_seen_by_backends_of_the_node_that_routes_it_and_as_that_node_elsewhere()
-> Result<()> {
    for (cni, devices) in PLACES {
        let mut scene = Scene::strict(cni).await?;
        scene.publish(1, &[&scene.web[0], &scene.web[1]])?;
        scene.start_with(Path::Packet, &[("--devices", devices)]).await?;
        let outsider = scene.routed_outsider().await?;
        let Scene { cluster, web: [web_0, web_1], .. } = &scene;
        let backends = [(&**web_0, outsider.addrs()), (web_1, cluster.lab.node(0).addrs())];
        reaches(&format!("{cni:?} {devices}"), &outsider, sockets(vip(1)), &backends).await?;
    }
    Ok(())
}

#[tokio::test]
async fn payloads_of_every_size_come_back_whole() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let at_node = scene.cluster.lab.node(0).addrs().at(node_port(1));
    for (fact, from, to) in [
        ("ClusterIP, without SNAT", &*scene.client, vip(1)),
        ("NodePort, with SNAT", &outsider, at_node),
    ] {
        for to in to {
            answer(fact, from, &Ask::tcp(to).payload(4 << 20)).await?;
            for bytes in [1, 2, 3, 1_399, 1_400] {
                answer(fact, from, &Ask::udp(to).payload(bytes)).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_established_connection_outlives_its_endpoint_and_a_udp_flow_moves() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    for from in [&*scene.client, &outsider] {
        for to in vip(1) {
            scene.publish(1, &[&scene.web[0]])?;
            let begun = async || from.udp(to).await;
            let is_first =
                |reply: &Result<lab::Reply, _>| matches!(reply, Ok(reply) if reply.name == "web-0");
            let _first = eventually("web-0", begun, is_first).await??;
            let (tcp, udp) = (from.open(Ask::tcp(to)).await?, from.open(Ask::udp(to)).await?);
            assert_eq!((tcp.ask().await?.name, udp.ask().await?.name), both("web-0"));
            scene.publish(1, &[&scene.web[1]])?;
            let moved =
                |reply: &Result<lab::Reply, _>| matches!(reply, Ok(reply) if reply.name == "web-1");
            let _moved = eventually("web-1", async || udp.ask().await, moved).await??;
            assert_eq!(tcp.ask().await?.name, "web-0", "{} → {to}", from.name());
        }
    }
    Ok(())
}

fn both(name: &str) -> (String, String) {
    (name.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_port_that_is_no_services_is_left_alone() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let pod = &scene.web[1];
    for to in pod.addrs().at(8080) {
        let reply = answer("a pod's own address", &scene.client, &Ask::tcp(to)).await?;
        assert_eq!(reply.name, pod.name());
    }
    let closed = pod.addrs().at(8081);
    let asks: Vec<_> =
        sockets(closed).into_iter().filter(|a| a.transport == Transport::Tcp).collect();
    refused("nobody listens", &scene.client, asks).await;
    Ok(())
}
