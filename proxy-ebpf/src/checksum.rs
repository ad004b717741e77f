//! The Internet checksum (RFC 1071): sums of 16-bit words in ones' complement.
//!
//! Words are taken as they lie in a packet, whatever the byte order of the machine: the sum of
//! swapped words is the swapped sum. Never reads a packet.

/// A sum of words, not yet folded to 16 bits.
#[derive(Clone, Copy, Debug)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// This sum and `word`: 32 bits, or 16 bits in either half.
    #[must_use]
    #[inline(always)]
    pub const fn plus(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// This sum and all `words`.
    #[must_use]
    #[inline(always)]
    pub const fn plus_all(self, words: [u32; 4]) -> Self {
        self.plus(words[0]).plus(words[1]).plus(words[2]).plus(words[3])
    }

    /// This sum and `other`.
    #[must_use]
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        self.plus(other.word())
    }

    /// The sum in 32 bits, as the kernel's helpers take it.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }

    /// The checksum of what was summed.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        let sum = self.word();
        let sum = (sum & 0xffff) + (sum >> 16);
        !((sum & 0xffff) + (sum >> 16)) as u16
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn sum(words: &[u32]) -> Sum {
        words.iter().fold(Sum::ZERO, |sum, word| sum.plus(*word))
    }

    #[test]
    fn the_example_of_rfc_1071_has_its_sum() {
        let words = [[0x00, 0x01, 0xf2, 0x03], [0xf4, 0xf5, 0xf6, 0xf7]].map(u32::from_ne_bytes);
        assert_eq!(sum(&words).checksum().to_ne_bytes(), [!0xdd, !0xf2]);
    }
}
