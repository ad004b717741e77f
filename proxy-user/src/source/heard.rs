//! When the source was last heard of: what is not known to be current may not be vouched for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When each watch that names need last showed that it is current: by an event, a bookmark or a
/// list. Clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Heard(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

impl Heard {
    /// The watch of `resource` is current now.
    pub(super) fn now(&self, resource: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(resource, Instant::now());
    }

    /// How long ago the watch was heard of that has been silent for longest. Zero if there is
    /// none: a folder is always there.
    pub fn age(&self) -> Duration {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.values().map(Instant::elapsed).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn the_most_silent_watch_counts() {
        let heard = Heard::default();
        assert_eq!(heard.age(), Duration::ZERO);
        heard.now("services");
        sleep(Duration::from_millis(20));
        heard.now("endpointslices");
        assert!(heard.age() >= Duration::from_millis(20));
        heard.now("services");
        assert!(heard.age() < Duration::from_millis(20));
    }
}
