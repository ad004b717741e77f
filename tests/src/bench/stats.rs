//! Medians, spreads, and whether a choice was fair. Pure.

use serde::Serialize;
use std::collections::BTreeMap;

/// How far a fair choice may lie off, in standard deviations: beyond it, it does so once in two
/// million.
const DEVIATIONS: f64 = 5.0;

/// What several rounds gave: the median, and the middle half of them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Figure {
    /// Half of the rounds gave no more.
    pub(super) median: f64,
    /// A quarter gave no more.
    pub(super) low: f64,
    /// A quarter gave no less.
    pub(super) high: f64,
    /// How many rounds there were.
    pub(super) rounds: usize,
}

impl Figure {
    /// Of `values`, if there are any.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let rounds = values.len();
        (rounds > 0).then(|| {
            let [low, median, high] = [0.25, 0.5, 0.75].map(|share| quantile(&values, share));
            Self { median, low, high, rounds }
        })
    }

    /// The width of the middle half, as a share of the median.
    pub(super) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median }
    }
}

/// The value that `share` of the sorted `values` do not exceed, between two of them if need be.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Whether `counts` are what a uniform choice among `choices` gives: Pearson's chi-square test,
/// with the approximation of Wilson and Hilferty. `Err` says what is wrong.
pub(super) fn uniform(counts: &BTreeMap<u16, u64>, choices: &[u16]) -> Result<(), String> {
    if let Some(stranger) = counts.keys().find(|id| !choices.contains(id)) {
        return Err(format!("server {stranger} answered, which is no backend"));
    }
    let total: u64 = counts.values().sum();
    let expected = total as f64 / choices.len() as f64;
    let count = |id| counts.get(id).copied().unwrap_or_default() as f64;
    let chi_square: f64 = choices.iter().map(|id| (count(id) - expected).powi(2) / expected).sum();
    let freedom = (choices.len() - 1) as f64;
    let part = 2.0 / (9.0 * freedom);
    let deviations = ((chi_square / freedom).cbrt() - (1.0 - part)) / part.sqrt();
    if deviations > DEVIATIONS || total == 0 {
        return Err(format!(
            "{total} choices among {} are not uniform (chi-square {chi_square:.1}): {counts:?}",
            choices.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles_lie_between_the_values() {
        let figure = Figure::of([4.0, 1.0, 3.0, 2.0, 100.0]).unwrap();
        assert_eq!((figure.low, figure.median, figure.high), (2.0, 3.0, 4.0));
        assert_eq!(Figure::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Figure::of([]), None);
    }

    #[test]
    fn a_fair_choice_passes_and_a_skewed_one_does_not() {
        let choices: Vec<u16> = (1..=10).collect();
        let counts = |first: u64| {
            choices.iter().map(|id| (*id, if *id == 1 { first } else { 1000 })).collect()
        };
        assert_eq!(uniform(&counts(1050), &choices), Ok(()));
        assert!(uniform(&counts(1300), &choices).is_err());
        assert!(uniform(&counts(0), &choices).is_err());
    }

    #[test]
    fn a_stranger_and_silence_are_no_fair_choice() {
        assert!(uniform(&BTreeMap::from([(1, 10), (9, 10)]), &[1, 2]).is_err());
        assert!(uniform(&BTreeMap::new(), &[1, 2]).is_err());
    }
}
