//! What the lab promises to the tests, the demo and the benchmark that stand on it.

use anyhow::{Context, Result};
use lab::{
    AgentOptions, Ask, Cni, FABRIC, FailureKind, Lab, LabConfig, Load, Machine, Pattern, Pod,
    RpFilter, Serve,
};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Two nodes; the first has the pods `a` and `b`, the second has `c`.
async fn small_lab(cni: Cni) -> Result<(Lab, [Pod; 3])> {
    // The stricter check is the one that a detour would fail.
    let lab = Lab::start(LabConfig { cni, rp_filter: RpFilter::Strict, ..LabConfig::default() });
    let lab = lab.await?;
    let (one, two) = (lab.node(0), lab.node(1));
    let pods =
        futures::try_join!(lab.add_pod(one, "a"), lab.add_pod(one, "b"), lab.add_pod(two, "c"))?;
    Ok((lab, pods.into()))
}

/// Both servers on the machine, at port 80.
async fn serve(machine: &Machine) -> Result<()> {
    machine.serve(Serve::tcp(80)).await?;
    machine.serve(Serve::udp(80)).await?;
    Ok(())
}

/// `from` reaches the server on `to`, over both families and protocols, as itself.
async fn reaches(from: &Machine, to: &Machine) -> Result<()> {
    for (family, server) in to.addrs().at(80).into_iter().enumerate() {
        for ask in [Ask::tcp(server), Ask::udp(server), Ask::udp_unconnected(server)] {
            let what = format!("{} → {}: {ask:?}", from.name(), to.name());
            let reply = from.ask(ask).await.with_context(|| what.clone())?;
            assert_eq!(reply.name, to.name(), "{what}");
            assert_eq!(reply.peer, server, "{what}");
            let own = from.addrs().at(reply.local.port())[family];
            assert_eq!(reply.client, own, "{what}");
        }
    }
    Ok(())
}

/// The IPv4 address of a machine, and a port.
fn at(machine: &Machine, port: u16) -> SocketAddr {
    (machine.ipv4(), port).into()
}

async fn everyone_reaches_everyone(cni: Cni) -> Result<()> {
    let (lab, [a, b, c]) = small_lab(cni).await?;
    futures::try_join!(serve(&a), serve(&b), serve(&c))?;
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a), (&a, &a)] {
        reaches(from, to).await?;
    }
    // A node asks its own pods by the gateway's address, and those of the other by its own or, if
    // there is one, by its end of the tunnel: as kube-proxy's and CNIs' masquerading does.
    if cni == Cni::Vxlan {
        let [v4, v6] = a.addrs().at(80);
        let seen = [lab.node(1).tcp(v4).await?.client.ip(), lab.node(1).tcp(v6).await?.client.ip()];
        assert_eq!(seen.map(|addr| addr.to_string()), ["10.244.2.0", "fd00:244:2::"]);
    } else {
        reaches(lab.node(1), &a).await?;
    }

    let client = lab.add_client("outside").await?;
    let failure = client.tcp(at(&a, 80)).await.err().map(|failure| failure.kind);
    assert_eq!(failure, Some(FailureKind::Unreachable), "no route yet");
    client.route("10.244.0.0/16", lab.node(0).ipv4()).await?;
    client.route("fd00:244::/32", lab.node(0).ipv6()).await?;
    reaches(&client, &a).await?;
    // By a tunnel they would come from where their answer does not go, but for masquerading.
    if cni == Cni::Vxlan {
        return Ok(());
    }
    reaches(&client, &c).await?;
    serve_on_node(&lab).await
}

/// A server on a node is reached from a pod of the other node, at both addresses.
async fn serve_on_node(lab: &Lab) -> Result<()> {
    let node = lab.node(0);
    let pod = lab.add_pod(lab.node(1), "d").await?;
    node.serve(Serve::tcp(80)).await?;
    for addr in [IpAddr::from(node.ipv4()), node.ipv6().into()] {
        node.serve(Serve::udp(80).on(addr)).await?;
    }
    reaches(&pod, node).await
}

#[tokio::test]
async fn everyone_reaches_everyone_by_routes() -> Result<()> {
    everyone_reaches_everyone(Cni::Routed).await
}

#[tokio::test]
async fn everyone_reaches_everyone_by_a_link_local_gateway() -> Result<()> {
    everyone_reaches_everyone(Cni::Calico).await
}

#[tokio::test]
async fn everyone_reaches_everyone_by_bridges() -> Result<()> {
    everyone_reaches_everyone(Cni::Bridge).await
}

#[tokio::test]
async fn everyone_reaches_everyone_by_tunnels() -> Result<()> {
    everyone_reaches_everyone(Cni::Vxlan).await
}

#[tokio::test]
async fn a_lab_of_two_nodes_and_six_pods_starts_quickly() -> Result<()> {
    let started = Instant::now();
    let lab = Lab::start(LabConfig::default()).await?;
    let names = ["a", "b", "c", "d", "e", "f"];
    let pods = names.iter().zip(0..).map(|(name, index)| lab.add_pod(lab.node(index % 2), name));
    let pods = futures::future::try_join_all(pods).await?;
    let took = started.elapsed();
    eprintln!("started in {took:?}");
    assert!(took < Duration::from_secs(1), "two nodes and {} pods took {took:?}", pods.len());
    let ended = Instant::now();
    drop(pods);
    drop(lab);
    eprintln!("ended in {:?}", ended.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_refused_at_once() -> Result<()> {
    let (_lab, [a, _, c]) = small_lab(Cni::Routed).await?;
    for to in c.addrs().at(81) {
        for ask in [Ask::tcp(to), Ask::udp(to)] {
            let failure = a.ask(ask).await.unwrap_err();
            assert!(failure.refused_at_once(), "{failure}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_nobody_has_is_unreachable_and_silence_times_out() -> Result<()> {
    let (lab, [a, _, c]) = small_lab(Cni::Routed).await?;
    // The default route of a node leads to the segment, where nobody forwards.
    let nobody = Ask::tcp("172.18.0.250:80");
    let failure = lab.node(0).ask(nobody).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    let quick = Ask::udp_unconnected(at(&c, 81)).timeout(Duration::from_millis(50));
    let failure = a.ask(quick).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure}");
    let failure = a.tcp("web:80").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Lab, "{failure}");
    Ok(())
}

#[tokio::test]
async fn payloads_beyond_a_packet_come_back_whole() -> Result<()> {
    let (_lab, [a, _, c]) = small_lab(Cni::Routed).await?;
    serve(&c).await?;
    for to in c.addrs().at(80) {
        a.ask(Ask::tcp(to).payload(1_000_000)).await?;
        a.ask(Ask::udp(to).payload(2_000)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_that_stays_open_outlives_the_listener() -> Result<()> {
    let (_lab, [a, b, c]) = small_lab(Cni::Routed).await?;
    let to = at(&c, 8080);
    let server = c.serve(Serve::tcp(8080)).await?;
    let socket = a.open(Ask::tcp(to).from(at(&a, 7000))).await?;
    assert_eq!(socket.ask().await?.client, at(&a, 7000));
    let report = server.stop().await?;
    assert_eq!((report.accepted, report.requests, report.open), (1, 1, 1));
    assert!(a.tcp(to).await.unwrap_err().refused_at_once());
    assert_eq!(socket.ask().await?.name, "c");
    socket.close().await?;

    serve(&b).await?;
    serve(&c).await?;
    let socket = a.open(Ask::udp_unconnected(at(&b, 80))).await?;
    assert_eq!(socket.ask().await?.name, "b");
    let other = socket.ask_of(at(&c, 80)).await?;
    assert_eq!((other.name.as_str(), other.peer), ("c", at(&c, 80)));
    Ok(())
}

#[tokio::test]
async fn a_mapped_address_is_asked_over_an_ipv6_socket() -> Result<()> {
    let (_lab, [a, _, c]) = small_lab(Cni::Routed).await?;
    serve(&c).await?;
    let reply = a.tcp(format!("[::ffff:{}]:80", c.ipv4())).await?;
    assert_eq!(reply.client.ip(), a.ipv4());
    assert!(reply.peer.is_ipv6(), "{reply:?}");
    Ok(())
}

#[tokio::test]
async fn a_load_counts_answers_and_failures() -> Result<()> {
    let (_lab, [a, b, c]) = small_lab(Cni::Routed).await?;
    let server = b.serve(Serve::tcp(80)).await?;
    c.serve(Serve::tcp(80).closing_after_one()).await?;
    let [to_b, _] = b.addrs().at(80);
    let [to_c, _] = c.addrs().at(80);

    let fixed = Load::new(Ask::tcp(to_b)).per_second(200.0).lasting(Duration::from_millis(250));
    let report = a.load(fixed).await?;
    // At most 50 are due, and a busy machine may skip some.
    assert!((10..=50).contains(&report.answered()) && report.failed() == 0, "{report:?}");
    assert_eq!(report.backends.keys().collect::<Vec<_>>(), ["b"]);
    assert!(report.latency.p50 <= report.latency.max && !report.latency.p50.is_zero());

    let closing = Load::new(Ask::tcp(to_c)).pattern(Pattern::NewUntilServerCloses);
    let report = a.load(closing.concurrency(4).lasting(Duration::from_millis(200))).await?;
    assert!(report.answered() > 20 && report.failed() == 0, "{report:?}");

    let kept = a.start_load(Load::new(Ask::tcp(to_b)).pattern(Pattern::Keep)).await?;
    kept.until(|report| report.answered() > 100).await?;
    let report = kept.stop().await?;
    assert_eq!(report.failed(), 0, "{report:?}");
    eprintln!("kept: {:.0} a second, {:?}", report.per_second(), report.latency);

    let fresh = a.start_load(Load::new(Ask::tcp(to_b)).concurrency(4)).await?;
    fresh.until(|report| report.answered() > 100).await?;
    server.stop().await?;
    fresh.until(|report| report.failed() > 100).await?;
    let report = fresh.stop().await?;
    eprintln!("new: {report:?}");
    let refused = &report.failures[&FailureKind::Refused];
    assert!(refused.first.message.contains("Connection refused"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn programs_run_in_the_namespace_and_cgroup_of_a_pod() -> Result<()> {
    let (lab, [a, ..]) = small_lab(Cni::Routed).await?;
    let rp_filter = "/proc/sys/net/ipv4/conf/eth0/rp_filter";
    let output = a.exec("cat", &["/proc/self/cgroup", "/proc/net/dev", rp_filter]).await?;
    assert!(output.stdout.ends_with("\n1\n"), "strict: {output:?}");
    let cgroup = lab.cgroup().file_name().context("a name")?.to_string_lossy().into_owned();
    assert!(output.stdout.contains(&format!("/{cgroup}/node-1/pod-a")), "{output:?}");
    assert!(output.stdout.contains("eth0"), "{output:?}");
    assert_eq!(output.status, Some(0));
    assert_eq!(a.exec("false", &[]).await?.status, Some(1));
    let failure = a.exec("/no/such/program", &[]).await.unwrap_err();
    assert!(failure.message.contains("/no/such/program"), "{failure}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_pod_is_gone_and_its_node_says_so() -> Result<()> {
    let (lab, [a, b, _]) = small_lab(Cni::Routed).await?;
    serve(&b).await?;
    reaches(&a, &b).await?;
    lab.delete_pod(&b).await?;
    assert!(!lab.node(0).netns().links().await?.contains(&"veth3".to_owned()));
    let to = at(&b, 80);
    let failure = a.ask(Ask::tcp(to).timeout(Duration::from_millis(200))).await.unwrap_err();
    assert!(
        matches!(failure.kind, FailureKind::TimedOut | FailureKind::Unreachable),
        "nobody answers for a pod that is gone: {failure}"
    );
    assert_eq!(b.tcp(to).await.unwrap_err().kind, FailureKind::Lab);
    Ok(())
}

#[tokio::test]
async fn the_fabric_is_reached_from_nodes() -> Result<()> {
    let lab = Lab::start(LabConfig::default()).await?;
    let listener = tokio::net::TcpListener::from_std(lab.listen(6443)?)?;
    let node = lab.node(1);
    let socket = node.open(Ask::tcp(SocketAddr::from((FABRIC.v4, 6443))));
    let (socket, accepted) = tokio::join!(socket, listener.accept());
    assert_eq!(accepted?.1, socket?.local());
    Ok(())
}

#[tokio::test]
async fn no_namespace_has_a_way_out() -> Result<()> {
    let (lab, [a, ..]) = small_lab(Cni::Routed).await?;
    let host: BTreeSet<_> = std::fs::read_to_string("/proc/net/dev")?
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect();
    let wires = [(lab.fabric(), "port0"), (lab.node(0).netns(), "veth2")];
    for (netns, name) in wires {
        assert!(netns.links().await?.iter().any(|link| link == name), "{name} in {netns}");
        assert!(!host.contains(name), "{name} is a device of the host");
    }
    for machine in [&a as &Machine, lab.node(0)] {
        let failure = machine
            .ask(Ask::tcp("1.1.1.1:80").timeout(Duration::from_millis(500)))
            .await
            .unwrap_err();
        let lost = [FailureKind::Unreachable, FailureKind::TimedOut];
        assert!(lost.contains(&failure.kind), "{}: {failure}", machine.name());
    }
    Ok(())
}

#[tokio::test]
async fn labs_side_by_side_do_not_see_each_other() -> Result<()> {
    let (one, two) = futures::try_join!(small_lab(Cni::Routed), small_lab(Cni::Routed))?;
    let ((_one, [a, ..]), (_two, [other_a, _, other_c])) = (one, two);
    serve(&other_c).await?;
    reaches(&other_a, &other_c).await?;
    // The same address, and in this lab nobody listens there.
    for to in other_c.addrs().at(80) {
        assert!(a.tcp(to).await.unwrap_err().refused_at_once());
    }
    Ok(())
}

#[tokio::test]
async fn a_map_can_be_pinned_below_the_root_of_a_node() -> Result<()> {
    use aya::maps::{Array, Map, MapData};
    let lab = Lab::start(LabConfig::default()).await?;
    let folder = lab.node(0).bpffs_root().join("v1");
    // Another process makes the directory, as an agent would.
    lab.node(0).exec("mkdir", &[&folder.display().to_string()]).await?;
    let mut map = Array::<_, u32>::create(4, 0)?;
    map.set(1, 42, 0)?;
    map.pin(folder.join("map"))?;
    let again = Map::Array(MapData::from_pin(folder.join("map"))?);
    assert_eq!(Array::<_, u32>::try_from(again)?.get(&1, 0)?, 42);
    assert_eq!(std::fs::read_dir(lab.node(1).bpffs_root())?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn an_agent_that_ends_is_reported_with_its_log() -> Result<()> {
    let lab = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() }).await?;
    let options = AgentOptions::files(lab.scratch()).flag("--no-such-flag", "1");
    let mut agent = lab.start_agent(lab.node(0), &options)?;
    let error = agent.wait_synced().await.err().context("it cannot have synced")?;
    assert!(format!("{error:#}").contains("the agent of node-1 has ended"), "{error:#}");
    Ok(())
}

/// What a lab leaves in the file system if it leaves anything.
fn traces(lab: &Lab) -> [PathBuf; 2] {
    [lab.cgroup().to_owned(), lab.scratch().to_owned()]
}

/// Whether a process is there and is no zombie, which is its parent's affair.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn nothing_is_left_of_a_lab_that_is_dropped() -> Result<()> {
    let (lab, [a, b, c]) = small_lab(Cni::Routed).await?;
    a.exec("sh", &["-c", "setsid sleep 1000 >/dev/null 2>&1 &"]).await?;
    let traces = traces(&lab);
    let workers = [a.pid(), b.pid(), c.pid(), lab.node(0).pid()];
    let processes = std::fs::read_to_string(a.cgroup().join("cgroup.procs"))?;
    assert_eq!(processes.lines().count(), 2, "the worker and what it left running");
    drop((a, b, c));
    drop(lab);
    assert!(!traces.iter().any(|path| path.exists()), "{traces:?}");
    // Not even zombies: these are the lab's own children.
    let left: Vec<_> =
        workers.iter().filter(|pid| Path::new("/proc").join(pid.to_string()).exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!processes.lines().any(|pid| pid.parse().is_ok_and(alive)), "{processes}");
    Ok(())
}

#[tokio::test]
#[ignore = "a part of nothing_is_left_of_a_lab_that_is_killed, which runs and kills it"]
async fn a_lab_that_waits_to_be_killed() -> Result<()> {
    let (lab, [a, ..]) = small_lab(Cni::Routed).await?;
    a.exec("sh", &["-c", "setsid sleep 1000 >/dev/null 2>&1 &"]).await?;
    let [cgroup, scratch] = traces(&lab);
    let processes = std::fs::read_to_string(a.cgroup().join("cgroup.procs"))?.replace('\n', " ");
    println!("\nlab: {} {} {} {processes}", cgroup.display(), scratch.display(), lab.node(0).pid());
    std::future::pending().await
}

#[test]
fn nothing_is_left_of_a_lab_that_is_killed() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_lab_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
    let mut line = String::new();
    while !line.starts_with("lab: ") {
        line.clear();
        assert_ne!(output.read_line(&mut line)?, 0, "the lab did not start");
    }
    let (paths, pids): (Vec<_>, Vec<_>) =
        line["lab: ".len()..].split_whitespace().partition(|word| word.starts_with('/'));
    let pids: Vec<u32> = pids.iter().map(|pid| pid.parse()).collect::<Result<_, _>>()?;
    assert!(paths.iter().all(|path| Path::new(path).exists()), "{paths:?}");
    assert!(pids.len() == 3 && pids.iter().copied().all(alive), "{pids:?}");
    child.kill()?;
    child.wait()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while paths.iter().any(|path| Path::new(path).exists()) || pids.iter().copied().any(alive) {
        assert!(Instant::now() < deadline, "left behind: {paths:?} {pids:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Every process that had the pipe is gone.
    output.read_to_string(&mut line)?;
    Ok(())
}

#[tokio::test]
async fn what_a_dead_lab_left_is_swept_and_a_living_one_is_not() -> Result<()> {
    let living = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() }).await?;
    let stale = living.cgroup().with_file_name("shunt-lab-0-7");
    std::fs::create_dir_all(stale.join("node-1/host"))?;
    let _new = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() }).await?;
    assert!(!stale.exists());
    assert!(living.cgroup().exists());
    serve(living.node(0)).await?;
    Ok(())
}
