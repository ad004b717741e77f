//! A node changes from kube-proxy to Shunt and back, while connections are open and others come:
//! while both have rules a new connection is Shunt's, and each old one goes on by its entry in
//! conntrack.

use crate::scene::{Path, Scene, node_port, vip};
use anyhow::{Context, Result, ensure};
use lab::cluster::eventually;
use lab::kube_proxy::{self, KubeProxy, Mode, SETTLED, program_of_environment};
use lab::{Ask, Load, Machine, Pod, RunningLoad, Socket};
use std::path;
use tokio::time::sleep;

/// Who asks the first service all the time, in every way.
struct Users {
    outsider: Machine,
    loads: Vec<RunningLoad>,
    /// With the step at which it was opened.
    open: Vec<(&'static str, Socket)>,
}

impl Users {
    async fn start(scene: &Scene) -> Result<Self> {
        let outsider = scene.cluster.lab.add_client("outsider").await?;
        let to = scene.cluster.lab.node(0).addrs().at(node_port(1));
        let mut loads = Vec::new();
        for ask in to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]) {
            let load = Load::new(ask).concurrency(4).per_second(100.0);
            loads.push(outsider.start_load(load).await?);
        }
        Ok(Self { outsider, loads, open: Vec::new() })
    }

    /// New connections are served, those that are open since earlier steps too, and so are the
    /// loads.
    async fn are_served(&mut self, scene: &Scene, step: &'static str) -> Result<()> {
        let at_node = scene.cluster.lab.node(0).addrs().at(node_port(1));
        for (client, to) in [(&self.outsider, at_node), (&*scene.client, vip(1))] {
            for ask in to.iter().flat_map(|to| [Ask::tcp(to), Ask::udp(to)]) {
                self.open.push((step, client.open(ask).await.context(step)?));
            }
        }
        for (opened, socket) in &self.open {
            let context = || format!("{step}: {:?} since {opened}", socket.peer());
            socket.ask().await.with_context(context)?;
        }
        for load in &self.loads {
            let more = load.report().await?.answered() + 50;
            let _report = load.until(|report| report.answered() >= more).await?;
        }
        Ok(())
    }

    async fn missed_nothing(self) -> Result<()> {
        for load in self.loads {
            let report = load.stop().await?;
            ensure!(report.failures.is_empty(), "{report:?}");
        }
        Ok(())
    }
}

/// What kube-proxy would have for the first service, short of its chances and marks: `backend` is
/// its only endpoint.
fn rules(backend: &Pod) -> String {
    let table = |family: usize, ip: &str| {
        let (vip, to) = (vip(1)[family].ip(), backend.addrs().at(8080)[family]);
        let port = node_port(1);
        format!(
            "table {ip} kube-proxy {{
                chain prerouting {{
                    type nat hook prerouting priority -100;
                    {ip} daddr {vip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {to}
                    fib daddr type local meta l4proto {{ tcp, udp }} th dport {port} dnat to {to}
                }}
                chain postrouting {{
                    type nat hook postrouting priority 100;
                    ct status dnat masquerade
                }}
            }}"
        )
    };
    format!("{}\n{}", table(0, "ip"), table(1, "ip6"))
}

#[tokio::test]
async fn kube_proxy_is_replaced_and_comes_back_under_load() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let rules = rules(&scene.web[1]);
    scene.publish(1, &[&scene.web[1]])?;
    scene.cluster.lab.node(0).nft(&rules).await?;
    let mut users = Users::start(&scene).await?;
    users.are_served(&scene, "kube-proxy").await?;
    scene.start(Path::Socket).await?;
    users.are_served(&scene, "both").await?;
    let remove = "delete table ip kube-proxy\ndelete table ip6 kube-proxy";
    scene.cluster.lab.node(0).nft(remove).await?;
    users.are_served(&scene, "Shunt").await?;
    scene.cluster.lab.node(0).nft(&rules).await?;
    users.are_served(&scene, "both again").await?;
    scene.cluster.kill_agent(0).await?;
    scene.cluster.lab.node(0).clean_up().await?;
    users.are_served(&scene, "kube-proxy again").await?;
    users.missed_nothing().await
}

/// `SHUNT_KUBE_PROXY=/path/to/it cargo test -p tests --test dataplane -- --ignored real`.
#[tokio::test]
#[ignore = "needs a kube-proxy: SHUNT_KUBE_PROXY=/path/to/it"]
async fn a_real_kube_proxy_is_replaced_and_comes_back_under_load() -> Result<()> {
    let program = program_of_environment()?;
    for mode in [Mode::Nftables, Mode::Iptables] {
        // As README has it: who was there before leaves its rules, until the other one serves.
        let mut scene = Scene::routed().await?;
        scene.publish(1, &[&scene.web[1]])?;
        let before = start(&scene, &program, mode).await?;
        let mut users = Users::start(&scene).await?;
        users.are_served(&scene, "kube-proxy").await?;
        drop(before);
        scene.start(Path::Socket).await?;
        users.are_served(&scene, "both").await?;
        let clean_up = [&program.display().to_string(), "--cleanup"];
        let output = scene.cluster.lab.node(0).exec(clean_up[0], &clean_up[1..]).await?;
        ensure!(output.status == Some(0), "kube-proxy --cleanup: {}", output.stderr);
        users.are_served(&scene, "Shunt").await?;
        scene.cluster.kill_agent(0).await?;
        let _after = start(&scene, &program, mode).await?;
        users.are_served(&scene, "both again").await?;
        scene.cluster.lab.node(0).clean_up().await?;
        users.are_served(&scene, "kube-proxy again").await?;
        users.missed_nothing().await.with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

/// A kube-proxy that has written its rules.
async fn start(scene: &Scene, program: &path::Path, mode: Mode) -> Result<KubeProxy> {
    let kube_proxy = scene.cluster.start_kube_proxy(0, program, mode)?;
    let node = scene.cluster.lab.node(0);
    let synced = async || kube_proxy::is_in_sync(node);
    let is_so = |synced: &Result<bool>| matches!(synced, Ok(true));
    let _ = eventually("kube-proxy is in sync", synced, is_so).await?;
    sleep(SETTLED).await;
    Ok(kube_proxy)
}
