//! Addresses that a node may have beside that of its device, and ports outside of the usual.

use crate::scene::{Path, Scene, answer, node_port, ready, service, slices, sockets, vip};
use anyhow::{Context, Result, ensure};
use lab::cluster::eventually;
use lab::http::get;
use lab::{Addrs, Machine, Serve, objects};
use serde_json::{Value, json};
use std::net::SocketAddr;

async fn ip(machine: &Machine, args: &str) -> Result<()> {
    let args: Vec<_> = args.split(' ').collect();
    let output = machine.exec("ip", &args).await?;
    ensure!(output.status == Some(0), "ip {args:?}: {}", output.stderr);
    Ok(())
}

/// kubernetes/kubernetes#133024, cilium/cilium#21373: routing to the host.
#[tokio::test]
async fn an_internal_address_on_the_loopback_device_has_node_ports() -> Result<()> {
    const OWN: Addrs = Addrs {
        v4: std::net::Ipv4Addr::new(10, 9, 0, 1),
        v6: std::net::Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1),
    };
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    for (own, via) in [("10.9.0.1/32", 0), ("fd00:9::1/128", 1)] {
        ip(node, &format!("addr add {own} dev lo")).await?;
        for other in [&outsider, &**scene.cluster.lab.node(1)] {
            other.route(own, node.addrs().at(0)[via].ip()).await?;
        }
    }
    let mut object = objects::node(node);
    object["status"]["addresses"] = json!([
        { "type": "InternalIP", "address": OWN.v4 },
        { "type": "InternalIP", "address": OWN.v6 },
    ]);
    scene.cluster.api.apply(&object)?;
    scene.start(Path::Socket).await?;
    let node = scene.cluster.lab.node(0);
    for from in [&*scene.client, node, &outsider, &scene.web[1]] {
        for ask in sockets(OWN.at(node_port(1))) {
            assert_eq!(answer("on lo", from, &ask).await?.name, "web-0");
        }
    }
    Ok(())
}

/// cilium/cilium#48133, kube-vip/kube-vip#1198.
#[tokio::test]
async fn a_hidden_client_has_the_nodes_own_address_whatever_others_come() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    let vips = [
        "fd00:18::200/128 dev eth0 preferred_lft 0",
        "fd00:18::abcd/64 dev eth0",
        "172.18.0.200/32 dev eth0",
        "172.18.0.9/16 dev eth0",
    ];
    for added in [None].into_iter().chain(vips.map(Some)) {
        if let Some(addr) = added {
            ip(node, &format!("addr add {addr}")).await?;
            // It is known once a NodePort's own address has been told again.
            let known = async || scene.cluster.shunt(0, &["status"]).await;
            let _status = eventually("the status", known, Result::is_ok).await?;
        }
        for _ in 0..20 {
            for (to, own) in node.addrs().at(node_port(1)).into_iter().zip(node.addrs().at(0)) {
                let seen = outsider.tcp(to).await?.client.ip();
                assert_eq!(seen, own.ip(), "with {added:?}");
            }
        }
    }
    Ok(())
}

/// kubernetes/kubernetes#78421, projectcalico/calico#12476: kube-proxy's mode IPVS leaves the
/// ClusterIPs of all Services on the node.
#[tokio::test]
async fn a_node_with_thousands_of_addresses_is_served() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    let node = scene.cluster.lab.node(0);
    ip(node, "link add kube-ipvs0 type veth peer name ipvs1").await?;
    ip(node, "link set kube-ipvs0 up").await?;
    let batch = scene.cluster.lab.scratch().join("addresses");
    let lines = (0..1_500)
        .map(|n| format!("addr add 10.97.{}.{}/32 dev kube-ipvs0\n", n / 250, n % 250 + 1));
    std::fs::write(&batch, lines.collect::<String>())?;
    ip(node, &format!("-batch {}", batch.display())).await?;
    scene.start_with(Path::Socket, &[("--devices", "auto")]).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    for (number, name) in [(1, "web-0"), (2, "web-1")] {
        for ask in sockets(node.addrs().at(node_port(number))) {
            assert_eq!(answer("an outsider", &outsider, &ask).await?.name, name);
        }
    }
    Ok(())
}

/// cilium/cilium#13040, kubernetes/dns#601: NodeLocal DNSCache listens at the ClusterIP of the
/// DNS service, which it gives to a device of the node.
#[tokio::test]
async fn a_cluster_ip_that_is_an_address_of_the_node_is_left_to_the_node() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    let node = scene.cluster.lab.node(0);
    ip(node, "link add nodelocaldns type veth peer name nodelocal1").await?;
    ip(node, "link set nodelocaldns up").await?;
    for (to, prefix) in vip(1).into_iter().zip(["/32", "/128 nodad"]) {
        ip(node, &format!("addr add {}{prefix} dev nodelocaldns", to.ip())).await?;
        node.serve(Serve::tcp(80).on(to.ip()).named("cache")).await?;
        node.serve(Serve::udp(80).on(to.ip()).named("cache")).await?;
    }
    scene.start_with(Path::Socket, &[("--devices", "auto")]).await?;
    for from in [&*scene.client, scene.cluster.lab.node(0)] {
        for ask in sockets(vip(1)) {
            assert_eq!(answer("the cache", from, &ask).await?.name, "cache", "{}", from.name());
        }
    }
    Ok(())
}

/// kubermatic/kubermatic#11938, cilium/cilium#10375: somebody widened the API server's range.
#[tokio::test]
async fn a_node_port_outside_the_range_is_told_of_and_explained() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let mut low = service(1);
    for index in 0..2 {
        low["spec"]["ports"][index]["nodePort"] = json!(20_080);
    }
    scene.cluster.api.apply(&low)?;
    for slice in slices(1, &[(&scene.web[0], ready())]) {
        scene.cluster.api.apply(&slice)?;
    }
    scene.start(Path::Socket).await?;
    let warned = |status: &Value| status["warnings"].to_string().contains("20080");
    let _status = scene.cluster.agent(0)?.wait_status(warned).await.context("a warning")?;
    let node = scene.cluster.lab.node(0);
    let to = SocketAddr::from((node.ipv4(), 20_080)).to_string();
    let said = node.shunt(&["explain", &to, "--from", "172.18.0.101"]).await?;
    assert!(!said.stdout.contains("forwarded"), "{said:?}");
    Ok(())
}

/// cilium/cilium#9247, #10261: what the node's own sockets may take is no business of an agent.
#[tokio::test]
async fn an_agent_starts_with_every_range_of_local_ports() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    for (range, reserved) in [("10240 65535", ""), ("1024 65535", ""), ("1024 65535", "1024-32767")]
    {
        let node = scene.cluster.lab.node(0);
        let write = format!(
            "echo {range} > /proc/sys/net/ipv4/ip_local_port_range;
             echo {reserved} > /proc/sys/net/ipv4/ip_local_reserved_ports"
        );
        let output = node.exec("sh", &["-ec", &write]).await?;
        ensure!(output.status == Some(0), "{output:?}");
        scene.start(Path::Socket).await.with_context(|| format!("{range}, not {reserved}"))?;
        let to = scene.cluster.lab.node(0).addrs().at(node_port(1));
        for ask in sockets(to) {
            answer("a NodePort", &outsider, &ask).await?;
        }
        for index in 0..2 {
            scene.cluster.kill_agent(index).await?;
        }
    }
    Ok(())
}

/// cilium/cilium#13165, #22164, #30968: on a cluster of IPv6 alone the kubelet probes there.
#[tokio::test]
async fn health_answers_over_both_families_by_default() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.start_with(Path::Socket, &[("--healthz-bind-address", "[::]:10256")]).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    for addr in scene.cluster.lab.node(0).addrs().at(10_256) {
        let alive = async || get(&outsider, addr, "/livez");
        let is_alive = |answer: &Result<(u16, String)>| answer.as_ref().is_ok_and(|a| a.0 == 200);
        eventually("alive", alive, is_alive).await??;
    }
    Ok(())
}
