//! What operators and their tools see: health, metrics, status, the command line, logs; with the
//! agent running and without.

use anyhow::{Context, Result, ensure};
use lab::cluster::eventually;
use lab::http::get;
use lab::objects::{self, Port};
use lab::web::{self, VIPS, Web};
use lab::{AgentOptions, Ask, FailureKind, Machine};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const HTTP: [Port<'static>; 1] = [Port { name: "http", protocol: "TCP", port: 80, target: 8080 }];
const METRICS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);

/// The value of a sample, `name{labels}`, in the node's metrics.
fn metric(node: &Machine, sample: &str) -> Result<f64> {
    let (_, text) = get(node, METRICS, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {sample} in\n{text}"))?.parse()?)
}

/// Scenarios 102 to 104.
#[tokio::test]
async fn health_follows_the_node_object() -> Result<()> {
    let mut web = Web::start(1).await?;
    let healthz = web.cluster.agent(0)?.healthz();
    let codes = async || -> Result<(u16, u16)> {
        Ok((get(&web.outside, healthz, "/livez")?.0, get(&web.outside, healthz, "/healthz")?.0))
    };
    assert_eq!(codes().await?, (200, 200));
    let (_, body) = get(&web.outside, healthz, "/healthz")?;
    let body: Value = serde_json::from_str(&body)?;
    for field in ["lastUpdated", "currentTime", "nodeEligible"] {
        assert!(!body[field].is_null(), "no {field} in {body}");
    }
    let node = objects::node(web.cluster.lab.node(0));
    let mut tainted = node.clone();
    tainted["spec"]["taints"] =
        json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }]);
    let mut deleted = node.clone();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut cordoned = node.clone();
    cordoned["spec"]["unschedulable"] = json!(true);
    cordoned["spec"]["taints"] =
        json!([{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }]);
    let is = |wanted| move |codes: &Result<(u16, u16)>| codes.as_ref().is_ok_and(|c| *c == wanted);
    for leaving in [tainted, deleted] {
        web.cluster.api.apply(&leaving)?;
        eventually("a node that is to go gets no new traffic", codes, is((200, 503))).await??;
        web.cluster.api.apply(&cordoned)?;
        eventually("one that is cordoned does", codes, is((200, 200))).await??;
    }
    Ok(())
}

#[tokio::test]
async fn metrics_move_with_traffic_changes_and_refusals() -> Result<()> {
    let web = Web::start(1).await?;
    let node = web.cluster.lab.node(0);
    let empty = objects::service("empty", &["10.96.7.1"], &HTTP);
    web.cluster.publish(&empty, &HTTP, &[])?;
    let refused = async || web.client.tcp("10.96.7.1:80").await;
    eventually("refused", refused, |answer| {
        answer.as_ref().is_err_and(|failure| failure.kind == FailureKind::Refused)
    })
    .await?
    .err();
    let labels = |name| {
        format!("{{namespace=\"default\",service=\"{name}\",port=\"http\",protocol=\"TCP\"}}")
    };
    let family = |name| format!("{name}{{ip_family=\"IPv4\"}}");
    let samples = [
        format!("shunt_service_connections_total{}", labels("web")),
        format!("shunt_service_refused_total{}", labels("empty")),
        "shunt_outcomes_total{program=\"connect\",outcome=\"chosen\"}".to_owned(),
        "shunt_outcomes_total{program=\"connect\",outcome=\"no_endpoint\"}".to_owned(),
        format!(
            "shunt_service_datagrams_total{}",
            labels("web").replace("http", "dns").replace("TCP", "UDP")
        ),
        "shunt_outcomes_total{program=\"ingress\",outcome=\"chosen\"}".to_owned(),
        family("kubeproxy_sync_proxy_rules_duration_seconds_count"),
        family("kubeproxy_sync_proxy_rules_service_changes_total"),
        family("kubeproxy_sync_proxy_rules_endpoint_changes_total"),
        family("kubeproxy_network_programming_duration_seconds_count"),
    ];
    let before: Vec<f64> = samples.iter().map(|s| metric(node, s)).collect::<Result<_>>()?;
    for _ in 0..5 {
        web.client.tcp(VIPS[0]).await?;
        web.outside.tcp(node.addrs().at(web::NODE_PORT)[0]).await?;
        web.outside.udp(node.addrs().at(web::NODE_PORT)[0]).await?;
        let failure = web.client.tcp("10.96.7.1:80").await.err().context("refused")?;
        ensure!(failure.refused_at_once(), "{failure}");
    }
    let mut new = objects::slices("empty", &HTTP, &[&web.pods[0]])[0].clone();
    let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
    let mut old = objects::slices("old", &HTTP, &[&web.pods[0]])[0].clone();
    old["metadata"]["annotations"] = json!({ trigger: "2026-01-01T00:00:00Z" });
    new["metadata"]["annotations"] = json!({ trigger: jiff::Timestamp::now().to_string() });
    web.cluster.api.apply(&objects::service("new", &["10.96.7.2"], &HTTP))?;
    web.cluster.api.apply(&old)?;
    web.cluster.api.apply(&new)?;
    let reached = async || web.client.tcp("10.96.7.1:80").await;
    eventually("served", reached, Result::is_ok).await??;
    let more = [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0];
    for ((sample, before), more) in samples.iter().zip(before).zip(more) {
        let after = metric(node, sample)?;
        assert!(after >= before + more, "{sample}: {before}, then {after}");
    }
    let seconds = metric(node, &family("kubeproxy_network_programming_duration_seconds_sum"))?;
    assert!(seconds < 60.0, "months before the agent's start do not count: {seconds}");
    for name in ["shunt_build_info", "shunt_map_entries", "shunt_map_max_entries"] {
        assert!(get(node, METRICS, "/metrics")?.1.contains(name), "{name}");
    }
    assert_eq!(get(node, METRICS, "/proxyMode")?, (200, "shunt".to_owned()));
    Ok(())
}

#[tokio::test]
async fn command_line_answers_with_and_without_an_agent() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let output = web.cluster.lab.node(0).shunt(&["services"]).await?;
    assert_eq!(output.status, Some(1), "{output:?}");
    assert!(output.stderr.contains("no agent has run on this node"), "{output:?}");

    web.cluster.start_agents(|_, options| options).await?;
    web.wait_reached().await?;
    let status = web.cluster.agent(0)?.status().await?;
    assert_eq!(status["pid"], json!(web.cluster.agent(0)?.pid()));
    assert_eq!(status["node"], "node-1");
    assert_eq!(status["objects"], json!({ "services": 1, "slices": 2, "endpoints": 2 }));

    for runs in [true, false] {
        let node = web.cluster.lab.node(0);
        let vip = VIPS[0];
        let agent = if runs { "pid " } else { "not running; the programs forward" };
        let exit = if runs { 0 } else { 3 };
        let answers: [(&[&str], i32, &[&str]); 8] = [
            (&["status"], exit, &[agent, "connect4", "ingress", "eth0", "frontends"]),
            (&["services", "-A"], 0, &["NAMESPACE", "default", "web", vip, "NodePort *:31775"]),
            (&["services", "web", "-o", "wide"], 0, &["FAMILY", "IPv6", "[fd00:96::10]:80"]),
            (&["services", "nothing"], 1, &["no Service nothing"]),
            (&["backends", "-A"], 0, &["default/web:http", "10.244.1.2:8080", "ready", "cluster"]),
            (&["explain", vip], 0, &["default/web", "10.244.1.2:8080"]),
            (&["explain", vip, "--proto", "udp"], 0, &["default/web:dns"]),
            (&["explain", "10.96.99.99:80"], 3, &["10.96.99.99:80"]),
        ];
        for (args, exit, expected) in answers {
            let output = node.shunt(args).await?;
            assert_eq!(output.status, Some(exit), "{args:?}, agent: {runs}: {output:?}");
            let said = format!("{}{}", output.stdout, output.stderr);
            for word in expected {
                assert!(said.contains(word), "{args:?}, agent: {runs}: no {word:?} in\n{said}");
            }
            assert!(!said.contains('\u{1b}'), "{args:?}: colours, but not on a terminal");
            if exit != 1 && !args.contains(&"-o") {
                web.cluster.shunt(0, args).await.with_context(|| format!("{args:?}"))?;
            }
        }
        if runs {
            web.cluster.kill_agent(0).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn logs_are_json_if_asked_for_and_tell_of_refusals_at_debug() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let empty = objects::service("empty", &["10.96.7.1"], &HTTP);
    web.cluster.publish(&empty, &HTTP, &[])?;
    let options = web.cluster.options().flag("--log-format", "json").flag("--log-level", "debug");
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    let failure = web.client.tcp("10.96.7.1:80").await.err().context("refused")?;
    ensure!(failure.refused_at_once(), "{failure}");
    let ids = web.cluster.shunt(0, &["services", "empty"]).await?;
    let line = format!("refused: service {} has no such port or no endpoint", ids[0]["id"]);
    let agent = web.cluster.take_agent(0)?;
    let log = async || anyhow::Ok(agent.log());
    let log = eventually(&line, log, |log| log.as_ref().is_ok_and(|l| l.contains(&line))).await??;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        for field in ["timestamp", "level", "target", "fields"] {
            assert!(!line[field].is_null(), "no {field} in {line}");
        }
    }
    assert!(log.contains("in sync"), "{log}");
    agent.kill().await
}

/// Not a test of a limit: it says what a quiet agent costs, and fails only if that is absurd.
#[tokio::test]
async fn quiet_agent_takes_little() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let options = web.cluster.options().flag("--min-sync-period", "0");
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    let pid = web.cluster.agent(0)?.pid().context("a process id")?;
    let mut latencies = Vec::new();
    for number in 1..=20 {
        let ip = format!("10.96.8.{number}:80");
        let service = objects::service(&format!("new-{number}"), &[&ip[..ip.len() - 3]], &HTTP);
        let [slice, _] = objects::slices(&format!("new-{number}"), &HTTP, &[&web.pods[0]]);
        web.cluster.api.apply(&slice)?;
        let began = Instant::now();
        web.cluster.api.apply(&service)?;
        let ask = Ask::tcp(&ip).timeout(Duration::from_millis(5));
        while web.client.ask(ask.clone()).await.is_err() {
            ensure!(began.elapsed() < Duration::from_secs(5), "{ip} is not served");
        }
        latencies.push(began.elapsed());
    }
    latencies.sort();
    let ticks = || -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<_> = stat.split(' ').collect();
        Ok(fields[13].parse::<u64>()? + fields[14].parse::<u64>()?)
    };
    let before = ticks()?;
    // Time has to pass here: what is measured is what is done in it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let busy = ticks()? - before;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse()?;
    let kinds: Vec<_> = status.lines().filter(|line| line.starts_with("Rss")).collect();
    eprintln!("{kinds:?}");
    eprintln!("change to effect p50 {:?}, max {:?}", latencies[10], latencies[19]);
    eprintln!("{kib} KiB, {} ms of CPU time in 2 s", busy * 10);
    assert!(kib < 200 * 1024, "{kib} KiB");
    assert!(busy < 20, "{busy} ticks of 10 ms in 2 s");
    Ok(())
}

#[tokio::test]
async fn rules_of_kube_proxy_are_named() -> Result<()> {
    for rules in [
        "add table ip kube-proxy; add chain ip kube-proxy services",
        "add table ip nat; add chain ip nat KUBE-SERVICES",
    ] {
        let mut web = Web::without_agents(1).await?;
        let made = web.cluster.lab.node(0).exec("nft", &[rules]).await?;
        ensure!(made.status == Some(0), "{made:?}");
        let options = web.cluster.options();
        let is_named = |status: &Value| {
            let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
            let said = |warning: &Value| warning["message"].to_string().contains("--cleanup");
            warnings.iter().any(|warning| warning["subject"] == "kube-proxy" && said(warning))
        };
        let _status = web.cluster.start_agent(0, &options)?.wait_status(is_named).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_without_a_manifest_of_its_own_is_healthy() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let folder = web.cluster.lab.scratch().join("manifests");
    fs::create_dir(&folder)?;
    let mut service = objects::service("web", &["10.96.7.1"], &HTTP);
    service["spec"]["externalIPs"] = json!(["192.0.2.7"]);
    objects::write(&folder, &service)?;
    let options = AgentOptions::files(&folder).flag("--external-ips", "false");
    let agent = web.cluster.start_agent(0, &options)?;
    let _status = agent.wait_synced().await?;
    let healthz = agent.healthz();
    // Once its devices are known, too.
    let healthy = async || get(&web.outside, healthz, "/healthz");
    eventually("healthy", healthy, |a| a.as_ref().is_ok_and(|a| a.0 == 200)).await??;
    let external = web.cluster.lab.node(0).shunt(&["explain", "192.0.2.7:80"]).await?;
    assert_eq!(external.status, Some(3), "external IPs are off: {external:?}");
    Ok(())
}
