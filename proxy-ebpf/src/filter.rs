//! Filters: small arrays by which a program leaves alone, at once, what can be of no service.
//!
//! Most connections and packets of a node are of no service, and each lookup in a large hash map
//! costs a cache miss or two. What a filter does not know is certain to be none of ours; what it
//! knows may still be another's, and then the tables decide as ever.
//!
//! The filter of addresses has a word for each block of 256 addresses, with a bit for those of
//! them that end alike: one bit is set for the address of a frontend or of a retired backend, the
//! whole word for a block that is for services alone. The agent writes it. The filter of flows has
//! a byte for each entry that [`is_of_flow`]: the generation in which it was last known. Programs
//! write it when they make an entry, and the agent for all that it finds in each new generation.
//! Nothing is ever taken back that a program may be about to share: bytes of the last three
//! generations count, the third for a program that was slow to write.

use crate::addr::{Addr, finish};
use crate::flow::{End, FlowFlags, FlowKey, FlowValue, Hook};

/// Words of the filter of addresses; the 4,096 blocks of a /12, the largest prefix of services
/// that Kubernetes allows, set a thirty-second of them.
pub const ADDR_WORDS: u32 = 131_072;
/// Bytes of the filter of flows, two for each entry of a full table.
pub const FLOW_BYTES: u32 = 1 << 20;
/// Elements of eight bytes in the filter of flows: its bytes, and one that is the generation.
pub const FLOW_ELEMENTS: u32 = GENERATION + 1;
/// The element of the filter of flows that holds the generation.
pub const GENERATION: u32 = FLOW_BYTES / 8;

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

/// Whether the packets of the entry `value` under `key` are known by the filter of flows. Those
/// from clients to frontends are known by the other one.
#[inline(always)]
pub const fn is_of_flow(key: &FlowKey, value: &FlowValue) -> bool {
    matches!(key.hook(), Hook::Egress) || value.flags.has(FlowFlags::REPLY)
}

/// The byte of the filter of flows for the packets from `src` to `dst`.
///
/// A client takes ports in steps of two (`ip_local_port_range`), so those of the connections that
/// it opens one after another share a cache line: every packet of a new connection reads a byte,
/// and at random places each would miss the cache.
#[inline(always)]
pub const fn flow_byte(src: End, dst: End) -> u32 {
    let (from, to) = (src.port.number() as u64, dst.port.number() as u64);
    let addrs = src.addr.spread().rotate_left(24).wrapping_add(dst.addr.spread());
    let line = finish(addrs ^ (from << 16 | to) & !(IN_LINE << 16 | IN_LINE));
    let in_line = ((from ^ to) & IN_LINE) >> 1;
    (line << 6 | in_line as u32) & (FLOW_BYTES - 1)
}

/// The bits of a port that tell the bytes of a cache line apart.
const IN_LINE: u64 = 63 << 1;

/// A state of the filter of flows.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generation(pub u8);

impl Generation {
    /// The one after this; never 0, which an empty filter holds.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(if self.0 == u8::MAX { 1 } else { self.0 + 1 })
    }

    /// Whether what was last known in the generation `known` counts in this one. In the first one
    /// everything does.
    #[inline(always)]
    pub const fn counts(self, known: u8) -> bool {
        let known = Self(known);
        let second = known.next();
        self.0 == 0
            || known.0 != 0
                && (known.0 == self.0 || second.0 == self.0 || second.next().0 == self.0)
    }
}

const _: () = assert!(ADDR_WORDS.is_power_of_two() && FLOW_BYTES.is_power_of_two());

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::flow::Stamp;
    use crate::service::ServiceId;
    use crate::slot::BackendId;
    use crate::{Port, Proto};
    use std::vec::Vec;

    fn end(last: u32, port: u16) -> End {
        End { addr: Addr::from_v4_word(last.to_be()), port: Port::new(port) }
    }

    #[test]
    fn blocks_of_addresses_spread_over_the_words() {
        let word = |block: u32| AddrBit::of(end(0x0a60_0000 + (block << 8), 0).addr).word;
        let mut words: Vec<_> = (0..4_096).map(word).collect();
        words.sort_unstable();
        words.dedup();
        // At random, 4,096 blocks share about 64 of 131,072 words.
        assert!(words.len() > 3_950, "4,096 blocks have {} words", words.len());
        let [first, last, next] =
            [0x0a60_0001, 0x0a60_00ff, 0x0a60_0002].map(|host| AddrBit::of(end(host, 0).addr));
        assert_eq!(first.word, last.word);
        assert_ne!(first.mask, next.mask);
    }

    #[test]
    fn directions_and_ports_of_one_pair_differ() {
        let (a, b) = (end(0x0a01_0001, 40_000), end(0x0a01_0002, 80));
        assert_ne!(flow_byte(a, b), flow_byte(b, a));
        let mut bytes: Vec<_> =
            (0..1_000).map(|port| flow_byte(b, end(0x0a01_0001, 40_000 + port))).collect();
        bytes.sort_unstable();
        bytes.dedup();
        assert!(bytes.len() > 990, "only {} bytes for 1,000 ports", bytes.len());
    }

    #[test]
    fn connections_one_after_another_share_cache_lines_and_others_do_not() {
        let bytes = |client: u32, step: u16| -> Vec<u32> {
            let client = |i| end(client, 32_768 + step * i);
            (0..64).map(|i| flow_byte(end(0x0a01_0002, 80), client(i))).collect()
        };
        let lines = |mut bytes: Vec<u32>| {
            bytes.iter_mut().for_each(|byte| *byte /= 64);
            bytes.sort_unstable();
            bytes.dedup();
            bytes.len()
        };
        assert_eq!(lines(bytes(0x0a01_0001, 2)), 1);
        assert!(lines(bytes(0x0a01_0001, 128)) > 60);
        assert!(lines((0..64).map(|client| bytes(client, 2)[0]).collect()) > 60);
    }

    #[test]
    fn what_was_known_counts_for_two_more_generations() {
        let counts = |now: Generation, known: Generation| now.counts(known.0);
        let mut generation = Generation(1);
        for _ in 0..1_000 {
            let [second, third] = [generation.next(), generation.next().next()];
            assert!([generation, second, third].iter().all(|now| counts(*now, generation)));
            assert!(!counts(third.next(), generation) && !generation.counts(0));
            generation = second;
        }
    }

    #[test]
    fn flow_is_known_by_all_entries_but_the_one_from_client_to_frontend() {
        let (client, frontend, backend, snat) =
            (end(1, 40_000), end(2, 80), end(3, 8080), end(4, 1024));
        let value = |to, flags| FlowValue::new(to, flags, ServiceId(1), BackendId(1), Stamp(0));
        let known = |hook, src, dst, to, flags| {
            is_of_flow(&FlowKey::new(hook, src, dst, Proto::TCP), &value(to, flags))
        };
        let (there, back) = (FlowFlags::SNAT, FlowFlags::SNAT.with(FlowFlags::REPLY));
        assert!(!known(Hook::Ingress, client, frontend, backend, there));
        assert!(known(Hook::Egress, client, backend, snat, there));
        assert!(known(Hook::Ingress, backend, snat, client, back));
        assert!(known(Hook::Egress, backend, client, frontend, back));
    }
}
