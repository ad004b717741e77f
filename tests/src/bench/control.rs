//! The control plane: how soon all of it is in the kernel, how soon a change is, and what the
//! agent costs meanwhile.
//!
//! Agents are told by the embedded API; a change counts as effective when the map that the
//! programs read names the new backend. For baselines, see [`loads`] and [`kube_proxy`].

mod kernel;
mod kube_proxy;
mod loads;
mod plane;
mod usage;

pub(super) use loads::Loads;

use super::contender::Contender;
use super::options::Options;
use super::proxies::ENDPOINTS;
use super::report::{Row, table};
use anyhow::Result;
use indicatif::ProgressBar;
use loads::Load;
use plane::Plane;
use std::time::Duration;
use usage::Meter;

/// Changes a second while churn is measured.
const CHURN: f64 = 100.0;

/// How many changes are a burst.
const fn burst(options: &Options) -> usize {
    options.pick(100, 10_000, 10_000)
}

/// How long churn is measured.
fn churn(options: &Options) -> Duration {
    Duration::from_secs(options.pick(1, 5, 60))
}

/// Measures all of it with one number of Services, 10 endpoints each. What baselines took is in
/// `loads` already where they had their turn at the traffic.
pub(super) async fn run(
    options: &Options,
    size: usize,
    loads: &mut Loads,
    bar: &ProgressBar,
    skipped: &mut Vec<String>,
) -> Result<Vec<Row>> {
    bar.set_message(format!("control plane, {size} services"));
    let mut plane = Plane::start(&options.field(), size, ENDPOINTS).await?;
    let baselines = baselines(options, &mut plane, size, loads, bar, skipped).await?;
    let row = |key: &str, what: &str, unit: &str, own: Vec<f64>, of: fn(&Load) -> Option<f64>| {
        let row = Row::new(key, what, Some(size), unit).cell(Contender::Shunt, own);
        baselines.iter().fold(row, |row, (who, load)| row.cell(*who, of(load)))
    };

    let mut cold = Vec::new();
    for _ in 0..options.pick(1, 2, 5) {
        bar.set_message(format!("cold start, {size} services"));
        cold.push(plane.cold_start(&["--min-sync-period", "0"]).await?.as_secs_f64());
    }
    bar.set_message(format!("single changes, {size} services"));
    let mut one = Vec::new();
    for number in 0..options.pick(10, 200, 500) {
        one.push(plane.change_one(number * 37 % size).await?);
    }
    let whole = |load: &Load| Some(load.whole.as_secs_f64());
    let mut rows = vec![
        row("control-cold", "Start to fully programmed", "s", cold, whole).at_most(2.0),
        row(
            "control-change-p50",
            "One endpoint change, p50",
            "ms",
            p50(&one).into_iter().collect(),
            |load| p50(&load.changes),
        )
        .at_most(1.0),
        row(
            "control-change-p99",
            "One endpoint change, p99",
            "ms",
            p99(&one).into_iter().collect(),
            |load| p99(&load.changes),
        )
        .at_most(10.0),
    ];

    let agent = plane.restart(&[]).await?;
    bar.set_message(format!("a burst of changes, {size} services"));
    let changes = burst(options);
    let took = vec![plane.burst(changes).await?.as_secs_f64() * 1e3];
    let what = format!("A burst of {} changes", table::whole(changes));
    rows.push(row("control-burst", &what, "ms", took, |load| {
        load.burst.map(|took| took.as_secs_f64() * 1e3)
    }));
    bar.set_message(format!("churn, {size} services"));
    let cgroup = plane.agent_cgroup().to_owned();
    let meter = Meter::start(&cgroup)?;
    plane.churn(churn(options), CHURN).await?;
    let share = vec![meter.percent()?];
    let what = format!("CPU in {} s of {CHURN} changes/s", churn(options).as_secs());
    rows.push(row("control-churn-cpu", &what, "% core", share, |load| load.churn));
    let what = "Memory at most, churn included";
    let most = vec![usage::peak(agent)?];
    rows.push(row("control-churn-rss", what, "MiB", most, |load| load.memory).at_most(60.0));
    Ok(rows)
}

/// What the baselines take, measured now if it was not before.
async fn baselines(
    options: &Options,
    plane: &mut Plane,
    size: usize,
    loads: &mut Loads,
    bar: &ProgressBar,
    skipped: &mut Vec<String>,
) -> Result<Vec<(Contender, Load)>> {
    let mut found = Vec::new();
    for contender in options.field() {
        bar.set_message(format!("control plane of {contender}, {size} services"));
        let noted = loads.noted(contender, size);
        let was_noted = noted.is_some();
        let load = match noted {
            Some(load) => load,
            None if contender.is_made_of_rules() => {
                loads.load(options, (contender, size), plane.node(contender)?, &[]).await
            }
            None if contender.kube_proxy().is_some() => {
                let load = kube_proxy::measure(options, plane, contender).await;
                load.map_err(|error| format!("{error:#}"))
            }
            None => continue,
        };
        match load {
            Ok(load) => {
                let trouble = load.trouble.iter();
                skipped.extend(trouble.map(|why| format!("{contender}, changes, {size}: {why}")));
                found.push((contender, load));
            }
            // Said already where it was noted.
            Err(_) if was_noted => {}
            Err(error) => skipped.push(format!("{contender}, control plane, {size}: {error}")),
        }
    }
    Ok(found)
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
    let idle = Duration::from_millis(options.pick(500, 5_000, 60_000));
    // All tables are compared once a minute: only a look that long shows what that takes.
    let what = format!("Idle CPU, {} s", idle.as_secs_f64());
    let is_whole = idle >= Duration::from_secs(60);
    let meter = Meter::start(plane.agent_cgroup())?;
    tokio::time::sleep(idle).await;
    let busy = meter.percent()?;
    let row = |key: &str, what: &str, unit: &str, values: Vec<f64>| {
        Row::new(key, what, Some(size), unit).cell(Contender::Shunt, values)
    };
    let share = row("scale-idle", &what, "% core", vec![busy]);
    Ok(vec![
        row("scale-cold", "Start to fully programmed", "s", times).at_most(2.0),
        row("scale-first-pass", "First pass, plan and writes", "ms", writes),
        row("scale-rss", "Memory of the agent", "MiB", vec![usage::resident(agent)?]),
        row("scale-peak", "Most memory of the agent", "MiB", vec![usage::peak(agent)?]),
        row("scale-kernel", "Memory of the maps", "MiB", vec![plane.map_memory()?]),
        if is_whole { share.at_most(0.1) } else { share },
    ])
}

fn p50(took: &[Duration]) -> Option<f64> {
    percentile(took, 0.5)
}

fn p99(took: &[Duration]) -> Option<f64> {
    percentile(took, 0.99)
}

/// The milliseconds that `share` of `took` do not exceed, if there are any.
fn percentile(took: &[Duration], share: f64) -> Option<f64> {
    let mut millis: Vec<_> = took.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    millis.sort_by(f64::total_cmp);
    (!millis.is_empty()).then(|| super::stats::quantile(&millis, share))
}
