//! Medians, spreads, and whether a choice was fair. Pure.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far a fair choice may lie off, in standard deviations: beyond it, it does so once in
/// twenty thousand, which in the hundred tests of a full run is one run in two hundred.
const DEVIATIONS: f64 = 3.9;
/// How sure the interval of a median is, where there are rounds enough.
const SURE: f64 = 0.9;

/// What several rounds gave: the median, and where it lies with a certainty of nine in ten, by
/// the order of the values alone (of four rounds or fewer, all that they gave).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Figure {
    /// Half of the rounds gave no more.
    pub(super) median: f64,
    /// The lower end of the interval.
    pub(super) low: f64,
    /// The upper end of the interval.
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
            let aside = aside(rounds);
            let (low, high) = (values[aside], values[rounds - 1 - aside]);
            Self { median: quantile(&values, 0.5), low, high, rounds }
        })
    }

    /// The width of the interval, as a share of the median.
    pub(super) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median }
    }
}

/// How many of `rounds` sorted values may be left aside at either end, so that those between still
/// hold the median with a certainty of [`SURE`]: each lies below it with a chance of one half.
fn aside(rounds: usize) -> usize {
    let mut chance = 0.5_f64.powi(rounds as i32);
    let mut beyond = chance;
    let mut aside = 0;
    while 2 * aside + 3 <= rounds {
        chance *= (rounds - aside) as f64 / (aside + 1) as f64;
        beyond += chance;
        if 1.0 - 2.0 * beyond < SURE {
            break;
        }
        aside += 1;
    }
    aside
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

/// Whether every one of `choices` was chosen, where there were choices enough for that.
pub(super) fn all_chosen(counts: &BTreeMap<u16, u64>, choices: &[u16]) -> Result<(), String> {
    let total: u64 = counts.values().sum();
    let missing: Vec<_> = choices.iter().filter(|id| !counts.contains_key(id)).collect();
    if missing.is_empty() || total < 20 * choices.len() as u64 {
        return Ok(());
    }
    Err(format!("servers {missing:?} were never chosen, of {total} times"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_never_chosen_is_missed() {
        let counts = BTreeMap::from([(1, 30), (2, 10)]);
        assert!(all_chosen(&counts, &[1, 2]).is_ok());
        assert!(all_chosen(&counts, &[1, 2, 3]).is_ok(), "too few to say so");
        assert!(all_chosen(&BTreeMap::from([(1, 30), (2, 30)]), &[1, 2, 3]).is_err());
    }

    #[test]
    fn the_median_lies_between_order_statistics() {
        let figure = Figure::of([4.0, 1.0, 3.0, 2.0, 100.0]).unwrap();
        assert_eq!((figure.low, figure.median, figure.high), (1.0, 3.0, 100.0));
        assert_eq!(Figure::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Figure::of([]), None);
        // From tables of the binomial distribution.
        let expected = [(1, 0), (4, 0), (7, 0), (8, 1), (10, 1), (11, 2), (15, 3), (20, 5)];
        expected.iter().for_each(|(rounds, left)| assert_eq!(aside(*rounds), *left, "{rounds}"));
    }

    /// Counts of `total` choices among ten, where the first is chosen at `share` of a fair rate.
    fn drawn(total: usize, share: f64, seed: &mut u64) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for _ in 0..total {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let place = (*seed >> 11) as f64 / (1_u64 << 53) as f64 * (9.0 + share);
            let id = if place < share { 1 } else { 2 + (place - share) as u16 };
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    #[test]
    fn a_fair_choice_passes_and_a_fifth_less_for_one_backend_does_not() {
        let choices: Vec<u16> = (1..=10).collect();
        let mut seed = 1;
        for _ in 0..200 {
            assert_eq!(uniform(&drawn(3_000, 1.0, &mut seed), &choices), Ok(()));
        }
        let mut missed = 0;
        for _ in 0..50 {
            missed += u32::from(uniform(&drawn(20_000, 0.8, &mut seed), &choices).is_ok());
        }
        assert_eq!(missed, 0, "of 50 skewed choices");
    }

    #[test]
    fn a_stranger_and_silence_are_no_fair_choice() {
        assert!(uniform(&BTreeMap::from([(1, 10), (9, 10)]), &[1, 2]).is_err());
        assert!(uniform(&BTreeMap::new(), &[1, 2]).is_err());
    }
}
