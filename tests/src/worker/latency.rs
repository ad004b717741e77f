//! Durations, counted in buckets that widen with them: percentiles in constant memory.

use crate::traffic::Latency;
use std::time::Duration;

/// Buckets for each doubling; their width is at most 1/64 of what they count.
const STEPS: u32 = 64;

/// Counts of durations in nanoseconds.
#[derive(Default)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Histogram {
    pub(super) fn add(&mut self, duration: Duration) {
        let bucket = bucket(duration.as_nanos().try_into().unwrap_or(u64::MAX));
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.total += 1;
        self.max = self.max.max(duration);
    }

    pub(super) fn latency(&self) -> Latency {
        let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|share| self.percentile(share));
        Latency { p50, p90, p99, p999, max: self.max }
    }

    /// What `share` in a thousand did not exceed.
    fn percentile(&self, share: u64) -> Duration {
        let wanted = (self.total * share).div_ceil(1000);
        let mut seen = 0;
        let reached = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        reached.map_or(Duration::ZERO, |bucket| Duration::from_nanos(top(bucket)).min(self.max))
    }
}

/// Values below twice [`STEPS`] have buckets of their own; each later doubling has [`STEPS`].
fn bucket(nanos: u64) -> usize {
    let shift = (nanos | u64::from(STEPS)).ilog2() - STEPS.ilog2();
    (u64::from(shift * STEPS) + (nanos >> shift)) as usize
}

/// The largest value that falls into `bucket`.
fn top(bucket: usize) -> u64 {
    let steps = STEPS as usize;
    let shift = (bucket / steps).saturating_sub(1);
    (((bucket - shift * steps + 1) as u64) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_above_the_one_before() {
        for value in (0..1 << 14).chain((14..60).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power + 1, power + power / 3]
        })) {
            let bucket = bucket(value);
            assert!(value <= top(bucket), "{value} above the top of {bucket}");
            assert!(bucket == 0 || value > top(bucket - 1), "{value} fits the one before {bucket}");
            assert!(top(bucket) - value <= value / 64, "{value} in a bucket too wide");
        }
    }

    #[test]
    fn percentiles_of_a_uniform_sample() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|micros| histogram.add(Duration::from_micros(micros)));
        let Latency { p50, p90, p99, p999, max } = histogram.latency();
        for (found, micros) in [(p50, 500), (p90, 900), (p99, 990), (p999, 999)] {
            let exact = Duration::from_micros(micros);
            assert!(exact <= found && found <= exact.mul_f64(1.02), "{found:?} for {exact:?}");
        }
        assert_eq!(max, Duration::from_micros(1000));
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::default().latency(), Latency::default());
    }
}
