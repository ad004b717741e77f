//! The health of a node as its agent's loop, passes, failures and Node object make it.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

/// The health of an agent that has synced, on a node that load balancers may use.
fn synced(now: Timestamp) -> Health {
    let health = Health::default();
    health.node(Some(&Node::default()));
    health.synced(now);
    health
}

#[test]
fn nothing_is_healthy_before_the_first_sync() {
    let health = Health::default();
    health.node(Some(&Node::default()));
    let early = health.healthz(at(0));
    assert_eq!((early.code, early.body.last_updated), (503, None));
    assert!(early.body.problems[0].contains("not in sync"), "{:?}", early.body.problems);
    assert!(!health.is_healthy(at(0)));
    assert_eq!(health.livez(at(3600)).code, 200, "a restart would not help");
    health.synced(at(1));
    assert_eq!(health.healthz(at(3600)).code, 200, "idle is healthy");
}

/// Scenario 101.
#[test]
fn change_that_waits_a_minute_is_unhealthy_until_the_next_sync() {
    let health = synced(at(-10));
    health.queued(at(0));
    health.queued(at(50));
    assert_eq!(health.healthz(at(59)).code, 200);
    assert_eq!(health.healthz(at(60)).code, 503, "the oldest change counts");
    health.synced(at(61));
    assert_eq!(health.healthz(at(3600)).code, 200, "idle is healthy");
    health.queued(at(4000));
    let stuck = health.healthz(at(4060));
    assert_eq!((stuck.code, stuck.body.last_updated), (503, Some(at(61))));
    assert!(!health.is_healthy(at(4060)));
    assert_eq!(health.livez(at(4060)).code, 200, "a restart would not help");
}

#[test]
fn a_loop_that_is_stuck_is_the_one_reason_to_restart() {
    let health = synced(at(0));
    health.turned(at(0));
    assert_eq!((health.livez(at(59)).code, health.healthz(at(59)).code), (200, 200));
    let stuck = health.livez(at(60));
    assert_eq!((stuck.code, health.healthz(at(60)).code), (503, 503));
    assert!(stuck.body.problems[0].contains("stuck"), "{:?}", stuck.body.problems);
    health.turned(at(61));
    assert_eq!((health.livez(at(61)).code, health.healthz(at(61)).code), (200, 200));
}

#[test]
fn a_failure_that_lasts_is_unhealthy_and_named() {
    let fails = |device: &str| Warning {
        subject: "packet path".to_owned(),
        message: format!("cannot attach to {device}"),
    };
    let health = synced(at(-1));
    health.failing("node", &[fails("eth0")], at(-1));
    assert_eq!(health.healthz(at(-1)).code, 503, "nothing was attached yet");
    health.failing("node", &[], at(0));
    health.failing("devices", &[], at(0));
    for second in 0..60 {
        health.failing("node", &[fails(&format!("veth{second}"))], at(second));
        assert_eq!(health.healthz(at(second)).code, 200, "another one each time");
    }
    health.failing("devices", &[fails("none")], at(60));
    health.failing("node", &[fails("eth0"), fails("eth1")], at(60));
    health.failing("node", &[fails("eth0")], at(70));
    assert_eq!(health.healthz(at(74)).code, 200);
    let lasting = health.healthz(at(75));
    let body = serde_json::to_value(&lasting.body).unwrap();
    assert_eq!((lasting.code, body["problems"].as_array().map(Vec::len)), (503, Some(2)), "{body}");
    assert!(body["problems"].to_string().contains("packet path: cannot attach to eth0"), "{body}");
    assert_eq!(health.livez(at(75)).code, 200, "a restart would not help");
    assert!(!health.is_healthy(at(75)));
    health.failing("node", &[], at(76));
    health.failing("devices", &[], at(76));
    assert_eq!(health.healthz(at(76)).code, 200);
}

/// Scenarios 102 to 104.
#[test]
fn node_decides_healthz_and_never_livez() {
    let node = |deleting, to_be_deleted| Node { deleting, to_be_deleted, ..Node::default() };
    let health = Health::default();
    health.synced(at(0));
    assert_eq!(health.healthz(at(0)).code, 503, "the Node was never seen");
    let cases = [(false, false, 200), (true, false, 503), (false, true, 503)];
    for (deleting, tainted, code) in cases {
        health.node(Some(&node(deleting, tainted)));
        assert_eq!(health.healthz(at(0)).code, code);
        assert_eq!(health.livez(at(0)).code, 200);
    }
    health.node(None);
    assert_eq!(health.healthz(at(0)).code, 503, "its deletion does not clear the state");
    health.node(Some(&node(false, false)));
    health.node(None);
    assert_eq!(health.healthz(at(0)).code, 200);
}

#[test]
fn bodies_have_the_names_of_kube_proxy() {
    let health = synced(at(0));
    let family = |time: &str| serde_json::json!({ "lastUpdated": time, "healthy": true });
    let time = at(0).to_string();
    let mut expected = serde_json::json!({
        "lastUpdated": time,
        "currentTime": time,
        "healthy": true,
        "status": { "IPv4": family(&time), "IPv6": family(&time) },
    });
    assert_eq!(serde_json::to_value(health.livez(at(0)).body).unwrap(), expected);
    expected["nodeEligible"] = true.into();
    assert_eq!(serde_json::to_value(health.healthz(at(0)).body).unwrap(), expected);
}
