//! Services over real packets and sockets: what pods, nodes and outsiders reach.

use anyhow::Result;
use lab::cluster::{Cluster, eventually};
use lab::objects::{Port, service};
use lab::{Ask, LabConfig, Pod, Serve};
use serde_json::json;
use std::collections::BTreeSet;

const WEB: [Port<'static>; 2] = [
    Port { name: "http", protocol: "TCP", port: 80, target: 8080 },
    Port { name: "dns", protocol: "UDP", port: 80, target: 8080 },
];
const WEB_IPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const WEB_VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

/// A cluster with the Service `web` and a backend on each node.
async fn cluster_with_web() -> Result<(Cluster, [Pod; 2])> {
    let cluster = Cluster::start(LabConfig::default()).await?;
    let lab = &cluster.lab;
    let pods = [lab.add_pod(lab.node(0), "web-0").await?, lab.add_pod(lab.node(1), "web-1").await?];
    for pod in &pods {
        pod.serve(Serve::tcp(8080)).await?;
        pod.serve(Serve::udp(8080)).await?;
    }
    let mut web = service("web", &WEB_IPS, &WEB);
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["ports"][0]["nodePort"] = json!(31775);
    web["spec"]["ports"][1]["nodePort"] = json!(31775);
    cluster.publish(&web, &WEB, &[&pods[0], &pods[1]])?;
    Ok((cluster, pods))
}

#[tokio::test]
async fn pod_reaches_every_backend_of_a_cluster_ip() -> Result<()> {
    let (cluster, _pods) = cluster_with_web().await?;
    let client = cluster.lab.add_pod(cluster.lab.node(0), "client").await?;
    for vip in WEB_VIPS {
        for ask in [Ask::tcp(vip), Ask::udp(vip), Ask::udp_unconnected(vip)] {
            eventually(vip, async || client.ask(ask.clone()).await, Result::is_ok).await??;
            let mut names = BTreeSet::new();
            for _ in 0..40 {
                let reply = client.ask(ask.clone()).await?;
                assert_eq!(reply.peer.to_string(), vip, "the socket sees the service");
                assert_eq!(
                    reply.client.ip(),
                    client.addrs().at(0)[usize::from(vip.starts_with('['))].ip()
                );
                names.insert(reply.name);
            }
            assert_eq!(names.len(), 2, "{ask:?} {names:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn outsider_reaches_every_backend_through_every_node() -> Result<()> {
    let (cluster, _pods) = cluster_with_web().await?;
    let client = cluster.lab.add_client("outside").await?;
    for node in cluster.lab.nodes() {
        for (family, to) in node.addrs().at(31775).into_iter().enumerate() {
            for ask in [Ask::tcp(to), Ask::udp(to)] {
                eventually("NodePort", async || client.ask(ask.clone()).await, Result::is_ok)
                    .await??;
                let mut names = BTreeSet::new();
                for _ in 0..40 {
                    let reply = client.ask(ask.clone()).await?;
                    assert_eq!(reply.peer, to);
                    let local = reply.name == format!("web-{}", node.name().ends_with('2') as u8);
                    let expected = if local { client.addrs() } else { node.addrs() };
                    assert_eq!(reply.client.ip(), expected.at(0)[family].ip(), "{to} {reply:?}");
                    names.insert(reply.name);
                }
                assert_eq!(names.len(), 2, "{ask:?} {names:?}");
            }
        }
    }
    Ok(())
}
