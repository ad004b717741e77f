//! The network headers of an answer that a program makes of a packet.
//!
//! Takes addresses and lengths, gives words as they lie in a packet, with right checksums.

use crate::addr::{Addr, Proto};
use crate::checksum::Sum;

/// The length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// The length of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// The hop limit of answers: what the kernel gives its own packets.
const HOPS: u8 = 64;

/// The IPv4 header of an answer with `len` bytes behind the header. It is never fragmented, and
/// so needs no identification (RFC 6864).
#[inline(always)]
pub const fn ipv4(src: Addr, dst: Addr, proto: Proto, len: usize) -> [u32; IPV4_LEN / 4] {
    let [len_high, len_low] = ((IPV4_LEN + len) as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, 0, len_high, len_low]);
    let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let third = u32::from_ne_bytes([HOPS, proto.0, 0, 0]);
    let sum = Sum::ZERO.plus(first).plus(second).plus(third);
    let [c0, c1] = sum.plus(src.v4_word()).plus(dst.v4_word()).checksum().to_ne_bytes();
    let third = u32::from_ne_bytes([HOPS, proto.0, c0, c1]);
    [first, second, third, src.v4_word(), dst.v4_word()]
}

/// The IPv6 header of an answer with `len` bytes behind the header.
#[inline(always)]
pub const fn ipv6(src: Addr, dst: Addr, proto: Proto, len: usize) -> [u32; IPV6_LEN / 4] {
    let [len_high, len_low] = (len as u16).to_be_bytes();
    let second = u32::from_ne_bytes([len_high, len_low, proto.0, HOPS]);
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.words(), dst.words());
    [u32::from_ne_bytes([0x60, 0, 0, 0]), second, s0, s1, s2, s3, d0, d1, d2, d3]
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
pub const fn pseudo_header(src: Addr, dst: Addr, proto: Proto, len: usize) -> Sum {
    // The prefix of a mapped address adds 0xffff, which is zero in ones' complement.
    let addrs = Sum::ZERO.plus_all(src.words()).plus_all(dst.words());
    addrs.plus((len as u32).to_be()).plus((proto.0 as u32).to_be())
}

#[cfg(test)]
mod tests;
