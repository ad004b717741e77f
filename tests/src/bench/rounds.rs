//! Traffic, in interleaved rounds: in each round every contender has its turn at every
//! measurement, in another order each time, so that what disturbs the machine disturbs all.

use super::arena::{Arena, Corner};
use super::contender::Contender;
use super::measure::Measure;
use super::report::{Cell, Micros, Row};
use super::stats::{self, Figure};
use super::target::Verdict;
use crate::sprint::{Sprint, SprintReport};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    /// How many rounds.
    pub(super) count: usize,
    /// How long each turn in it is.
    pub(super) turn: Duration,
}

/// The reports of all rounds, by measurement and contender.
type Reports = BTreeMap<(&'static str, Contender), Vec<SprintReport>>;

/// Measures `measures` for those in `ready`. One untimed round comes first, so that caches,
/// neighbours and routes are warm.
pub(super) async fn run(
    arena: &Arena,
    measures: &[Measure],
    ready: &[Contender],
    services: usize,
    rounds: Rounds,
    bar: &ProgressBar,
) -> Result<Vec<Row>> {
    let mut reports = Reports::new();
    let warm_up = Rounds { count: 1, turn: rounds.turn / 5 };
    for (number, Rounds { turn, .. }) in
        std::iter::once(warm_up).chain(std::iter::repeat_n(rounds, rounds.count)).enumerate()
    {
        for measure in measures {
            for index in 0..ready.len() {
                let contender = ready[(index + number) % ready.len()];
                let corner = arena.corner(contender).context("a contender without a corner")?;
                bar.set_message(format!("{services} services: {}, {contender}", measure.what));
                let report = once(arena, corner, measure, turn).await?;
                bar.inc(1);
                if number > 0 {
                    reports.entry((measure.key, contender)).or_default().push(report);
                }
            }
        }
    }
    Ok(measures.iter().map(|measure| row(arena, measure, ready, services, &reports)).collect())
}

/// How many turns [`run`] takes.
pub(super) fn turns(measures: usize, contenders: usize, rounds: Rounds) -> u64 {
    (measures * contenders * (rounds.count + 1)) as u64
}

/// One contender's turn. That its proxy fails is a report, not an error.
async fn once(
    arena: &Arena,
    corner: &Corner,
    measure: &Measure,
    duration: Duration,
) -> Result<SprintReport> {
    let Measure { deed, way, concurrency, .. } = *measure;
    let targets = arena.targets(corner, way, deed.service());
    let sprint = Sprint { deed, targets, concurrency, duration };
    Ok(arena.client(corner, way).sprint(sprint).await.unwrap_or_else(|failure| SprintReport {
        elapsed: duration,
        failed: 1,
        failure: Some(failure),
        ..SprintReport::default()
    }))
}

fn row(
    arena: &Arena,
    measure: &Measure,
    ready: &[Contender],
    services: usize,
    all: &Reports,
) -> Row {
    let mut row = Row::new(measure.key, measure.what, Some(services), measure.unit());
    row.target = measure.target;
    let reports = |contender| all.get(&(measure.key, contender)).map_or(&[][..], Vec::as_slice);
    let rate = |report: &SprintReport| report.per_second() / measure.scale();
    let direct = reports(Contender::Direct);
    for (contender, reports) in ready.iter().map(|contender| (*contender, reports(*contender))) {
        let Some(figure) = Figure::of(reports.iter().map(rate)) else { continue };
        let pairs = reports.iter().zip(direct).filter(|(_, direct)| direct.count > 0);
        let of_direct = Figure::of(pairs.map(|(own, direct)| rate(own) / rate(direct)));
        let latency = measure.deed.has_latency().then(|| micros(reports)).flatten();
        let ids = arena.corner(contender).map(|corner| arena.ids(corner, measure.way));
        let wrong = wrong(measure, reports, &ids.unwrap_or_default());
        drop(row.cells.insert(contender, Cell { figure, of_direct, latency, wrong }));
    }
    row.verdict = judge(&row);
    row
}

fn judge(row: &Row) -> Verdict {
    let cell = |contender| row.cells.get(&contender);
    let (Some(shunt), Some(direct)) = (cell(Contender::Shunt), cell(Contender::Direct)) else {
        return Verdict::None;
    };
    if shunt.wrong.is_some() || direct.wrong.is_some() {
        return Verdict::Wrong;
    }
    let is_proxy = |who: &Contender| ![Contender::Direct, Contender::Shunt].contains(who);
    let proxies = row.cells.iter().filter(|(who, cell)| is_proxy(who) && cell.wrong.is_none());
    let proxies: Vec<_> = proxies.filter_map(|(_, cell)| cell.of_direct).collect();
    match (row.target, shunt.of_direct) {
        (Some(target), Some(ratio)) => target.judge_ratio(ratio, direct.figure, &proxies),
        _ => Verdict::None,
    }
}

/// What is wrong with the answers: failures, strangers, or a choice that is not uniform.
fn wrong(measure: &Measure, reports: &[SprintReport], ids: &[u16]) -> Option<String> {
    if let Some(report) = reports.iter().find(|report| report.failed > 0 || report.count == 0) {
        let first = report.failure.as_ref().map_or("nothing came".to_owned(), ToString::to_string);
        return Some(format!("{} of {} failed, the first: {first}", report.failed, report.count));
    }
    let mut counts = BTreeMap::new();
    for (id, count) in reports.iter().flat_map(|report| &report.backends) {
        *counts.entry(*id).or_default() += count;
    }
    if measure.deed.chooses() {
        return stats::uniform(&counts, ids).err();
    }
    let stranger = counts.keys().find(|id| !ids.contains(id));
    stranger.map(|id| format!("server {id} answered, which is no backend"))
}

fn micros(reports: &[SprintReport]) -> Option<Micros> {
    let of = |pick: fn(&SprintReport) -> Duration| {
        let values = reports.iter().map(|report| pick(report).as_secs_f64() * 1e6);
        Figure::of(values).map(|figure| figure.median)
    };
    Some(Micros {
        p50: of(|report| report.latency.p50)?,
        p99: of(|report| report.latency.p99)?,
        p999: of(|report| report.latency.p999)?,
    })
}
