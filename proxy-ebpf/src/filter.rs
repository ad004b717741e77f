//! The filter of addresses: a small array by which a program leaves alone, at once, what can be of
//! no service.
//!
//! Most connections and packets of a node are of no service, and each lookup in a large hash map
//! costs a cache miss or two. An address that the filter does not know is certain to be none of
//! ours; one that it knows may still be another's, and then the tables decide as ever.
//!
//! It has a word for each block of 256 addresses, with a bit for those of them that end alike: one
//! bit is set for the address of a frontend, the whole word for a block that is for services
//! alone. The agent writes it.

use crate::addr::Addr;

/// Words of the filter of addresses; the 4,096 blocks of a /12, the largest prefix of services
/// that Kubernetes allows, set a thirty-second of them.
pub const ADDR_WORDS: u32 = 131_072;

/// A bit of the filter of addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AddrBit {
    /// The index of its word.
    pub word: u32,
    /// The word with only this bit set.
    pub mask: u64,
}

impl AddrBit {
    /// The bit of `addr`.
    #[inline(always)]
    pub const fn of(addr: Addr) -> Self {
        let (block, last) = addr.block();
        Self { word: block.digest() & (ADDR_WORDS - 1), mask: 1 << (last & 63) }
    }
}

const _: () = assert!(ADDR_WORDS.is_power_of_two());

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn blocks_of_addresses_spread_over_the_words() {
        let bit = |host: u32| AddrBit::of(Addr::from_v4_word(host.to_be()));
        let word = |block: u32| bit(0x0a60_0000 + (block << 8)).word;
        let mut words: Vec<_> = (0..4_096).map(word).collect();
        words.sort_unstable();
        words.dedup();
        // At random, 4,096 blocks share about 64 of 131,072 words.
        assert!(words.len() > 3_950, "4,096 blocks have {} words", words.len());
        let [first, last, next] = [0x0a60_0001, 0x0a60_00ff, 0x0a60_0002].map(bit);
        assert_eq!(first.word, last.word);
        assert_ne!(first.mask, next.mask);
    }
}
