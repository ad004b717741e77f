//! What is to be reached, and whether it is. Pure.

use super::stats::Figure;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A ratio whose interval is wider than this, as a share of it, decides only what lies outside it.
const NOISE: f64 = 0.25;

/// What is to be reached.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// A share of what the direct path gives; and more than every proxy, if it says so.
    OfDirect {
        /// The share.
        at_least: f64,
        /// Whether no proxy may be better.
        beat_proxies: bool,
    },
    /// A share of what the baseline takes, not to exceed.
    AtMostOfDirect(f64),
    /// A value not to exceed.
    AtMost(f64),
}

/// Whether it is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The median reaches it.
    Met,
    /// The median does not, but it may: the target lies inside its interval.
    WithinSpread,
    /// It is missed.
    Missed,
    /// The target lies inside a wide interval, or the machine was not left alone.
    TooNoisy,
    /// Wrong answers, or too few: the number is worth nothing.
    Wrong,
    /// There is no target, or nobody to compare with.
    None,
}

impl Target {
    /// Judges a ratio to the direct path, given those of the proxies.
    pub(super) fn judge_ratio(self, ratio: Figure, proxies: &[Figure]) -> Verdict {
        if let Self::AtMostOfDirect(most) = self {
            let is_open = ratio.low <= most && most < ratio.high;
            let is_wide = is_open && ratio.spread() > NOISE;
            return if is_wide {
                Verdict::TooNoisy
            } else {
                reached(ratio.median <= most, is_open)
            };
        }
        let Self::OfDirect { at_least, beat_proxies } = self else { return Verdict::None };
        let best = proxies.iter().map(|proxy| proxy.median).fold(0.0, f64::max);
        let bar = if beat_proxies { best.max(at_least) } else { at_least };
        let is_open = ratio.low < bar && bar <= ratio.high;
        if is_open && ratio.spread() > NOISE {
            return Verdict::TooNoisy;
        }
        reached(ratio.median >= bar, is_open)
    }

    /// Judges a value by itself.
    pub(super) fn judge(self, value: Figure) -> Verdict {
        match self {
            Self::AtMost(most) => reached(value.median <= most, value.low <= most),
            Self::OfDirect { .. } | Self::AtMostOfDirect(_) => Verdict::None,
        }
    }
}

const fn reached(median: bool, interval: bool) -> Verdict {
    match (median, interval) {
        (true, _) => Verdict::Met,
        (false, true) => Verdict::WithinSpread,
        (false, false) => Verdict::Missed,
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfDirect { at_least, beat_proxies } => {
                write!(f, "≥ {at_least:.2}")?;
                f.write_str(if *beat_proxies { "*" } else { "" })
            }
            Self::AtMostOfDirect(most) => write!(f, "≤ {most:.2}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::WithinSpread => "unsure",
            Self::Missed => "missed",
            Self::TooNoisy => "too noisy",
            Self::Wrong => "WRONG",
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
    fn a_ratio_is_judged_by_its_median_and_its_interval() {
        let target = Target::OfDirect { at_least: 0.97, beat_proxies: false };
        let judge = |low, median, high| target.judge_ratio(figure(low, median, high), &[]);
        assert_eq!(judge(0.96, 0.98, 0.99), Verdict::Met);
        assert_eq!(judge(0.94, 0.96, 0.98), Verdict::WithinSpread);
        assert_eq!(judge(0.90, 0.92, 0.93), Verdict::Missed);
    }

    #[test]
    fn a_wide_interval_judges_only_what_lies_outside_it() {
        let target = Target::OfDirect { at_least: 0.97, beat_proxies: false };
        let judge = |low, median, high| target.judge_ratio(figure(low, median, high), &[]);
        assert_eq!(judge(0.8, 1.0, 1.2), Verdict::TooNoisy);
        assert_eq!(judge(1.0, 1.2, 1.5), Verdict::Met);
        assert_eq!(judge(0.5, 0.6, 0.9), Verdict::Missed);
    }

    #[test]
    fn a_share_not_to_exceed_is_judged_from_the_other_side() {
        let judge = |low, median, high| {
            Target::AtMostOfDirect(0.2).judge_ratio(figure(low, median, high), &[])
        };
        assert_eq!(judge(0.15, 0.16, 0.17), Verdict::Met);
        assert_eq!(judge(0.19, 0.21, 0.22), Verdict::WithinSpread);
        assert_eq!(judge(0.21, 0.22, 0.23), Verdict::Missed);
        assert_eq!(judge(0.1, 0.18, 0.3), Verdict::TooNoisy);
    }

    #[test]
    fn no_proxy_may_be_better_where_the_target_says_so() {
        let faster = [figure(0.9, 0.95, 1.0)];
        let judge = |beat_proxies| {
            let target = Target::OfDirect { at_least: 0.9, beat_proxies };
            target.judge_ratio(figure(0.9, 0.91, 0.92), &faster)
        };
        assert_eq!((judge(false), judge(true)), (Verdict::Met, Verdict::Missed));
    }
}
