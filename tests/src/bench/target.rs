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
    /// Shares of what others give, to reach.
    Shares {
        /// Of what the direct path gives.
        of_direct: Option<f64>,
        /// Of what kube-proxy gives in its mode nftables; not judged where that is left out.
        of_nftables: Option<f64>,
    },
    /// A share of what the baseline takes, not to exceed.
    AtMostOfDirect(f64),
    /// A value not to exceed.
    AtMost(f64),
}

/// Whether it is reached. Of several targets, the worst verdict counts: the first ones are better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The median reaches it.
    Met,
    /// The median does not, but it may: the target lies inside its interval.
    WithinSpread,
    /// The target lies inside a wide interval, or the machine was not left alone.
    TooNoisy,
    /// It is missed.
    Missed,
    /// Wrong answers, or too few: the number is worth nothing.
    Wrong,
    /// There is no target, or nobody to compare with.
    None,
}

impl Target {
    /// At least `of_direct` of what the direct path gives.
    pub(super) const fn of_direct(at_least: f64) -> Self {
        Self::Shares { of_direct: Some(at_least), of_nftables: None }
    }

    /// Judges the ratios to the direct path and to kube-proxy's nftables, as far as there are any.
    pub(super) fn judge_ratios(
        self,
        to_direct: Option<Figure>,
        to_nftables: Option<Figure>,
    ) -> Verdict {
        let at_least = |ratio: Option<Figure>, bar: Option<f64>| {
            let (ratio, bar) = ratio.zip(bar)?;
            Some(judge(ratio, ratio.median >= bar, ratio.low < bar && bar <= ratio.high))
        };
        let verdicts = match self {
            Self::Shares { of_direct, of_nftables } => {
                [at_least(to_direct, of_direct), at_least(to_nftables, of_nftables)]
            }
            Self::AtMostOfDirect(most) => {
                let at_most = |ratio| {
                    judge(ratio, ratio.median <= most, ratio.low <= most && most < ratio.high)
                };
                [to_direct.map(at_most), None]
            }
            Self::AtMost(_) => [None, None],
        };
        verdicts.into_iter().flatten().max().unwrap_or(Verdict::None)
    }

    /// Judges a value by itself.
    pub(super) fn judge(self, value: Figure) -> Verdict {
        match self {
            Self::AtMost(most) => reached(value.median <= most, value.low <= most),
            Self::Shares { .. } | Self::AtMostOfDirect(_) => Verdict::None,
        }
    }

    /// What is to be reached of kube-proxy's nftables, in words.
    pub(super) fn nftables_words(self) -> String {
        match self {
            Self::Shares { of_nftables: Some(bar), .. } => format!("≥ {bar:.2}"),
            _ => String::new(),
        }
    }

    /// What is to be reached of the direct path, or by itself, in words.
    pub(super) fn direct_words(self) -> String {
        match self {
            Self::Shares { of_direct: Some(bar), .. } => format!("≥ {bar:.2}"),
            Self::Shares { .. } => String::new(),
            Self::AtMostOfDirect(most) => format!("≤ {most:.2}"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// The verdict on a ratio, given whether its median reaches the target and whether the target lies
/// inside its interval.
fn judge(ratio: Figure, median: bool, is_open: bool) -> Verdict {
    if is_open && ratio.spread() > NOISE { Verdict::TooNoisy } else { reached(median, is_open) }
}

const fn reached(median: bool, interval: bool) -> Verdict {
    match (median, interval) {
        (true, _) => Verdict::Met,
        (false, true) => Verdict::WithinSpread,
        (false, false) => Verdict::Missed,
    }
}

/// Short, for a terminal: shares of nftables and of the direct path, or that of the direct path.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shares { of_direct, of_nftables } => {
                let bar =
                    |bar: &Option<f64>| bar.map_or("–".to_owned(), |bar| format!("{bar:.2}"));
                f.pad(&format!("{}/{}", bar(of_nftables), bar(of_direct)))
            }
            _ => f.pad(&self.direct_words()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
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

    fn figure(low: f64, median: f64, high: f64) -> Option<Figure> {
        Some(Figure { low, median, high, rounds: 5 })
    }

    #[test]
    fn a_ratio_is_judged_by_its_median_and_its_interval() {
        let target = Target::of_direct(0.97);
        let judge = |low, median, high| target.judge_ratios(figure(low, median, high), None);
        assert_eq!(judge(0.96, 0.98, 0.99), Verdict::Met);
        assert_eq!(judge(0.94, 0.96, 0.98), Verdict::WithinSpread);
        assert_eq!(judge(0.90, 0.92, 0.93), Verdict::Missed);
    }

    #[test]
    fn a_wide_interval_judges_only_what_lies_outside_it() {
        let target = Target::of_direct(0.97);
        let judge = |low, median, high| target.judge_ratios(figure(low, median, high), None);
        assert_eq!(judge(0.8, 1.0, 1.2), Verdict::TooNoisy);
        assert_eq!(judge(1.0, 1.2, 1.5), Verdict::Met);
        assert_eq!(judge(0.5, 0.6, 0.9), Verdict::Missed);
    }

    #[test]
    fn a_share_not_to_exceed_is_judged_from_the_other_side() {
        let judge = |low, median, high| {
            Target::AtMostOfDirect(0.2).judge_ratios(figure(low, median, high), None)
        };
        assert_eq!(judge(0.15, 0.16, 0.17), Verdict::Met);
        assert_eq!(judge(0.19, 0.21, 0.22), Verdict::WithinSpread);
        assert_eq!(judge(0.21, 0.22, 0.23), Verdict::Missed);
        assert_eq!(judge(0.1, 0.18, 0.3), Verdict::TooNoisy);
    }

    #[test]
    fn of_two_targets_the_one_that_is_missed_counts() {
        let target = Target::Shares { of_direct: Some(0.95), of_nftables: Some(1.03) };
        let judge = |nftables| target.judge_ratios(figure(0.95, 0.96, 0.97), nftables);
        assert_eq!(judge(figure(1.0, 1.01, 1.02)), Verdict::Missed);
        assert_eq!(judge(figure(1.0, 1.02, 1.04)), Verdict::WithinSpread);
        assert_eq!(judge(figure(1.03, 1.04, 1.05)), Verdict::Met);
        assert_eq!(judge(None), Verdict::Met, "nftables was left out");
        assert_eq!(target.judge_ratios(None, None), Verdict::None);
    }
}
