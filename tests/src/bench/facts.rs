//! What the numbers hold for: the machine, the kernel, the versions.

use super::contender::Contender;
use super::rules;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

/// The machine, the kernel and the versions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The command that made the run.
    pub(super) command: String,
    /// When the run began.
    pub(super) time: String,
    /// The release of the kernel.
    pub(super) kernel: String,
    /// The processor's model, by itself.
    pub(super) cpu: String,
    /// How many CPUs the run may use.
    pub(super) cpus: usize,
    /// Memory in MiB.
    pub(super) memory_mib: u64,
    /// How many processes wanted a CPU over the minute before the run.
    pub(super) load_before: f64,
    /// The versions of what was compared.
    pub(super) versions: BTreeMap<String, String>,
}

impl Facts {
    /// Of this machine, now, and of those who compete, of which one may be a real kube-proxy.
    pub(super) fn collect(field: &[Contender], kube_proxy: Option<&Path>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory, load) =
            (read("/proc/cpuinfo"), read("/proc/meminfo"), read("/proc/loadavg"));
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let memory = after(&memory, "MemTotal").unwrap_or_default();
        let kib: u64 = memory.trim_end_matches("kB").trim().parse().unwrap_or_default();
        let tools = field.iter().filter(|contender| contender.is_made_of_rules());
        let mut versions: BTreeMap<_, _> = tools
            .map(|contender| rules::tool(*contender))
            .filter_map(|tool| Some((tool.to_owned(), version(tool)?)))
            .collect();
        let kube_proxy = kube_proxy.and_then(version);
        versions.extend(kube_proxy.map(|version| ("kube-proxy".to_owned(), version)));
        let shunt = concat!(env!("CARGO_PKG_VERSION"), ", the bench's build").to_owned();
        drop(versions.insert("shunt".to_owned(), shunt));
        let args: Vec<_> = std::env::args().skip(1).collect();
        let args = if args.is_empty() { String::new() } else { format!(" -- {}", args.join(" ")) };
        Self {
            command: format!("cargo xtask bench{args}"),
            time: Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: after(&cpu, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib / 1024,
            load_before: load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or_default(),
            versions,
        }
    }
}

/// What a tool says of its version.
fn version(tool: impl AsRef<OsStr>) -> Option<String> {
    let output = Command::new(tool).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}
