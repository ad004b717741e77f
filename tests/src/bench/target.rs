//! What is to be reached, and whether it is. Pure.

use super::stats::Figure;
use serde::Serialize;
use std::fmt;

/// A direct path whose middle half is wider than this, as a share of its median, is no measure
/// for anything.
const NOISE: f64 = 0.25;

/// What is to be reached.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// A share of what the direct path gives; and more than every proxy, if it says so.
    OfDirect {
        /// The share.
        at_least: f64,
        /// Whether no proxy may be better.
        beat_proxies: bool,
    },
    /// A value not to exceed.
    AtMost(f64),
}

/// Whether it is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The median reaches it.
    Met,
    /// The median does not, but a quarter of the rounds do.
    WithinSpread,
    /// It is missed.
    Missed,
    /// The direct path varies too much to compare with.
    TooNoisy,
    /// Wrong answers, or too few: the number is worth nothing.
    Wrong,
    /// There is no target, or nobody to compare with.
    None,
}

impl Target {
    /// Judges a ratio to the direct path, given those of the proxies.
    pub(super) fn judge_ratio(self, ratio: Figure, direct: Figure, proxies: &[Figure]) -> Verdict {
        let Self::OfDirect { at_least, beat_proxies } = self else { return Verdict::None };
        if is_noisy(&direct) {
            return Verdict::TooNoisy;
        }
        let best = proxies.iter().map(|proxy| proxy.median).fold(0.0, f64::max);
        let bar = if beat_proxies { best.max(at_least) } else { at_least };
        reached(ratio.median >= bar, ratio.high >= bar)
    }

    /// Judges a value by itself.
    pub(super) fn judge(self, value: Figure) -> Verdict {
        match self {
            Self::AtMost(most) => reached(value.median <= most, value.low <= most),
            Self::OfDirect { .. } => Verdict::None,
        }
    }
}

/// Whether nothing can be compared with `direct`.
pub(super) fn is_noisy(direct: &Figure) -> bool {
    direct.spread() > NOISE
}

const fn reached(median: bool, quartile: bool) -> Verdict {
    match (median, quartile) {
        (true, _) => Verdict::Met,
        (false, true) => Verdict::WithinSpread,
        (false, false) => Verdict::Missed,
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfDirect { at_least, beat_proxies } => {
                write!(f, "≥ {at_least:.2} × direct")?;
                if *beat_proxies { f.write_str(", best proxy") } else { Ok(()) }
            }
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::WithinSpread => "within spread",
            Self::Missed => "missed",
            Self::TooNoisy => "too noisy to compare",
            Self::Wrong => "WRONG ANSWERS",
            Self::None => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(low: f64, median: f64, high: f64) -> Figure {
        Figure { low, median, high, rounds: 5 }
    }

    #[test]
    fn a_ratio_is_judged_by_its_median_and_its_spread() {
        let target = Target::OfDirect { at_least: 0.97, beat_proxies: false };
        let direct = figure(99.0, 100.0, 101.0);
        let judge = |low, median, high| target.judge_ratio(figure(low, median, high), direct, &[]);
        assert_eq!(judge(0.96, 0.98, 0.99), Verdict::Met);
        assert_eq!(judge(0.94, 0.96, 0.98), Verdict::WithinSpread);
        assert_eq!(judge(0.90, 0.92, 0.93), Verdict::Missed);
    }

    #[test]
    fn a_noisy_direct_path_judges_nobody() {
        let target = Target::OfDirect { at_least: 0.97, beat_proxies: false };
        let ratio = figure(1.0, 1.0, 1.0);
        assert_eq!(target.judge_ratio(ratio, figure(80.0, 100.0, 120.0), &[]), Verdict::TooNoisy);
    }

    #[test]
    fn no_proxy_may_be_better_where_the_target_says_so() {
        let (direct, shunt) = (figure(1.0, 1.0, 1.0), figure(0.9, 0.91, 0.92));
        let faster = [figure(0.9, 0.95, 1.0)];
        let judge = |beat_proxies| {
            Target::OfDirect { at_least: 0.9, beat_proxies }.judge_ratio(shunt, direct, &faster)
        };
        assert_eq!((judge(false), judge(true)), (Verdict::Met, Verdict::Missed));
    }
}
