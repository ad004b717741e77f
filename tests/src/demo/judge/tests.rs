//! A world that is broken in one way, and the verdict that sees it.

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
    assert!(error.contains("expected") && error.ends_with("came: web-1 60, web-2 60"), "{error}");
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
