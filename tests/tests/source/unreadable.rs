//! Objects that an API server takes and not every client can read: they hold up no other.

use super::cluster::{Cluster, PATIENCE, service, wait};
use anyhow::{Result, ensure};
use lab::api::ApiServer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How soon a change of another object has to arrive.
const SOON: Duration = Duration::from_secs(1);

/// A Service that no client can read, number `i` of ten: each is wrong in its own way.
fn bad(i: usize) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("bad-{i}"), "namespace": "default", "uid": format!("uid-{i}")},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]},
        // This alone stops nobody.
        "status": {"conditions": [{"type": "X", "status": "True", "lastTransitionTime": null}]},
    });
    let (path, value) = [
        ("/spec", json!(7)),
        ("/spec/ports", json!("x".repeat(1 << 20))),
        ("/spec/ports/0", json!([[]])),
        ("/spec/ports/0/port", json!("http")),
        ("/spec/ports/0/port", json!(u64::MAX)),
        ("/spec/clusterIP", json!({"ip": "10.96.0.9"})),
        ("/metadata/uid", json!(7)),
        ("/status", json!([7])),
        ("/status", json!("ready")),
        ("/spec/clusterIP", json!(1.5)),
    ][i]
        .clone();
    *object.pointer_mut(path).expect("the path is one of the object") = value;
    object
}

fn put(api: &ApiServer, i: usize) -> Result<()> {
    api.apply_raw("services", "default", &format!("bad-{i}"), bad(i))
}

fn named(cluster: &Cluster) -> BTreeSet<String> {
    let warnings = cluster.seen.warnings.iter();
    warnings.map(|warning| warning.subject.replace("Service default/", "")).collect()
}

/// Changes Service `a`, and waits until the change has come.
async fn soon(cluster: &mut Cluster, addr: &str) -> Result<()> {
    let began = Instant::now();
    cluster.api.apply_yaml(&service("a").replace("10.96.0.1", addr))?;
    let has = |seen: &super::Seen| {
        let mut services = seen.services.iter().flat_map(|services| services.values());
        services
            .any(|service| &*service.name.name == "a" && service.cluster_ips[0].to_string() == addr)
    };
    cluster.seen.until(&format!("a at {addr}"), has).await?;
    ensure!(began.elapsed() < SOON, "only after {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn ten_objects_that_cannot_be_read_are_named_and_hold_up_no_other() -> Result<()> {
    // Half of them are there before, half come later.
    let mut cluster = Cluster::with(|api| (0..5).try_for_each(|i| put(api, i))).await?;
    cluster.synced().await?;
    cluster.seen.until("five are named", |seen| seen.warnings.len() == 5).await?;
    soon(&mut cluster, "10.96.0.2").await?;
    (5..10).try_for_each(|i| put(&cluster.api, i))?;
    soon(&mut cluster, "10.96.0.3").await?;
    cluster.seen.until("ten are named", |seen| seen.warnings.len() == 10).await?;
    ensure!(
        named(&cluster) == (0..10).map(|i| format!("bad-{i}")).collect(),
        "{:?}",
        named(&cluster)
    );
    ensure!(cluster.seen.service_names() == "a");

    // Their owners are told, once each.
    let told = || {
        let events = cluster.api.objects("events");
        let names = events.iter().filter_map(|event| event["involvedObject"]["name"].as_str());
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    wait(|| told().len() == 10).await?;
    ensure!(cluster.api.objects("events").len() == 10);

    // The first becomes readable, the second is deleted, and the third is read, and then not.
    cluster.api.apply_yaml(&service("bad-0"))?;
    cluster.api.delete("services", "default", "bad-1");
    cluster.api.apply_yaml(&service("bad-2"))?;
    cluster.seen.services_are("a bad-0 bad-2").await?;
    cluster.seen.until("seven are named", |seen| seen.warnings.len() == 7).await?;
    put(&cluster.api, 2)?;
    soon(&mut cluster, "10.96.0.4").await?;
    cluster.seen.until("eight are named", |seen| seen.warnings.len() == 8).await?;
    ensure!(cluster.seen.service_names() == "a bad-0 bad-2", "its last good state stays");
    ensure!(cluster.seen.lists == (1, 1), "no second list is needed");

    // So it is with a new list.
    cluster.api.compact();
    cluster.api.expire_watches();
    cluster.seen.until("a second list", |seen| seen.lists.0 == 2).await?;
    ensure!(cluster.seen.kept.len() == 8, "{:?}", cluster.seen.kept);
    soon(&mut cluster, "10.96.0.5").await?;
    for i in 2..10 {
        cluster.api.delete("services", "default", &format!("bad-{i}"));
    }
    cluster.seen.calm().await?;
    soon(&mut cluster, "10.96.0.6").await
}

/// Issue 10: upstream's conformance test "should complete a service status lifecycle" makes one.
#[tokio::test]
async fn a_service_with_a_condition_without_a_time_is_served_like_any_other() -> Result<()> {
    let status = "{status: {conditions: [{type: X, status: 'True', lastTransitionTime: null}]}}";
    let mut object: Value = serde_yaml_ng::from_str(&service("bad").replace("---\n", ""))?;
    let status: Value = serde_yaml_ng::from_str(status)?;
    object["status"] = status["status"].clone();
    let mut cluster = Cluster::with(|api| api.apply(&object)).await?;
    cluster.synced().await?;
    ensure!(cluster.seen.service_names() == "a bad");
    object["spec"]["clusterIP"] = "10.96.0.99".into();
    cluster.api.apply(&object)?;
    soon(&mut cluster, "10.96.0.2").await?;
    let has = |seen: &super::Seen| format!("{:?}", seen.services).contains("10.96.0.99");
    cluster.seen.until("its change", has).await?;
    cluster.seen.calm().await
}

#[tokio::test]
async fn lists_in_pages_have_them_too() -> Result<()> {
    let mut cluster = Cluster::with(|api| {
        api.fail(super::Fault {
            verb: "watch",
            resource: "",
            times: 3,
            refusal: super::Refusal::Invalid,
        });
        api.apply_raw("nodes", "", "node-a", json!({"metadata": {"name": "node-a"}, "spec": 7}))?;
        put(api, 0)
    })
    .await?;
    cluster.seen.warned("spec: invalid type").await?;
    cluster
        .seen
        .until("both are named", |seen| {
            let named = |subject| seen.warnings.iter().any(|w| w.subject == subject);
            named("Service default/bad-0") && named("Node node-a")
        })
        .await?;
    soon(&mut cluster, "10.96.0.2").await
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_opened_again() -> Result<()> {
    // Only watches that names need are renewed often enough for a test to wait for it.
    let api = ApiServer::on_loopback()?;
    api.apply_yaml(super::NODE)?;
    api.apply_yaml(&service("a"))?;
    let dir = tempfile::tempdir()?;
    let (mut world, mut changes, heard, task) = super::heard::start(&dir, &api).await?;
    ensure!(heard.age() < Duration::from_secs(2));
    api.freeze_watches(true);
    api.apply_yaml(&service("b"))?;
    let b = |world: &proxy_user::model::World| world.services().any(|s| &*s.name.name == "b");
    // Not from the frozen watch, and not from another frozen one, but from a list.
    super::heard::until(&mut world, &mut changes, Duration::from_secs(60), b).await?;
    api.freeze_watches(false);
    api.apply_yaml(&service("c"))?;
    let c = |world: &proxy_user::model::World| world.services().any(|s| &*s.name.name == "c");
    super::heard::until(&mut world, &mut changes, PATIENCE, c).await?;
    task.abort();
    Ok(())
}

#[tokio::test]
async fn a_watch_that_always_breaks_at_one_event_begins_with_a_list() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    cluster.api.truncate_lines_with("\"poison\"");
    let poisoned = service("b").replace("name: b", "name: b, annotations: {x: poison}");
    cluster.api.apply_yaml(&poisoned)?;
    cluster.seen.until("a second list", |seen| seen.lists.0 == 2).await?;
    cluster.seen.services_are("a b").await
}
