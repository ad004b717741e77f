//! A Kubernetes API with a population, and an agent that is started, told and watched.

use super::kernel;
use crate::bench::contender::Contender;
use crate::bench::population::Entry;
use crate::bench::proxies::wait_programmed;
use crate::cluster::Cluster;
use crate::kube_proxy::KubeProxy;
use crate::lab::{LabConfig, Node};
use crate::metrics;
use anyhow::{Context, Result};
use proxy_user::pinned::PinnedMaps;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a start may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(120);

/// The API, the agent's node, and a node for each baseline.
pub(super) struct Plane {
    cluster: Cluster,
    baselines: Vec<Contender>,
    endpoints: usize,
    /// How often each Service has got other endpoints.
    moved: Vec<u32>,
    maps: Option<PinnedMaps>,
}

impl Plane {
    /// Starts the machines and tells the API of `size` Services; no agent yet.
    pub(super) async fn start(field: &[Contender], size: usize, endpoints: usize) -> Result<Self> {
        let is_baseline = |who: &Contender| who.is_made_of_rules() || who.kube_proxy().is_some();
        let baselines: Vec<_> = field.iter().copied().filter(is_baseline).collect();
        let nodes = 1 + baselines.len() as u8;
        let cluster = Cluster::without_agents(LabConfig { nodes, ..Default::default() }).await?;
        for index in 0..size {
            let entry = Entry::crowd(index, endpoints, 0);
            cluster.api.apply(&entry.service())?;
            cluster.api.apply(&entry.slice())?;
        }
        Ok(Self { cluster, baselines, endpoints, moved: vec![0; size], maps: None })
    }

    /// How many Services there are.
    pub(super) fn size(&self) -> usize {
        self.moved.len()
    }

    /// Starts the kube-proxy that is a baseline; it has not synced yet.
    pub(super) fn start_kube_proxy(
        &self,
        contender: Contender,
        program: &Path,
    ) -> Result<KubeProxy> {
        let mode = contender.kube_proxy().with_context(|| format!("{contender} is none"))?;
        self.cluster.start_kube_proxy(self.index(contender)?, program, mode)
    }

    /// The node of a baseline.
    pub(super) fn node(&self, contender: Contender) -> Result<&Node> {
        Ok(self.cluster.lab.node(self.index(contender)?))
    }

    fn index(&self, contender: Contender) -> Result<usize> {
        let place = self.baselines.iter().position(|baseline| *baseline == contender);
        Ok(1 + place.with_context(|| format!("{contender} is no baseline"))?)
    }

    /// Starts an agent where none was, and waits until all is programmed. The time is from the
    /// start of the process to its own word that it is in sync, which is then checked.
    pub(super) async fn cold_start(&mut self, flags: &[&str]) -> Result<Duration> {
        self.stop_agent().await?;
        drop(self.cluster.lab.node(0).shunt(&["cleanup"]).await?);
        let started = Instant::now();
        let _ = self.restart(flags).await?;
        let took = started.elapsed();
        let root = self.cluster.lab.node(0).bpffs_root();
        wait_programmed(root, self.moved.len(), LIMIT).await?;
        Ok(took)
    }

    /// Starts an agent over what the last one left, and waits until it has synced. Gives its
    /// process id.
    pub(super) async fn restart(&mut self, flags: &[&str]) -> Result<u32> {
        self.stop_agent().await?;
        let pairs = flags.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let options = pairs.fold(self.cluster.options(), |o, (flag, value)| o.flag(flag, value));
        drop(self.cluster.start_agent(0, &options)?.wait_synced().await?);
        self.maps = Some(PinnedMaps::open(self.cluster.lab.node(0).bpffs_root())?);
        self.agent_pid()
    }

    async fn stop_agent(&mut self) -> Result<()> {
        self.maps = None;
        match self.cluster.agent(0) {
            Ok(_) => self.cluster.kill_agent(0).await,
            Err(_) => Ok(()),
        }
    }

    /// The agent's process.
    pub(super) fn agent_pid(&mut self) -> Result<u32> {
        self.cluster.agent(0)?.pid().context("the agent has ended")
    }

    /// The cgroup of the agent, and of the node's worker, which sleeps while nothing is asked.
    pub(super) fn agent_cgroup(&self) -> &Path {
        self.cluster.lab.node(0).cgroup()
    }

    /// Gives a Service other endpoints. Gives how long it took until the programs choose among
    /// them.
    pub(super) async fn change_one(&mut self, index: usize) -> Result<Duration> {
        let entry = self.moved_on(index);
        let slice = entry.slice();
        let maps = self.maps()?;
        tokio::task::block_in_place(|| {
            let started = Instant::now();
            self.cluster.api.apply(&slice)?;
            Ok(kernel::wait_for(maps, &entry)? - started)
        })
    }

    /// Gives `count` Services other endpoints, as fast as the API takes it, some more than once.
    pub(super) async fn burst(&mut self, count: usize) -> Result<Duration> {
        let entries: Vec<_> =
            (0..count).map(|number| self.moved_on(number % self.moved.len())).collect();
        let slices: Vec<_> = entries.iter().map(Entry::slice).collect();
        let maps = self.maps()?;
        tokio::task::block_in_place(|| {
            let started = Instant::now();
            slices.iter().try_for_each(|slice| self.cluster.api.apply(slice))?;
            let last_of_each = &entries[entries.len().saturating_sub(self.moved.len())..];
            last_of_each.iter().try_for_each(|entry| kernel::wait_for(maps, entry).map(drop))?;
            Ok(started.elapsed())
        })
    }

    /// Changes endpoints at `rate` for `duration`, and waits until the last is effective.
    pub(super) async fn churn(&mut self, duration: Duration, rate: f64) -> Result<()> {
        let last = self.tell_changes(duration, rate).await?;
        let maps = self.maps()?;
        tokio::task::block_in_place(|| kernel::wait_for(maps, &last).map(drop))
    }

    /// Changes endpoints at `rate` for `duration`. Gives the last change.
    pub(super) async fn tell_changes(&mut self, duration: Duration, rate: f64) -> Result<Entry> {
        let started = Instant::now();
        let mut last = None;
        for number in 0.. {
            let due = Duration::from_secs_f64(f64::from(number) / rate);
            if due >= duration {
                break;
            }
            tokio::time::sleep_until((started + due).into()).await;
            last = Some(self.change(number as usize * 37 % self.moved.len())?);
        }
        last.context("a churn without changes")
    }

    /// Gives a Service other endpoints, and tells the API.
    pub(super) fn change(&mut self, index: usize) -> Result<Entry> {
        let entry = self.moved_on(index);
        self.cluster.api.apply(&entry.slice())?;
        Ok(entry)
    }

    /// How long the agent's first pass took, by its own account: planning and kernel writes.
    pub(super) fn first_sync(&self) -> Result<Duration> {
        let text = metrics::text(self.cluster.lab.node(0))?;
        let sum = metrics::value(&text, "kubeproxy_sync_proxy_rules_duration_seconds_sum");
        Ok(Duration::from_secs_f64(sum.context("the agent has no duration of its syncs")?))
    }

    /// What the maps weigh, in MiB.
    pub(super) fn map_memory(&self) -> Result<f64> {
        kernel::map_memory(self.cluster.lab.node(0).bpffs_root())
    }

    /// The Service with its next endpoints.
    fn moved_on(&mut self, index: usize) -> Entry {
        self.moved[index] += 1;
        Entry::crowd(index, self.endpoints, self.moved[index])
    }

    fn maps(&self) -> Result<&PinnedMaps> {
        self.maps.as_ref().context("no agent has been started")
    }
}
