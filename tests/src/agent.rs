//! Agents: the program `shunt agent` on nodes of the lab.

use crate::lab::{Lab, Node};
use crate::network::POD_NETWORKS;
use crate::program;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, iter, thread};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Child;

/// How long a first sync may take.
const SYNC: Duration = Duration::from_secs(30);
/// How many lines of the log say why an agent failed.
const TAIL: usize = 40;

/// How to start an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    source: [String; 4],
    args: Vec<String>,
    log: String,
}

impl AgentOptions {
    /// Its objects come from a Kubernetes API.
    pub fn kube(kubeconfig: &Path) -> Self {
        Self::new(["--source", "kube", "--kubeconfig"], kubeconfig)
    }

    /// Its objects come from the files of a folder.
    pub fn files(folder: &Path) -> Self {
        Self::new(["--source", "files", "--manifests"], folder)
    }

    fn new([source, kind, flag]: [&str; 3], path: &Path) -> Self {
        let source = [source, kind, flag, &path.display().to_string()].map(str::to_owned);
        Self { source, args: Vec::new(), log: "info".to_owned() }
    }

    /// With another flag; one that the lab gives itself is replaced.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// With another filter of its log (`RUST_LOG`).
    #[must_use]
    pub fn log(self, filter: &str) -> Self {
        Self { log: filter.to_owned(), ..self }
    }
}

/// An agent that runs; it is killed when dropped, and shows its log if that is by a panic.
pub struct Agent {
    child: Child,
    node: String,
    control: PathBuf,
    log: PathBuf,
    healthz: SocketAddr,
}

impl Lab {
    /// Starts an agent on `node`; it has not synced yet.
    pub fn start_agent(&self, node: &Node, options: &AgentOptions) -> Result<Agent> {
        let number = node.agents.fetch_add(1, Ordering::Relaxed);
        let log = node.scratch.join(format!("agent-{number}.log"));
        let healthz = SocketAddr::from((node.ipv4(), 10256));
        let given = [
            ("--node-name", node.name().to_owned()),
            ("--cgroup-root", node.cgroup_root().display().to_string()),
            ("--bpffs-root", node.bpffs_root().display().to_string()),
            ("--devices", node.uplink().to_owned()),
            ("--pod-devices", "veth*,cali*".to_owned()),
            ("--cluster-cidr", POD_NETWORKS.to_owned()),
            ("--healthz-bind-address", healthz.to_string()),
            ("--metrics-bind-address", "127.0.0.1:10249".to_owned()),
            ("--control-socket", node.control_socket().display().to_string()),
        ];
        let given = given.into_iter().filter(|(flag, _)| !options.args.iter().any(|a| a == flag));
        let given = given.flat_map(|(flag, value)| [flag.to_owned(), value]);
        let args = iter::once("agent".to_owned())
            .chain(options.source.iter().cloned())
            .chain(given)
            .chain(options.args.iter().cloned());
        let shunt = program::find("shunt")?;
        let child = program::start(node, &shunt, args, &[("RUST_LOG", &options.log)], &log)?;
        let (node, control) = (node.name().to_owned(), node.control_socket());
        Ok(Agent { child, node, control, log, healthz })
    }
}

impl Agent {
    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Where `/healthz` and `/livez` are, for a machine of the lab to ask.
    pub fn healthz(&self) -> SocketAddr {
        self.healthz
    }

    /// Waits until it has synced.
    pub async fn wait_synced(&mut self) -> Result<Value> {
        self.wait_status(|status| !status["synced"].is_null()).await.context("wait for the sync")
    }

    /// Waits until `reached` says so of the agent's own status.
    pub async fn wait_status(&mut self, reached: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + SYNC;
        loop {
            let status = self.status().await;
            match status {
                Ok(status) if reached(&status) => return Ok(status),
                _ => {}
            }
            if let Some(exit) = self.child.try_wait()? {
                bail!(
                    "the agent of {} has ended: {exit}; its log:\n{}",
                    self.node,
                    self.log_tail()
                );
            }
            if Instant::now() > deadline {
                let last = status.map_or_else(|e| format!("{e:#}"), |status| status.to_string());
                let tail = self.log_tail();
                bail!("not in {SYNC:?} on {}: {last}; the agent's log:\n{tail}", self.node);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it says of itself over its control socket.
    pub async fn status(&self) -> Result<Value> {
        let mut text = Vec::new();
        let mut control = UnixStream::connect(&self.control)
            .await
            .with_context(|| format!("connect to {}", self.control.display()))?;
        let _ = control.read_to_end(&mut text).await.context("read the status")?;
        serde_json::from_slice(&text).context("parse the status")
    }

    /// Kills it, as an out-of-memory killer would.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("kill the agent of {}", self.node))
    }

    /// Stops it where it is, as on a node without CPU for it, or lets it go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        self.signal(if frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Asks it to end, and waits until it has.
    pub async fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.child.wait().await.with_context(|| format!("wait for the agent of {}", self.node))
    }

    /// Sends `signal`, unless it has ended.
    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let Some(pid) = pid else { return Ok(()) };
        kill_process(pid, signal)
            .with_context(|| format!("{signal:?} for the agent of {}", self.node))
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("no log: {error}"))
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of the agent of {} ends:\n{}", self.node, self.log_tail());
        }
    }
}
