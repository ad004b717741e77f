//! What an operator sees of conntrack and of the tables of nftables, and the settings that the agent
//! makes.

use crate::scene::{Path, Scene, node_port, vip};
use anyhow::{Context as _, Result};
use lab::{Ask, Machine};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The flow of `client`, which has one.
async fn flow(scene: &Scene, client: SocketAddr) -> Result<Value> {
    let rows = scene.cluster.shunt(0, &["flows"]).await?;
    let mut rows = rows.as_array().context("rows")?.iter();
    rows.find(|row| row["client"] == json!(client)).cloned().context("no flow")
}

#[tokio::test]
async fn flows_are_listed_with_the_agent_dead_and_marked_when_their_service_is_gone() -> Result<()>
{
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    scene.cluster.kill_agent(0).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    let backends = scene.web[1].addrs().at(8080);
    let at_node = node.addrs().at(node_port(1));
    let askers: [(&Machine, _, _); 2] =
        [(&scene.client, vip(1), false), (&outsider, at_node, true)];
    let mut open = Vec::new();
    for (from, to, is_hidden) in askers {
        for (family, to) in to.into_iter().enumerate() {
            for (ask, state, port) in
                [(Ask::tcp(to), "established", "web"), (Ask::udp(to), "answered", "web-udp")]
            {
                let socket = from.open(ask).await?;
                let reply = socket.ask().await?;
                let row = flow(&scene, reply.local).await?;
                assert_eq!(row["frontend"], json!(to), "{row}");
                assert_eq!(row["backend"], json!(backends[family]), "{row}");
                assert_eq!(row["service"], json!(format!("default/svc-1:{port}")), "{row}");
                assert_eq!(row["state"], json!(state), "{row}");
                let seen = if is_hidden { json!(reply.client) } else { Value::Null };
                assert_eq!(row["snat"], seen, "{row}");
                open.push(socket);
            }
        }
    }
    let only = scene.cluster.shunt(0, &["flows", "--service", "default/svc-2"]).await?;
    assert_eq!(only, json!([]));
    assert!(scene.cluster.api.delete("services", "default", "svc-1"));
    let options = scene.cluster.options();
    scene.cluster.start_agent(0, &options)?.wait_synced().await?;
    // Datagrams stop, and connections go on: those of ClusterIPs are known by the ServiceCIDR, if
    // there is one, and those of NodePorts by their port.
    let rows = scene.cluster.shunt(0, &["flows"]).await?;
    let rows = rows.as_array().context("rows")?;
    assert!(rows.iter().any(|row| row["protocol"] == "TCP"), "{rows:?}");
    assert!(rows.iter().all(|row| row["service"].is_null()), "{rows:?}");
    drop(open);
    Ok(())
}

#[tokio::test]
async fn status_tells_of_tables_that_are_missing_and_of_conntracks_fill() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.start(Path::Socket).await?;
    let tables = |state: &str| {
        json!(["ip shunt", "ip6 shunt"].map(|table| json!({ "table": table, "state": state })))
    };
    let well = status_of(&scene).await?;
    assert_eq!(well["nftables"], tables("complete"), "{well}");
    assert!(well["conntrack"]["max"].as_u64() > well["conntrack"]["entries"].as_u64(), "{well}");
    scene.cluster.kill_agent(0).await?;
    let node = scene.cluster.lab.node(0);
    node.nft("flush table ip shunt\nflush table ip6 shunt\n").await?;
    let changed = status_of(&scene).await?;
    assert_eq!(changed["nftables"], tables("changed"), "{changed}");
    node.nft("delete table ip shunt\ndelete table ip6 shunt\n").await?;
    let missing = status_of(&scene).await?;
    assert_eq!(missing["nftables"], tables("missing"), "{missing}");
    let warnings = missing["warnings"].to_string();
    assert!(warnings.contains("nftables table ip6 shunt"), "{warnings}");
    Ok(())
}

async fn status_of(scene: &Scene) -> Result<Value> {
    scene.cluster.shunt(0, &["status"]).await
}

#[tokio::test]
async fn timeouts_of_conntrack_are_kube_proxys_and_what_flags_say() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.start_with(Path::Socket, &[("--conntrack-udp-timeout", "17s")]).await?;
    let node = scene.cluster.lab.node(0);
    for (name, seconds) in [
        ("tcp_timeout_established", "86400"),
        ("tcp_timeout_close_wait", "3600"),
        ("udp_timeout", "17"),
    ] {
        let file = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        let output = node.exec("cat", &[&file]).await?;
        assert_eq!(output.stdout.trim(), seconds, "{name}");
    }
    // What belongs to the host is no trouble of this node's.
    let status = status_of(&scene).await?;
    assert!(!status["warnings"].to_string().contains("nf_conntrack"), "{status}");
    Ok(())
}
