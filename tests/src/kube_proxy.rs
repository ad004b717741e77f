//! A real kube-proxy on a node of the lab, to compare Shunt with.
//!
//! Takes the program, which is no part of this workspace, and the Kubernetes API that it is to
//! read. Gives whether it has written what it read. It runs in the node's network namespace and
//! cgroup, and changes nothing outside of them.

use crate::lab::Node;
use crate::network::POD_NETWORKS;
use crate::{metrics, program};
use anyhow::{Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::process::Child;

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
