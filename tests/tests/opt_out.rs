//! Pods with the annotation `shunt.dev/socket-path: off`: the packet path serves them.

use anyhow::{Context, Result};
use lab::cluster::eventually;
use lab::web::{VIPS, Web};
use lab::{AgentOptions, Ask, Machine, Pod, objects};
use serde_json::{Value, json};
use std::fs;

/// A UID as the API server gives them.
const UID: &str = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d";

/// The Pod object of `pod`, without annotations.
fn object(pod: &Pod) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": "default", "name": pod.name() },
        "spec": { "nodeName": pod.node(), "containers": [] },
        "status": { "phase": "Running" },
    })
}

fn opting_out(pod: &Pod) -> Value {
    let mut object = object(pod);
    object["metadata"]["annotations"] = json!({ "shunt.dev/socket-path": "off" });
    object
}

/// Puts the pod's process into a cgroup as the kubelet names it.
fn move_to_cgroup_of(pod: &Pod, uid: &str) -> Result<()> {
    let name = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
    let container = pod.cgroup().join(name).join("container");
    fs::create_dir_all(&container)?;
    fs::write(container.join("cgroup.procs"), pod.pid().to_string()).context("move the worker")
}

/// Whether a new TCP connection from `from` to `vip` takes the packet path. UDP always does.
async fn on_packet_path(web: &Web, from: &Machine, vip: &str) -> Result<bool> {
    let before = chosen(web, "ingress").await?;
    let reply = from.tcp(vip).await?;
    assert_eq!(reply.peer.to_string(), vip);
    let by_packet = chosen(web, "ingress").await? > before;
    let before = chosen(web, "ingress").await?;
    for ask in [Ask::udp(vip), Ask::udp_unconnected(vip)] {
        assert_eq!(from.ask(ask.clone()).await?.peer.to_string(), vip, "{ask:?}");
    }
    assert_eq!(chosen(web, "ingress").await?, before + 2, "UDP to {vip}");
    Ok(by_packet)
}

/// How often `program` has chosen a backend on the node.
async fn chosen(web: &Web, program: &str) -> Result<u64> {
    let status = web.cluster.shunt(0, &["status"]).await?;
    let rows = status["outcomes"].as_array().context("outcomes")?;
    let row = rows.iter().find(|row| row["program"] == program && row["outcome"] == "chosen");
    Ok(row.and_then(|row| row["count"].as_u64()).unwrap_or(0))
}

#[tokio::test]
async fn a_pod_opts_out_and_in_again_and_others_are_not_asked() -> Result<()> {
    let web = Web::start(1).await?;
    let (pod, other) = (&web.client, &web.pods[0]);
    let paths = async |vip| on_packet_path(&web, pod, vip).await;
    for vip in VIPS {
        assert!(!paths(vip).await?, "the socket path serves TCP");
    }
    web.cluster.api.apply(&opting_out(pod))?;
    let uid = web.cluster.api.objects("pods")[0]["metadata"]["uid"].as_str().map(str::to_owned);
    move_to_cgroup_of(pod, &uid.context("a UID")?)?;
    for vip in VIPS {
        let out = |by_packet: &Result<bool>| by_packet.as_ref().is_ok_and(|out| *out);
        eventually("opted out", async || paths(vip).await, out).await??;
        assert!(!on_packet_path(&web, other, vip).await?, "another pod");
    }
    web.cluster.api.apply(&object(pod))?;
    for vip in VIPS {
        let back = |by_packet: &Result<bool>| by_packet.as_ref().is_ok_and(|out| !*out);
        eventually("back on the socket path", async || paths(vip).await, back).await??;
    }
    Ok(())
}

#[tokio::test]
async fn a_manifest_opts_a_pod_out_too() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let folder = web.cluster.lab.scratch().join("manifests");
    fs::create_dir(&folder)?;
    for resource in ["services", "endpointslices", "nodes"] {
        for object in web.cluster.api.objects(resource) {
            objects::write(&folder, &object)?;
        }
    }
    let mut pod = opting_out(&web.client);
    pod["metadata"]["uid"] = json!(UID);
    objects::write(&folder, &pod)?;
    move_to_cgroup_of(&web.client, UID)?;
    let options = AgentOptions::files(&folder);
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    web.wait_reached().await?;
    let out = |by_packet: &Result<bool>| by_packet.as_ref().is_ok_and(|out| *out);
    let path = async || on_packet_path(&web, &web.client, VIPS[0]).await;
    eventually("opted out", path, out).await?.map(drop)
}

/// A pod whose annotations say that it is a static pod with the UID `s` would, as the end of
/// `kubepods`, be every pod of the node.
#[tokio::test]
async fn a_pod_opts_out_no_other_pod() -> Result<()> {
    let web = Web::start(1).await?;
    let (pod, other) = (&web.client, &web.pods[0]);
    // The cgroup of all pods, with that of the other pod in it.
    let all = other.cgroup().join("kubepods");
    let container = all.join(format!("pod{UID}/container"));
    fs::create_dir_all(&container)?;
    fs::write(container.join("cgroup.procs"), other.pid().to_string())?;
    let forge = |uid: &str| -> Result<()> {
        let mut forged = opting_out(pod);
        forged["metadata"]["annotations"]["kubernetes.io/config.hash"] = json!(uid);
        forged["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!(uid);
        web.cluster.api.apply(&forged)
    };
    let api_uid =
        || web.cluster.api.objects("pods")[0]["metadata"]["uid"].as_str().map(str::to_owned);
    let out = |by_packet: &Result<bool>| by_packet.as_ref().is_ok_and(|out| *out);
    for uid in ["s", UID] {
        forge(uid)?;
        move_to_cgroup_of(pod, &api_uid().context("a UID")?)?;
        for vip in VIPS {
            let path = async || on_packet_path(&web, pod, vip).await;
            eventually("opted out itself", path, out).await??;
            assert!(!on_packet_path(&web, other, vip).await?, "{uid}: another pod");
        }
    }
    Ok(())
}
