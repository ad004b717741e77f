//! Traffic policies: who gets only the endpoints of the node, and what they get if it has none.

use crate::scene::{Path, Scene, node_port, reaches, ready, silent, sockets, vip};
use anyhow::Result;
use lab::Cni;
use serde_json::json;

#[tokio::test]
async fn an_internal_policy_local_keeps_to_the_node_and_is_silent_without_an_endpoint() -> Result<()>
{
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        let [web_0, web_1] = &scene.web;
        let spec = json!({ "internalTrafficPolicy": "Local" });
        scene.publish_with(1, spec.clone(), &[(web_0, ready()), (web_1, ready())])?;
        scene.publish_with(2, spec, &[(web_1, ready())])?;
        scene.start(path).await?;
        let Scene { client, web: [web_0, _], .. } = &scene;
        let fact = format!("{path:?}: there is one here");
        for _ in 0..6 {
            reaches(&fact, client, sockets(vip(1)), &[(web_0, client.addrs())]).await?;
        }
        silent(&format!("{path:?}: there is none here"), client, sockets(vip(2))).await?;
        if path == Path::Socket {
            // Nor does the node's own packet get to where the default route leads (scenario 37).
            let [node, other] = [scene.cluster.lab.node(0), scene.cluster.lab.node(1)];
            node.route("10.96.0.0/16", other.ipv4()).await?;
            node.route("fd00:96::/64", other.ipv6()).await?;
            silent("the node", node, sockets(vip(2))).await?;
            assert!(scene.outcome("egress", "no_local_endpoint").await? >= 6);
        }
        // The policy is the ClusterIP's alone.
        let at_node = scene.cluster.lab.node(0).addrs().at(node_port(2));
        let fact = format!("{path:?}: its NodePort");
        reaches(&fact, client, sockets(at_node), &[(&scene.web[1], client.addrs())]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_external_policy_local_shows_the_client_and_is_silent_without_an_endpoint() -> Result<()>
{
    let mut scene = Scene::strict(Cni::Routed).await?;
    let [web_0, web_1] = &scene.web;
    let spec = json!({ "externalTrafficPolicy": "Local" });
    scene.publish_with(1, spec.clone(), &[(web_0, ready()), (web_1, ready())])?;
    scene.publish_with(2, spec, &[(web_1, ready())])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    let Scene { cluster, client, web: [web_0, web_1] } = &scene;
    let [node_0, node_1] = [cluster.lab.node(0), cluster.lab.node(1)];
    let at = |number| sockets(node_0.addrs().at(node_port(number)));

    for _ in 0..6 {
        reaches("local", &outsider, at(1), &[(web_0, outsider.addrs())]).await?;
    }
    silent("none here", &outsider, at(2)).await?;
    let remote = sockets(node_1.addrs().at(node_port(2)));
    reaches("by the node that has it", &outsider, remote, &[(web_1, outsider.addrs())]).await?;

    let own = client.addrs();
    reaches("pods here get all", client, at(1), &[(web_0, own), (web_1, own)]).await?;
    reaches("also without one here", client, at(2), &[(web_1, own)]).await?;
    reaches("and the node itself", node_0, at(2), &[(web_1, node_0.addrs())]).await?;
    // A pod that comes from the other node is a pod all the same.
    let pod = &scene.web[1];
    let fact = "a pod elsewhere";
    reaches(fact, pod, at(1), &[(web_0, pod.addrs()), (web_1, node_0.addrs())]).await?;
    reaches("the ClusterIP has no such policy", client, sockets(vip(2)), &[(web_1, own)]).await
}
