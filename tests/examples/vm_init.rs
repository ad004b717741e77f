//! The first process of the machine that `cargo xtask vm` boots: loads the kernel's modules and
//! the programs, runs a small cluster as network namespaces, and switches the machine off.
//!
//! Takes the modules in `/modules`, in the order of their names, and the programs `shunt` and
//! `lab-worker` beside it. Says in a line of text what became of each step, and ends with the line
//! `passed` or `failed`. Does nothing unless it is process 1.

use anyhow::{Context as _, Result, ensure};
use lab::cluster::eventually;
use lab::web::{NODE_PORT, Web};
use lab::{Agent, Ask, Machine};
use proxy_user::loader::links::{self, Target};
use proxy_user::loader::{self, Dataplane, Settings, sys};
use proxy_user::netfilter::{self, conntrack::Filter};
use proxy_user::status::Attachment;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

/// How much of an error is shown: the verifier and the agent's log say at the end what is wrong.
const TAIL: usize = 6_000;
/// How long one request may take on an emulated machine.
const REQUEST: Duration = Duration::from_secs(5);
/// How many times the lab's patience an agent may take to sync.
const TRIES: u32 = 4;
const BPFFS: &str = "/sys/fs/bpf";
const CGROUP: &str = "/sys/fs/cgroup";

#[tokio::main]
async fn main() -> Result<()> {
    ensure!(std::process::id() == 1, "this is the first process of a virtual machine only");
    // The firmware has not ended its last line.
    println!();
    match run().await {
        Ok(()) => println!("passed"),
        Err(error) => {
            let text = format!("{error:#}");
            println!("{}\nfailed", &text[text.floor_char_boundary(text.len().max(TAIL) - TAIL)..]);
        }
    }
    Ok(reboot(RebootCommand::PowerOff)?)
}

async fn run() -> Result<()> {
    let trees = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("bpf", BPFFS),
        ("cgroup2", CGROUP),
    ];
    for (kind, path) in trees {
        mount(kind, path, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {path}"))?;
    }
    load_modules()?;
    load_programs()?;
    serve().await
}

/// Loads the modules that the kernel would load by itself, had it a `modprobe`.
fn load_modules() -> Result<()> {
    let files = fs::read_dir("/modules").context("cannot read /modules")?;
    let mut files = files.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    for file in files {
        let module = File::open(&file)?;
        finit_module(&module, c"", 0).with_context(|| format!("cannot load {}", file.display()))?;
    }
    Ok(())
}

/// Loads the programs as the agent does, says how long the verifier took over each, attaches them
/// to this machine itself, and removes them.
fn load_programs() -> Result<()> {
    let mut dataplane = Dataplane::load(&Settings::new(BPFFS))?;
    let mut programs: Vec<_> = dataplane.programs().collect();
    programs.sort_by_key(|(name, _)| *name);
    for (name, program) in programs {
        let info = program.info().with_context(|| format!("cannot read {name}"))?;
        let verified = info.verified_instruction_count().unwrap_or_default();
        println!("{name:<14} loaded, {verified:>7} instructions verified");
    }
    let links = dataplane.attach_cgroup(Path::new(CGROUP))?;
    println!("socket path    attached, {links} links");
    let loopback = Target { name: "lo".to_owned(), index: 1, ethernet: true, names: true };
    let kind = if sys::has_tcx()? { "tcx" } else { "clsact" };
    for (expected, what) in [(2, "attached"), (0, "attached again, nothing to do")] {
        let (made, errors) = dataplane.attach_devices(&[loopback.clone()].into());
        errors.into_iter().next().map_or(Ok(()), Err)?;
        ensure!(made == expected, "{made} programs of the packet path, not {expected}: {what}");
    }
    let attached = dataplane.attachments().iter().filter(|a| a.target == "lo").count();
    ensure!(attached == 2, "{attached} programs of the packet path are listed, not 2");
    println!("packet path    attached by {kind}, {attached} programs");
    let (_, errors) = dataplane.attach_devices(&BTreeSet::new());
    errors.into_iter().next().map_or(Ok(()), Err)?;
    let left: Vec<_> = dataplane.attachments().into_iter().filter(|a| a.target == "lo").collect();
    ensure!(left.is_empty(), "still attached to a device that is not wanted: {left:?}");
    drop(dataplane);
    loader::cleanup(Path::new(BPFFS), true).context("cannot clean up")?;
    Ok(())
}

/// Runs a node with an agent, pods and a machine outside, and asks a Service by every path: with
/// the agent, without it, with the next one, and after `shunt cleanup`.
async fn serve() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let options = web.cluster.options();
    wait_synced(web.cluster.start_agent(0, &options)?).await?;
    for (machine, ask) in web.paths() {
        let ask = ask.timeout(REQUEST);
        let what = format!("{} reaches {}", machine.name(), ask.to);
        let _reply =
            eventually(&what, async || machine.ask(ask.clone()).await, Result::is_ok).await?;
        let transport = format!("{:?}", ask.transport).to_uppercase();
        println!("{:<14} reaches {:<22} by {transport}", machine.name(), ask.to);
    }
    let filters = filters(&web)?;
    behind_a_flow_table(&web).await.context("behind a flow table")?;

    web.cluster.kill_agent(0).await?;
    expect_all(&web, true).await.context("without the agent")?;
    println!("agent killed   every path goes on");

    wait_synced(web.cluster.start_agent(0, &options)?).await?;
    expect_all(&web, true).await.context("with the next agent")?;
    ensure!(self::filters(&web)? == filters, "the next agent attached to something else");
    println!("agent again    every path goes on, {} filters as before", filters.len());

    web.cluster.kill_agent(0).await?;
    let node = web.cluster.lab.node(0);
    let bpffs = node.bpffs_root().display().to_string();
    let output = node.exec("/shunt", &["cleanup", "--bpffs-root", &bpffs]).await?;
    ensure!(output.status == Some(0), "shunt cleanup: {}", output.stderr);
    let left = self::filters(&web)?;
    ensure!(left.is_empty(), "filters are left after `shunt cleanup`: {left:?}");
    for to in node.addrs().at(NODE_PORT) {
        expect(&web.outside, &Ask::tcp(to), false).await.context("after `shunt cleanup`")?;
    }
    println!("cleanup        nothing is left, and no NodePort answers");
    Ok(())
}

/// Keeps a connection open on every path while a flow table takes established ones over: their
/// packets pass the node's stack by from then on, but not Shunt's programs.
async fn behind_a_flow_table(web: &Web) -> Result<()> {
    let node = web.cluster.lab.node(0);
    let devices: Vec<_> = node.netns().links().await?;
    let devices = devices.iter().filter(|name| name.starts_with("veth") || *name == "eth0");
    let devices = devices.map(String::as_str).collect::<Vec<_>>().join(", ");
    node.nft(&format!(
        "table inet fast {{
            flowtable established {{ hook ingress priority 0; devices = {{ {devices} }}; }}
            chain forward {{
                type filter hook forward priority 0;
                meta l4proto {{ tcp, udp }} flow add @established
            }}
        }}"
    ))
    .await?;
    let mut open = Vec::new();
    for (machine, ask) in web.paths() {
        open.push(machine.open(ask.timeout(REQUEST)).await?);
    }
    for _ in 0..10 {
        for socket in &open {
            let context = || format!("{:?} from {}", socket.peer(), socket.local());
            let _reply = socket.ask().await.with_context(context)?;
        }
    }
    let mut taken_over = 0;
    node.netns().run(|| {
        netfilter::Socket::open()?.connections(&Filter::default(), |entry| {
            taken_over += usize::from(entry.timeout.is_none());
        })
    })??;
    ensure!(taken_over > 0, "the flow table has taken nothing over");
    println!("flow table     {taken_over} connections taken over, every path goes on");
    node.nft("delete table inet fast").await
}

/// Waits until `agent` has synced, with more patience than the lab has: an emulated machine that
/// shares its CPU is slow.
async fn wait_synced(agent: &mut Agent) -> Result<()> {
    let is_synced = |status: &Value| !status["synced"].is_null();
    for _ in 1..TRIES {
        if agent.wait_status(is_synced).await.is_ok() {
            return Ok(());
        }
    }
    agent.wait_status(is_synced).await.map(drop)
}

/// The filters on the node; none where it has tcx.
fn filters(web: &Web) -> Result<Vec<Attachment>> {
    web.cluster.lab.node(0).netns().run(links::filters)
}

async fn expect_all(web: &Web, answered: bool) -> Result<()> {
    for (machine, ask) in web.paths() {
        expect(machine, &ask, answered).await?;
    }
    Ok(())
}

async fn expect(machine: &Machine, ask: &Ask, answered: bool) -> Result<()> {
    let answer = machine.ask(ask.clone().timeout(REQUEST)).await;
    let (name, to) = (machine.name(), &ask.to);
    ensure!(answer.is_ok() == answered, "{name} asks {to} ({:?}): {answer:?}", ask.transport);
    Ok(())
}
