//! The agent's health is true.

use anyhow::{Result, ensure};
use lab::cluster::eventually;
use lab::http::get;
use lab::web::{VIPS, Web};
use proxy_user::loader::pin_directory;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_node_is_ready_only_once_it_is_in_sync_and_serves_meanwhile() -> Result<()> {
    let mut web = Web::start(1).await?;
    web.wait_reached().await?;
    web.cluster.kill_agent(0).await?;
    web.cluster.api.refuse_connections();
    let options = web.cluster.options().flag("--healthz-bind-address", "[::]:10256");
    let agent = web.cluster.start_agent(0, &options)?;
    let _status = agent.wait_status(|status| status["synced"].is_null()).await?;
    let addrs = web.cluster.lab.node(0).addrs().at(10256);
    assert_eq!(addrs.len(), 2, "both families: {addrs:?}");
    for addr in &addrs {
        let alive = async || get(&web.outside, *addr, "/livez");
        eventually("alive", alive, |a| a.as_ref().is_ok_and(|a| a.0 == 200)).await??;
        let (code, body) = get(&web.outside, *addr, "/healthz")?;
        ensure!(code == 503 && body.contains("not in sync yet"), "{addr}: {code} {body}");
    }
    let status = web.cluster.lab.node(0).shunt(&["status"]).await?.stdout;
    ensure!(status.contains("what is pinned goes on serving"), "{status}");
    ensure!(!status.contains("no Service is reached"), "{status}");
    web.client.tcp(VIPS[0]).await?;

    web.cluster.api.accept_connections(web.cluster.lab.listen(6443)?)?;
    web.cluster.agent(0)?.wait_synced().await?;
    for addr in addrs {
        let ready = async || get(&web.outside, addr, "/healthz");
        eventually("ready", ready, |a| a.as_ref().is_ok_and(|a| a.0 == 200)).await??;
    }
    Ok(())
}

#[tokio::test]
async fn an_attachment_that_fails_for_long_makes_the_node_unhealthy_and_is_named() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let options = web.cluster.options().flag("--drift-check-period", "1s");
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    web.wait_reached().await?;
    let healthz = web.cluster.agent(0)?.healthz();
    let code = async || Ok::<_, anyhow::Error>(get(&web.outside, healthz, "/healthz")?);
    assert_eq!(code().await?.0, 200);

    // No link can be pinned without it.
    let links = pin_directory(web.cluster.lab.node(0).bpffs_root()).join("links");
    fs::remove_dir_all(&links)?;
    let began = Instant::now();
    let (_, body) = loop {
        let answer = code().await?;
        if answer.0 == 503 {
            break answer;
        }
        ensure!(began.elapsed() < Duration::from_secs(30), "still healthy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(began.elapsed() > Duration::from_secs(10), "a failure has to last: {body}");
    let body: Value = serde_json::from_str(&body)?;
    ensure!(body["problems"].to_string().contains("links"), "{body}");
    assert_eq!(get(&web.outside, healthz, "/livez")?.0, 200, "a restart would not help");

    fs::create_dir(&links)?;
    eventually("healthy again", code, |a| a.as_ref().is_ok_and(|a| a.0 == 200)).await??;
    web.wait_reached().await
}
