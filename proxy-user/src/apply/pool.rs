//! Pools: which ids and slot ranges are free.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Numbers from 1 to a limit. A number that comes back is given out again as late as possible,
/// since flows and sockets may still know it.
#[derive(Debug)]
pub(super) struct IdPool {
    returned: VecDeque<u32>,
    next: u32,
    limit: u32,
}

impl IdPool {
    /// A pool of the numbers from 1 to `limit - 1`, but for those in `used`.
    pub(super) fn new(limit: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        let returned = (1..next).filter(|id| !used.contains(id)).collect();
        Self { returned, next, limit }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if self.next < self.limit {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.returned.pop_front()
    }

    pub(super) fn release(&mut self, id: u32) {
        self.returned.push_back(id);
    }
}

/// Free ranges of an array, whose element 0 is never given out.
#[derive(Debug)]
pub(super) struct RangePool {
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
}

impl RangePool {
    /// The gaps of an array of `limit` elements between the `used` ranges (start, length), which
    /// are sorted and disjoint.
    pub(super) fn new(limit: u32, used: &BTreeMap<u32, u32>) -> Self {
        let mut pool = Self { by_start: BTreeMap::new(), by_len: BTreeSet::new() };
        let mut free_from = 1;
        for (&start, &len) in used {
            pool.add(free_from, start.saturating_sub(free_from));
            free_from = start + len;
        }
        pool.add(free_from, limit.saturating_sub(free_from));
        pool
    }

    /// How long the longest free range is.
    pub(super) fn longest(&self) -> u32 {
        self.by_len.last().map_or(0, |(len, _)| *len)
    }

    /// A range of `len` elements: from the shortest gap that is long enough.
    pub(super) fn take(&mut self, len: u32) -> Option<u32> {
        let &(gap, start) = self.by_len.range((len, 0)..).next()?;
        self.remove(start, gap);
        self.add(start + len, gap - len);
        Some(start)
    }

    /// Gives a range back, and joins it with the gaps beside it.
    pub(super) fn release(&mut self, mut start: u32, mut len: u32) {
        if let Some((&before, &gap)) = self.by_start.range(..start).next_back()
            && before + gap == start
        {
            self.remove(before, gap);
            (start, len) = (before, len + gap);
        }
        if let Some(&gap) = self.by_start.get(&(start + len)) {
            self.remove(start + len, gap);
            len += gap;
        }
        self.add(start, len);
    }

    fn add(&mut self, start: u32, len: u32) {
        if len > 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
        }
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_comes_back_only_after_all_others_were_given_out() {
        let mut pool = IdPool::new(4, &BTreeSet::from([2]));
        assert_eq!(pool.take(), Some(3));
        pool.release(3);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(3), None]);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(
            steps in proptest::collection::vec((1_u32..9, any::<bool>()), 1..200),
        ) {
            let limit = 64;
            let mut pool = RangePool::new(limit, &BTreeMap::from([(10, 5)]));
            let mut taken = BTreeMap::from([(10, 5)]);
            for (len, release) in steps {
                if release {
                    if let Some((start, len)) = taken.pop_first() {
                        pool.release(start, len);
                    }
                } else if let Some(start) = pool.take(len) {
                    prop_assert!(start > 0 && start + len <= limit);
                    for (&other, &other_len) in &taken {
                        prop_assert!(start + len <= other || other + other_len <= start);
                    }
                    taken.insert(start, len);
                }
            }
            for (start, len) in taken {
                pool.release(start, len);
            }
            prop_assert_eq!(pool.take(limit - 1), Some(1));
        }
    }
}
