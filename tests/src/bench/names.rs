//! Names: what a pod waits for an answer, and how many it gets, from the kernel, and from an
//! unbound with the same zone beside it.
//!
//! Both are on one node and asked by one pod, in turns. The zone is the same, and what is
//! outside of it is a stand-in's answer for all. A second node, without names, shows what the
//! program costs the TCP streams that pass it by.

use super::contender::Contender;
use super::options::Options;
use super::programs;
use super::report::{Cell, Micros, Row};
use super::stats::Figure;
use super::target::{Target, Verdict};
use crate::cluster::{Cluster, eventually};
use crate::lab::{LabConfig, Node, Pod};
use crate::objects::{self, Port};
use crate::sprint::{Deed, NameSprint, Question, Service, Sprint, SprintReport};
use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

/// The cluster's DNS service.
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The port of the stand-in for all other name servers.
const OUTSIDE: u16 = 1053;
/// How many endpoints the large Service has.
const MANY: u8 = 29;
/// Queries under way when it is about how many are answered.
const AT_ONCE: usize = 32;
/// What the kernel has to be better by.
const TIMES: f64 = 5.0;
/// What a stream keeps beside the program, and so the percentage of a CPU that the program may
/// take.
const STREAM: f64 = 0.99;
const STREAM_SHARE: f64 = 1.0;

/// What denies names; nothing else of it is read.
const COREFILE: &str = ".:53 {
    kubernetes cluster.local {
       pods insecure
       ttl 30
    }
    forward . /etc/resolv.conf
}
";

/// Who answers.
#[derive(Clone, Copy)]
enum Server {
    Kernel,
    Unbound,
}

/// What is asked.
struct Case {
    key: &'static str,
    what: &'static str,
    questions: Vec<Question>,
}

/// What one sprint gave: microseconds of a pass, and queries for a second of CPU time.
#[derive(Debug)]
struct Turn {
    report: SprintReport,
    per_cpu: f64,
}

/// Measures names; only the streams if there is no unbound on this machine.
pub(super) async fn run(options: &Options, skipped: &mut Vec<String>) -> Result<Vec<Row>> {
    let scene = Scene::start().await?;
    let (turn, rounds) = options.pick((20, 1), (50, 3), (200, 9));
    let turn = Duration::from_millis(turn);
    let mut rows = Vec::new();
    if scene.start_unbound().await? {
        for case in cases()? {
            rows.extend(scene.compare(&case, turn, rounds).await?);
        }
    } else {
        skipped.push("names: there is no unbound; `cargo xtask setup` installs it".to_owned());
    }
    rows.push(scene.stream(turn, rounds).await?);
    rows.push(scene.stream_share(turn, rounds).await?);
    Ok(rows)
}

fn cases() -> Result<Vec<Case>> {
    let here = |name: &str| format!("{name}.shop.svc.cluster.local");
    let web = vec![IpAddr::from([10, 96, 1, 1])];
    let many = (1..=MANY).map(|last| IpAddr::from([10, 244, 9, last])).collect();
    let mut walk = Vec::new();
    for suffix in ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        let name = format!("www.example.com.{suffix}");
        walk.extend([question(&name, 1, 3, Vec::new())?, question(&name, 28, 3, Vec::new())?]);
    }
    // What the stand-in says of every name.
    let outside = [(1, "192.0.2.53"), (28, "2001:db8::53")];
    for (kind, addr) in outside {
        walk.push(question("www.example.com", kind, 0, vec![addr.parse()?])?);
    }
    let nobody = question(&here("nobody"), 1, 3, Vec::new())?;
    Ok(vec![
        Case { key: "hit", what: "A", questions: vec![question(&here("web"), 1, 0, web)?] },
        Case { key: "negative", what: "NXDOMAIN", questions: vec![nobody] },
        Case {
            key: "many", what: "29 × A", questions: vec![question(&here("many"), 1, 0, many)?]
        },
        Case { key: "walk", what: "ndots:5 walk", questions: walk },
    ])
}

/// A query for `name` with EDNS, and its answer.
fn question(name: &str, kind: u8, code: u8, addrs: Vec<IpAddr>) -> Result<Question> {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).context("a label is short")?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, kind, 0, 1]);
    // An OPT record: replies up to 1232 bytes.
    query.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    Ok(Question { query, code, addrs })
}

/// A node that answers names and one that does not, each with a pod that asks and one that serves
/// streams; on the first, the unbound and the rest of the world.
struct Scene {
    cluster: Cluster,
    clients: [Pod; 2],
    servers: [Pod; 2],
    unbound: Pod,
    outside: Pod,
}

impl Scene {
    async fn start() -> Result<Self> {
        let cluster = Cluster::without_agents(LabConfig::default()).await?;
        let lab = &cluster.lab;
        let pod = |node: usize, name: &'static str| lab.add_pod(lab.node(node), name);
        let clients = [pod(0, "client").await?, pod(1, "other-client").await?];
        let servers = [pod(0, "server").await?, pod(1, "other-server").await?];
        let (unbound, outside) = (pod(0, "unbound").await?, pod(0, "outside").await?);
        for (id, server) in servers.iter().enumerate() {
            server.serve_sprints(id as u16).await?;
        }
        drop(outside.serve_names(OUTSIDE).await?);
        let mut scene = Self { cluster, clients, servers, unbound, outside };
        scene.publish()?;
        scene
            .cluster
            .start_agents(|node, options| {
                let names = if node.name() == scene.clients[0].node() { "kernel" } else { "off" };
                // A pod that asks as fast as it can is what is measured.
                options.flag("--dns", names).flag("--dns-limit", "0")
            })
            .await?;
        let denies = |status: &Value| status["dns"]["denies"] == json!(true);
        let _ = scene.cluster.agent(0)?.wait_status(denies).await?;
        for case in cases()? {
            let sprint = || scene.turn(Server::Kernel, &case, 1, Duration::from_millis(1));
            let right = |turn: &Result<Turn>| matches!(turn, Ok(t) if t.report.failed == 0);
            let _ = eventually("names are answered", sprint, right).await??;
        }
        Ok(scene)
    }

    fn publish(&self) -> Result<()> {
        let api = &self.cluster.api;
        let port = Port { name: "dns", protocol: "UDP", port: 53, target: OUTSIDE };
        let dns = objects::service("kube-system/kube-dns", &[&DNS.to_string()], &[port]);
        self.cluster.publish(&dns, &[port], &[&self.outside])?;
        let web = Port { name: "http", protocol: "TCP", port: 80, target: 8080 };
        self.cluster.publish(&objects::service("shop/web", &["10.96.1.1"], &[web]), &[web], &[])?;
        let many = objects::service("shop/many", &[], &[web]);
        let [mut slice, _] = objects::slices("shop/many", &[web], &[]);
        slice["endpoints"] =
            (1..=MANY).map(|last| json!({ "addresses": [format!("10.244.9.{last}")] })).collect();
        for object in [many, slice, objects::corefile(COREFILE)] {
            api.apply(&object)?;
        }
        for namespace in ["default", "kube-system", "shop"] {
            api.apply(&objects::namespace(namespace))?;
        }
        Ok(())
    }

    /// Starts an unbound with the same zone; false if this machine has none.
    async fn start_unbound(&self) -> Result<bool> {
        let folder = self.cluster.lab.scratch();
        let file = folder.join("unbound.conf");
        let path = folder.display();
        let mut text = format!(
            "server:
  interface: 0.0.0.0
  do-ip6: no
  access-control: 0.0.0.0/0 allow
  username: \"\"
  chroot: \"\"
  directory: \"{path}\"
  pidfile: \"{path}/unbound.pid\"
  logfile: \"{path}/unbound.log\"
  use-syslog: no
  module-config: iterator
  num-threads: 1
  do-not-query-localhost: no
  local-zone: \"cluster.local.\" static
  local-data: \"cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30\"
  local-data: \"web.shop.svc.cluster.local. 30 A 10.96.1.1\"
"
        );
        for last in 1..=MANY {
            let name = "many.shop.svc.cluster.local.";
            writeln!(text, "  local-data: \"{name} 30 A 10.244.9.{last}\"")?;
        }
        // As the stand-in is asked past the kernel, it asks for what is outside each time.
        let outside = self.outside.ipv4();
        write!(
            text,
            "forward-zone:
  name: \".\"
  forward-addr: {outside}@{OUTSIDE}
  forward-no-cache: yes
remote-control:
  control-enable: no
"
        )?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        // On the CPUs of the servers; it goes on in the background, in the pod's cgroup.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let pin = if cpus > 1 { format!("taskset -c 1-{} ", cpus - 1) } else { String::new() };
        let run = format!(
            "PATH=$PATH:/usr/sbin; command -v unbound >/dev/null || exit 9; \
             {pin}unbound -c {}",
            file.display()
        );
        let output = self.unbound.exec("sh", &["-c", &run]).await?;
        if output.status == Some(9) {
            return Ok(false);
        }
        ensure!(output.status == Some(0), "unbound: {}", output.stderr);
        let case = &cases()?[0];
        let asked = || self.turn(Server::Unbound, case, 1, Duration::from_millis(1));
        let right = |turn: &Result<Turn>| matches!(turn, Ok(turn) if turn.report.failed == 0);
        let _ = eventually("unbound answers", asked, right).await??;
        Ok(true)
    }

    /// Where `who` is asked.
    fn server(&self, who: Server) -> SocketAddr {
        match who {
            Server::Kernel => (DNS, 53).into(),
            Server::Unbound => (self.unbound.ipv4(), 53).into(),
        }
    }

    fn node(&self) -> &Node {
        self.cluster.lab.node(0)
    }

    /// A turn of `who` at `case`. All that is done for it, the client's part too, is done by
    /// processes of the node and in its kernel on their behalf.
    async fn turn(
        &self,
        who: Server,
        case: &Case,
        at_once: usize,
        duration: Duration,
    ) -> Result<Turn> {
        let questions = case.questions.clone();
        let sprint = NameSprint { to: self.server(who), questions, at_once, duration };
        let before = self.cpu()?;
        let report = self.clients[0].sprint_names(sprint).await?;
        let cpu = self.cpu()?.saturating_sub(before).as_secs_f64();
        let per_cpu = if cpu > 0.0 { report.count as f64 / cpu } else { 0.0 };
        Ok(Turn { report, per_cpu })
    }

    /// CPU time of all processes of the node.
    fn cpu(&self) -> Result<Duration> {
        let path = self.node().cgroup_root().join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        let micros = micros.with_context(|| format!("{} has no usage_usec", path.display()))?;
        Ok(Duration::from_micros(micros))
    }

    /// Two rows: how long the kernel takes, and how many queries it answers.
    async fn compare(&self, case: &Case, turn: Duration, rounds: usize) -> Result<Vec<Row>> {
        const WHO: [Server; 2] = [Server::Unbound, Server::Kernel];
        let mut turns: [[Vec<Turn>; 2]; 2] = Default::default();
        // One untimed round comes first.
        for round in 0..=rounds {
            for index in 0..WHO.len() {
                let who = (index + round) % WHO.len();
                for (mode, at_once) in [1, AT_ONCE].into_iter().enumerate() {
                    let ran = self.turn(WHO[who], case, at_once, turn).await?;
                    if round > 0 {
                        turns[who][mode].push(ran);
                    }
                }
            }
        }
        let [unbound, kernel] = &turns;
        let target = |target| (case.key != "walk").then_some(target);
        let row = |kind: &str, what: &str, unit| {
            let key = format!("dns-{}-{kind}-kernel", case.key);
            Row::new(&key, &format!("{}, kernel{what}", case.what), None, unit)
        };
        let p50 = |turn: &Turn| turn.report.latency.p50.as_secs_f64() * 1e6;
        let latency = target(Target::AtMostOfDirect(1.0 / TIMES));
        let rate = target(Target::of_direct(TIMES));
        Ok(vec![
            filled(row("latency", "", "µs"), &unbound[0], &kernel[0], p50, latency),
            filled(
                row("rate", " ×32", "/s CPU"),
                &unbound[1],
                &kernel[1],
                |turn| turn.per_cpu,
                rate,
            ),
        ])
    }

    /// One TCP stream between pods of a node, with and without the program on their devices.
    async fn stream(&self, turn: Duration, rounds: usize) -> Result<Row> {
        let mut turns: [Vec<Turn>; 2] = Default::default();
        for round in 0..=rounds {
            for index in 0..2 {
                let who = (index + round) % 2;
                let targets = vec![(self.servers[who].ipv4(), Service::Drain.port()).into()];
                let sprint = Sprint { deed: Deed::Stream, targets, concurrency: 1, duration: turn };
                let report = self.clients[who].sprint(sprint).await?;
                if round > 0 {
                    turns[who].push(Turn { report, per_cpu: 0.0 });
                }
            }
        }
        let row = Row::new("dns-stream", "One stream past the program", None, "GB/s");
        let target = Target::of_direct(STREAM);
        let rate = |turn: &Turn| turn.report.per_second() / 1e9;
        Ok(filled(row, &turns[1], &turns[0], rate, Some(target)))
    }

    /// How much of a CPU the program takes while a stream passes: what it can cost at most, if the
    /// whole stream had but one. Streams themselves differ by more than a hundredth.
    async fn stream_share(&self, turn: Duration, rounds: usize) -> Result<Row> {
        let programs = programs::of_agent(self.cluster.lab.node(0).bpffs_root(), "dns_counters")?;
        let names = programs.iter().find(|program| program.name_as_str() == Some("names"));
        let names = names.context("the kernel has no program names")?.fd()?;
        let _stats = enable_stats(Stats::RunTime).context("count the run time of programs")?;
        let clock = programs::clock()?;
        let mut shares = Vec::new();
        for _ in 0..rounds {
            let targets = vec![(self.servers[0].ipv4(), Service::Drain.port()).into()];
            let sprint = Sprint { deed: Deed::Stream, targets, concurrency: 1, duration: turn };
            let before = programs::statistics(names.as_fd())?;
            let report = self.clients[0].sprint(sprint).await?;
            let after = programs::statistics(names.as_fd())?;
            let (runs, nanos) = (after.0 - before.0, after.1 - before.1);
            ensure!(runs > 0, "the stream has passed no program");
            let net = (nanos as f64 - runs as f64 * clock).max(0.0);
            shares.push(net / 1e7 / report.elapsed.as_secs_f64());
        }
        let row = Row::new("dns-stream-share", "CPU that the program takes of one", None, "%");
        Ok(row.cell(Contender::Shunt, shares).at_most(STREAM_SHARE))
    }
}

/// The row with both cells, their ratio round by round, and the verdict on it.
fn filled(
    mut row: Row,
    baseline: &[Turn],
    own: &[Turn],
    value: impl Fn(&Turn) -> f64,
    target: Option<Target>,
) -> Row {
    for (who, turns) in [(Contender::Direct, baseline), (Contender::Shunt, own)] {
        let Some(figure) = Figure::of(turns.iter().map(&value)) else { continue };
        let pairs = turns.iter().zip(baseline).filter(|(_, base)| value(base) > 0.0);
        let of_direct = Figure::of(pairs.map(|(own, base)| value(own) / value(base)));
        let latency = micros(turns);
        let wrong = turns.iter().find(|turn| turn.report.failed > 0 || turn.report.count == 0);
        let wrong = wrong.map(|turn| match &turn.report.failure {
            Some(failure) => failure.to_string(),
            None => "nothing came".to_owned(),
        });
        let _ = row.cells.insert(who, Cell { figure, of_direct, latency, wrong });
    }
    row.target = target;
    let is_wrong = row.cells.values().any(|cell| cell.wrong.is_some());
    let ratio = row.cells.get(&Contender::Shunt).and_then(|cell| cell.of_direct);
    row.verdict = match (target, ratio) {
        _ if is_wrong => Verdict::Wrong,
        (Some(target), Some(ratio)) => target.judge_ratios(Some(ratio), None),
        _ => Verdict::None,
    };
    row
}

/// The latencies of turns that have them.
fn micros(turns: &[Turn]) -> Option<Micros> {
    let timed: Vec<_> =
        turns.iter().map(|turn| turn.report.latency).filter(|l| !l.p50.is_zero()).collect();
    let of = |pick: fn(&crate::traffic::Latency) -> Duration| {
        let values = timed.iter().map(|latency| pick(latency).as_secs_f64() * 1e6);
        Figure::of(values).map(|figure| figure.median)
    };
    Some(Micros { p50: of(|l| l.p50)?, p99: of(|l| l.p99)?, p999: of(|l| l.p999)? })
}
