//! The proxies of the contenders: starts them, and brings them to a population.

use super::arena::{Arena, Corner};
use super::contender::Contender;
use super::control::Loads;
use super::measure::Way;
use super::options::Options;
use super::population::Entry;
use crate::kube_proxy::{self, KubeProxy, SETTLED};
use crate::sprint::{Deed, Sprint};
use anyhow::{Context, Result, bail, ensure};
use proxy_ebpf::frontend::Scope;
use proxy_user::pinned::PinnedMaps;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Endpoints of each Service.
pub(super) const ENDPOINTS: usize = 10;

/// What runs beside the arena.
pub(super) struct Proxies {
    /// What it took to write the rules of those who are made of rules.
    pub(super) loads: Loads,
    kube_proxies: Vec<(Contender, KubeProxy)>,
    told: Told,
}

/// What the Kubernetes API has been told.
struct Told(usize);

impl Proxies {
    /// Starts the agent and, if there is one, kube-proxy. They have no Services yet but those
    /// that are measured.
    pub(super) async fn start(arena: &mut Arena, kube_proxy: Option<&Path>) -> Result<Self> {
        let published = arena.corners.iter().filter(|corner| corner.contender.is_published());
        for entry in published.flat_map(|corner| arena.measured(corner)) {
            arena.cluster.api.apply(&entry.service())?;
            arena.cluster.api.apply(&entry.slice())?;
        }
        start_shunt(arena).await?;
        let mut kube_proxies = Vec::new();
        for corner in &arena.corners {
            let Some(mode) = corner.contender.kube_proxy() else { continue };
            let kube_proxy = kube_proxy.context("there is no kube-proxy")?;
            let kube_proxy = arena.cluster.start_kube_proxy(corner.node, kube_proxy, mode)?;
            kube_proxies.push((corner.contender, kube_proxy));
        }
        Ok(Self { loads: Loads::default(), kube_proxies, told: Told(0) })
    }

    /// Lets the direct path and Shunt change places. Shunt begins anew there, with maps of its own.
    pub(super) async fn exchange(&self, arena: &mut Arena) -> Result<()> {
        let Some(corner) = arena.corner(Contender::Shunt) else { return Ok(()) };
        let node = corner.node;
        let _status = arena.cluster.take_agent(node)?.terminate().await?;
        arena.cluster.lab.node(node).clean_up().await?;
        arena.exchange().await?;
        start_shunt(arena).await?;
        let corner = arena.corner(Contender::Shunt).context("Shunt takes part")?;
        self.told.wait_for_shunt(arena, corner).await
    }

    /// Brings everybody to `size` Services. Gives those who got there, and says of the others
    /// why not.
    pub(super) async fn bring_to(
        &mut self,
        arena: &Arena,
        options: &Options,
        size: usize,
        out: &mut Vec<String>,
    ) -> Result<Vec<Contender>> {
        self.told.crowd(arena, size)?;
        let mut ready = Vec::new();
        for corner in &arena.corners {
            let brought = match corner.contender {
                Contender::Direct => Ok(()),
                Contender::Shunt => self.told.wait_for_shunt(arena, corner).await,
                Contender::KubeProxyIptables | Contender::KubeProxyNftables => {
                    let patience = options.patience(corner.contender, size);
                    self.wait_for_kube_proxy(arena, corner, patience).await
                }
                contender => {
                    let (node, measured) = (arena.node(corner), arena.measured(corner));
                    let load = self.loads.load(options, (contender, size), node, &measured).await;
                    load.map(drop).map_err(anyhow::Error::msg)
                }
            };
            match brought {
                Ok(()) => ready.push(corner.contender),
                Err(error) => {
                    ensure!(corner.contender != Contender::Shunt, "{error:#}");
                    // One that still works would take the CPU from those that are measured.
                    self.kube_proxies.retain(|(who, _)| *who != corner.contender);
                    out.push(format!("{} with {size} Services: {error:#}", corner.contender));
                }
            }
        }
        Ok(ready)
    }
}

impl Proxies {
    /// Waits until a kube-proxy has written all that it was told, and the measured Service answers.
    async fn wait_for_kube_proxy(
        &mut self,
        arena: &Arena,
        corner: &Corner,
        limit: Duration,
    ) -> Result<()> {
        let started = Instant::now();
        let node = arena.node(corner);
        let deed = Deed::Connect;
        let targets = arena.targets(corner, Way::ClusterIp, deed.service());
        let sprint = Sprint { deed, targets, concurrency: 1, duration: Duration::from_millis(50) };
        let mut in_sync_since = None;
        loop {
            let found = self.kube_proxies.iter_mut().find(|(who, _)| *who == corner.contender);
            let (_, kube_proxy) = found.context("it was ended, as it could not keep up")?;
            kube_proxy.ensure_running()?;
            let synced = kube_proxy::is_in_sync(node);
            in_sync_since = match synced {
                Ok(true) => in_sync_since.or_else(|| Some(Instant::now())),
                _ => None,
            };
            if in_sync_since.is_some_and(|since| since.elapsed() > SETTLED) {
                let client = arena.client(corner, Way::ClusterIp);
                let answer = client.sprint(sprint.clone()).await;
                if answer.is_ok_and(|report| report.failed == 0 && report.count > 0) {
                    return Ok(());
                }
            }
            if started.elapsed() > limit {
                let why = match synced {
                    Ok(true) => "says it is in sync, but its Services do not answer".to_owned(),
                    Ok(false) => "is still writing rules, by its own metrics".to_owned(),
                    Err(error) => format!("shows no metrics ({error:#})"),
                };
                bail!("after {limit:?} kube-proxy {why}; {}", kube_proxy.log_end());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Told {
    /// Tells the API of a crowd such that there are `size` Services in all.
    fn crowd(&mut self, arena: &Arena, size: usize) -> Result<()> {
        let wanted = size.saturating_sub(measured(arena));
        let api = &arena.cluster.api;
        for index in self.0..wanted {
            let entry = Entry::crowd(index, ENDPOINTS, 0);
            api.apply(&entry.service())?;
            api.apply(&entry.slice())?;
        }
        for index in wanted..self.0 {
            let name = format!("crowd-{index}");
            api.delete("services", super::population::NAMESPACE, &name);
            api.delete("endpointslices", super::population::NAMESPACE, &name);
        }
        self.0 = wanted;
        Ok(())
    }

    /// Waits until every frontend is in the kernel and has its backends.
    async fn wait_for_shunt(&self, arena: &Arena, corner: &Corner) -> Result<()> {
        let measured = arena.corners.iter().filter(|corner| corner.contender.is_published());
        let ports: usize =
            measured.flat_map(|corner| arena.measured(corner)).map(|entry| entry.ports.len()).sum();
        // A measured port is a ClusterIP and a NodePort.
        let frontends = 2 * ports + self.0;
        let root = arena.node(corner).bpffs_root();
        wait_programmed(root, frontends, Duration::from_secs(60)).await
    }
}

/// Starts the agent in the corner of Shunt, if that takes part.
async fn start_shunt(arena: &mut Arena) -> Result<()> {
    if let Some(node) = arena.corner(Contender::Shunt).map(|corner| corner.node) {
        let options = arena.cluster.options();
        drop(arena.cluster.start_agent(node, &options)?.wait_synced().await?);
    }
    Ok(())
}

/// How many Services are measured, of those that the API knows.
fn measured(arena: &Arena) -> usize {
    2 * arena.corners.iter().filter(|corner| corner.contender.is_published()).count()
}

/// Waits until the maps below `root` hold that many frontends, and each has backends.
pub(super) async fn wait_programmed(root: &Path, frontends: usize, limit: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        let found = programmed(root);
        if found.as_ref().is_ok_and(|found| *found == frontends) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < limit,
            "{frontends} frontends were not in the kernel after {limit:?}: {found:?}"
        );
        sleep(Duration::from_millis(2)).await;
    }
}

/// How many frontends have backends.
fn programmed(root: &Path) -> Result<usize> {
    let maps = PinnedMaps::open(root)?;
    let mut frontends = maps.frontends()?;
    frontends.retain(|key, _| key.scope() != Scope::Address);
    let ranges = maps.ranges(&mut frontends)?;
    let has_backends = |range: &u32| ranges.get(range).is_some_and(|r| r.header.cluster > 0);
    Ok(frontends.values().filter(|value| has_backends(&value.range())).count())
}
