//! The filter of addresses: which of them the programs look up (see [`proxy_ebpf::filter`]).
//!
//! Frontends and retired backends come and go with services, prefixes of services with the node's
//! rows; so two writers share one filter. A bit that is set too much costs a lookup, no more: what goes stays until the
//! frontends are read again.

use super::LoadError;
use super::sys::MappedArray;
use crate::tables::Prefix;
use proxy_ebpf::Addr;
use proxy_ebpf::filter::{ADDR_WORDS, AddrBit};
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The filter, for everyone who writes to it.
#[derive(Clone, Debug)]
pub(super) struct SharedFilter(Arc<Mutex<AddrFilter>>);

impl SharedFilter {
    /// The filter in the array `map`.
    pub(super) fn new(map: BorrowedFd<'_>) -> Result<Self, LoadError> {
        let words = MappedArray::new(map, ADDR_WORDS)
            .map_err(|e| LoadError::Kernel("map the filter of addresses into memory", e))?;
        Ok(Self(Arc::new(Mutex::new(AddrFilter { words, full: BTreeSet::new() }))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, AddrFilter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct AddrFilter {
    words: MappedArray<u64>,
    /// The words of blocks that are for services alone.
    full: BTreeSet<u32>,
}

impl AddrFilter {
    /// Lets `addr` be looked up.
    pub(super) fn add(&mut self, addr: Addr) {
        let AddrBit { word, mask } = AddrBit::of(addr);
        self.words.set(word, self.words.get(word) | mask);
    }

    /// Lets nothing be looked up but `addrs` and the prefixes of services. Returns in how many
    /// words something was not looked up that has to be.
    pub(super) fn retain(&mut self, addrs: impl Iterator<Item = Addr>) -> u64 {
        let mut words = vec![0; ADDR_WORDS as usize];
        for AddrBit { word, mask } in addrs.map(AddrBit::of) {
            words[word as usize] |= mask;
        }
        for &word in &self.full {
            words[word as usize] = u64::MAX;
        }
        let mut lost = 0;
        for (word, bits) in (0..).zip(words) {
            lost += u64::from(bits & !self.words.get(word) != 0);
            self.words.set(word, bits);
        }
        lost
    }

    /// Lets all of `prefixes` be looked up, and no longer those that came before.
    pub(super) fn cover(&mut self, prefixes: &BTreeSet<Prefix>) {
        self.full = prefixes.iter().flat_map(|prefix| words(*prefix)).collect();
        for &word in &self.full {
            self.words.set(word, u64::MAX);
        }
    }
}

/// The words of all blocks of `prefix`: of so large a prefix, all words.
fn words(prefix: Prefix) -> Vec<u32> {
    let block_bits = (Addr::BITS - 8).saturating_sub(prefix.bits);
    if block_bits >= ADDR_WORDS.ilog2() {
        return (0..ADDR_WORDS).collect();
    }
    let block = |number: u32| {
        let [w0, w1, w2, w3] = prefix.addr.words();
        let w3 = (u32::from_be(w3) & !0xff).wrapping_add(number << 8).to_be();
        AddrBit::of(Addr::from_words([w0, w1, w2, w3])).word
    };
    (0..1 << block_bits).map(block).collect()
}

impl fmt::Debug for AddrFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddrFilter").field("full", &self.full.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn word(addr: &str) -> u32 {
        AddrBit::of(addr.parse::<IpAddr>().unwrap().into()).word
    }

    #[test]
    fn prefix_has_the_words_of_all_its_addresses() {
        let of =
            |network: &str| words(Prefix::from(network.parse::<ipnetwork::IpNetwork>().unwrap()));
        for (network, count, inside) in [
            ("10.96.0.0/12", 4_096, ["10.96.0.1", "10.111.255.255"]),
            ("10.96.0.0/30", 1, ["10.96.0.1", "10.96.0.3"]),
            ("fd00:10:96::/108", 4_096, ["fd00:10:96::1", "fd00:10:96::f:ffff"]),
            ("fd00:10::/64", ADDR_WORDS as usize, ["fd00:10::1", "fd00:10::ffff:0:1"]),
        ] {
            let words = of(network);
            assert_eq!(words.len(), count, "{network}");
            assert!(inside.iter().all(|addr| words.contains(&word(addr))), "{network}");
        }
        assert!(!of("10.96.0.0/30").contains(&word("10.96.1.1")));
    }
}
