//! kube-proxy's rules for a population, loaded inside a node of the lab.
//!
//! The text has the shape that kube-proxy 1.36 writes: the same chains, matches, comments, maps
//! and marks, with the detection of local traffic by cluster CIDR. Never loaded anywhere but in
//! the network namespace of a node of the lab.

mod iptables;
mod nftables;

use super::contender::Contender;
use super::population::Entry;
use crate::lab::Node;
use anyhow::{Context, Result, bail};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The mark of what is to be masqueraded.
const MARK: &str = "0x4000";
/// The pods of the cluster.
const CLUSTER_CIDR: &str = "10.244.0.0/16";

/// Loads the rules for `entries` in place of those that are there. Gives how long the kernel and
/// its tool took.
pub(super) async fn load(
    contender: Contender,
    node: &Node,
    entries: &[Entry],
    limit: Duration,
) -> Result<Duration> {
    let rules = match contender {
        Contender::Nftables => nftables::whole(entries, node.ipv4()),
        _ => iptables::whole(entries),
    };
    restore(contender, node, &rules, &[], limit).await
}

/// Replaces the rules of some Services alone, in one transaction, as kube-proxy does after changes.
pub(super) async fn change(
    contender: Contender,
    node: &Node,
    changes: &[(Entry, Entry)],
    limit: Duration,
) -> Result<Duration> {
    let (rules, flags) = match contender {
        Contender::Nftables => (nftables::changed(changes), &[][..]),
        _ => (iptables::changed(changes), &["--noflush"][..]),
    };
    restore(contender, node, &rules, flags, limit).await
}

async fn restore(
    contender: Contender,
    node: &Node,
    rules: &str,
    flags: &[&str],
    limit: Duration,
) -> Result<Duration> {
    let file = node.scratch.join("rules");
    fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
    let file = file.display().to_string();
    let program = tool(contender);
    let args = match contender {
        Contender::Nftables => vec!["-f", file.as_str()],
        _ => [flags, &[file.as_str()]].concat(),
    };
    let started = Instant::now();
    // A tool that takes too long is killed by `timeout`, not left to itself.
    let seconds = limit.as_secs().max(1).to_string();
    let args = [&["-k", "1", seconds.as_str(), program], &args[..]].concat();
    let done = timeout(limit + Duration::from_secs(5), node.exec("timeout", &args));
    let output = done.await.context("the worker does not answer")??;
    let took = started.elapsed();
    match output.status {
        Some(0) => Ok(took),
        Some(124 | 137) => bail!("{program} was not done after {limit:?}"),
        _ => bail!("{program}: {}", output.stderr.lines().next().unwrap_or("no word")),
    }
}

/// The program that loads the rules of `contender`.
pub(super) const fn tool(contender: Contender) -> &'static str {
    match contender {
        Contender::Nftables => "nft",
        Contender::IptablesLegacy => "iptables-legacy-restore",
        _ => "iptables-nft-restore",
    }
}

/// A name as kube-proxy makes them: 16 letters of a hash.
fn digest(parts: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    let letter =
        |shift: u32| char::from(b"ABCDEFGHIJKLMNOP"[(hasher.finish() >> shift) as usize & 15]);
    (0..16).map(|index| letter(4 * index)).collect()
}

/// The digest of an endpoint of a service port.
fn endpoint_digest(port: &str, addr: Ipv4Addr, target: u16) -> String {
    digest((port, addr, target))
}
