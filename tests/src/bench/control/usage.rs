//! What a process uses, from /proc and its cgroup.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the processes of a cgroup take of a core from now on.
pub(super) struct Meter<'a> {
    cgroup: &'a Path,
    before: Duration,
    began: Instant,
}

impl<'a> Meter<'a> {
    pub(super) fn start(cgroup: &'a Path) -> Result<Self> {
        Ok(Self { cgroup, before: cpu(cgroup)?, began: Instant::now() })
    }

    /// The percentage of a core that they have taken since.
    pub(super) fn percent(&self) -> Result<f64> {
        let busy = cpu(self.cgroup)? - self.before;
        Ok(100.0 * busy.as_secs_f64() / self.began.elapsed().as_secs_f64())
    }
}

/// The time that the processes of a cgroup have had a CPU, ended ones and threads included.
pub(super) fn cpu(cgroup: &Path) -> Result<Duration> {
    let path = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
    let micros = micros.with_context(|| format!("{} has no usage_usec", path.display()))?;
    Ok(Duration::from_micros(micros))
}

/// The memory of `pid` now, in MiB.
pub(super) fn resident(pid: u32) -> Result<f64> {
    status(pid, "VmRSS:")
}

/// The most memory that `pid` has had, in MiB.
pub(super) fn peak(pid: u32) -> Result<f64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {key}"))? / 1024.0)
}
