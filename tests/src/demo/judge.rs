//! Whether what came is what was expected. Pure: replies and counts in, a verdict out.
//!
//! Every refusal says what was expected and what came.

use crate::traffic::{LoadReport, Reply};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How far from its fair share chance may take a pod, in standard deviations: beyond six it
/// would do so once in five hundred million.
const DEVIATIONS: f64 = 6.0;

/// How many answers came from each pod.
pub(super) type Counts = BTreeMap<String, u64>;

/// Counts replies by the pod that gave them.
pub(super) fn count<'a>(replies: impl IntoIterator<Item = &'a Reply>) -> Counts {
    let mut counts = Counts::new();
    for reply in replies {
        *counts.entry(reply.name.clone()).or_default() += 1;
    }
    counts
}

/// `counts` in words.
pub(super) fn counted(counts: &Counts) -> String {
    let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if words.is_empty() { "no answer".to_owned() } else { words.join(", ") }
}

/// Pods in words.
pub(super) fn named<'a>(pods: impl IntoIterator<Item = &'a &'a str>) -> String {
    pods.into_iter().copied().collect::<Vec<_>>().join(", ")
}

/// Each of `pods` answered as often as chance would have it, and nobody else did.
pub(super) fn balanced(counts: &Counts, pods: &BTreeSet<&str>) -> Result<()> {
    exactly(counts, pods)?;
    let total: u64 = counts.values().sum();
    let mean = total as f64 / pods.len() as f64;
    let deviation = (mean * (1.0 - 1.0 / pods.len() as f64)).sqrt();
    let far = |count: &u64| (*count as f64 - mean).abs() > DEVIATIONS * deviation;
    ensure!(
        !counts.values().any(far),
        "expected about {mean:.0} answers from each pod; came: {}",
        counted(counts)
    );
    Ok(())
}

/// Each of `pods` answered, and nobody else did.
pub(super) fn exactly(counts: &Counts, pods: &BTreeSet<&str>) -> Result<()> {
    let answered = counts.iter().filter(|(_, count)| **count > 0).map(|(name, _)| name.as_str());
    ensure!(
        !pods.is_empty() && answered.collect::<BTreeSet<_>>() == *pods,
        "expected answers from {} and from nobody else; came: {}",
        named(pods),
        counted(counts)
    );
    Ok(())
}

/// All replies to one socket came from one pod; its name.
pub(super) fn sticky(replies: &[Reply]) -> Result<&str> {
    let counts = count(replies);
    ensure!(
        counts.len() == 1,
        "expected one pod to answer all datagrams of a socket; came: {}",
        counted(&counts)
    );
    Ok(&replies[0].name)
}

/// The server saw `expected` as the client's address.
pub(super) fn seen(reply: &Reply, expected: impl Into<IpAddr>) -> Result<()> {
    let (expected, came) = (expected.into(), reply.client.ip());
    ensure!(came == expected, "expected {} to see {expected}; it saw {came}", reply.name);
    Ok(())
}

/// The client's socket says that it talks to `to`, and not to the backend.
pub(super) fn hidden(reply: &Reply, to: &str) -> Result<()> {
    let peer = reply.peer.to_string();
    ensure!(peer == to, "expected the client's socket to name {to} as its peer; it names {peer}");
    Ok(())
}

/// No request of a load failed, and every one of `pods` answered some.
pub(super) fn served(what: &str, load: &LoadReport, pods: &BTreeSet<&str>) -> Result<()> {
    let first = load.failures.values().next().map(|failures| failures.first.to_string());
    ensure!(
        load.failed() == 0,
        "expected no failed request {what}; {} of {} failed, the first: {}",
        load.failed(),
        load.failed() + load.answered(),
        first.unwrap_or_default()
    );
    exactly(&load.backends, pods)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Failure, FailureKind, Failures};
    use std::time::Duration;

    const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];

    fn pods() -> BTreeSet<&'static str> {
        PODS.into()
    }

    fn counts(counts: [u64; 3]) -> Counts {
        PODS.map(str::to_owned).into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    fn reply(name: &str) -> Reply {
        Reply {
            name: name.to_owned(),
            client: "10.244.1.2:40000".parse().expect("an address"),
            peer: "10.96.0.10:80".parse().expect("an address"),
            local: "10.244.1.2:40000".parse().expect("an address"),
            connect: Duration::ZERO,
            reply: Duration::ZERO,
        }
    }

    #[test]
    fn fair_shares_are_balanced() {
        assert!(balanced(&counts([40, 40, 40]), &pods()).is_ok());
        assert!(balanced(&counts([30, 52, 38]), &pods()).is_ok(), "chance does that");
    }

    #[test]
    fn a_pod_that_got_nothing_is_seen() {
        let error = balanced(&counts([60, 60, 0]), &pods()).unwrap_err().to_string();
        assert!(
            error.contains("expected") && error.ends_with("came: web-1 60, web-2 60"),
            "{error}"
        );
        assert!(balanced(&Counts::new(), &pods()).is_err());
        assert!(balanced(&Counts::new(), &BTreeSet::new()).is_err(), "nothing shows nothing");
    }

    #[test]
    fn a_pod_that_got_too_little_is_seen() {
        assert!(balanced(&counts([57, 57, 6]), &pods()).is_err());
        assert!(balanced(&counts([100, 10, 10]), &pods()).is_err());
    }

    #[test]
    fn an_answer_from_elsewhere_is_seen() {
        let two = BTreeSet::from(["web-1", "web-2"]);
        assert!(balanced(&counts([60, 59, 0]), &two).is_ok());
        assert!(balanced(&counts([60, 59, 1]), &two).is_err());
    }

    #[test]
    fn a_socket_sprayed_over_pods_is_seen() {
        assert_eq!(sticky(&[reply("web-1"), reply("web-1")]).ok(), Some("web-1"));
        assert!(sticky(&[reply("web-1"), reply("web-2")]).is_err());
        assert!(sticky(&[]).is_err());
    }

    #[test]
    fn a_foreign_address_is_seen() {
        let reply = reply("web-1");
        assert!(seen(&reply, [10, 244, 1, 2]).is_ok());
        assert!(seen(&reply, [172, 18, 0, 11]).is_err());
        assert!(hidden(&reply, "10.96.0.10:80").is_ok());
        assert!(hidden(&reply, "10.244.2.2:8080").is_err());
    }

    #[test]
    fn one_failed_request_of_many_is_seen() {
        let mut load = LoadReport { backends: counts([900, 900, 900]), ..LoadReport::default() };
        assert!(served("under load", &load, &pods()).is_ok());
        let message = "connect to 10.96.0.10:80: refused".to_owned();
        let first = Failure { kind: FailureKind::Refused, message, elapsed: Duration::ZERO };
        let failures = Failures { count: 1, first, at: Duration::ZERO };
        drop(load.failures.insert(FailureKind::Refused, failures));
        let error = served("under load", &load, &pods()).unwrap_err().to_string();
        assert!(error.contains("1 of 2701 failed") && error.contains("refused"), "{error}");
    }

    #[test]
    fn a_pod_that_took_no_part_in_a_load_is_seen() {
        let load = LoadReport { backends: counts([900, 900, 0]), ..LoadReport::default() };
        assert!(served("under load", &load, &pods()).is_err());
    }
}
