//! The headers of answers to packets that are refused: a reset to TCP, "port unreachable" to
//! everything else.
//!
//! Takes what the refused packet says of itself, gives words as they lie in a packet. Their
//! checksums are right but for TCP's, which only the kernel can place where a device is to
//! finish it.

use super::TcpFlags;
use crate::addr::{Addr, Proto};
use crate::checksum::Sum;

/// The length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// The length of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// The length of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// The length of the header of an ICMP error.
pub const ICMP_LEN: usize = 8;
/// Where a TCP header has its checksum.
pub const TCP_CHECKSUM: usize = 16;

/// The hop limit of answers: what the kernel gives its own packets.
const HOPS: u8 = 64;
/// Precedence "internetwork control" for errors (RFC 1812 section 4.3.2.5).
const CONTROL: u8 = 0xc0;

/// How many bytes an error quotes at most, in either family.
pub const QUOTE_LEN: usize = quote_len(Addr::UNSPECIFIED_V6);

/// How many bytes an IP header of the family of `addr` has.
#[inline(always)]
pub const fn ip_len(addr: Addr) -> usize {
    if addr.is_v4() { IPV4_LEN } else { IPV6_LEN }
}

/// How many bytes of a packet of the family of `addr` an error quotes at most: the answer is no
/// longer than what every link carries (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c).
#[inline(always)]
pub const fn quote_len(addr: Addr) -> usize {
    let most = if addr.is_v4() { 576 } else { 1280 };
    most - ip_len(addr) - ICMP_LEN
}

/// Whether a packet from `addr` may be answered: the address is that of one machine, and not of
/// the one that answers (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
#[inline(always)]
pub const fn is_answerable(addr: Addr) -> bool {
    let first = addr.words()[if addr.is_v4() { 3 } else { 0 }].to_ne_bytes()[0];
    let is_many = if addr.is_v4() { first >= 224 } else { first == 0xff };
    let is_nobody = addr.is_unspecified() || addr.is_v4() && first == 0;
    !is_many && !is_nobody && !addr.is_loopback()
}

/// The IPv4 header of an answer with `len` bytes behind the header. It is never fragmented, and
/// so needs no identification (RFC 6864).
#[inline(always)]
pub const fn ipv4(src: Addr, dst: Addr, proto: Proto, len: usize) -> [u32; IPV4_LEN / 4] {
    let tos = if proto.0 == Proto::ICMP.0 { CONTROL } else { 0 };
    let [len_high, len_low] = ((IPV4_LEN + len) as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, tos, len_high, len_low]);
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

/// The reset that answers the segment with the header `tcp` and `payload` bytes behind it, where
/// there is no connection (RFC 9293 section 3.10.7.1); its checksum is zero.
#[inline(always)]
pub const fn reset(tcp: [u32; TCP_LEN / 4], payload: u32) -> [u32; TCP_LEN / 4] {
    let [ports, sequence, acknowledgement, control, _] = tcp;
    let flags = TcpFlags(control.to_ne_bytes()[1]);
    let ports = ports.rotate_left(16);
    if flags.ack() {
        return [ports, acknowledgement, 0, u32::from_ne_bytes([0x50, 0x04, 0, 0]), 0];
    }
    let len = payload + flags.syn() as u32 + flags.fin() as u32;
    let next = u32::from_be(sequence).wrapping_add(len);
    [ports, 0, next.to_be(), u32::from_ne_bytes([0x50, 0x14, 0, 0]), 0]
}

/// The ICMP of the family of `addr`.
#[inline(always)]
pub const fn icmp(addr: Addr) -> Proto {
    if addr.is_v4() { Proto::ICMP } else { Proto::ICMPV6 }
}

/// The header of the ICMP error "port unreachable" (RFC 792, RFC 4443 section 3.1) from `src` to
/// `dst`, which quotes `len` bytes whose sum is `quote`.
#[inline(always)]
pub const fn unreachable(src: Addr, dst: Addr, len: usize, quote: Sum) -> [u32; ICMP_LEN / 4] {
    let (kind, code, sum) = if src.is_v4() {
        (3, 3, quote)
    } else {
        let pseudo = pseudo_header(src, dst, Proto::ICMPV6, ICMP_LEN + len);
        (1, 4, quote.plus(pseudo.word()))
    };
    let [c0, c1] = sum.plus(u32::from_ne_bytes([kind, code, 0, 0])).checksum().to_ne_bytes();
    [u32::from_ne_bytes([kind, code, c0, c1]), 0]
}

#[cfg(test)]
mod tests;
