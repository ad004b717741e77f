//! What the benchmark found: rows, each a thing that was measured and what it gave for whom.
//!
//! Holds nothing that was not measured in this run. [`table`], [`markdown`] and [`plot`] show it.

pub(super) mod markdown;
pub(super) mod plot;
pub(super) mod table;

use super::contender::Contender;
use super::facts::Facts;
use super::noise::Noise;
use super::stats::Figure;
use super::surroundings::Surroundings;
use super::target::{Target, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that a run found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// The machine and the versions.
    pub(super) facts: Facts,
    /// How it was measured: the arguments of the run.
    pub(super) settings: BTreeMap<String, String>,
    /// What was found.
    pub(super) rows: Vec<Row>,
    /// How far the machine was left alone during the traffic.
    pub(super) noise: Noise,
    /// What was left out, and why.
    pub(super) skipped: Vec<String>,
}

/// A thing that was measured, at one number of Services.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    /// Its name.
    pub(super) key: String,
    /// What it is, for people.
    pub(super) what: String,
    /// How many Services there were, where it matters.
    pub(super) services: Option<usize>,
    /// What else there was on the nodes, if it is traffic.
    pub(super) surroundings: Option<Surroundings>,
    /// What the figures are in.
    pub(super) unit: String,
    /// What it gave, for each contender.
    pub(super) cells: BTreeMap<Contender, Cell>,
    /// Shunt's share of the figure of kube-proxy's nftables, of the better one if there are more,
    /// round by round.
    pub(super) of_nftables: Option<Figure>,
    /// How many rounds were not counted, because others were at work.
    pub(super) disturbed: usize,
    /// What Shunt is to reach.
    pub(super) target: Option<Target>,
    /// Whether it does.
    pub(super) verdict: Verdict,
}

/// What a measurement gave for a contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    /// The figure.
    pub(super) figure: Figure,
    /// Its share of the direct path's figure, round by round.
    pub(super) of_direct: Option<Figure>,
    /// Latencies in microseconds, the median of the rounds.
    pub(super) latency: Option<Micros>,
    /// What was wrong with the answers; the figure is worth nothing then.
    pub(super) wrong: Option<String>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Micros {
    /// Half took no longer.
    pub(super) p50: f64,
    /// 99 % took no longer.
    pub(super) p99: f64,
    /// 99.9 % took no longer.
    pub(super) p999: f64,
}

impl Report {
    /// Those who were compared.
    pub(super) fn field(&self) -> Vec<Contender> {
        let all: BTreeSet<_> = self.rows.iter().flat_map(|row| row.cells.keys()).copied().collect();
        all.into_iter().collect()
    }

    /// Whether a row is of the ordinary case: on nodes with a CNI's rules, if they were measured.
    pub(super) fn is_ordinary(&self, row: &Row) -> bool {
        let ordinary = self.rows.iter().filter_map(|row| row.surroundings).min();
        row.surroundings.is_none() || row.surroundings == ordinary
    }

    /// Which answers were wrong, and how.
    pub(super) fn wrong(&self) -> Vec<String> {
        let cells = self.rows.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell)));
        let wrong = |(row, (who, cell)): (&Row, (&Contender, &Cell))| {
            Some(format!("{}, {}, {who}: {}", row.group(), row.what, cell.wrong.as_ref()?))
        };
        cells.filter_map(wrong).collect()
    }
}

impl Cell {
    /// A figure by itself.
    pub(super) fn of(figure: Figure) -> Self {
        Self { figure, of_direct: None, latency: None, wrong: None }
    }
}

impl Row {
    /// A row without cells.
    pub(super) fn new(key: &str, what: &str, services: Option<usize>, unit: &str) -> Self {
        Self {
            key: key.to_owned(),
            what: what.to_owned(),
            services,
            surroundings: None,
            unit: unit.to_owned(),
            cells: BTreeMap::new(),
            of_nftables: None,
            disturbed: 0,
            target: None,
            verdict: Verdict::None,
        }
    }

    /// What it stands under: the part of the run, and the number of Services.
    pub(super) fn group(&self) -> String {
        let part = match self.key.split('-').next() {
            Some("programs") => "Programs",
            Some("control") => "Control plane",
            Some("dns") => "Names (direct: a local unbound)",
            Some("scale") => "Scale, 25 endpoints each",
            _ => self.surroundings.map_or("Traffic", Surroundings::words),
        };
        match self.services {
            Some(services) => format!("{part}, {} services", table::whole(services)),
            None => part.to_owned(),
        }
    }

    /// With a cell, if there are values for it.
    #[must_use]
    pub(super) fn cell(
        mut self,
        contender: Contender,
        values: impl IntoIterator<Item = f64>,
    ) -> Self {
        if let Some(figure) = Figure::of(values) {
            drop(self.cells.insert(contender, Cell::of(figure)));
        }
        self
    }

    /// With a value not to exceed, and the verdict on it.
    #[must_use]
    pub(super) fn at_most(mut self, most: f64) -> Self {
        let target = Target::AtMost(most);
        self.target = Some(target);
        if let Some(cell) = self.cells.get(&Contender::Shunt) {
            self.verdict = target.judge(cell.figure);
        }
        self
    }
}
