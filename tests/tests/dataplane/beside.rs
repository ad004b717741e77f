//! Beside others on the node: firewalls, a CNI that masquerades, programs of other vendors, and
//! devices that do nothing for the stack. Every way to a service stays open.

use crate::matrix::{Shape, check, prepare};
use crate::scene::node_port;
use anyhow::{Context, Result};
use lab::cluster::eventually;
use lab::onlooker::{Direction, Onlooker, Place};
use lab::{FailureKind, Pod, Serve};

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

/// As Docker 28 writes its rules, with a container's port published: the pod `container`. What
/// nobody accepts is not forwarded, so a CNI has rules of its own.
fn docker(container: &Pod) -> String {
    let to = container.addrs().at(8080)[0];
    format!(
        "table ip nat {{
            chain DOCKER {{
                iifname docker0 return
                iifname != docker0 tcp dport {PUBLISHED} dnat to {to}
            }}
            chain PREROUTING {{
                type nat hook prerouting priority -100;
                fib daddr type local jump DOCKER
            }}
            chain OUTPUT {{
                type nat hook output priority -100;
                ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER
            }}
            chain POSTROUTING {{
                type nat hook postrouting priority 100;
                ip saddr 172.17.0.0/16 oifname != docker0 masquerade
            }}
        }}
        table ip filter {{
            chain DOCKER-ISOLATION {{ iifname docker0 oifname != docker0 drop; }}
            chain FORWARD {{
                type filter hook forward priority 0; policy drop;
                jump DOCKER-ISOLATION
                oifname docker0 ct state established,related accept
                iifname docker0 accept
                ip saddr 10.244.0.0/16 accept
                ip daddr 10.244.0.0/16 accept
            }}
        }}"
    )
}

/// As firewalld 2 writes its rules, with pods and nodes in the zone `trusted`, and everybody else
/// in one that lets nobody in.
const FIREWALLD: &str = "table inet firewalld {
    chain trusted {
        ip saddr { 10.244.0.0/16, 172.18.0.11, 172.18.0.12 } accept
        ip6 saddr { fd00:244::/32, fd00:18::b, fd00:18::c } accept
    }
    chain filter_PREROUTING {
        type filter hook prerouting priority 10;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT {
        type filter hook input priority 10;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        jump trusted
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority 10;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        jump trusted
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority 10;
        ct state { established, related } accept
        oifname lo accept
        ip6 daddr { ::/96, ::ffff:0:0/96, 2002:7f00::/24 } reject with icmpv6 addr-unreachable
    }
}";

/// The port of the node that leads to the container of [`docker`].
const PUBLISHED: u16 = 8088;

#[tokio::test]
async fn beside_docker_and_firewalld() -> Result<()> {
    for shape in [Shape::ROUTED, Shape::BRIDGE] {
        let ways = prepare(shape).await?;
        let container = &ways.scene.web[0];
        for node in ways.scene.cluster.lab.nodes() {
            node.nft(&docker(container)).await?;
            node.nft(FIREWALLD).await?;
        }
        check(&ways).await?;
        let node = ways.scene.cluster.lab.node(0);
        let reply = ways.outsider.tcp(format!("{}:{PUBLISHED}", node.ipv4())).await?;
        assert_eq!(reply.name, container.name());
        // Firewalld is what keeps outsiders from a port that is none of Docker's or Shunt's.
        node.serve(Serve::tcp(9_000).on(node.ipv4())).await?;
        let closed = ways.outsider.tcp(format!("{}:9000", node.ipv4())).await;
        assert_eq!(closed.map_err(|failure| failure.kind).err(), Some(FailureKind::Unreachable));
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
    node.clean_up().await?;
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
