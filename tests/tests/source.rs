//! The sources against the embedded Kubernetes API and real files: the same objects make the
//! same changes, and nothing that an API server does wrong loses one.

#[path = "source/cluster.rs"]
mod cluster;
#[path = "source/heard.rs"]
mod heard;
#[path = "source/names.rs"]
mod names;
#[path = "source/unreadable.rs"]
mod unreadable;

use anyhow::{Context as _, Result, bail};
use cluster::{Cluster, NODE, PATIENCE, Seen, WANTED, WATCHES, always, kube, service, slice, wait};
use lab::api::{ApiServer, Fault, Refusal};
use proxy_user::model::Slice;
use proxy_user::source::{self, Heard, SourceConfig};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::channel;
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn both_sources_say_the_same_of_the_same_objects() -> Result<()> {
    let mut objects = RANGES.to_string() + NODE + &NODE.replace("node-a", "node-b");
    for i in 0..7 {
        objects += &service(&format!("svc-{i}"));
        let labels = format!("kubernetes.io/service-name: svc-{i}");
        objects += &slice(&format!("svc-{i}-x"), &labels, &format!("10.244.0.{}", i + 1));
    }
    objects += &service("other").replace(
        "name: other",
        "name: other, labels: {service.kubernetes.io/service-proxy-name: x}",
    );
    objects += &slice("orphan", "", "10.244.9.9");
    objects += &slice("impossible", "kubernetes.io/service-name: svc-1", "127.0.0.1");
    let mut cluster = Cluster::with(|api| {
        api.delete("services", "default", "a");
        api.apply_yaml(&objects)
    })
    .await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("all.yaml"), &objects)?;
    let mut files = Seen::start(SourceConfig::Files { manifests: folder.path().into() });
    cluster.seen.synced().await?;
    files.synced().await?;
    assert_eq!(cluster.seen.services.as_ref().map(BTreeMap::len), Some(7));
    assert_eq!(cluster.seen.slices.as_ref().map(BTreeMap::len), Some(8));
    assert_eq!(cluster.seen.services, files.services);
    assert_eq!(cluster.seen.slices, files.slices);
    assert_eq!(cluster.seen.node, files.node);
    let ranges = |seen: &Seen| seen.service_cidrs.as_ref().map(Vec::len) == Some(2);
    cluster.seen.until("the ranges", ranges).await?;
    files.until("the ranges", ranges).await?;
    assert_eq!(cluster.seen.service_cidrs, files.service_cidrs);
    assert_eq!((cluster.seen.lists, files.lists), ((1, 1), (1, 1)));

    // The same edits, too.
    let edit = objects.replace("10.244.0.3", "10.244.7.7").replace("name: svc-5,", "name: svc-9,");
    std::fs::write(folder.path().join("all.yaml"), &edit)?;
    cluster.api.apply_yaml(&edit)?;
    cluster.api.delete("services", "default", "svc-5");
    let done = |seen: &Seen| {
        let moved =
            |slice: &Slice| slice.endpoints.iter().any(|e| e.addr.to_string() == "10.244.7.7");
        let slices = seen.slices.iter().flat_map(BTreeMap::values);
        seen.service_names().ends_with("svc-4 svc-6 svc-9") && slices.into_iter().any(moved)
    };
    cluster.seen.until("the edit", done).await?;
    files.until("the edit", done).await?;
    assert_eq!(cluster.seen.services, files.services);
    assert_eq!(cluster.seen.slices, files.slices);
    assert_eq!((cluster.seen.lists, files.lists), ((1, 1), (1, 1)), "edits are no lists");
    Ok(())
}

/// Scenario 1.
#[tokio::test]
async fn a_label_that_makes_an_object_another_proxys_takes_it_away() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    let labelled = "name: a, labels: {service.kubernetes.io/service-proxy-name: ''}";
    cluster.api.apply_yaml(&service("a").replace("name: a", labelled))?;
    cluster.seen.services_are("").await?;
    cluster.follows("", "a").await
}

/// Scenario 14.
#[tokio::test]
async fn a_slice_that_leaves_its_service_is_gone() -> Result<()> {
    let of_service = slice("s", "kubernetes.io/service-name: a", "10.244.0.1");
    let mut cluster = Cluster::with(|api| api.apply_yaml(&of_service)).await?;
    cluster.synced().await?;
    let count = |seen: &Seen| seen.slices.as_ref().map(BTreeMap::len);
    for labels in ["kubernetes.io/service-name: ''", ""] {
        assert_eq!(count(&cluster.seen), Some(1));
        cluster.api.apply_yaml(&slice("s", labels, "10.244.0.1"))?;
        cluster.seen.until("no slice", |seen| count(seen) == Some(0)).await?;
        cluster.api.apply_yaml(&of_service)?;
        cluster.seen.until("the slice", |seen| count(seen) == Some(1)).await?;
    }
    Ok(())
}

const RANGES: &str = "---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, \
 spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}}
";

#[tokio::test]
async fn service_cidrs_are_followed_and_an_api_server_need_not_know_them() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    let count = |seen: &Seen| seen.service_cidrs.as_ref().map(Vec::len);
    cluster.seen.until("none", |seen| count(seen) == Some(0)).await?;
    cluster.api.apply_yaml(RANGES)?;
    cluster.seen.until("both", |seen| count(seen) == Some(2)).await?;
    cluster.api.apply_yaml(&RANGES.replace(", 'fd00:96::/112'", ""))?;
    cluster.seen.until("one", |seen| count(seen) == Some(1)).await?;
    cluster.api.delete("servicecidrs", "", "kubernetes");
    cluster.seen.until("none", |seen| count(seen) == Some(0)).await?;

    let mut older = Cluster::with(|api| {
        api.fail(always("", "servicecidrs", Refusal::NotFound));
        Ok(())
    })
    .await?;
    older.seen.until("none", |seen| count(seen) == Some(0)).await?;
    older.seen.synced().await?;
    assert_eq!(older.seen.warnings, []);
    Ok(())
}

#[tokio::test]
async fn the_node_is_followed_and_missed() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    let zone = |seen: &Seen| seen.node.clone().flatten().and_then(|node| node.zone);
    assert_eq!(zone(&cluster.seen).as_deref(), Some("z1"));
    cluster.api.apply_yaml(&NODE.replace("z1", "z2"))?;
    cluster.seen.until("zone z2", |seen| zone(seen).as_deref() == Some("z2")).await?;
    cluster.api.delete("nodes", "", "node-a");
    cluster.seen.warned("--node-name").await?;
    assert_eq!(cluster.seen.node, Some(None));
    cluster.api.apply_yaml(NODE)?;
    cluster.seen.calm().await?;
    assert_eq!(zone(&cluster.seen).as_deref(), Some("z1"));
    Ok(())
}

#[tokio::test]
async fn a_long_list_is_read_in_pages_where_lists_are_not_streamed() -> Result<()> {
    let mut cluster = Cluster::with(|api| {
        api.fail(Fault {
            verb: "watch",
            resource: "services",
            times: 1,
            refusal: Refusal::Invalid,
        });
        (0..350).try_for_each(|i| api.apply_yaml(&service(&format!("many-{i:03}"))))
    })
    .await?;
    cluster.synced().await?;
    assert_eq!(cluster.seen.services.as_ref().map(BTreeMap::len), Some(351));
    assert_eq!((cluster.seen.lists.0, cluster.seen.warnings.len()), (1, 0));
    let all = cluster.seen.service_names();
    cluster.follows(&all, "z").await
}

#[tokio::test]
async fn a_server_without_streamed_lists_is_found_out() -> Result<()> {
    let mut cluster = Cluster::with(|api| {
        api.fail(Fault { verb: "watch", resource: "", times: 3, refusal: Refusal::Unmarked });
        Ok(())
    })
    .await?;
    cluster.synced().await?;
    assert_eq!((cluster.seen.lists, cluster.seen.warnings.len()), ((1, 1), 0));
    cluster.follows("a", "b").await
}

#[tokio::test]
async fn a_server_that_moves_is_found_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    cluster.api.refuse_connections();
    cluster.seen.warned("refuses connections").await?;
    cluster.api.accept_connections(TcpListener::bind("127.0.0.1:0")?)?;
    kube(&cluster.dir, &cluster.api.url(), None)?;
    cluster.follows("a", "b").await?;
    cluster.seen.calm().await
}

#[tokio::test]
async fn a_broken_watch_goes_on_where_it_was() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    cluster.api.drop_watches();
    cluster.follows("a", "b").await?;
    wait(|| cluster.api.watches() == WATCHES).await?;
    cluster.api.truncate_watches();
    cluster.follows("a b", "c").await?;
    assert_eq!(cluster.seen.lists, (1, 1), "no second list is needed");
    assert!(cluster.seen.warnings.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_bookmark_saves_a_list_after_the_history_is_gone() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    // The version moves on by an object that the source does not see.
    cluster.api.apply_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}")?;
    let resumed = || cluster.api.watched_from("services") == Some(cluster.api.version());
    for _ in 0..5 {
        cluster.api.bookmark();
        // Nothing shows that a bookmark was read but where the next watch begins.
        sleep(Duration::from_millis(50)).await;
        cluster.api.drop_watches();
        if timeout(Duration::from_secs(3), wait(resumed)).await.is_ok() {
            break;
        }
    }
    assert!(resumed(), "no watch began at the bookmark's version");
    cluster.api.compact();
    cluster.api.drop_watches();
    cluster.follows("a", "b").await?;
    assert_eq!(cluster.seen.lists.0, 1);
    Ok(())
}

#[tokio::test]
async fn a_version_that_is_too_old_leads_to_a_list() -> Result<()> {
    // As an event within the watch.
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    cluster.api.expire_watches();
    cluster.follows("a", "b").await?;
    cluster.seen.until("a second list", |seen| seen.lists.0 == 2).await?;
    wait(|| cluster.api.watches() == WATCHES).await?;
    // After the server was away.
    let addr = cluster.api.addr();
    cluster.api.refuse_connections();
    cluster.api.delete("services", "default", "a");
    cluster.api.compact();
    cluster.api.accept_connections(TcpListener::bind(addr)?)?;
    cluster.seen.services_are("b").await
}

#[tokio::test]
async fn an_answer_of_410_leads_to_a_list() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    cluster.api.fail(Fault {
        verb: "watch",
        resource: "services",
        times: 1,
        refusal: Refusal::Gone,
    });
    cluster.api.drop_watches();
    cluster.seen.until("a second list", |seen| seen.lists.0 == 2).await?;
    cluster.follows("a", "b").await
}

#[tokio::test]
async fn an_unreachable_server_changes_nothing_and_is_named() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    let addr = cluster.api.addr();
    cluster.api.refuse_connections();
    cluster.api.apply_yaml(&service("b"))?;
    cluster.api.delete("services", "default", "a");
    cluster.seen.warned(&format!("{addr}: it refuses connections")).await?;
    assert_eq!(cluster.seen.service_names(), "a");
    cluster.api.accept_connections(TcpListener::bind(addr)?)?;
    cluster.seen.services_are("b").await?;
    cluster.seen.calm().await
}

#[tokio::test]
async fn a_server_that_comes_late_is_waited_for() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    drop(listener);
    let dir = tempfile::tempdir()?;
    let mut seen = Seen::start(kube(&dir, &format!("http://{addr}"), None)?);
    seen.warned("refuses connections").await?;
    let api = ApiServer::start(TcpListener::bind(addr)?)?;
    api.apply_yaml(NODE)?;
    seen.synced().await?;
    seen.calm().await
}

#[tokio::test]
async fn what_rbac_forbids_is_named_until_it_is_granted() -> Result<()> {
    let mut cluster = Cluster::with(|api| {
        api.fail(always("", "endpointslices", Refusal::Forbidden));
        Ok(())
    })
    .await?;
    cluster.seen.warned("grant list and watch on endpointslices.discovery.k8s.io to system:serviceaccount:kube-system:shunt").await?;
    cluster.seen.until("services all the same", |seen| seen.services.is_some()).await?;
    assert!(cluster.seen.slices.is_none());
    cluster.api.heal();
    cluster.synced().await?;
    cluster.seen.calm().await
}

#[tokio::test]
async fn a_busy_or_failing_server_is_asked_again() -> Result<()> {
    for refusal in [Refusal::TooManyRequests(1), Refusal::Unavailable, Refusal::InternalError] {
        let fault = Fault { verb: "", resource: "services", times: 1, refusal };
        let mut cluster = Cluster::with(|api| {
            api.fail(fault.clone());
            Ok(())
        })
        .await?;
        let code = refusal_code(refusal);
        cluster.seen.warned(code).await?;
        cluster.synced().await?;
        cluster.seen.calm().await?;
        cluster.api.fail(fault);
        cluster.api.drop_watches();
        cluster.follows("a", "b").await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_server_asks_again_when_it_answers_another() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    // So often that the next attempt is seconds away.
    let refusal = Refusal::Unavailable;
    cluster.api.fail(Fault { verb: "", resource: "services", times: 5, refusal });
    cluster.api.drop_watches();
    wait(|| cluster.api.faults_left() == 0).await?;
    let since = Instant::now();
    cluster.api.drop_watches();
    cluster.follows("a", "b").await?;
    assert!(since.elapsed() < Duration::from_secs(1), "only after {:?}", since.elapsed());
    cluster.seen.calm().await
}

fn refusal_code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TooManyRequests(_) => "429",
        Refusal::Unavailable => "503",
        _ => "500",
    }
}

#[tokio::test]
async fn an_expired_token_is_read_again_from_the_kubeconfig() -> Result<()> {
    let api = ApiServer::on_loopback()?;
    api.require_token(Some("first"));
    api.apply_yaml(NODE)?;
    api.apply_yaml(&service("a"))?;
    let dir = tempfile::tempdir()?;
    let seen = Seen::start(kube(&dir, &api.url(), Some("first"))?);
    let mut cluster = Cluster { api, seen, dir };
    cluster.synced().await?;
    cluster.api.require_token(Some("second"));
    cluster.api.drop_watches();
    cluster.seen.warned("401").await?;
    assert_eq!(cluster.seen.service_names(), "a");
    kube(&cluster.dir, &cluster.api.url(), Some("second"))?;
    cluster.follows("a", "b").await?;
    cluster.seen.calm().await
}

#[tokio::test]
async fn a_list_that_breaks_off_is_never_taken_for_everything() -> Result<()> {
    let half = |verb| Fault { verb, resource: "services", times: 2, refusal: Refusal::Half };
    for streamed in [true, false] {
        let mut cluster = Cluster::with(|api| {
            api.fail(half(if streamed { "watch" } else { "list" }));
            if !streamed {
                api.fail(Fault { times: 1, refusal: Refusal::Invalid, ..half("watch") });
            }
            (0..50).try_for_each(|i| api.apply_yaml(&service(&format!("many-{i:02}"))))
        })
        .await?;
        cluster.synced().await?;
        assert_eq!(cluster.seen.services.as_ref().map(BTreeMap::len), Some(51));
        assert_eq!(cluster.seen.lists.0, 1);
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_late_does_no_harm() -> Result<()> {
    let late = Refusal::Late(Duration::from_millis(300));
    let mut cluster = Cluster::with(|api| {
        api.fail(Fault { verb: "", resource: "", times: 4, refusal: late });
        Ok(())
    })
    .await?;
    cluster.synced().await?;
    assert!(cluster.seen.warnings.is_empty());
    cluster.follows("a", "b").await
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() -> Result<()> {
    let api = ApiServer::on_loopback()?;
    api.apply_yaml(NODE)?;
    let dir = tempfile::tempdir()?;
    for config in
        [kube(&dir, &api.url(), None)?, SourceConfig::Files { manifests: dir.path().into() }]
    {
        let (sender, mut receiver) = channel(16);
        let heard = Heard::default();
        let task = tokio::spawn(async move { source::run(&config, WANTED, sender, heard).await });
        for _ in 0..3 {
            timeout(PATIENCE, receiver.recv()).await?.context("the source ended")?;
        }
        drop(receiver);
        timeout(PATIENCE, task).await???;
    }
    Ok(())
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_ends_the_source_with_the_flag_to_mend() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broken = dir.path().join("broken");
    std::fs::write(&broken, "clusters: 7")?;
    for path in [dir.path().join("missing"), broken] {
        let (sender, _receiver) = channel(1);
        let config = SourceConfig::Kube { kubeconfig: Some(path.clone()) };
        let error =
            timeout(PATIENCE, source::run(&config, WANTED, sender, Heard::default())).await?;
        let error = error.err().context("it began")?.to_string();
        assert!(error.contains("--kubeconfig"), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    Ok(())
}

/// Runs `kubectl` on the API server, with `input`, and returns what it prints.
fn kubectl(kubeconfig: &Path, args: &str, input: &str) -> Result<String> {
    let file = kubeconfig.with_extension("yaml");
    std::fs::write(&file, input)?;
    let output = Command::new("kubectl")
        .args(args.split(' '))
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", kubeconfig.parent().context("the kubeconfig has no folder")?)
        .env("FILE", &file)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("kubectl {args}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_reads_and_writes() -> Result<()> {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("skipped: kubectl is not installed");
        return Ok(());
    }
    let mut cluster = Cluster::start().await?;
    cluster.synced().await?;
    let config = cluster.dir.path().join("kubeconfig");
    let file = config.with_extension("yaml");
    let apply = format!("apply --validate=false -f {}", file.display());
    let two = "
apiVersion: v1
kind: Service
metadata: {name: b, namespace: default}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}, {name: https, port: 443}]}
";
    kubectl(&config, &apply, two)?;
    cluster.seen.services_are("a b").await?;
    let edit = two.replace("port: 443", "port: 444").replace("name: http,", "name: web,");
    kubectl(&config, &apply, &edit)?;
    let ports = |seen: &Seen| {
        let services = seen.services.iter().flat_map(BTreeMap::values);
        let ports = services.filter(|service| &*service.name.name == "b").flat_map(|s| &s.ports);
        ports.map(|port| format!("{} {}", port.name, port.port)).collect::<Vec<_>>()
    };
    cluster.seen.until("the edit", |seen| ports(seen) == ["web 80", "https 444"]).await?;
    let listed = kubectl(&config, "get svc -A -o name", "")?;
    assert_eq!(listed, "service/a\nservice/b\n");
    assert!(kubectl(&config, "get nodes", "")?.contains("node-a"));
    kubectl(&config, "patch svc a --type merge -p {\"spec\":{\"clusterIP\":\"10.96.0.9\"}}", "")?;
    let addr = |seen: &Seen| {
        let services = seen.services.iter().flat_map(BTreeMap::values);
        services.flat_map(|service| &service.cluster_ips).any(|ip| ip.to_string() == "10.96.0.9")
    };
    cluster.seen.until("the patch", addr).await?;
    kubectl(&config, "delete svc b", "")?;
    cluster.seen.services_are("a").await
}
