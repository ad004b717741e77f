//! Real folders, real events.

mod fuzz;

use super::*;
use crate::model::{OptedOut, Warning};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel};

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}}}}}\n"
    )
}

const WANTED: Wanted<'_> = Wanted { node_name: "node-a", names: false };
const NODE: &str = "---\n{apiVersion: v1, kind: Node, metadata: {name: node-a}}\n";

/// A folder that holds `files`.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// The source on `dir`, and what it says.
fn start(dir: &Path) -> Receiver<Change> {
    let (sender, receiver) = channel(64);
    let dir = dir.to_path_buf();
    tokio::spawn(async move { run(&dir, WANTED, &sender).await.unwrap() });
    receiver
}

async fn next(changes: &mut Receiver<Change>) -> Change {
    let change = timeout(Duration::from_secs(20), changes.recv()).await;
    change.expect("no change in 20 s").expect("the source ended")
}

/// The names of Services in the first four changes, which must be complete.
async fn first(changes: &mut Receiver<Change>) -> Vec<String> {
    let Change::AllServices(services) = next(changes).await else { panic!("no Services") };
    assert!(matches!(next(changes).await, Change::AllSlices(_)));
    assert!(matches!(next(changes).await, Change::Node(_)));
    assert!(matches!(next(changes).await, Change::ServiceCidrs(_)));
    assert!(matches!(next(changes).await, Change::OptedOutPods(_)));
    services.iter().map(|service| service.name.name.to_string()).collect()
}

async fn gone(changes: &mut Receiver<Change>) -> String {
    match next(changes).await {
        Change::ServiceGone(name) => name.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The ClusterIP in the next change, which must be a Service.
async fn changed(changes: &mut Receiver<Change>) -> String {
    match next(changes).await {
        Change::Service(service) => service.cluster_ips[0].to_string(),
        other => panic!("{other:?}"),
    }
}

async fn warnings(changes: &mut Receiver<Change>) -> Vec<Warning> {
    match next(changes).await {
        Change::SourceWarnings(warnings) => warnings,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn edits_come_as_the_objects_that_differ() {
    let dir = folder(&[
        ("a.yaml", &(service("a", "10.0.0.1") + NODE)),
        ("b.yml", &service("b", "10.0.0.2")),
        ("c.json", &service("c", "10.0.0.3").replace("---\n", "")),
        (".hidden.yaml", &service("d", "10.0.0.4")),
        ("notes.txt", &service("e", "10.0.0.5")),
    ]);
    let mut changes = start(dir.path());
    assert_eq!(first(&mut changes).await, ["a", "b", "c"]);
    // In place, as `echo >` does.
    fs::write(dir.path().join("b.yml"), service("b", "10.0.0.9")).unwrap();
    assert_eq!(changed(&mut changes).await, "10.0.0.9");
    // By a rename, as editors do.
    fs::write(dir.path().join("b.yml~"), service("b", "10.0.0.8")).unwrap();
    fs::rename(dir.path().join("b.yml~"), dir.path().join("b.yml")).unwrap();
    assert_eq!(changed(&mut changes).await, "10.0.0.8");
    fs::remove_file(dir.path().join("b.yml")).unwrap();
    assert_eq!(gone(&mut changes).await, "default/b");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_keeps_what_it_held() {
    let dir = folder(&[("a.yaml", &(service("a", "10.0.0.1") + NODE))]);
    let mut changes = start(dir.path());
    assert_eq!(first(&mut changes).await, ["a"]);
    fs::write(dir.path().join("a.yaml"), "kind: x\na: [\n").unwrap();
    let broken = warnings(&mut changes).await;
    assert!(broken[0].subject.ends_with("a.yaml"), "{broken:?}");
    assert!(broken[0].message.contains("line 3"), "{broken:?}");
    fs::write(dir.path().join("a.yaml"), service("a", "10.0.0.2") + NODE).unwrap();
    assert_eq!(changed(&mut changes).await, "10.0.0.2");
    assert_eq!(warnings(&mut changes).await, []);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_keeps_what_it_was_and_no_other_back() {
    let dir = folder(&[("a.yaml", &(service("a", "10.0.0.1") + &service("b", "10.0.0.2") + NODE))]);
    let mut changes = start(dir.path());
    assert_eq!(first(&mut changes).await, ["a", "b"]);
    let bad = service("a", "[]") + &service("b", "10.0.0.9") + NODE;
    fs::write(dir.path().join("a.yaml"), bad).unwrap();
    assert_eq!(changed(&mut changes).await, "10.0.0.9");
    let named = warnings(&mut changes).await;
    assert!(named[0].message.contains("line 2"), "{named:?}");
    assert!(named[0].message.contains("Service a: spec.clusterIP"), "{named:?}");
    fs::write(dir.path().join("a.yaml"), service("b", "10.0.0.9") + NODE).unwrap();
    assert_eq!(gone(&mut changes).await, "default/a");
    assert_eq!(warnings(&mut changes).await, []);
}

#[tokio::test]
async fn the_first_of_two_files_with_one_object_counts() {
    let dir = folder(&[
        ("a.yaml", &(service("a", "10.0.0.1") + NODE)),
        ("b.yaml", &service("a", "10.0.0.2")),
    ]);
    let mut changes = start(dir.path());
    assert_eq!(first(&mut changes).await, ["a"]);
    let doubled = warnings(&mut changes).await;
    assert_eq!(doubled[0].subject, "Service default/a");
    assert!(doubled[0].message.contains("b.yaml"), "{doubled:?}");
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(changed(&mut changes).await, "10.0.0.2");
}

#[tokio::test]
async fn a_config_map_volume_is_followed() {
    // The layout of kubelet's atomic writer: files point into `..data`, which points to a version.
    let dir = folder(&[]);
    let at = |name: &str| dir.path().join(name);
    for (version, ip) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), service("a", ip) + NODE).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut changes = start(dir.path());
    assert_eq!(first(&mut changes).await, ["a"]);
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(changed(&mut changes).await, "10.0.0.2");
}

#[tokio::test]
async fn a_folder_that_goes_away_keeps_what_it_held_and_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (here, away) = (dir.path().join("here"), dir.path().join("away"));
    fs::create_dir(&here).unwrap();
    fs::write(here.join("a.yaml"), service("a", "10.0.0.1") + NODE).unwrap();
    let mut changes = start(&here);
    assert_eq!(first(&mut changes).await, ["a"]);
    fs::rename(&here, &away).unwrap();
    let missing = warnings(&mut changes).await;
    assert!(missing[0].subject.ends_with("here"), "{missing:?}");
    fs::write(away.join("a.yaml"), service("a", "10.0.0.2") + NODE).unwrap();
    fs::rename(&away, &here).unwrap();
    let both = [next(&mut changes).await, next(&mut changes).await];
    assert!(both.iter().any(|change| matches!(change, Change::Service(_))), "{both:?}");
    assert!(both.contains(&Change::SourceWarnings(vec![])), "{both:?}");
}

#[tokio::test]
async fn the_own_node_is_picked_out_and_missed() {
    let other = "---\n{apiVersion: v1, kind: Node, metadata: {name: node-b}}\n";
    let dir = folder(&[("nodes.yaml", &(other.to_string() + NODE))]);
    let mut changes = start(dir.path());
    let seen = [next(&mut changes).await, next(&mut changes).await, next(&mut changes).await];
    let [_, _, Change::Node(Some(node))] = seen else { panic!("{seen:?}") };
    assert_eq!(next(&mut changes).await, Change::ServiceCidrs(vec![]));
    assert_eq!(&*node.name, "node-a");
    assert_eq!(next(&mut changes).await, Change::OptedOutPods(OptedOut::default()));
    fs::write(dir.path().join("nodes.yaml"), other).unwrap();
    assert_eq!(next(&mut changes).await, Change::Node(None));
    let subjects: BTreeSet<_> =
        warnings(&mut changes).await.into_iter().map(|warning| warning.subject).collect();
    assert_eq!(subjects, BTreeSet::from(["Node node-a".to_string()]));
}

#[tokio::test]
async fn a_folder_that_is_not_there_ends_the_source_with_the_flag_to_mend() {
    let (sender, _receiver) = channel(1);
    let error = run(Path::new("/nonexistent"), WANTED, &sender).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent") && error.contains("--manifests"), "{error}");
}

#[tokio::test]
async fn pods_of_the_own_node_that_opt_out_and_run_are_named() {
    let pod = |name: &str, node: &str, path: &str, phase: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, uid: uid-{name}, \
             annotations: {{shunt.dev/socket-path: '{path}', shunt.dev/dns: '{path}'}}}}, \
             spec: {{nodeName: {node}, containers: []}}, \
             status: {{phase: {phase}, podIPs: [{{ip: 10.244.1.9}}, {{ip: 'fd00::9'}}]}}}}\n"
        )
    };
    let own = pod("a", "node-a", "off", "Running") + &pod("b", "node-b", "off", "Running");
    let text = own + &pod("c", "node-a", "on", "Running") + &pod("d", "node-a", "off", "Failed");
    let dir = folder(&[("pods.yaml", &text)]);
    let mut changes = start(dir.path());
    // The Services, the slices, the node and the ServiceCIDRs.
    for _ in 0..4 {
        let _ = next(&mut changes).await;
    }
    let opted_out = OptedOut {
        socket_path: BTreeSet::from(["uid-a".into()]),
        names: ["10.244.1.9", "fd00::9"].map(|addr| addr.parse().unwrap()).into(),
        ..OptedOut::default()
    };
    assert_eq!(next(&mut changes).await, Change::OptedOutPods(opted_out));
    let _no_node = next(&mut changes).await;
    fs::remove_file(dir.path().join("pods.yaml")).unwrap();
    assert_eq!(next(&mut changes).await, Change::OptedOutPods(OptedOut::default()));
}
