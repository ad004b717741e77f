//! Pages and lines with objects that cannot be read among others.

mod fuzz;

use super::*;
use crate::source::kube::feed::{Few, OwnPods, Services, Slices};
use serde_json::json;

fn service(name: &str, version: u64, ip: Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
        "status": {"conditions": [{"lastTransitionTime": null}]},
    })
}

fn page(version: u64, items: &[Value]) -> Vec<u8> {
    json!({"metadata": {"resourceVersion": version.to_string()}, "items": items}).to_string().into()
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

/// The names of the Services in `changes`, `+` for new ones, `-` for ones that are gone, `=` for
/// ones that are kept.
fn names(changes: &[Change]) -> String {
    let all = changes.iter().flat_map(|change| match change {
        Change::AllServices(all) => all.iter().map(|s| s.name.name.to_string()).collect(),
        Change::KeptServices(all) => all.iter().map(|name| format!("={}", name.name)).collect(),
        Change::Service(service) => vec![format!("+{}", service.name.name)],
        Change::ServiceGone(name) => vec![format!("-{}", name.name)],
        other => panic!("{other:?}"),
    });
    all.collect::<Vec<_>>().join(" ")
}

/// A reader of Services that has read a list of `a`, `bad` and `c`.
fn listed() -> Reader<Services> {
    let mut reader = Reader::new(Services::new(false));
    reader.begin_list();
    let items = [
        service("a", 1, json!("10.0.0.1")),
        service("bad", 2, json!(["x"])),
        service("c", 3, json!("10.0.0.3")),
    ];
    assert_eq!(reader.page(&page(9, &items)).unwrap(), None);
    assert_eq!(names(&reader.end_list()), "=bad a c");
    reader
}

fn subjects(reader: &Reader<Services>) -> Vec<String> {
    reader.warnings().into_iter().map(|warning| warning.subject).collect()
}

#[test]
fn a_list_with_one_that_cannot_be_read_brings_the_others() {
    let mut reader = listed();
    assert_eq!(reader.version.as_deref(), Some("9"));
    assert_eq!(subjects(&reader), ["Service shop/bad"]);
    assert!(reader.warnings()[0].message.contains("spec.clusterIP"), "{:?}", reader.warnings());
    let events = reader.take_events();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(
        (&*event.name, event.uid.as_deref(), event.version.as_deref()),
        ("bad", Some("bad"), Some("2"))
    );
    // The same in the next list is nothing new.
    reader.begin_list();
    let _ = reader.page(&page(10, &[service("bad", 2, json!(["x"]))])).unwrap();
    let _ = reader.end_list();
    assert!(reader.take_events().is_empty());
    assert_eq!(subjects(&reader), ["Service shop/bad"]);
}

#[test]
fn a_watch_goes_on_behind_one_that_cannot_be_read_until_it_changes_or_is_gone() {
    let mut reader = listed();
    let take = |reader: &mut Reader<Services>, kind: &str, object: &Value| {
        let Said::Something(change) = reader.line(&line(kind, object)).unwrap() else { panic!() };
        names(&Vec::from_iter(change))
    };
    let a_gone_bad = service("a", 10, json!({}));
    assert_eq!(take(&mut reader, "MODIFIED", &a_gone_bad), "");
    assert_eq!(reader.version.as_deref(), Some("10"), "or the event would come for ever");
    assert_eq!(subjects(&reader), ["Service shop/a", "Service shop/bad"]);
    assert_eq!(take(&mut reader, "MODIFIED", &service("c", 11, json!("10.0.0.9"))), "+c");
    assert_eq!(take(&mut reader, "MODIFIED", &service("bad", 12, json!("10.0.0.2"))), "+bad");
    assert_eq!(subjects(&reader), ["Service shop/a"]);
    assert_eq!(take(&mut reader, "DELETED", &service("a", 13, json!({}))), "-a");
    assert_eq!(subjects(&reader), [""; 0]);
    assert_eq!(reader.version.as_deref(), Some("13"));
}

#[test]
fn many_are_counted_and_not_named() {
    let mut reader = Reader::new(Services::new(false));
    reader.begin_list();
    let items: Vec<_> = (0..500).map(|i| service(&format!("bad-{i:03}"), i, json!(7))).collect();
    let _ = reader.page(&page(900, &items)).unwrap();
    let _ = reader.end_list();
    assert_eq!(reader.warnings().len(), NAMED + 1);
    assert!(reader.warnings()[NAMED].message.starts_with("490 more"), "{:?}", reader.warnings());
    assert_eq!(reader.take_events().len(), NAMED);
}

#[test]
fn a_pod_that_becomes_unreadable_still_opts_out() {
    let pod = |version: u64, phase: Value| {
        json!({
            "metadata": {"name": "p", "namespace": "shop", "uid": "2c4bf2ae-5b2e-4a4e-8e52-0f2c4b1c9d11",
                         "resourceVersion": version.to_string(),
                         "annotations": {"shunt.dev/socket-path": "off"}},
            "status": {"phase": phase},
        })
    };
    let mut reader = Reader::new(Few::of(OwnPods("node-a".into())));
    reader.begin_list();
    let _ = reader.page(&page(1, &[pod(1, json!("Running"))])).unwrap();
    let before = reader.end_list();
    assert!(matches!(&before[..], [Change::OptedOutPods(pods)] if pods.socket_path.len() == 1));
    reader.begin_list();
    let _ = reader.page(&page(2, &[pod(2, json!(7))])).unwrap();
    assert_eq!(reader.end_list(), before);
}

#[test]
fn a_watch_that_reports_an_error_says_which() {
    let cases = [
        (json!({"code": 410, "message": "too old", "reason": "Expired"}), 410),
        (json!({"code": 0, "message": "decoding failed"}), 0),
        (json!({"code": "x", "status": 7}), 0),
        (json!(null), 0),
    ];
    for (status, code) in cases {
        let mut reader = Reader::new(Slices::new());
        match reader.line(&line("ERROR", &status)) {
            Err(Nonsense::Status(status)) => assert_eq!(status.code, code),
            other => panic!("{other:?}"),
        }
    }
    let mut reader = Reader::new(Slices::new());
    let bare = b"{\"kind\":\"Status\",\"code\":503,\"message\":\"later\"}\n";
    assert!(matches!(reader.line(bare), Err(Nonsense::Status(status)) if status.code == 503));
    assert!(matches!(reader.line(b"{\"type\":\n"), Err(Nonsense::Json(_))));
}
