//! The agent's health is true, and nobody who asks for it, however often, is in anybody's way.

use anyhow::{Context, Result, ensure};
use lab::cluster::eventually;
use lab::http::get;
use lab::objects::{self, Port};
use lab::web::{self, VIPS, Web};
use lab::{Ask, Machine};
use proxy_user::loader::pin_directory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HTTP: [Port<'static>; 1] = [Port { name: "http", protocol: "TCP", port: 80, target: 8080 }];
const CHECK_PORT: u16 = 31900;
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// As many files as a process of root may have open on most machines, if it does not ask for more.
const FEW_FILES: u64 = 1_024;

/// Sets how many files this process, and those that it starts, may have open.
fn limit_files(files: Option<u64>) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let current = files.or(limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).context("limit the open files")
}

/// How long the `number`th new Service takes to be served.
async fn change(web: &Web, number: usize) -> Result<Duration> {
    let ip = format!("10.96.7.{number}");
    let service = objects::service(&format!("new-{number}"), &[&ip], &HTTP);
    let began = Instant::now();
    web.cluster.publish(&service, &HTTP, &[&web.pods[0]])?;
    let ask = Ask::tcp(format!("{ip}:80")).timeout(Duration::from_millis(20));
    eventually("served", async || web.client.ask(ask.clone()).await, Result::is_ok).await??;
    Ok(began.elapsed())
}

/// Sends many requests on each of many connections, again and again until `stop`.
fn pipeline(from: &Machine, addr: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let requests = "GET /livez HTTP/1.1\r\nHost: lab\r\n\r\n".repeat(200);
    from.netns().run(|| {
        while !stop.load(Ordering::Relaxed) {
            let mut streams: Vec<_> =
                (0..200).filter_map(|_| TcpStream::connect(addr).ok()).collect();
            for stream in &mut streams {
                // The other side may have closed it after the first of them.
                drop(stream.set_write_timeout(Some(Duration::from_millis(100))));
                drop(stream.write_all(requests.as_bytes()));
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_number_of_connections_delays_a_change_or_an_answer() -> Result<()> {
    limit_files(Some(FEW_FILES))?;
    let mut web = Web::start(1).await?;
    limit_files(None)?;
    let mut balanced = web::service();
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced["spec"]["healthCheckNodePort"] = json!(CHECK_PORT);
    web.publish(&balanced)?;
    let (healthz, pid) = {
        let agent = web.cluster.agent(0)?;
        (agent.healthz(), agent.pid().context("an agent")?)
    };
    let node = web.cluster.lab.node(0);
    let machine: &Machine = node;
    let check = SocketAddr::new(healthz.ip(), CHECK_PORT);
    let outside: &Machine = &web.outside;
    let listeners = [(outside, healthz), (outside, check), (machine, METRICS)];
    for (from, addr) in listeners {
        let answer = async || get(from, addr, "/healthz");
        eventually("answers", answer, |a| a.as_ref().is_ok_and(|a| a.0 == 200)).await??;
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).context("limits")?;
    let [.., soft, hard, _] = files.split_whitespace().collect::<Vec<_>>()[..] else {
        anyhow::bail!("{files}");
    };
    assert_eq!(soft, hard, "{files}");
    let open_files = || anyhow::Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count());
    let before = open_files()?;
    let usual = change(&web, 1).await?;

    let idle: Vec<_> = listeners
        .iter()
        .flat_map(|(from, addr)| {
            (0..900).map(move |_| from.netns().run(|| TcpStream::connect(addr)))
        })
        .collect::<Result<_>>()?;
    ensure!(idle.iter().all(Result::is_ok), "connections are accepted");
    let control = node.control_socket();
    let asking: Vec<_> =
        (0..200).map(|_| UnixStream::connect(&control)).collect::<Result<_, _>>()?;
    let more = open_files()?.saturating_sub(before);
    // Of 1,100 connections; the listeners keep 304, and some are on their way in or out.
    ensure!(more < 500, "{more} files more");
    for (from, addr) in listeners {
        assert_eq!(get(from, addr, "/healthz")?.0, 200, "{addr}, beside idle connections");
    }
    let beside_idle = change(&web, 2).await?;
    let status = web.cluster.shunt(0, &["status"]).await?;
    ensure!(!status["agent"].is_null(), "the control socket answers: {status}");
    drop((idle, asking));

    let stop = &AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| -> Result<Duration> {
        let floods: Vec<_> = listeners
            .iter()
            .map(|&(from, addr)| scope.spawn(move || pipeline(from, addr, stop)))
            .collect();
        let work = async {
            let mut slowest = Duration::ZERO;
            for number in 3..8 {
                slowest = slowest.max(change(&web, number).await?);
                for (from, addr) in listeners {
                    assert_eq!(get(from, addr, "/healthz")?.0, 200, "{addr}, beside a flood");
                }
            }
            anyhow::Ok(slowest)
        };
        let handle = tokio::runtime::Handle::current();
        let result = tokio::task::block_in_place(|| handle.block_on(work));
        stop.store(true, Ordering::Relaxed);
        for flood in floods {
            flood.join().expect("no panic in it")?;
        }
        result
    })?;
    eprintln!("{usual:?}, beside idle connections {beside_idle:?}, beside a flood {slowest:?}");
    let few = usual + Duration::from_millis(300);
    ensure!(beside_idle < few && slowest < few, "{usual:?}, {beside_idle:?}, {slowest:?}");
    Ok(())
}

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
    eventually("healthy", code, |a| a.as_ref().is_ok_and(|a| a.0 == 200)).await??;

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
