//! What others do with the rules of nftables, the agent makes good.

use anyhow::{Context, Result, ensure};
use lab::cluster::eventually;
use lab::web::{self, Web};
use lab::{Ask, Load};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Long enough for an answer, short where none is expected.
const SHORT: Duration = Duration::from_millis(300);

/// Scenario 111.
#[tokio::test]
async fn what_others_change_in_rules_is_healed() -> Result<()> {
    let web = Web::start(1).await?;
    let node = web.cluster.lab.node(0).netns().path();
    // In the order of their lines, since a map's elements have none.
    let rules = async || -> Result<Vec<String>> {
        let text = nft(&node, "list ruleset")?;
        let mut words: Vec<_> = text.split([',', '\n']).map(|w| w.trim().to_owned()).collect();
        words.sort();
        Ok(words)
    };
    let before = rules().await?;
    for tamper in [
        "delete table ip shunt",
        "flush chain ip6 shunt prerouting",
        "flush map ip shunt backends",
        "flush map ip6 shunt output_services",
        "flush ruleset",
    ] {
        let _said = nft(&node, tamper)?;
        let is_back = |now: &Result<Vec<String>>| now.as_ref().is_ok_and(|now| *now == before);
        let _rules = eventually(tamper, rules, is_back).await??;
        web.wait_reached().await.context(tamper)?;
    }
    Ok(())
}

/// How soon rules are there again that somebody flushed: 20 to 40 ms on an idle machine, 115 ms (the
/// median) on two cores with a load of 12, as CI's may be.
const HEALED: Duration = Duration::from_millis(250);

/// A firewall that starts anew flushes the rules of everybody. Until they are there again, nothing
/// is translated; connections are open all the same.
#[tokio::test]
async fn flushed_rules_are_healed_at_once_and_open_connections_go_on() -> Result<()> {
    let web = Web::start(2).await?;
    let node = web.cluster.lab.node(0);
    let to = node.addrs().at(web::NODE_PORT);
    let mut open = Vec::new();
    for ask in to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]) {
        let socket = web.outside.open(ask).await?;
        open.push((socket.ask().await?.name, socket));
    }
    let load = Load::new(Ask::tcp(to[0]).timeout(SHORT)).concurrency(4).per_second(500.0);
    let load = web.outside.start_load(load).await?;
    let mut gaps = Vec::new();
    for _ in 0..5 {
        // Packets that are under way while there are no rules reach the node itself, which resets
        // their connections; an acknowledgement is delayed for up to 40 ms (TCP_DELACK_MIN).
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _said = nft(&node.netns().path(), "flush ruleset")?;
        let began = Instant::now();
        for to in to {
            let ask = Ask::tcp(to).timeout(Duration::from_millis(10));
            while web.outside.ask(ask.clone()).await.is_err() {
                ensure!(began.elapsed() < SHORT * 10, "{to} is not healed");
            }
        }
        gaps.push(began.elapsed());
        for (name, socket) in &open {
            assert_eq!(socket.ask().await?.name, *name, "{:?}", socket.peer());
        }
        let more = load.report().await?.answered() + 10;
        let _report = load.until(|report| report.answered() >= more).await?;
    }
    gaps.sort();
    eprintln!("healed after {gaps:?}; {:?}", load.stop().await?.failures);
    assert!(gaps[2] < HEALED, "{gaps:?}");
    Ok(())
}

/// Has a stranger do something with the rules of a network namespace.
fn nft(netns: &Path, command: &str) -> Result<String> {
    let netns = format!("--net={}", netns.display());
    let output = Command::new("nsenter").args([&netns, "nft", command]).output()?;
    ensure!(output.status.success(), "{command}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
