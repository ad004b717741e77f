//! A real kube-proxy on a node of the lab, to compare Shunt with.
//!
//! Takes the program, which is no part of this workspace, and the Kubernetes API that it is to
//! read. Gives whether it has written what it read. It runs in the node's network namespace and
//! cgroup, and changes nothing outside of them.

use crate::lab::Node;
use crate::network::POD_NETWORKS;
use crate::{metrics, program};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{self, Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs};
use tokio::process::Child;

/// For how long it has to be in sync, so that what it was told last has reached it, and its rules
/// are there for both families.
pub const SETTLED: Duration = Duration::from_secs(2);

/// The program that the environment names, as those tests ask for it that need one.
pub fn program_of_environment() -> Result<PathBuf> {
    let program = env::var_os("SHUNT_KUBE_PROXY");
    let program = program.context("name a kube-proxy: SHUNT_KUBE_PROXY=/path/to/it")?;
    Ok(path::absolute(program)?)
}

/// What its rules are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// iptables, as the program `iptables` of the machine writes them.
    Iptables,
    /// nftables.
    Nftables,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// A kube-proxy that runs; it is killed when dropped, and leaves its rules.
pub struct KubeProxy {
    child: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts `program` on `node`; it has not synced yet.
    pub fn start(node: &Node, program: &Path, mode: Mode, kubeconfig: &Path) -> Result<Self> {
        ensure!(program.is_file(), "there is no kube-proxy {}", program.display());
        let log = node.scratch.join("kube-proxy.log");
        let args = [
            ("kubeconfig", kubeconfig.display().to_string()),
            ("proxy-mode", mode.name().to_owned()),
            ("hostname-override", node.name().to_owned()),
            ("cluster-cidr", POD_NETWORKS.to_owned()),
            ("healthz-bind-address", "127.0.0.1:10256".to_owned()),
            ("metrics-bind-address", "127.0.0.1:10249".to_owned()),
            // The machine's own limits are not the lab's to change.
            ("conntrack-max-per-core", "0".to_owned()),
            ("conntrack-min", "0".to_owned()),
            ("conntrack-tcp-timeout-established", "0s".to_owned()),
            ("conntrack-tcp-timeout-close-wait", "0s".to_owned()),
        ];
        let args = args.map(|(flag, value)| format!("--{flag}={value}"));
        Ok(Self { child: program::start(node, program, args, &[], &log)?, log })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// An error if it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("kube-proxy has ended ({status}); {}", self.log_end());
        }
        Ok(())
    }

    /// The end of its log, on one line.
    pub fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        match &lines[lines.len().saturating_sub(3)..] {
            [] => "its log is empty".to_owned(),
            end => format!("its log ends: {}", end.join(" | ")),
        }
    }
}

/// Whether the kube-proxy of `node` says that nothing has come since its last sync.
pub fn is_in_sync(node: &Node) -> Result<bool> {
    Ok(synced_at(node)?.is_some())
}

/// When the last sync of the kube-proxy of `node` ended, by its own word, unless something has
/// come since.
pub fn synced_at(node: &Node) -> Result<Option<SystemTime>> {
    let text = metrics::text(node)?;
    let value = |name| {
        metrics::value(&text, &format!("kubeproxy_sync_proxy_rules_{name}_timestamp_seconds"))
    };
    let times = value("last").zip(value("last_queued"));
    let (last, _) = times.filter(|(last, queued)| *last > 0.0 && last >= queued).unzip();
    Ok(last.map(|last| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(last)))
}
