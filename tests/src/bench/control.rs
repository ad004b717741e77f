//! The control plane: how soon all of it is in the kernel, how soon a change is, and what the
//! agent costs meanwhile.
//!
//! Agents are told by the embedded API; a change counts as effective when the map that the
//! programs read names the new backend. For baselines, what kube-proxy's tool takes to load the
//! same rules: a kube-proxy is slower by what it does before.

mod kernel;
mod plane;
mod usage;

use super::contender::Contender;
use super::options::Options;
use super::population::Entry;
use super::proxies::ENDPOINTS;
use super::report::Row;
use super::rules;
use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use plane::Plane;
use std::time::{Duration, Instant};

/// Changes a second while churn is measured.
const CHURN: f64 = 100.0;

/// Measures all of it with one number of Services, 10 endpoints each.
pub(super) async fn run(
    options: &Options,
    size: usize,
    bar: &ProgressBar,
    skipped: &mut Vec<String>,
) -> Result<Vec<Row>> {
    bar.set_message(format!("control plane, {size} services"));
    let mut plane = Plane::start(&options.field(), size, ENDPOINTS).await?;
    let mut rows = Vec::new();
    let (mut cold, mut one, mut all_rules) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.pick(1, 3, 5) {
        bar.set_message(format!("cold start, {size} services"));
        cold.push(plane.cold_start(&["--min-sync-period", "0"]).await?);
    }
    bar.set_message(format!("single changes, {size} services"));
    for number in 0..options.pick(10, 100, 500) {
        one.push(plane.change_one(number * 37 % size).await?.as_secs_f64() * 1e3);
    }
    for contender in options.field().into_iter().filter(|who| super::is_made_of_rules(*who)) {
        bar.set_message(format!("{contender}: loading rules for {size} services"));
        match baseline(&plane, contender, size, options).await {
            Ok(took) => all_rules.push((contender, took)),
            Err(error) => skipped.push(format!("{contender}, control plane, {size}: {error:#}")),
        }
    }
    let mut first = Row::new("control-cold", "Start to fully programmed", Some(size), "s")
        .cell(Contender::Shunt, cold.iter().map(Duration::as_secs_f64));
    let [mut p50, mut p99] = ["p50", "p99"].map(|name| {
        let key = format!("control-change-{name}");
        Row::new(&key, &format!("One endpoint change, {name}"), Some(size), "ms")
            .cell(Contender::Shunt, percentile(&one, name))
    });
    for (contender, Loaded { whole, changes }) in all_rules {
        first = first.cell(contender, [whole.as_secs_f64()]);
        let changes: Vec<_> = changes.iter().map(|took| took.as_secs_f64() * 1e3).collect();
        p50 = p50.cell(contender, percentile(&changes, "p50"));
        p99 = p99.cell(contender, percentile(&changes, "p99"));
    }
    rows.extend([first.at_most(2.0), p50.at_most(1.0), p99.at_most(10.0)]);

    let agent = plane.restart(&[]).await?;
    bar.set_message(format!("a burst of changes, {size} services"));
    let changes = options.pick(100, 10_000, 10_000);
    let burst = plane.burst(changes).await?;
    let what = format!("{changes} changes at once, until the last is effective");
    rows.push(
        Row::new("control-burst", &what, Some(size), "ms")
            .cell(Contender::Shunt, [burst.as_secs_f64() * 1e3]),
    );
    bar.set_message(format!("churn, {size} services"));
    let churn = Duration::from_secs(options.pick(1, 10, 60));
    let before = usage::cpu(plane.agent_cgroup())?;
    let began = Instant::now();
    plane.churn(churn, CHURN).await?;
    let busy =
        (usage::cpu(plane.agent_cgroup())? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let what = format!("CPU under {CHURN} changes/s");
    rows.push(
        Row::new("control-churn-cpu", &what, Some(size), "% of a core")
            .cell(Contender::Shunt, [100.0 * busy]),
    );
    rows.push(
        Row::new(
            "control-churn-rss",
            "Most memory of the agent, churn included",
            Some(size),
            "MiB",
        )
        .cell(Contender::Shunt, [usage::peak(agent)?])
        .at_most(60.0),
    );
    Ok(rows)
}

/// 10,000 Services with 25 endpoints each: time, memory, and what it costs to stand by.
pub(super) async fn scale(options: &Options, bar: &ProgressBar) -> Result<Vec<Row>> {
    let (size, endpoints) = options.pick((100, 25), (10_000, 25), (10_000, 25));
    bar.set_message(format!("{size} services, {endpoints} endpoints each"));
    let mut plane = Plane::start(&[Contender::Shunt], size, endpoints).await?;
    let mut times = Vec::new();
    let mut writes = Vec::new();
    for _ in 0..options.pick(1, 2, 5) {
        times.push(plane.cold_start(&[]).await?.as_secs_f64());
        writes.push(plane.first_sync()?.as_secs_f64() * 1e3);
    }
    let agent = plane.agent_pid()?;
    bar.set_message("the agent, idle");
    let idle = Duration::from_millis(options.pick(500, 10_000, 60_000));
    let before = usage::cpu(plane.agent_cgroup())?;
    let began = Instant::now();
    tokio::time::sleep(idle).await;
    let busy =
        (usage::cpu(plane.agent_cgroup())? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let row = |key: &str, what: &str, unit: &str, values: Vec<f64>| {
        let what = format!("{what}, {} endpoints", size * endpoints);
        Row::new(key, &what, Some(size), unit).cell(Contender::Shunt, values)
    };
    Ok(vec![
        row("scale-cold", "Start to fully programmed", "s", times).at_most(2.0),
        row("scale-first-pass", "First pass: plan and kernel writes", "ms", writes),
        row("scale-rss", "Memory of the agent", "MiB", vec![usage::resident(agent)?]),
        row("scale-peak", "Most memory of the agent", "MiB", vec![usage::peak(agent)?]),
        row("scale-kernel", "Memory of the maps", "MiB", vec![plane.map_memory()?]),
        row("scale-idle", "Idle CPU", "% of a core", vec![100.0 * busy]).at_most(0.1),
    ])
}

/// What kube-proxy's tool took.
struct Loaded {
    whole: Duration,
    changes: Vec<Duration>,
}

async fn baseline(
    plane: &Plane,
    contender: Contender,
    size: usize,
    options: &Options,
) -> Result<Loaded> {
    let (node, patience) = (plane.node(contender)?, options.patience());
    let entry = |index, moved| Entry::crowd(index, ENDPOINTS, moved);
    let entries: Vec<_> = (0..size).map(|index| entry(index, 0)).collect();
    let whole = rules::load(contender, node, &entries, patience).await?;
    let mut changes = Vec::new();
    let deadline = Instant::now() + patience;
    for number in 0..options.pick(3, 20, 100) {
        let index = number * 37 % size;
        let moved = (number / size) as u32;
        let (before, after) = (entry(index, moved), entry(index, moved + 1));
        changes.push(rules::change(contender, node, &before, &after, patience).await?);
        if Instant::now() > deadline {
            break;
        }
    }
    ensure!(!changes.is_empty(), "no change was made");
    Ok(Loaded { whole, changes })
}

/// The percentile `name` of `values`, if there are any.
fn percentile(values: &[f64], name: &str) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let share = if name == "p99" { 0.99 } else { 0.5 };
    (!sorted.is_empty()).then(|| super::stats::quantile(&sorted, share))
}
