//! What a real kube-proxy takes: to begin, for one change, for a burst, and to keep up. When it
//! has done a thing is its own word, the end of its last sync.

use super::loads::Load;
use super::plane::Plane;
use super::{CHURN, burst, usage};
use crate::bench::contender::Contender;
use crate::bench::options::Options;
use crate::kube_proxy::{self, KubeProxy};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;

/// Between two syncs it waits for a second, which is not what one change is to show.
const APART: Duration = Duration::from_millis(1_500);
/// For how long nothing may have come before all is taken to have come.
const SETTLED: Duration = Duration::from_secs(2);
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
        let (before, began) = (usage::cpu(&cgroup)?, Instant::now());
        let duration = Duration::from_secs(options.pick(1, 5, 60));
        drop(self.plane.tell_changes(duration, CHURN).await?);
        let busy = (usage::cpu(&cgroup)? - before).as_secs_f64();
        load.churn = Some(100.0 * busy / began.elapsed().as_secs_f64());
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
