//! Traffic policies: who gets only the endpoints of the node, and what they get if it has none.

use crate::addresses::{balanced, balancer, exposed, external};
use crate::scene::{Path, SILENCE, Scene, node_port, reaches, ready, silent, sockets, vip};
use anyhow::{Context, Result};
use lab::cluster::eventually;
use lab::{Ask, Cni, Machine};
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

/// `--detect-local-mode` and what it needs; whether a pod of the node, and one of the other node,
/// is then a pod.
type Mode<'a> = (&'a [(&'a str, &'a str)], [bool; 2]);

/// No name of a device tells a pod, so that the modes have to.
const NO_POD_DEVICES: (&str, &str) = ("--pod-devices", "none*");
/// Pods are seen at the ports of the bridge, which are the node's devices then. Where the bridge
/// calls the rules itself, they have decided before the bridge's own device sees a packet.
const BRIDGE: (&str, &str) = ("--devices", "eth0,veth*");

const MODES: [Mode<'static>; 5] = [
    (&[NO_POD_DEVICES, BRIDGE], [true, true]),
    (&[NO_POD_DEVICES, BRIDGE, ("--cluster-cidr", "")], [false, false]),
    (&[NO_POD_DEVICES, BRIDGE, ("--detect-local-mode", "NodeCIDR")], [true, false]),
    (
        &[
            NO_POD_DEVICES,
            ("--detect-local-mode", "BridgeInterface"),
            ("--pod-bridge-interface", "cni0"),
        ],
        [true, false],
    ),
    (
        &[
            NO_POD_DEVICES,
            ("--detect-local-mode", "InterfaceNamePrefix"),
            ("--pod-interface-name-prefix", "veth"),
        ],
        [true, false],
    ),
];

#[tokio::test]
async fn each_mode_tells_the_pods_that_an_external_policy_local_is_not_for() -> Result<()> {
    let mut scene = Scene::strict(Cni::Bridge).await?;
    let spec = json!({ "externalTrafficPolicy": "Local" });
    scene.publish_with(1, spec, &[(&scene.web[1], ready())])?;
    let elsewhere = scene.cluster.lab.add_pod(scene.cluster.lab.node(1), "elsewhere").await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    for (flags, [here, there]) in MODES {
        scene.start_with(Path::Packet, flags).await?;
        let served = async |from: &Machine, is_pod: bool| {
            for to in scene.cluster.lab.node(0).addrs().at(node_port(1)) {
                let ask = async || from.ask(Ask::tcp(to).timeout(SILENCE)).await;
                let what = format!("{flags:?}: {} → {to}", from.name());
                let asked = eventually(&what, ask, |reply| reply.is_ok() == is_pod).await;
                let _reply = asked.with_context(|| what.clone())?;
            }
            anyhow::Ok(())
        };
        served(&scene.client, here).await?;
        served(&elsewhere, there).await?;
        served(&outsider, false).await?;
        for index in 0..2 {
            scene.cluster.kill_agent(index).await?;
        }
    }
    Ok(())
}
