//! Ranges of the slot array, read while an agent may be writing.

use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::slot::{RangeHeader, Slot};
use std::collections::BTreeMap;

/// A range of the slot array, as it was when it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The header.
    pub header: RangeHeader,
    /// The slots: the cluster set, the local set and the draining backends.
    pub slots: Vec<Slot>,
}

impl Range {
    /// The cluster set.
    pub fn cluster(&self) -> &[Slot] {
        self.part(0, self.header.cluster)
    }

    /// The local set.
    pub fn local(&self) -> &[Slot] {
        self.part(self.header.cluster, self.header.local)
    }

    /// The backends that serve but are in neither set.
    pub fn draining(&self) -> &[Slot] {
        self.part(self.header.cluster.saturating_add(self.header.local), self.header.draining)
    }

    fn part(&self, first: u32, count: u32) -> &[Slot] {
        let slots = self.slots.get(first as usize..).unwrap_or_default();
        &slots[..slots.len().min(count as usize)]
    }
}

/// The ranges that `frontends` name, by the index of their headers.
///
/// The agent may give a range to another service as soon as no frontend names it, so a range
/// counts only if its frontend still named it after it was read (`now`). A frontend that has
/// moved is brought up to date, one that is gone is removed.
pub(super) fn of<E>(
    frontends: &mut BTreeMap<FrontendKey, FrontendValue>,
    read: impl Fn(u32) -> Result<Range, E>,
    now: impl Fn(&FrontendKey) -> Option<FrontendValue>,
) -> Result<BTreeMap<u32, Range>, E> {
    let mut ranges = BTreeMap::new();
    let mut gone = Vec::new();
    for (key, value) in frontends.iter_mut() {
        while !ranges.contains_key(&value.range()) {
            let range = read(value.range())?;
            match now(key) {
                Some(now) if now == *value => drop(ranges.insert(now.range(), range)),
                Some(now) => *value = now,
                None => {
                    gone.push(*key);
                    break;
                }
            }
        }
    }
    for key in gone {
        frontends.remove(&key);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_ebpf::frontend::FrontendFlags;
    use proxy_ebpf::service::ServiceId;
    use proxy_ebpf::{Addr, Port, Proto};
    use std::convert::Infallible;

    /// The range at `index` belongs to the service of that number.
    fn read(index: u32) -> Result<Range, Infallible> {
        let header = RangeHeader {
            service: ServiceId(index),
            cluster: 0,
            local: 0,
            affinity_seconds: 0,
            draining: 0,
            zero: 0,
        };
        Ok(Range { header, slots: Vec::new() })
    }

    #[test]
    fn range_of_a_frontend_that_moved_is_read_anew_and_one_that_went_is_left_out() {
        let key = |port| FrontendKey::service(Addr::from_v4_word(1), Port::new(port), Proto::TCP);
        let value = |port, range| FrontendValue::new(&key(port), range, FrontendFlags::NONE);
        let mut frontends: BTreeMap<_, _> = [(80, 10), (81, 20), (82, 30)]
            .map(|(port, range)| (key(port), value(port, range)))
            .into();
        let now = |asked: &FrontendKey| match asked.port.number() {
            80 => Some(value(80, 10)),
            81 => Some(value(81, 40)),
            _ => None,
        };
        let Ok(ranges) = of(&mut frontends, read, now);
        assert_eq!(ranges.into_keys().collect::<Vec<_>>(), [10, 40]);
        assert_eq!(frontends, BTreeMap::from([(key(80), value(80, 10)), (key(81), value(81, 40))]));
    }

    #[test]
    fn header_that_promises_too_much_is_cut_to_what_was_read() {
        let mut range = read(7).unwrap();
        range.header.cluster = 5;
        range.header.local = u32::MAX;
        assert!(range.cluster().is_empty() && range.local().is_empty());
        assert!(range.draining().is_empty());
    }
}
