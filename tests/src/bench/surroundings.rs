//! What else is on the nodes while traffic is measured: a CNI's rules, with which conntrack is on
//! whatever the proxy does, nothing, or the rules and many connections of others.
//!
//! Takes the arena; loads rules in the namespaces of its nodes, alike for all, and fills the
//! kernel's table of connections from namespaces that end with it. Never touches the machine's own
//! namespace nor a limit of its kernel.

use super::arena::Arena;
use crate::netns::Netns;
use crate::network::POD_NETWORKS;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};

/// Connections of others, where there are many.
const FLOWS: u32 = 500_000;
/// How much of what the kernel lets a namespace have is used at most, in hundredths.
const SHARE: u32 = 75;
/// How long a flow without replies is kept, in seconds: longer than they are needed.
const KEPT: &str = "3600";

/// What else is on the nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Surroundings {
    /// A CNI's rules: the ordinary case.
    Cni,
    /// Nothing. Without a proxy, conntrack is off.
    Bare,
    /// A CNI's rules, and [`FLOWS`] connections of others in the kernel's table.
    Crowded,
}

/// Connections of others; they end with it.
pub(super) struct Crowd(#[expect(dead_code, reason = "held for what it is")] Vec<Netns>);

impl Surroundings {
    /// What rows stand under.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Cni => "Traffic beside a CNI's rules",
            Self::Bare => "Traffic without a CNI's rules",
            Self::Crowded => "Traffic beside a CNI's rules and 500,000 other flows",
        }
    }

    /// As it stands where there is little room.
    pub(super) const fn short(self) -> &'static str {
        match self {
            Self::Cni => "CNI's rules",
            Self::Bare => "no rules",
            Self::Crowded => "many flows",
        }
    }

    /// Makes the nodes of the arena so. What it gives is to be kept while it is measured.
    pub(super) async fn prepare(self, arena: &Arena) -> Result<Option<Crowd>> {
        let rules = if self == Self::Bare { none() } else { cni() };
        for node in arena.cluster.lab.nodes() {
            node.nft(&rules).await.context("load the rules of a CNI")?;
        }
        if self == Self::Crowded { Ok(Some(Crowd::gather().await?)) } else { Ok(None) }
    }
}

/// Rules as flannel's: established connections are let through, and what pods send out of the
/// cluster is masqueraded.
fn cni() -> String {
    let mut pods = [String::new(), String::new()];
    for network in POD_NETWORKS.split(',') {
        let family = usize::from(network.contains(':'));
        pods[family] = network.to_owned();
    }
    let [v4, v6] = pods;
    format!(
        "{}table inet cni {{\n\
         chain forward {{ type filter hook forward priority 0; ct state established,related accept; }}\n\
         chain postrouting {{ type nat hook postrouting priority 100; \
         ip saddr {v4} ip daddr != {v4} masquerade; ip6 saddr {v6} ip6 daddr != {v6} masquerade; }}\n\
         }}\n",
        none()
    )
}

/// Takes the rules away, if they are there.
fn none() -> String {
    "add table inet cni\ndelete table inet cni\n".to_owned()
}

impl Crowd {
    /// Makes the connections. The kernel has one table for all namespaces, so that it does not
    /// matter to a lookup whose they are; but it limits the number in each.
    async fn gather() -> Result<Self> {
        let path = "/proc/sys/net/netfilter/nf_conntrack_max";
        let limit = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let limit: u32 = limit.trim().parse().with_context(|| format!("{path} is no number"))?;
        // With 0 there is no limit.
        let each = if limit == 0 { FLOWS } else { limit / 100 * SHARE };
        ensure!(each >= FLOWS / 10, "nf_conntrack_max is {limit}: too few for {FLOWS} flows");
        let mut crowd = Vec::new();
        let mut left = FLOWS;
        while left > 0 {
            let count = left.min(each);
            let timeout = ("netfilter/nf_conntrack_udp_timeout", KEPT);
            let netns = Netns::create("crowd", &[]).await?;
            netns.run(track)??;
            netns.sysctl(timeout.0, timeout.1)?;
            let found = netns.run(|| send(count))??;
            ensure!(found >= count, "{found} flows are in conntrack, of {count} that were sent");
            crowd.push(netns);
            left -= count;
        }
        Ok(Self(crowd))
    }
}

/// Has conntrack work in the namespace of the calling thread.
fn track() -> Result<()> {
    let rules = "table inet track { chain output { type filter hook output priority 0; ct state new accept; }; }";
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    let status = nft.wait()?;
    if !status.success() {
        bail!("nft has not loaded a rule with ct state: {status}");
    }
    Ok(())
}

/// Sends a datagram to each of `count` addresses of loopback, in the namespace of the calling
/// thread. Gives how many flows conntrack has there then.
fn send(count: u32) -> Result<u32> {
    // Its queue is soon full; what comes then is dropped, after conntrack has seen it.
    let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = server.local_addr()?.port();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
    for number in 0..count {
        let to = Ipv4Addr::from(first + number);
        let _ = client.send_to(b"x", (to, port)).with_context(|| format!("send to {to}"))?;
    }
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    let found = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    found.trim().parse().with_context(|| format!("{path} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_the_pods_of_both_families() {
        let rules = cni();
        assert!(rules.contains("ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade"));
        assert!(rules.contains("ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade"));
        assert!(rules.starts_with(&none()), "what was there goes first");
    }
}
