//! How long to wait before asking again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
/// The longest of who looks whether the server is back, for all on its node.
const LONGEST_PROBE: Duration = Duration::from_secs(5);

/// Delays that double from one failure to the next. Each is drawn from half to one and a half
/// times its mean, so that the nodes of a cluster do not come back all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    mean: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { mean: SHORTEST }
    }
}

impl Backoff {
    /// The delay before the next attempt.
    pub(super) fn next_delay(&mut self) -> Duration {
        let mean = self.mean;
        self.mean = LONGEST.min(mean * 2);
        // The keys of a hasher are the randomness that the standard library has.
        let random = RandomState::new().hash_one(()) as u32;
        mean.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
    }

    /// The delay before a server that could not be reached is tried again for all kinds.
    pub(super) fn next_probe(&mut self) -> Duration {
        self.next_delay().min(LONGEST_PROBE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit_and_differ_between_nodes() {
        let (mut one, mut two) = (Backoff::default(), Backoff::default());
        let mut equal = 0;
        for i in 0..20 {
            let (a, b) = (one.next_delay(), two.next_delay());
            let mean = LONGEST.min(SHORTEST * (1 << i.min(10)));
            assert!(a >= mean / 2 && a <= mean * 3 / 2, "{a:?} is not about {mean:?}");
            equal += i32::from(a == b);
        }
        assert!(equal < 3, "{equal} of 20 delays are equal");
        assert_eq!(one.next_probe(), LONGEST_PROBE);
    }
}
