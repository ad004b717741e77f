//! Traffic policies: who gets only the endpoints of the node, and what they get if it has none.

use crate::addresses::{balanced, balancer, exposed, external};
use crate::scene::{Path, Scene, node_port, reaches, ready, silent, sockets, vip};
use anyhow::Result;
use lab::Cni;
use serde_json::json;

/// Scenarios 36, 37 and 40.
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

/// Scenarios 51 to 55; S1.
#[tokio::test]
async fn an_external_policy_local_shows_the_client_and_is_silent_without_an_endpoint() -> Result<()>
{
    for path in [Path::Socket, Path::Packet] {
        let mut scene = Scene::strict(Cni::Routed).await?;
        let [web_0, web_1] = &scene.web;
        for (number, pods) in [(1, vec![web_0, web_1]), (2, vec![web_1])] {
            scene.publish(number, &pods)?;
            let mut service = balanced(number, &json!({}));
            service["spec"]["externalTrafficPolicy"] = json!("Local");
            service["spec"]["externalIPs"] = exposed(number)["spec"]["externalIPs"].clone();
            scene.cluster.api.apply(&service)?;
        }
        scene.start(path).await?;
        let outsider = scene.routed_outsider().await?;
        let node = scene.cluster.lab.node(0);
        for network in ["192.0.2.0/24", "198.51.100.0/24"] {
            outsider.route(network, node.ipv4()).await?;
        }
        for network in ["fd00:192::/64", "fd00:198::/64"] {
            outsider.route(network, node.ipv6()).await?;
        }
        let Scene { cluster, client, web: [web_0, web_1] } = &scene;
        let [node_0, node_1] = [cluster.lab.node(0), cluster.lab.node(1)];
        let at_node = |number| sockets(node_0.addrs().at(node_port(number)));
        let at = |number| {
            [at_node(number), sockets(balancer(number)), sockets(external(number))].concat()
        };
        let fact = |fact: &str| format!("{path:?}: {fact}");

        for _ in 0..6 {
            let seen = [(&**web_0, outsider.addrs())];
            reaches(&fact("local"), &outsider, at(1), &seen).await?;
        }
        silent(&fact("none here"), &outsider, at(2)).await?;
        let remote = sockets(node_1.addrs().at(node_port(2)));
        let seen = [(&**web_1, outsider.addrs())];
        reaches(&fact("by the node that has it"), &outsider, remote, &seen).await?;

        let own = client.addrs();
        reaches(&fact("pods here get all"), client, at(1), &[(web_0, own), (web_1, own)]).await?;
        reaches(&fact("also without one here"), client, at(2), &[(web_1, own)]).await?;
        reaches(&fact("and the node"), node_0, at(2), &[(web_1, node_0.addrs())]).await?;
        // A pod that comes from the other node is a pod all the same.
        let pod = web_1.addrs();
        let seen = [(&**web_0, pod), (web_1, node_0.addrs())];
        reaches(&fact("a pod elsewhere"), web_1, at_node(1), &seen).await?;
        let to = sockets(vip(2));
        reaches(&fact("the ClusterIP has no such policy"), client, to, &[(web_1, own)]).await?;
    }
    Ok(())
}
