//! How a run is asked for, and what follows from it.

use super::contender::Contender;
use super::measure::{MEASURES, Measure};
use super::noise;
use super::rounds::{Iptables, Rounds};
use super::surroundings::Surroundings;
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Measures Shunt against the direct path and against kube-proxy's rules, in one run
#[derive(Clone, Debug, Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench")]
pub struct Options {
    /// Less of everything: under four minutes
    #[arg(long)]
    pub(super) quick: bool,
    /// Next to nothing of everything: shows that it runs and that the answers are right
    #[arg(long, conflicts_with = "quick")]
    pub(super) smoke: bool,
    /// Only what has this in its name, such as nodeport or control; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(super) only: Vec<String>,
    /// How many Services there are, several with commas
    #[arg(long, value_name = "COUNTS", value_delimiter = ',')]
    pub(super) services: Vec<usize>,
    /// Only these contenders, several with commas (direct always takes part)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) contenders: Vec<Contender>,
    /// What share of the machine others may take, before a round is not counted; with 1 every
    /// round is, however slow the machine was meanwhile
    #[arg(long, value_name = "SHARE", default_value_t = noise::LIMIT)]
    pub(super) others: f64,
    /// Measure only on nodes that have no rules of a CNI, where the direct path goes without
    /// conntrack
    #[arg(long)]
    pub(super) no_cni_rules: bool,
    /// A kube-proxy to run in place of the rules that the bench makes
    #[arg(long, value_name = "PATH")]
    pub(super) kube_proxy: Option<PathBuf>,
    /// Where report.json, report.md and the plots go [default: target/bench]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Show a report.json again, in place of measuring
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<PathBuf>,
    /// Put the results into README.md and docs, if they are whole
    #[arg(long)]
    pub(super) publish: bool,
    /// List what can be named with --only
    #[arg(long)]
    pub(super) list: bool,
}

/// The parts of a run that are not traffic, by their names for `--only`.
pub(super) const PARTS: [&str; 4] = ["programs", "dns", "control", "scale"];

impl Options {
    /// Whether the part or measurement `name` was asked for.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    /// What was given with `--only` and is in no name.
    pub(super) fn unknown(&self) -> Option<&str> {
        let names = || MEASURES.iter().map(|measure| measure.key).chain(PARTS);
        self.only.iter().map(String::as_str).find(|only| !names().any(|name| name.contains(only)))
    }

    /// Who takes part.
    pub(super) fn field(&self) -> Vec<Contender> {
        let mut field = Contender::field(self.kube_proxy.is_some());
        field.retain(|who| {
            *who == Contender::Direct || self.contenders.is_empty() || self.contenders.contains(who)
        });
        field
    }

    /// The numbers of Services, in rising order.
    pub(super) fn sizes(&self) -> Vec<usize> {
        let mut sizes = match (&self.services[..], self.quick, self.smoke) {
            ([], _, true) => vec![10],
            ([], ..) => vec![10, 1_000, 10_000],
            (asked, ..) => asked.to_vec(),
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// What else there is on the nodes, in turn; first the ordinary case.
    pub(super) const fn surroundings(&self) -> &'static [Surroundings] {
        use Surroundings::{Bare, Cni, Crowded};
        if self.no_cni_rules { &[Bare] } else { &[Cni, Bare, Crowded] }
    }

    /// What is measured on the traffic with `size` Services: all of it with the fewest in the
    /// ordinary case, else what may depend on their number, or on the surroundings.
    pub(super) fn measures(&self, size: usize, surroundings: Surroundings) -> Vec<Measure> {
        let first = self.sizes().first() == Some(&size);
        let is_ordinary = self.surroundings()[0] == surroundings;
        let depends = |measure: &&Measure| match surroundings {
            _ if is_ordinary => first || measure.scales,
            Surroundings::Crowded => first && measure.in_a_crowd,
            Surroundings::Cni | Surroundings::Bare => {
                first && measure.target(surroundings).is_some()
            }
        };
        let asked = MEASURES.iter().filter(|measure| self.wants(measure.key));
        asked.filter(depends).copied().collect()
    }

    /// The numbers of Services for the control plane.
    pub(super) fn control_sizes(&self) -> Vec<usize> {
        match (&self.services[..], self.smoke) {
            ([], true) => vec![100],
            ([], false) => vec![1_000, 10_000],
            _ => self.sizes(),
        }
    }

    /// How long and how often, and for whom.
    pub(super) fn rounds(&self, surroundings: Surroundings) -> Rounds {
        let (spells, count, millis) = self.pick((1, 1, 50), (2, 4, 80), (5, 3, 250));
        let iptables = if surroundings != self.surroundings()[0] {
            Iptables::Nowhere
        } else if self.quick && self.only.is_empty() {
            Iptables::AtEverySize
        } else {
            Iptables::Everywhere
        };
        Rounds { spells, count, turn: Duration::from_millis(millis), iptables }
    }

    /// How long a baseline's tool may take to load its rules, before it is left out; nothing if
    /// it is not to be tried.
    pub(super) fn patience(&self, contender: Contender, size: usize) -> Duration {
        let is_hopeless = self.quick && contender == Contender::Nftables && size > 5_000;
        Duration::from_secs(if is_hopeless { 0 } else { self.pick(15, 20, 150) })
    }

    /// One of three values: for smoke, quick and full.
    pub(super) const fn pick<T: Copy>(&self, smoke: T, quick: T, full: T) -> T {
        match (self.smoke, self.quick) {
            (true, _) => smoke,
            (_, true) => quick,
            _ => full,
        }
    }
}
