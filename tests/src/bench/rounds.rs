//! Traffic, in interleaved rounds: in each round every contender has its turn at every
//! measurement, in another order each time, so that what disturbs the machine disturbs all. Between
//! the spells of a few rounds, the direct path and Shunt change places.
//!
//! Turns at one measurement in one round are a block: a block in which others were at work is
//! not counted. Ratios are made inside a block, and their median over the blocks is the figure.

use super::arena::{Arena, BACKENDS, Corner};
use super::contender::Contender;
use super::measure::{Measure, Way};
use super::noise::{Block, Noise, QUIET_ROUNDS, Watch};
use super::proxies::Proxies;
use super::report::{Cell, Micros, Row};
use super::stats::{self, Figure};
use super::surroundings::Surroundings;
use super::target::Verdict;
use crate::sprint::{Deed, Sprint, SprintReport};
use crate::traffic::Failure;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::time::Duration;
use std::{fmt, mem};

/// How long, how often, and for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    /// How many rounds in each spell.
    pub(super) count: usize,
    /// How many spells.
    pub(super) spells: usize,
    /// How long each turn in it is.
    pub(super) turn: Duration,
    /// Where kube-proxy's mode iptables takes part.
    pub(super) iptables: Iptables,
}

/// Where kube-proxy's mode iptables takes part; its mode nftables is compared with everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Iptables {
    /// At every measurement.
    Everywhere,
    /// At those to which the number of Services may matter.
    AtEverySize,
    /// Not at all.
    Nowhere,
}

impl Rounds {
    /// Whether `contender` has a turn at `measure`.
    fn has(self, contender: Contender, measure: &Measure) -> bool {
        !contender.is_iptables()
            || match self.iptables {
                Iptables::Everywhere => true,
                Iptables::AtEverySize => measure.scales,
                Iptables::Nowhere => false,
            }
    }

    /// How many turns [`run`] takes.
    pub(super) fn turns(self, measures: &[Measure], contenders: &[Contender]) -> u64 {
        let turns = |measure| contenders.iter().filter(|who| self.has(**who, measure)).count();
        (measures.iter().map(turns).sum::<usize>() * (self.count + 1) * self.spells) as u64
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spells, count, turn, .. } = self;
        write!(f, "{spells} × {count} of {} ms each", turn.as_millis())
    }
}

/// What is measured, for whom, in which surroundings and with how many Services.
#[derive(Clone, Copy, Debug)]
pub(super) struct Programme<'a> {
    /// The measurements.
    pub(super) measures: &'a [Measure],
    /// Those who have got there.
    pub(super) ready: &'a [Contender],
    /// What else there is on the nodes.
    pub(super) surroundings: Surroundings,
    /// How many Services there are.
    pub(super) services: usize,
    /// How long and how often.
    pub(super) rounds: Rounds,
}

/// The reports of all rounds, by measurement and contender; and how each block was disturbed.
#[derive(Default)]
struct Results {
    reports: BTreeMap<(&'static str, Contender), Vec<SprintReport>>,
    blocks: BTreeMap<&'static str, Vec<Block>>,
}

/// Runs a programme. An untimed round comes first in each spell, so that caches, neighbours and
/// routes are warm.
pub(super) async fn run(
    arena: &mut Arena,
    proxies: &Proxies,
    programme: Programme<'_>,
    noise: &mut Noise,
    bar: &ProgressBar,
) -> Result<Vec<Row>> {
    let Programme { measures, surroundings, rounds, .. } = programme;
    let mut results = Results::default();
    let _crowd = surroundings.prepare(arena).await?;
    for number in 0..rounds.spells {
        if number > 0 {
            bar.set_message(format!("{}: changing places", programme.words()));
            proxies.exchange(arena).await?;
        }
        results.add(spell(arena, programme, noise, bar).await?);
    }
    Ok(measures.iter().map(|measure| row(measure, programme, &results, noise)).collect())
}

impl Programme<'_> {
    fn words(&self) -> String {
        format!("{} services, {}", self.services, self.surroundings.short())
    }
}

/// A few rounds with everybody in one place.
async fn spell(
    arena: &Arena,
    programme: Programme<'_>,
    noise: &mut Noise,
    bar: &ProgressBar,
) -> Result<Results> {
    let Programme { measures, ready, rounds, .. } = programme;
    let watch = Watch::new();
    let mut results = Results::default();
    for number in 0..=rounds.count {
        let warm_up = number == 0;
        let turn = if warm_up { rounds.turn / 4 } else { rounds.turn };
        for measure in measures {
            let runners: Vec<_> = ready.iter().filter(|who| rounds.has(**who, measure)).collect();
            let mark = watch.mark()?;
            for index in 0..runners.len() {
                let contender = *runners[(index + number) % runners.len()];
                let corner = arena.corner(contender).context("a contender without a corner")?;
                bar.set_message(format!("{}: {}, {contender}", programme.words(), measure.what));
                let report = once(arena, corner, measure, turn).await?;
                bar.inc(1);
                if !warm_up {
                    results.reports.entry((measure.key, contender)).or_default().push(report);
                }
            }
            if !warm_up {
                let block = watch.since(&mark)?;
                noise.add(&block);
                results.blocks.entry(measure.key).or_default().push(block);
            }
        }
    }
    Ok(results)
}

impl Results {
    /// Adds those of a later spell.
    fn add(&mut self, later: Self) {
        for (key, reports) in later.reports {
            self.reports.entry(key).or_default().extend(reports);
        }
        for (key, blocks) in later.blocks {
            self.blocks.entry(key).or_default().extend(blocks);
        }
    }
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
    let report = arena.client(corner, way).sprint(sprint).await;
    let report = report.unwrap_or_else(|failure| SprintReport {
        elapsed: duration,
        failed: 1,
        failure: Some(failure),
        ..SprintReport::default()
    });
    Ok(by_place(report, &arena.ids(corner, way)))
}

/// The report with the servers numbered by their places among `ids`, for the contender may have
/// others in the next spell. That a stranger has answered is a failure.
fn by_place(mut report: SprintReport, ids: &[u16]) -> SprintReport {
    for (id, count) in mem::take(&mut report.backends) {
        if let Some(place) = ids.iter().position(|own| *own == id) {
            let _none = report.backends.insert(place as u16, count);
        } else {
            report.failed += count;
            let stranger = format!("server {id} answered, which is no backend");
            let _ = report.failure.get_or_insert(Failure::lab(stranger));
        }
    }
    report
}

fn row(measure: &Measure, programme: Programme<'_>, results: &Results, noise: &Noise) -> Row {
    let mut row = Row::new(measure.key, measure.what, Some(programme.services), measure.unit());
    row.surroundings = Some(programme.surroundings);
    row.target = measure.target(programme.surroundings);
    let blocks = results.blocks.get(measure.key).map_or(&[][..], Vec::as_slice);
    let mut quiet: Vec<_> =
        (0..blocks.len()).filter(|index| !noise.disturbed(&blocks[*index])).collect();
    row.disturbed = blocks.len() - quiet.len();
    let refused = quiet.len() < QUIET_ROUNDS.min(blocks.len());
    if refused {
        quiet = (0..blocks.len()).collect();
    }
    let all =
        |contender| results.reports.get(&(measure.key, contender)).map_or(&[][..], Vec::as_slice);
    let rate = |contender, index: usize| {
        let report: Option<&SprintReport> = all(contender).get(index);
        report.map(|report| report.per_second() / measure.scale())
    };
    for contender in programme.ready.iter().copied() {
        let rates = quiet.iter().filter_map(|index| rate(contender, *index));
        let Some(figure) = Figure::of(rates) else { continue };
        let own = all(contender);
        let counted: Vec<_> = quiet.iter().filter_map(|index| own.get(*index)).collect();
        let latency = measure.deed.has_latency().then(|| micros(&counted)).flatten();
        let wrong = wrong(measure, contender, own);
        drop(row.cells.insert(contender, Cell { figure, of_direct: None, latency, wrong }));
    }
    // The ratios of what was measured one after another in the same round.
    let ratio = |contender, base: Option<f64>, index: usize| {
        Some(rate(contender, index)? / base.filter(|base| *base > 0.0)?)
    };
    let of_direct = |contender| {
        let ratio = |index: &usize| ratio(contender, rate(Contender::Direct, *index), *index);
        Figure::of(quiet.iter().filter_map(ratio)).filter(|_| !refused)
    };
    row.cells.iter_mut().for_each(|(who, cell)| cell.of_direct = of_direct(*who));
    let is_right = |who: &Contender| row.cells.get(who).is_some_and(|cell| cell.wrong.is_none());
    let nftables: Vec<_> =
        programme.ready.iter().copied().filter(|who| who.is_nftables() && is_right(who)).collect();
    let best = |index: usize| nftables.iter().filter_map(|who| rate(*who, index)).reduce(f64::max);
    let of_best = |index: &usize| ratio(Contender::Shunt, best(*index), *index);
    row.of_nftables = Figure::of(quiet.iter().filter_map(of_best)).filter(|_| !refused);
    row.verdict = judge(&row, refused);
    row
}

fn judge(row: &Row, refused: bool) -> Verdict {
    let cell = |contender| row.cells.get(&contender);
    let (Some(shunt), Some(direct)) = (cell(Contender::Shunt), cell(Contender::Direct)) else {
        return Verdict::None;
    };
    if shunt.wrong.is_some() || direct.wrong.is_some() {
        return Verdict::Wrong;
    }
    match row.target {
        Some(_) if refused => Verdict::TooNoisy,
        Some(target) => target.judge_ratios(shunt.of_direct, row.of_nftables),
        None => Verdict::None,
    }
}

/// What is wrong with the answers: failures, or a proxy's choice that is not uniform.
fn wrong(measure: &Measure, contender: Contender, reports: &[SprintReport]) -> Option<String> {
    if let Some(report) = reports.iter().find(|report| report.failed > 0 || report.count == 0) {
        let first = report.failure.as_ref().map_or("nothing came".to_owned(), ToString::to_string);
        return Some(format!("{} of {} failed, the first: {first}", report.failed, report.count));
    }
    // Without a proxy it is the client that chooses.
    let by_proxy = contender != Contender::Direct && measure.way != Way::Neighbour;
    if !measure.deed.chooses() || !by_proxy {
        return None;
    }
    let mut counts = BTreeMap::new();
    for (place, count) in reports.iter().flat_map(|report| &report.backends) {
        *counts.entry(*place).or_default() += count;
    }
    let places: Vec<_> = (0..BACKENDS).collect();
    if measure.deed == Deed::NewDatagram {
        // What was chosen for a client's port that sends a datagram again within a minute or two
        // is kept (conntrack), so that each is no choice of its own.
        return stats::all_chosen(&counts, &places).err();
    }
    stats::uniform(&counts, &places).err()
}

fn micros(reports: &[&SprintReport]) -> Option<Micros> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_count_by_their_places_and_a_stranger_is_a_failure() {
        let backends = BTreeMap::from([(101, 5), (100, 7)]);
        let report = SprintReport { backends, ..SprintReport::default() };
        let placed = by_place(report.clone(), &[100, 101]);
        assert_eq!(placed.backends, BTreeMap::from([(0, 7), (1, 5)]));
        assert_eq!(placed.failed, 0);
        let strange = by_place(report, &[100]);
        assert_eq!((strange.failed, strange.backends), (5, BTreeMap::from([(0, 7)])));
        assert!(strange.failure.unwrap().to_string().contains("server 101 answered"));
    }
}
