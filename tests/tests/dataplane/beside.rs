//! Beside others on the node: firewalls, a CNI that masquerades, programs of other vendors, and
//! devices that do nothing for the stack. Every way to a service stays open.

use crate::matrix::{Shape, check, prepare};
use crate::scene::{Path, Scene, node_port, vip};
use anyhow::{Context, Result, ensure};
use lab::cluster::eventually;
use lab::onlooker::{Direction, Onlooker, Place};
use lab::{Ask, Load, Pod};

/// What a careful administrator and a CNI plugin have on the node `number`: only what is new from
/// or to a pod is let through, only once, and pods speak for themselves among each other only.
fn rules(number: usize) -> String {
    format!(
        "table inet firewall {{
            counter invalid {{ }}
            chain input {{
                type filter hook input priority 0;
                ct state invalid drop
            }}
            chain output {{
                type filter hook output priority 0;
                ct state invalid drop
            }}
            chain forward {{
                type filter hook forward priority 0; policy drop;
                ct state invalid counter name invalid drop
                ct state established,related,untracked accept
                ct state new ip daddr 10.244.0.0/16 accept
                ct state new ip saddr 10.244.0.0/16 accept
                ct state new ip6 daddr fd00:244::/32 accept
                ct state new ip6 saddr fd00:244::/32 accept
            }}
        }}
        table inet cni {{
            chain postrouting {{
                type nat hook postrouting priority 100;
                ip saddr 10.244.{number}.0/24 ip daddr != 10.244.0.0/16 masquerade
                ip6 saddr fd00:244:{number}::/64 ip6 daddr != fd00:244::/32 masquerade
            }}
        }}"
    )
}

#[tokio::test]
async fn beside_a_firewall_and_a_cni_that_masquerades() -> Result<()> {
    for shape in [Shape::ROUTED, Shape::CALICO, Shape::BRIDGE, Shape::VXLAN] {
        let ways = prepare(shape).await?;
        let nodes = ways.scene.cluster.lab.nodes();
        for (node, number) in nodes.iter().zip(1..) {
            node.nft(&rules(number)).await?;
        }
        check(&ways).await?;
        for node in nodes {
            let output = node.exec("nft", &["list", "counter", "inet", "firewall", "invalid"]);
            let text = output.await?.stdout;
            assert!(text.contains("packets 0 "), "{}: conntrack knows all: {text}", node.name());
        }
    }
    Ok(())
}

/// What kube-proxy would have for the first service, short of its chances and marks: `backend` is
/// its only endpoint.
fn kube_proxy(backend: &Pod) -> String {
    let table = |family: usize, ip: &str| {
        let (vip, to) = (vip(1)[family].ip(), backend.addrs().at(8080)[family]);
        let port = node_port(1);
        format!(
            "table {ip} kube-proxy {{
                chain prerouting {{
                    type nat hook prerouting priority -100;
                    {ip} daddr {vip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {to}
                    fib daddr type local meta l4proto {{ tcp, udp }} th dport {port} dnat to {to}
                }}
                chain postrouting {{
                    type nat hook postrouting priority 100;
                    ct status dnat masquerade
                }}
            }}"
        )
    };
    format!("{}\n{}", table(0, "ip"), table(1, "ip6"))
}

/// A node changes from kube-proxy to Shunt and back: while both have rules, a new connection is
/// Shunt's, and each old one goes on by its entry in conntrack.
#[tokio::test]
async fn kube_proxy_is_replaced_and_comes_back_under_load() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let rules = kube_proxy(&scene.web[1]);
    scene.publish(1, &[&scene.web[1]])?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let to = scene.cluster.lab.node(0).addrs().at(node_port(1));
    scene.cluster.lab.node(0).nft(&rules).await?;
    let mut loads = Vec::new();
    for ask in to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]) {
        let load = Load::new(ask).concurrency(4).per_second(100.0);
        loads.push(outsider.start_load(load).await?);
    }
    let mut open = Vec::new();
    for step in ["kube-proxy", "both", "Shunt", "both again", "kube-proxy again"] {
        let node = scene.cluster.lab.node(0);
        match step {
            "both" => scene.start(Path::Socket).await?,
            "Shunt" => node.nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy").await?,
            "both again" => node.nft(&rules).await?,
            "kube-proxy again" => {
                scene.cluster.kill_agent(0).await?;
                let output = scene.cluster.lab.node(0).shunt(&["cleanup"]).await?;
                ensure!(output.status == Some(0), "cleanup: {}", output.stderr);
            }
            _ => {}
        }
        for (client, to) in [(&outsider, to), (&*scene.client, vip(1))] {
            for ask in to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]) {
                open.push((step, client.open(ask).await.context(step)?));
            }
        }
        for (opened, socket) in &open {
            let context = || format!("{step}: {:?} since {opened}", socket.peer());
            socket.ask().await.with_context(context)?;
        }
        for load in &loads {
            let more = load.report().await?.answered() + 50;
            let _report = load.until(|report| report.answered() >= more).await?;
        }
    }
    for load in loads {
        let report = load.stop().await?;
        ensure!(report.failures.is_empty(), "{report:?}");
    }
    Ok(())
}

#[tokio::test]
async fn beside_programs_of_others_before_and_behind() -> Result<()> {
    let ways = prepare(Shape::ROUTED).await?;
    let node = ways.scene.cluster.lab.node(0);
    let mut others = Vec::new();
    for device in node.netns().links().await? {
        if !device.starts_with("veth") && device != "eth0" {
            continue;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            for place in [Place::First, Place::Last] {
                let other = Onlooker::attach(node.netns(), &device, direction, place)?;
                others.push((other, format!("{place:?} at {direction:?} of {device}")));
            }
        }
    }
    check(&ways).await?;
    let seen = others.iter().map(|(other, what)| Ok((what, other.packets()?)));
    let seen = seen.collect::<Result<Vec<_>>>()?;
    for (what, packets) in &seen {
        assert!(*packets > 0, "no packet came to the one {what}: {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn beside_programs_of_others_that_were_there_first() -> Result<()> {
    // The agent comes to devices that others have; its restart and checks leave them there.
    let mut ways = prepare(Shape::ROUTED).await?;
    let options = ways.scene.cluster.options();
    let cgroup = ways.scene.client.cgroup().display().to_string();
    let options = options.flag("--devices", "auto").flag("--cgroup-root", &cgroup);
    let options = options.flag("--drift-check-period", "1s");
    ways.scene.cluster.kill_agent(0).await?;
    let node = ways.scene.cluster.lab.node(0);
    let cleanup = node.shunt(&["cleanup"]).await?;
    ensure!(cleanup.status == Some(0), "cleanup: {}", cleanup.stderr);
    let other = Onlooker::attach(node.netns(), "eth0", Direction::Ingress, Place::First)?;
    ways.scene.cluster.start_agent(0, &options)?;
    let checked = |status: &serde_json::Value| !status["drift"]["checked"].is_null();
    let _status = ways.scene.cluster.agent(0)?.wait_status(checked).await?;
    check(&ways).await?;
    let before = other.packets()?;
    let node = ways.scene.cluster.lab.node(0);
    let more = async || {
        let asked = ways.outsider.tcp(node.addrs().at(node_port(1))[0]).await;
        asked.context("ask").and_then(|_| other.packets())
    };
    let _more =
        eventually("it sees more", more, |n| n.as_ref().is_ok_and(|n| *n > before)).await??;
    Ok(())
}

#[tokio::test]
async fn beside_devices_that_do_nothing_for_the_stack() -> Result<()> {
    for shape in [Shape::ROUTED, Shape::CALICO, Shape::BRIDGE, Shape::VXLAN] {
        let ways = prepare(shape).await?;
        let nodes = ways.scene.cluster.lab.nodes();
        // First the nodes only: then what they are given has sums that nobody has filled in, and
        // segments that nobody has cut.
        for node in nodes {
            node.netns().turn_off_offloads().await?;
        }
        check(&ways).await?;
        let web = &ways.scene.web;
        for end in [&*ways.scene.client, &ways.aside, &ways.outsider, &web[0], &web[1]] {
            end.netns().turn_off_offloads().await?;
        }
        check(&ways).await?;
    }
    Ok(())
}
