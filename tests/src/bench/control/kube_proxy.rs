//! What a real kube-proxy takes: to begin, for one change, for a burst, and to keep up. When it
//! has done a thing is its own word, the end of its last sync.

use super::loads::Load;
use super::plane::Plane;
use super::usage::{self, Meter};
use super::{CHURN, burst, churn};
use crate::bench::contender::Contender;
use crate::bench::options::Options;
use crate::kube_proxy::{self, KubeProxy, SETTLED};
use anyhow::{Context, Result, bail};
use std::time::{Duration, SystemTime};
use tokio::time::sleep;

/// Between two syncs it waits for a second, which is not what one change is to show.
const APART: Duration = Duration::from_millis(1_500);
/// Between two looks at its metrics.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts the kube-proxy, tells it of changes, and ends it.
pub(super) async fn measure(
    options: &Options,
    plane: &mut Plane,
    contender: Contender,
) -> Result<Load> {
    let program = options.kube_proxy.as_deref().context("there is no kube-proxy")?;
    let patience = options.patience(contender, plane.size());
    let started = SystemTime::now();
    let proxy = plane.start_kube_proxy(contender, program)?;
    let mut run = Run { proxy, plane, contender, patience };
    let mut load = Load { whole: run.synced(started, Duration::ZERO).await?, ..Load::default() };
    // What it could not do in time is left out; the rest is as good as without it.
    load.trouble = run.change(options, &mut load).await.err().map(|error| format!("{error:#}"));
    load.memory = run.proxy.pid().and_then(|pid| usage::peak(pid).ok());
    Ok(load)
}

/// A kube-proxy at work.
struct Run<'a> {
    proxy: KubeProxy,
    plane: &'a mut Plane,
    contender: Contender,
    patience: Duration,
}

impl Run<'_> {
    async fn change(&mut self, options: &Options, load: &mut Load) -> Result<()> {
        let size = self.plane.size();
        for number in 0..options.pick(2, 5, 20) {
            sleep(APART).await;
            let told = SystemTime::now();
            drop(self.plane.change(number * 37 % size)?);
            load.changes.push(self.synced(told, Duration::ZERO).await?);
        }
        sleep(APART).await;
        let told = SystemTime::now();
        for number in 0..burst(options) {
            drop(self.plane.change(number % size)?);
        }
        load.burst = Some(self.synced(told, SETTLED).await?);
        let cgroup = self.plane.node(self.contender)?.cgroup().to_owned();
        let meter = Meter::start(&cgroup)?;
        drop(self.plane.tell_changes(churn(options), CHURN).await?);
        load.churn = Some(meter.percent()?);
        Ok(())
    }

    /// How long after `told` its last sync ended, once nothing has come for `settled`.
    async fn synced(&mut self, told: SystemTime, settled: Duration) -> Result<Duration> {
        loop {
            self.proxy.ensure_running()?;
            let now = SystemTime::now();
            let last = kube_proxy::synced_at(self.plane.node(self.contender)?);
            if let Ok(Some(last)) = last
                && let Ok(took) = last.duration_since(told)
                && last + settled < now
            {
                return Ok(took);
            }
            if told + self.patience < now {
                bail!("not in sync after {:?}; {}", self.patience, self.proxy.log_end());
            }
            sleep(PAUSE).await;
        }
    }
}
