//! Writing the reply: the header, and what follows the question, which stays as the asker wrote
//! it (so that the case of its letters comes back, by which resolvers know their own queries).

use super::outcome::Outcome;
use super::{A, AAAA, HEADER, IN, LONGEST, MOST_RECORDS, Work, Zone};
use crate::addr::Addr;

/// A pointer to the name in the question (RFC 1035 section 4.1.4).
const OWNER: u16 = 0xc000 | HEADER as u16;
const SOA: u16 = 6;
const OPT: u8 = 41;
/// The length of the data of the SOA record.
const SOA_LEN: u16 = 42;
/// How long the answer that there is nothing is good for at most, in seconds.
const NEGATIVE_TTL: u32 = 300;
/// The length of an OPT record, in bytes.
const OPT_BYTES: usize = 11;
/// Refresh, retry and expiry of the SOA record, in seconds: CoreDNS's.
const TIMES: [u32; 3] = [7200, 1800, 86400];

/// The length of an A and of an AAAA record with a pointer for its name, in words, and of what is
/// before the address.
const V4_RECORD: usize = 4;
const V6_RECORD: usize = 7;
const RECORD_HEAD: usize = 3;
/// The length of the SOA record, in bytes.
const SOA_RECORD: usize = 12 + SOA_LEN as usize;

/// The addresses of all names.
pub trait Records {
    /// Record `index`.
    fn record(&self, index: u32) -> Option<Addr>;
}

/// A reply, but for the question.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// The header from the flags on: flags, and how many questions, answers, authorities and
    /// additional records there are. In network byte order.
    pub header: [u16; 5],
    zero: u16,
    /// How many bytes follow the question.
    len: u32,
    /// How many addresses there are.
    count: u64,
    /// What follows the question, in network byte order.
    pub tail: [u32; 512],
}

impl Reply {
    pub(super) const EMPTY: Self =
        Self { header: [0; 5], zero: 0, len: 0, count: 0, tail: [0; 512] };

    /// How many bytes follow the question.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing follows the question.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many addresses there are, read anew: the verifier would otherwise follow each number of
    /// rounds on its own, through everything that comes behind a loop.
    #[inline(always)]
    fn count(&self) -> u64 {
        // SAFETY: a reference is valid for reads.
        unsafe { (&raw const self.count).read_volatile() }
    }

    /// Puts `N` numbers at the end, in network byte order.
    #[inline(always)]
    fn put<const N: usize>(&mut self, numbers: [u16; N]) {
        let at = self.len as usize / 2;
        let halves = self.tail.as_mut_ptr().cast::<u16>();
        for (index, number) in numbers.into_iter().enumerate() {
            // SAFETY: the tail has 1,024 halves of words.
            unsafe { *halves.add((at + index) & 1023) = number.to_be() };
        }
        self.len += N as u32 * 2;
    }

    /// Word `at` of the tail.
    #[inline(always)]
    fn word(&mut self, at: usize) -> &mut u32 {
        &mut self.tail[at & 511]
    }
}

impl Work {
    /// Writes the reply for `outcome`, which is an answer, into [`Work::reply`]. Addresses come in
    /// an order that `random` chooses, uniform over all 32-bit numbers.
    #[inline(always)]
    pub fn write(
        &mut self,
        outcome: Outcome,
        zone: &Zone,
        records: &impl Records,
        random: u32,
    ) -> Result<(), Outcome> {
        let v6 = self.question.kind == AAAA;
        let (base, count) = self.value.records(v6);
        let has_data = matches!(outcome, Outcome::Addresses);
        let data = if !has_data {
            SOA_RECORD
        } else if v6 {
            count * V6_RECORD * 4
        } else {
            count * V4_RECORD * 4
        };
        let edns = if self.question.edns != 0 { OPT_BYTES } else { 0 };
        if self.question.end as usize + data + edns > self.question.room as usize {
            return Err(Outcome::TooLong);
        }
        self.write_header(outcome, if has_data { count as u16 } else { 0 });
        self.reply.len = 0;
        self.reply.count = count as u64;
        if has_data {
            if v6 {
                self.write_addresses::<V6_RECORD>(base, zone.ttl, records, random)?;
            } else {
                self.write_addresses::<V4_RECORD>(base, zone.ttl, records, random)?;
            }
        } else {
            self.write_soa(zone);
        }
        if edns != 0 {
            self.write_opt();
        }
        Ok(())
    }

    #[inline(always)]
    fn write_header(&mut self, outcome: Outcome, answers: u16) {
        // An authoritative reply; RD and CD as they came.
        let flags = 0x8400 | self.number(2) & 0x0110 | outcome.code();
        let authority = u16::from(!matches!(outcome, Outcome::Addresses));
        let header = [flags, 1, answers, authority, self.question.edns];
        for (place, number) in self.reply.header.iter_mut().zip(header) {
            *place = number.to_be();
        }
    }

    /// The records of a family, in a uniformly random order (Fisher and Yates, inside out): a mere
    /// rotation would give a dead endpoint's load to its neighbour. Not one loop for both families:
    /// the verifier would follow the choice anew in each round.
    #[inline(always)]
    fn write_addresses<const N: usize>(
        &mut self,
        base: u32,
        ttl: u32,
        records: &impl Records,
        random: u32,
    ) -> Result<(), Outcome> {
        let [high, low] = halves(ttl);
        let len = (N - RECORD_HEAD) as u16 * 4;
        let kind = if N == V6_RECORD { AAAA } else { A };
        let head = [word(OWNER, kind), word(IN, high), word(low, len)];
        let mut state = random;
        for index in 0..MOST_RECORDS {
            if index as u64 >= self.reply.count() {
                break;
            }
            state = state.wrapping_mul(0x915f_77f5).wrapping_add(0x9e37_79b9);
            let mixed = (state ^ state >> 15).wrapping_mul(0x2c1b_3c6d);
            let other = (u64::from(mixed ^ mixed >> 13) * (index as u64 + 1)) >> 32;
            let addr = records.record(base.wrapping_add(index as u32)).ok_or(Outcome::Changed)?;
            for (place, head) in head.into_iter().enumerate() {
                *self.reply.word(index * N + place) = head;
            }
            let words = addr.words();
            for (place, given) in words[4 - (N - RECORD_HEAD)..].iter().enumerate() {
                let place = RECORD_HEAD + place;
                let moved = *self.reply.word(other as usize * N + place);
                *self.reply.word(index * N + place) = moved;
                *self.reply.word(other as usize * N + place) = *given;
            }
        }
        self.reply.len = (self.reply.count() * N as u64 * 4) as u32;
        Ok(())
    }

    /// `ns.dns.<zone> hostmaster.<zone> …`: what RFC 2308 wants with an answer that there is
    /// nothing.
    #[inline(always)]
    fn write_soa(&mut self, zone: &Zone) {
        let origin = 0xc000 | self.question.zone as u16;
        let (ttl, serial) = (zone.ttl, zone.serial);
        let [high, low] = halves(if ttl < NEGATIVE_TTL { ttl } else { NEGATIVE_TTL });
        self.reply.put([origin, SOA, IN, high, low, SOA_LEN]);
        let text = |bytes: [u8; 2]| u16::from_be_bytes(bytes);
        self.reply.put([text(*b"\x02n"), text(*b"s\x03"), text(*b"dn")]);
        let [origin_high, origin_low] = origin.to_be_bytes();
        // The odd byte of "dns" moves everything behind by one.
        self.reply.put([text([b's', origin_high]), text([origin_low, 10])]);
        self.reply.put([text(*b"ho"), text(*b"st"), text(*b"ma"), text(*b"st"), text(*b"er")]);
        self.reply.put([origin]);
        for number in [serial, TIMES[0], TIMES[1], TIMES[2], ttl] {
            self.reply.put(halves(number));
        }
    }

    #[inline(always)]
    fn write_opt(&mut self) {
        // The root's one byte moves everything behind by one.
        let [size_high, size_low] = LONGEST.to_be_bytes();
        let [flags_high, flags_low] = self.question.edns_flags.to_be_bytes();
        let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        self.reply.put([0, pair(OPT, size_high), pair(size_low, 0)]);
        self.reply.put([pair(0, flags_high), pair(flags_low, 0), 0]);
        self.reply.len -= 1;
    }
}

/// Two halves of a word as they follow each other, in network byte order.
#[inline(always)]
const fn word(first: u16, second: u16) -> u32 {
    ((first as u32) << 16 | second as u32).to_be()
}

#[inline(always)]
const fn halves(number: u32) -> [u16; 2] {
    [(number >> 16) as u16, number as u16]
}
