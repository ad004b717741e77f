//! What kube-proxy's tools take to write the rules that the bench makes: all of them, those of
//! one change, and those of many at once. A kube-proxy is slower by what it does before.

use super::{CHURN, usage};
use crate::bench::contender::Contender;
use crate::bench::options::Options;
use crate::bench::population::{Entry, population};
use crate::bench::proxies::ENDPOINTS;
use crate::bench::rules;
use crate::lab::Node;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What was measured while the traffic's nodes got their rules, so that it is done once.
#[derive(Default)]
pub(in crate::bench) struct Loads(BTreeMap<(Contender, usize), Result<Load, String>>);

/// What a tool took.
#[derive(Clone, Default)]
pub(in crate::bench) struct Load {
    /// For everything.
    pub(super) whole: Duration,
    /// For one change, each time.
    pub(super) changes: Vec<Duration>,
    /// For many changes at once.
    pub(super) burst: Option<Duration>,
    /// The share of a core for [`CHURN`] changes in a transaction each second.
    pub(super) churn: Option<f64>,
}

impl Loads {
    /// Loads the rules for `size` Services, `measured` in their middle, and takes note of what
    /// it took; then, if the control plane is wanted, of changes in the crowd.
    pub(in crate::bench) async fn load(
        &mut self,
        options: &Options,
        (contender, size): (Contender, usize),
        node: &Node,
        measured: &[Entry],
    ) -> Result<Load, String> {
        let load = load(options, contender, size, node, measured).await;
        let load = load.map_err(|error| format!("{error:#}"));
        drop(self.0.insert((contender, size), load.clone()));
        load
    }

    /// What was noted, if anything was.
    pub(super) fn noted(&self, contender: Contender, size: usize) -> Option<Result<Load, String>> {
        self.0.get(&(contender, size)).cloned()
    }
}

async fn load(
    options: &Options,
    contender: Contender,
    size: usize,
    node: &Node,
    measured: &[Entry],
) -> Result<Load> {
    let patience = options.patience(contender, size);
    ensure!(
        !patience.is_zero(),
        "not tried in quick: {} would take too long",
        rules::tool(contender)
    );
    let whole =
        rules::load(contender, node, &population(size, ENDPOINTS, measured), patience).await?;
    let mut load = Load { whole, ..Load::default() };
    let mut crowd = Crowd::new(size.saturating_sub(measured.len()));
    if !options.wants("control") || !options.control_sizes().contains(&size) || crowd.is_empty() {
        return Ok(load);
    }
    let deadline = Instant::now() + options.pick(1, 6, 60) * Duration::from_secs(1);
    for number in 0..options.pick(3, 20, 100) {
        let change = [crowd.next(number * 37)];
        load.changes.push(rules::change(contender, node, &change, patience).await?);
        if Instant::now() > deadline {
            break;
        }
    }
    // Where the whole takes long, so do many changes.
    if whole * 4 < patience {
        let changes: Vec<_> = (0..size.min(super::burst(options))).map(|i| crowd.next(i)).collect();
        load.burst = Some(rules::change(contender, node, &changes, patience).await?);
        let before = usage::cpu(node.cgroup())?;
        let seconds = options.pick(1, 3, 20);
        for second in 0..seconds {
            let count = crowd.0.len().min(CHURN as usize);
            let changes: Vec<_> = (0..count).map(|i| crowd.next(second * count + i)).collect();
            let _ = rules::change(contender, node, &changes, patience).await?;
        }
        let used = usage::cpu(node.cgroup())? - before;
        load.churn = Some(100.0 * used.as_secs_f64() / seconds as f64);
    }
    Ok(load)
}

/// The Services beside the measured ones: how often each has got other endpoints.
struct Crowd(Vec<u32>);

impl Crowd {
    fn new(size: usize) -> Self {
        Self(vec![0; size])
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next change of a Service: what it was, and what it becomes.
    fn next(&mut self, index: usize) -> (Entry, Entry) {
        let index = index % self.0.len();
        self.0[index] += 1;
        let entry = |moved| Entry::crowd(index, ENDPOINTS, moved);
        (entry(self.0[index] - 1), entry(self.0[index]))
    }
}
