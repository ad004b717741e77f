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

/// How many kinds of new sockets from `from` to `vip` take the packet path, which makes them flows.
async fn on_packet_path(web: &Web, from: &Machine, vip: &str) -> Result<usize> {
    let mut count = 0;
    for ask in [Ask::tcp(vip), Ask::udp(vip), Ask::udp_unconnected(vip)] {
        let reply = from.ask(ask.clone()).await?;
        assert_eq!(reply.peer.to_string(), vip, "{ask:?}");
        let flows = web.cluster.shunt(0, &["flows"]).await?.to_string();
        count += usize::from(flows.contains(&format!(":{}\"", reply.local.port())));
    }
    Ok(count)
}

#[tokio::test]
async fn a_pod_opts_out_and_in_again_and_others_are_not_asked() -> Result<()> {
    let web = Web::start(1).await?;
    let (pod, other) = (&web.client, &web.pods[0]);
    let paths = async |vip| on_packet_path(&web, pod, vip).await;
    for vip in VIPS {
        assert_eq!(paths(vip).await?, 0, "the socket path serves all");
    }
    web.cluster.api.apply(&opting_out(pod))?;
    let uid = web.cluster.api.objects("pods")[0]["metadata"]["uid"].as_str().map(str::to_owned);
    move_to_cgroup_of(pod, &uid.context("a UID")?)?;
    for vip in VIPS {
        let out = |count: &Result<usize>| count.as_ref().is_ok_and(|count| *count == 3);
        eventually("opted out", async || paths(vip).await, out).await??;
        assert_eq!(on_packet_path(&web, other, vip).await?, 0, "another pod");
    }
    web.cluster.api.apply(&object(pod))?;
    for vip in VIPS {
        let back = |count: &Result<usize>| count.as_ref().is_ok_and(|count| *count == 0);
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
    let out = |count: &Result<usize>| count.as_ref().is_ok_and(|count| *count == 3);
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
    let out = |count: &Result<usize>| count.as_ref().is_ok_and(|count| *count == 3);
    for uid in ["s", UID] {
        forge(uid)?;
        move_to_cgroup_of(pod, &api_uid().context("a UID")?)?;
        for vip in VIPS {
            let path = async || on_packet_path(&web, pod, vip).await;
            eventually("opted out itself", path, out).await??;
            assert_eq!(on_packet_path(&web, other, vip).await?, 0, "{uid}: another pod");
        }
    }
    Ok(())
}
