//! The proxies of the contenders: starts them, and brings them to a population.

use super::arena::{Arena, Corner};
use super::contender::Contender;
use super::population::{Entry, population};
use super::rules;
use crate::program;
use anyhow::{Context, Result, ensure};
use proxy_ebpf::frontend::Scope;
use proxy_user::pinned::PinnedMaps;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::time::sleep;

/// Endpoints of each Service.
pub(super) const ENDPOINTS: usize = 10;

/// What runs beside the arena.
pub(super) struct Proxies {
    kube_proxies: Vec<Child>,
    told: Told,
}

/// What the Kubernetes API has been told.
struct Told(usize);

impl Proxies {
    /// Starts the agent and, if there is one, kube-proxy. They have no Services yet but those
    /// that are measured.
    pub(super) async fn start(arena: &mut Arena, kube_proxy: Option<&Path>) -> Result<Self> {
        let watching = arena.corners.iter().filter(|corner| corner.contender.watches());
        for entry in watching.flat_map(|corner| arena.measured(corner)) {
            arena.cluster.api.apply(&entry.service())?;
            arena.cluster.api.apply(&entry.slice())?;
        }
        if let Some(node) = arena.corner(Contender::Shunt).map(|corner| corner.node) {
            let options = arena.cluster.options();
            drop(arena.cluster.start_agent(node, &options)?.wait_synced().await?);
        }
        let mut kube_proxies = Vec::new();
        for corner in &arena.corners {
            let mode = match corner.contender {
                Contender::KubeProxyIptables => "iptables",
                Contender::KubeProxyNftables => "nftables",
                _ => continue,
            };
            let kube_proxy = kube_proxy.context("there is no kube-proxy")?;
            kube_proxies.push(start_kube_proxy(arena, corner, kube_proxy, mode)?);
        }
        Ok(Self { kube_proxies, told: Told(0) })
    }

    /// Brings everybody to `size` Services. Gives those who got there, and says of the others
    /// why not.
    pub(super) async fn bring_to(
        &mut self,
        arena: &Arena,
        size: usize,
        patience: Duration,
        out: &mut Vec<String>,
    ) -> Result<Vec<Contender>> {
        self.told.crowd(arena, size)?;
        let mut ready = Vec::new();
        for corner in &arena.corners {
            let brought = match corner.contender {
                Contender::Direct => Ok(()),
                Contender::Shunt => self.told.wait_for_shunt(arena, corner).await,
                Contender::KubeProxyIptables | Contender::KubeProxyNftables => {
                    wait_for_kube_proxy(arena, corner, patience).await
                }
                contender => {
                    let entries = population(size, ENDPOINTS, &arena.measured(corner));
                    let node = arena.node(corner);
                    rules::load(contender, node, &entries, patience).await.map(drop)
                }
            };
            match brought {
                Ok(()) => ready.push(corner.contender),
                Err(error) => {
                    ensure!(corner.contender != Contender::Shunt, "{error:#}");
                    out.push(format!("{} with {size} Services: {error:#}", corner.contender));
                }
            }
        }
        Ok(ready)
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        // The lab kills what is in its cgroups; these are killed here too, so that none lingers.
        self.kube_proxies.iter_mut().for_each(|child| drop(child.start_kill()));
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
        let measured = arena.corners.iter().filter(|corner| corner.contender.watches());
        let ports: usize =
            measured.flat_map(|corner| arena.measured(corner)).map(|entry| entry.ports.len()).sum();
        // A measured port is a ClusterIP and a NodePort.
        let frontends = 2 * ports + self.0;
        let root = arena.node(corner).bpffs_root();
        wait_programmed(root, frontends, Duration::from_secs(60)).await.map(drop)
    }
}

/// How many Services are measured, of those that the API knows.
fn measured(arena: &Arena) -> usize {
    2 * arena.corners.iter().filter(|corner| corner.contender.watches()).count()
}

/// Waits until the maps below `root` hold that many frontends, and each has backends. Gives how
/// long that took.
pub(super) async fn wait_programmed(
    root: &Path,
    frontends: usize,
    limit: Duration,
) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let found = programmed(root);
        if found.as_ref().is_ok_and(|found| *found == frontends) {
            return Ok(started.elapsed());
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

fn start_kube_proxy(
    arena: &Arena,
    corner: &Corner,
    kube_proxy: &Path,
    mode: &str,
) -> Result<Child> {
    let node = arena.node(corner);
    let log = std::fs::File::create(node.scratch.join("kube-proxy.log"))?;
    let kubeconfig = arena.cluster.lab.scratch().join("kubeconfig");
    Command::new(program::find("lab-worker")?)
        .arg("enter")
        .args([&node.netns().path(), node.cgroup()])
        .arg(kube_proxy)
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .args([format!("--proxy-mode={mode}"), format!("--hostname-override={}", node.name())])
        .arg(format!("--cluster-cidr={}", crate::network::POD_NETWORKS))
        .args(["--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249"])
        // The machine's own limits are not the bench's to change.
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
        .args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", kube_proxy.display()))
}

/// Waits until the last Service of the crowd, or the measured ones if there is none, is served:
/// a probe of the measured Service that is answered, and no sync under way for a while.
async fn wait_for_kube_proxy(arena: &Arena, corner: &Corner, limit: Duration) -> Result<()> {
    use super::measure::Way;
    use crate::sprint::{Deed, Sprint};
    let started = Instant::now();
    let deed = Deed::Connect;
    let targets = arena.targets(corner, Way::ClusterIp, deed.service());
    let sprint = Sprint { deed, targets, concurrency: 1, duration: Duration::from_millis(50) };
    loop {
        let synced = arena.node(corner).exec("sh", &["-c", METRIC]).await?.status == Some(0);
        let client = arena.client(corner, Way::ClusterIp);
        let answered = client.sprint(sprint.clone()).await.is_ok_and(|report| report.failed == 0);
        if synced && answered {
            return Ok(());
        }
        ensure!(started.elapsed() < limit, "kube-proxy was not in sync after {limit:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Succeeds when kube-proxy has no change left to write: its last sync began after the last
/// change was queued.
const METRIC: &str = "curl -fs http://127.0.0.1:10249/metrics | awk \
    '/^kubeproxy_sync_proxy_rules_last_timestamp_seconds/ {s=$NF} \
     /^kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds/ {q=$NF} \
     END {exit !(s > 0 && s >= q)}'";
