//! Whether the machine was left to the bench: how fast its first CPU is now, and what others take
//! of all CPUs.
//!
//! Others are processes outside the lab and this one, by their own CPU time in /proc, and what
//! the hypervisor steals. Kernel threads are nobody's: they work for the traffic too.

use super::stats::Figure;
use crate::cgroup::PREFIX;
use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, process, thread};

/// Others may take this share of the machine and no more, if nothing else is said.
pub(super) const LIMIT: f64 = 0.10;
/// The CPU may take this much longer for the same work than it did at its best.
const SLOWEST: f64 = 1.25;
/// With fewer rounds that were left alone, there is nothing to compare.
pub(super) const QUIET_ROUNDS: usize = 5;
/// Steps of the fixed work: about a millisecond.
const STEPS: u64 = 1_000_000;
/// A tick of /proc: `USER_HZ`, the same on every machine that Shunt runs on.
const TICK: f64 = 0.01;

/// What was noticed over a whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Noise {
    /// The share of the machine that others may take.
    limit: f64,
    /// The share of the machine that others took, in each block.
    others: Vec<f64>,
    /// Milliseconds of the fixed work, before each block.
    work: Vec<f64>,
}

/// Notices who else is at work.
pub(super) struct Watch {
    /// How the cgroups of the labs begin in /proc/PID/cgroup.
    lab: String,
}

/// What others had had of the CPUs at some time.
pub(super) struct Mark {
    at: Instant,
    others: f64,
    work: Duration,
}

/// The time between a [`Mark`] and its end: how it was disturbed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// The share of the machine that others took.
    others: f64,
    /// How long the fixed work took at its beginning.
    work: Duration,
}

impl Noise {
    /// Nothing yet.
    pub(super) const fn new(limit: f64) -> Self {
        Self { limit, others: Vec::new(), work: Vec::new() }
    }

    /// Takes note of a block.
    pub(super) fn add(&mut self, block: &Block) {
        self.others.push(block.others);
        self.work.push(block.work.as_secs_f64() * 1e3);
    }

    /// Whether others, or a CPU that had become slow, disturbed a block of this run. Nothing does
    /// where others may take the whole machine.
    pub(super) fn disturbed(&self, block: &Block) -> bool {
        if self.limit >= 1.0 {
            return false;
        }
        let best = self.work.iter().copied().fold(f64::MAX, f64::min);
        block.others > self.limit || block.work.as_secs_f64() * 1e3 > SLOWEST * best
    }

    /// In words, if anything was noticed.
    pub(super) fn words(&self) -> Option<String> {
        let (others, work) =
            (Figure::of(self.others.iter().copied())?, Figure::of(self.work.iter().copied())?);
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        Some(format!(
            "others took {:.1} % of the machine, {:.0} % at most (limit {:.0} %); the fixed work took {:.2} ms, {:.2} at most",
            100.0 * others.median,
            100.0 * most(&self.others),
            100.0 * self.limit,
            work.median,
            most(&self.work)
        ))
    }
}

impl Watch {
    /// Of everybody outside this process and its labs.
    pub(super) fn new() -> Self {
        Self { lab: format!("/{PREFIX}{}-", process::id()) }
    }

    /// Begins a block.
    pub(super) fn mark(&self) -> Result<Mark> {
        let work = fixed_work();
        Ok(Mark { at: Instant::now(), others: self.others()?, work })
    }

    /// Ends it.
    pub(super) fn since(&self, mark: &Mark) -> Result<Block> {
        let cpus = thread::available_parallelism().map_or(1, usize::from) as f64;
        let took = self.others()? - mark.others;
        let others = took / (mark.at.elapsed().as_secs_f64() * cpus);
        // One that ended while it was looked for is counted late, with all that it ever had.
        Ok(Block { others: others.clamp(0.0, 1.0), work: mark.work })
    }

    /// Seconds that other processes have had, those that they have waited for included, and
    /// that were stolen. It does not fall when a process ends and its parent waits for it.
    fn others(&self) -> Result<f64> {
        let mut ticks = stolen()?;
        for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if pid.is_some_and(|pid| pid != process::id()) {
                // One that has ended meanwhile had its last word.
                ticks += self.ticks(entry.path()).unwrap_or_default();
            }
        }
        Ok(ticks as f64 * TICK)
    }

    /// The ticks of a process, if it is somebody else's.
    fn ticks(&self, proc: PathBuf) -> Option<u64> {
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        // The name, in brackets, may hold anything; what follows it does not.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        const KERNEL_THREAD: u64 = 0x0020_0000;
        let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
        if field(6)? & KERNEL_THREAD != 0 {
            return None;
        }
        let cgroup = fs::read_to_string(proc.join("cgroup")).ok()?;
        let own = cgroup.lines().filter_map(|line| line.strip_prefix("0::"));
        if own.into_iter().any(|path| path.contains(&self.lab)) {
            return None;
        }
        // utime, stime, cutime and cstime.
        (11..=14).map(field).sum()
    }
}

/// Ticks that the hypervisor gave to others.
fn stolen() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let steal =
        stat.lines().next().and_then(|line| line.split_ascii_whitespace().nth(8)?.parse().ok());
    steal.context("/proc/stat has no time stolen")
}

/// How long the same work takes on the CPU of the clients: the best of three.
fn fixed_work() -> Duration {
    let work = || {
        let mut cpus = CpuSet::new();
        cpus.set(0);
        // Where the kernel refuses, it is the speed of any CPU.
        let _ = sched_setaffinity(None, &cpus);
        let once = || {
            let started = Instant::now();
            let mut random = 1_u64;
            for _ in 0..STEPS {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
            }
            let _ = black_box(random);
            started.elapsed()
        };
        (0..3).map(|_| once()).min().unwrap_or_default()
    };
    // On a thread of its own: the affinity ends with it.
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_stranger_disturbs_and_a_slow_cpu_does() {
        let block = |others, millis| Block { others, work: Duration::from_millis(millis) };
        let mut noise = Noise::new(LIMIT);
        let all = [block(0.0, 10), block(0.2, 10), block(0.0, 14)];
        all.iter().for_each(|block| noise.add(block));
        assert_eq!(all.map(|block| noise.disturbed(&block)), [false, true, true]);
        let whole = Noise { limit: 1.0, ..noise };
        assert_eq!(all.map(|block| whole.disturbed(&block)), [false; 3]);
    }

    #[test]
    fn only_processes_outside_the_lab_are_others() {
        let ticks = |lab: &str, pid: &str| {
            Watch { lab: lab.to_owned() }.ticks(PathBuf::from("/proc").join(pid))
        };
        assert!(ticks("/no-such-lab", "self").is_some());
        // Every process is below the root.
        assert_eq!(ticks("/", "self"), None);
        assert_eq!(ticks("/no-such-lab", "2"), None, "the kernel's first thread");
    }
}
