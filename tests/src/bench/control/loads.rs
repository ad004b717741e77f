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
    /// The most memory of the process, in MiB.
    pub(super) memory: Option<f64>,
    /// Why changes were not all measured.
    pub(super) trouble: Option<String>,
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
    let rules = population(size, ENDPOINTS, measured);
    let whole = rules::load(contender, node, &rules, patience).await?;
    let mut load = Load { whole, ..Load::default() };
    let crowd = size.saturating_sub(measured.len());
    if options.wants("control") && options.control_sizes().contains(&size) && crowd > 0 {
        let changed = load.change(options, contender, node, Crowd(vec![0; crowd]), patience).await;
        load.trouble = changed.err().map(|error| format!("{error:#}"));
    }
    Ok(load)
}

impl Load {
    /// Changes Services of the crowd: one at a time, many at once, some each second.
    async fn change(
        &mut self,
        options: &Options,
        contender: Contender,
        node: &Node,
        mut crowd: Crowd,
        patience: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + options.pick(1, 6, 30) * Duration::from_secs(1);
        for number in 0..options.pick(3, 20, 100) {
            let change = crowd.next(number * 37, 1);
            self.changes.push(rules::change(contender, node, &change, patience).await?);
            if Instant::now() > deadline {
                break;
            }
        }
        // Where the whole takes long, so do many changes.
        if self.whole * 4 > patience {
            return Ok(());
        }
        let changes = crowd.next(0, super::burst(options));
        self.burst = Some(rules::change(contender, node, &changes, patience).await?);
        let before = usage::cpu(node.cgroup())?;
        let seconds = options.pick(1, 3, 20);
        for second in 0..seconds {
            let changes = crowd.next(second * CHURN as usize, CHURN as usize);
            let _ = rules::change(contender, node, &changes, patience).await?;
        }
        let used = usage::cpu(node.cgroup())? - before;
        self.churn = Some(100.0 * used.as_secs_f64() / seconds as f64);
        Ok(())
    }
}

/// The Services beside the measured ones: how often each has got other endpoints.
struct Crowd(Vec<u32>);

impl Crowd {
    /// The next change of `count` Services from the one with index `first` on, of each one at
    /// most: what it was, and what it becomes.
    fn next(&mut self, first: usize, count: usize) -> Vec<(Entry, Entry)> {
        let size = self.0.len();
        let change = |number| {
            let index = (first + number) % size;
            self.0[index] += 1;
            let entry = |moved| Entry::crowd(index, ENDPOINTS, moved);
            (entry(self.0[index] - 1), entry(self.0[index]))
        };
        (0..count.min(size)).map(change).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_changes_once_in_a_transaction() {
        let mut crowd = Crowd(vec![0; 3]);
        let mut names = |first, count| {
            crowd.next(first, count).into_iter().map(|(_, after)| after.name).collect::<Vec<_>>()
        };
        assert_eq!(names(2, 10), ["crowd-2", "crowd-0", "crowd-1"]);
        assert_eq!(names(4, 1), ["crowd-1"]);
    }
}
