//! Agents on a folder of manifests: edits apply live, and the same objects give the same tables
//! as from a Kubernetes API.

use anyhow::{Context, Result};
use lab::cluster::{Cluster, eventually};
use lab::objects::{self, Port};
use lab::web::{self, PORTS, VIPS, Web};
use lab::{AgentOptions, Ask, LabConfig, Pod};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

fn folder(cluster: &Cluster) -> Result<PathBuf> {
    let folder = cluster.lab.scratch().join("manifests");
    fs::create_dir(&folder)?;
    Ok(folder)
}

#[tokio::test]
async fn edits_of_manifests_apply_live_and_an_unreadable_one_changes_nothing() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let folder = folder(&web.cluster)?;
    let pods: Vec<&Pod> = web.pods.iter().collect();
    let put = |object: &Value| objects::write(&folder, object);
    put(&objects::node(web.cluster.lab.node(0)))?;
    let manifest = put(&web::service())?;
    for slice in objects::slices("web", &PORTS, &pods) {
        put(&slice)?;
    }
    let options = AgentOptions::files(&folder);
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    web.wait_reached().await?;
    let client = web.client.clone();
    let wait = async |to: &str, is_reached: bool| {
        let ask = Ask::tcp(to).timeout(Duration::from_millis(200));
        let ask = async || client.ask(ask.clone()).await;
        eventually(to, ask, |answer| answer.is_ok() == is_reached).await.map(drop)
    };

    put(&objects::service("added", &["10.96.3.1"], &PORTS))?;
    for slice in objects::slices("added", &PORTS, &pods) {
        put(&slice)?;
    }
    wait("10.96.3.1:80", true).await.context("a file that is new")?;

    let mut moved = web::service();
    moved["spec"]["clusterIP"] = json!("10.96.3.2");
    moved["spec"]["clusterIPs"] = json!(["10.96.3.2"]);
    moved["spec"]["ipFamilies"] = json!(["IPv4"]);
    put(&moved)?;
    wait("10.96.3.2:80", true).await.context("an edit")?;
    wait(VIPS[0], false).await.context("an edit")?;

    fs::write(&manifest, "kind: Service\n  metadata: [")?;
    let name = manifest.file_name().and_then(|name| name.to_str()).context("a name")?;
    let named = |status: &Value| status["warnings"].to_string().contains(name);
    let status = web.cluster.agent(0)?.wait_status(named).await?;
    eprintln!("{}", status["warnings"]);
    assert!(client.tcp("10.96.3.2:80").await.is_ok(), "the last good state stays");
    assert!(client.tcp("10.96.3.1:80").await.is_ok(), "the other files are served");
    fs::write(folder.join("unfinished.yaml"), "[")?;
    put(&web::service())?;
    wait(VIPS[0], true).await.context("a file that is good again")?;
    web.cluster.agent(0)?.wait_status(|status| !named(status)).await?;

    fs::remove_file(&manifest)?;
    wait(VIPS[0], false).await.context("a file that is gone")?;
    wait("10.96.3.1:80", true).await
}

/// Services and slices of every kind, made of `seed`.
fn objects_of(mut seed: u32, pods: &[&Pod]) -> Vec<Value> {
    let mut pick = |count: u32| {
        // Numerical Recipes' generator; its high bits are good enough.
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) % count
    };
    let mut all = Vec::new();
    for number in 1..=40_u16 {
        let (name, v4) = (format!("service-{number}"), format!("10.96.4.{number}"));
        let v6 = format!("fd00:96::4:{number}");
        let families: [&[&str]; 4] = [&[&v4], &[&v6], &[&v4, &v6], &[]];
        let ports = [
            Port { name: "one", protocol: "TCP", port: 80, target: 8080 },
            Port { name: "two", protocol: "UDP", port: 53, target: 5353 },
            Port { name: "three", protocol: "SCTP", port: 99, target: 99 },
        ];
        let ports = &ports[..1 + pick(3) as usize];
        let mut service = objects::service(&name, families[pick(4) as usize], ports);
        let spec = &mut service["spec"];
        match pick(4) {
            0 => spec["externalIPs"] = json!([format!("192.0.2.{number}")]),
            1 => spec["sessionAffinity"] = json!("ClientIP"),
            2 => {
                spec["type"] = json!("NodePort");
                // Some of them are claimed twice.
                spec["ports"][0]["nodePort"] = json!(30_000 + pick(20));
            }
            _ => {
                spec["type"] = json!("LoadBalancer");
                let vip = json!([{ "ip": format!("198.51.100.{number}") }]);
                service["status"]["loadBalancer"]["ingress"] = vip;
            }
        }
        let policy = |local: u32| if local == 0 { "Local" } else { "Cluster" };
        service["spec"]["externalTrafficPolicy"] = json!(policy(pick(2)));
        service["spec"]["internalTrafficPolicy"] = json!(policy(pick(3)));
        all.push(service);
        for mut slice in objects::slices(&name, ports, pods) {
            for endpoint in slice["endpoints"].as_array_mut().into_iter().flatten() {
                endpoint["conditions"] = match pick(4) {
                    0 => objects::terminating(pick(2) == 0),
                    1 => json!({ "ready": false }),
                    _ => json!({}),
                };
            }
            all.push(slice);
        }
    }
    all
}

#[tokio::test]
async fn same_objects_give_the_same_tables_from_files_and_from_the_api() -> Result<()> {
    let config = LabConfig { nodes: 1, ..LabConfig::default() };
    let mut cluster = Cluster::without_agents(config).await?;
    let node = cluster.lab.node(0);
    let pods = [cluster.lab.add_pod(node, "one").await?, cluster.lab.add_pod(node, "two").await?];
    let folder = folder(&cluster)?;
    objects::write(&folder, &objects::node(node))?;
    for object in objects_of(20_261, &[&pods[0], &pods[1]]) {
        cluster.api.apply(&object)?;
        objects::write(&folder, &object)?;
    }
    let mut seen = Vec::new();
    for options in [cluster.options(), AgentOptions::files(&folder)] {
        let status = cluster.start_agent(0, &options)?.wait_synced().await?;
        let tables = [
            cluster.shunt(0, &["services", "-A"]).await?,
            cluster.shunt(0, &["backends", "-A"]).await?,
            status["objects"].clone(),
            status["warnings"].clone(),
        ];
        seen.push(tables);
        cluster.kill_agent(0).await?;
        cluster.lab.node(0).clean_up().await?;
    }
    let rows = seen[0][0].as_array().map_or(0, Vec::len);
    assert!(rows > 40, "{rows} rows say something");
    for ((from_api, from_files), what) in
        seen[0].iter().zip(&seen[1]).zip(["services", "backends", "objects", "warnings"])
    {
        assert_eq!(from_api, from_files, "{what}");
    }
    Ok(())
}
