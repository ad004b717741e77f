//! Answers about names of the cluster zone: DNS.
//!
//! Takes a query as it lies in a datagram and the tables of names; gives the reply, or why there
//! is none and the query goes on to the DNS service. All of it is the same code in the kernel and
//! on the host, in three steps over one [`Work`], which the program keeps out of its small stack:
//! [`query`] reads the question, [`decide`] finds what is known of the name, [`reply`] writes the
//! answer. It never guesses: whatever is not plainly a question that the tables answer, passes.

pub mod datagram;
pub mod decide;
pub mod name;
pub mod outcome;
pub mod query;
pub mod reply;
pub mod zone;

pub use name::{NameKey, NameKind, NameValue};
pub use outcome::{Kind, Outcome};
pub use zone::Zone;

use datagram::Datagram;

/// The port of DNS.
pub const PORT: u16 = 53;
/// The length of the header of a DNS message (RFC 1035 section 4.1.1).
pub const HEADER: usize = 12;
/// How many bytes of a query are read: the longest question that is answered, and the head of an
/// OPT record.
pub const READ: usize = 256;
/// The longest answer over UDP; every link carries it in one piece (DNS flag day 2020).
pub const LONGEST: u16 = 1232;
/// More addresses than this in no answer of [`LONGEST`] bytes.
pub const MOST_RECORDS: usize = 76;

/// The type A (RFC 1035 section 3.2.2).
pub const A: u16 = 1;
/// The type AAAA (RFC 3596).
pub const AAAA: u16 = 28;
/// The class IN.
pub const IN: u16 = 1;

/// A query in work.
///
/// The query's bytes lie in words, the first byte in the lowest bits, because the programs
/// compare and copy words. Numbers are as wide as registers where nothing asks for less, so that
/// the verifier need not follow casts.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The first [`READ`] bytes of the query; the rest is zero, and room to read beyond the end.
    pub query: [u64; 64],
    /// How the query came.
    pub datagram: Datagram,
    /// The question, once it is read.
    pub question: query::Question,
    /// The name that was looked up last.
    pub key: NameKey,
    /// What is known of the name in question.
    pub value: NameValue,
    /// What follows the question in the reply.
    pub reply: reply::Reply,
    /// Whether the device that the query came by has another end in the asker's namespace.
    pub has_peer: bool,
}

impl Work {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        query: [0; 64],
        datagram: Datagram::EMPTY,
        question: query::Question::EMPTY,
        key: NameKey::EMPTY,
        value: NameValue::NONE,
        reply: reply::Reply::EMPTY,
        has_peer: false,
    };

    /// The number of the query, in network byte order.
    #[inline(always)]
    pub const fn id(&self) -> u16 {
        let [low, high, ..] = self.query[0].to_le_bytes();
        u16::from_ne_bytes([low, high])
    }

    /// The byte of the query at `at`.
    #[inline(always)]
    fn byte(&self, at: usize) -> usize {
        (self.query[(at >> 3) & 63] >> ((at & 7) * 8)) as usize & 0xff
    }

    /// Two bytes of the query, in the order of the network.
    #[inline(always)]
    fn number(&self, at: usize) -> u16 {
        (self.byte(at) << 8 | self.byte(at + 1)) as u16
    }

    /// Eight bytes of the query, the first one lowest.
    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        let (index, shift) = (at >> 3, (at & 7) as u32 * 8);
        let (low, high) = (self.query[index & 63], self.query[(index + 1) & 63]);
        low >> shift | high << 1 << (63 - shift)
    }
}

/// The `index`th word of the lower-case form of a name of `len` bytes, whose bytes there are those
/// of `word`; zero behind its end.
///
/// Length octets are below 64, and so are no letters.
#[inline(always)]
const fn lower(word: u64, index: usize, len: usize) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let low = word & (0x7f * ONES);
    let from_a = low + (0x80 - b'A' as u64) * ONES;
    let above_z = low + (0x7f - b'Z' as u64) * ONES;
    let upper = (from_a ^ above_z) & !word & (0x80 * ONES);
    let begin = index * 8;
    let mask = if len >= begin + 8 {
        u64::MAX
    } else if len <= begin {
        0
    } else {
        !(u64::MAX << (((len - begin) & 7) * 8))
    };
    (word | upper >> 2) & mask
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
