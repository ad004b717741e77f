//! Answers to packets that are refused: a reset to TCP, ICMP's "port unreachable" to the rest.
//!
//! Takes the packet that asked and makes the answer of it in place, from the address that was
//! asked; the caller sends it back by the device that it came from. Unlike the kernel's own
//! errors these have no rate limit: a client must not wait for a retransmission to learn that it
//! is refused, and an answer is hardly longer than what provoked it.

use crate::ETHERNET;
use crate::maps::scratch;
use crate::packet::is_unfinished;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use core::ptr;
use proxy_ebpf::Proto;
use proxy_ebpf::checksum::Sum;
use proxy_ebpf::flow::Hook;
use proxy_ebpf::packet::Headers;
use proxy_ebpf::packet::answer::{
    self, ICMP_LEN, QUOTE_LEN, TCP_CHECKSUM, TCP_LEN, ip_len, is_answerable, quote_len,
};

/// How many bytes are summed up at once.
const CHUNK: usize = 64;
const UDP_CHECKSUM: usize = 6;

/// `pkt_type` of a packet that the link has sent to all, or to many (linux/if_packet.h).
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

/// Makes the packet at ingress the answer to itself. `false` if it must not have one, or the
/// kernel refuses; then the packet is good for nothing.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext) -> bool {
    reject(ctx.skb.skb) == 0
}

/// A global function: the verifier checks it once and by itself, and a static one again for each
/// state in which it is called. Global functions take nothing but the context and numbers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn reject(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let answered = scratch(Hook::Ingress).and_then(|scratch| become_answer(&ctx, &scratch.headers));
    if answered.is_some() { 0 } else { -1 }
}

#[inline(always)]
fn become_answer(ctx: &TcContext, headers: &Headers) -> Option<()> {
    // SAFETY: the context is valid for the whole program; the verifier checks the access.
    let cast = unsafe { (*ctx.skb.skb).pkt_type };
    if !is_answerable(headers.src.addr) || cast == PACKET_BROADCAST || cast == PACKET_MULTICAST {
        return None;
    }
    let (proto, len) = if headers.proto == Proto::TCP {
        (Proto::TCP, reset(ctx, headers)?)
    } else {
        (answer::icmp(headers.dst.addr), unreachable(ctx, headers)?)
    };
    address(ctx, headers, proto, len)
}

/// Puts the reset in the place of the segment. Returns how many bytes follow the IP header.
#[inline(always)]
fn reset(ctx: &TcContext, headers: &Headers) -> Option<usize> {
    let (src, dst) = (headers.dst.addr, headers.src.addr);
    let tcp: [u32; TCP_LEN / 4] = ctx.load(headers.transport).ok()?;
    let data = headers.transport + usize::from(tcp[3].to_ne_bytes()[0] >> 4) * 4;
    let end = headers.network + packet_len(ctx, headers)?;
    let reset = answer::reset(tcp, end.saturating_sub(data) as u32);

    cut(ctx, headers.transport + TCP_LEN)?;
    let transport = headers.network + ip_len(src);
    shift(ctx, headers.transport, transport)?;
    ctx.store(transport, &reset, 0).ok()?;
    // The kernel leaves out of the checksum what a device is to add.
    let body = reset.iter().fold(Sum::ZERO, |sum, word| sum.plus(*word));
    let pseudo = answer::pseudo_header(src, dst, Proto::TCP, TCP_LEN);
    let checksum = transport + TCP_CHECKSUM;
    ctx.l4_csum_replace(checksum, 0, body.word().into(), 0).ok()?;
    ctx.l4_csum_replace(checksum, 0, pseudo.word().into(), BPF_F_PSEUDO_HDR.into()).ok()?;
    Some(TCP_LEN)
}

/// Puts the header of an ICMP error before the packet, which it quotes. Returns how many bytes
/// follow the IP header.
#[inline(always)]
fn unreachable(ctx: &TcContext, headers: &Headers) -> Option<usize> {
    let (src, dst) = (headers.dst.addr, headers.src.addr);
    let len = packet_len(ctx, headers)?.min(quote_len(src));
    let end = headers.network + len;
    cut(ctx, end)?;
    let quote = match unfinished_checksum(ctx, headers) {
        // What the device will make of the quoted datagram sums up to the inverse.
        Some(pseudo) => sum(ctx, headers.network, headers.transport)?.minus(pseudo.into()),
        None => sum(ctx, headers.network, end)?,
    };
    let icmp = headers.network + ip_len(src);
    shift(ctx, headers.network, icmp + ICMP_LEN)?;
    ctx.store(icmp, &answer::unreachable(src, dst, len, quote), 0).ok()?;
    Some(ICMP_LEN + len)
}

/// Gives the answer its IP header and sends it back on the link.
#[inline(always)]
fn address(ctx: &TcContext, headers: &Headers, proto: Proto, len: usize) -> Option<()> {
    let (src, dst) = (headers.dst.addr, headers.src.addr);
    if src.is_v4() {
        ctx.store(headers.network, &answer::ipv4(src, dst, proto, len), 0).ok()?;
    } else {
        ctx.store(headers.network, &answer::ipv6(src, dst, proto, len), 0).ok()?;
    }
    if headers.network == ETHERNET {
        let [d0, d1, d2, s0, s1, s2]: [u16; 6] = ctx.load(0).ok()?;
        ctx.store(0, &[s0, s1, s2, d0, d1, d2], 0).ok()?;
    }
    Some(())
}

/// How long the packet is by its IP header; the link may have padded it.
#[inline(always)]
fn packet_len(ctx: &TcContext, headers: &Headers) -> Option<usize> {
    let len = if headers.dst.addr.is_v4() {
        usize::from(u16::from_be(ctx.load(headers.network + 2).ok()?))
    } else {
        usize::from(u16::from_be(ctx.load(headers.network + 4).ok()?)) + answer::IPV6_LEN
    };
    Some(len.min((ctx.len() as usize).checked_sub(headers.network)?))
}

/// Cuts the packet off behind `len` bytes.
#[inline(always)]
fn cut(ctx: &TcContext, len: usize) -> Option<()> {
    // A packet that grows loses the sum that a device has made of it (CHECKSUM_COMPLETE), and
    // which every edit would have to keep right.
    for len in [len, len + 1, len] {
        // SAFETY: the context is valid; the kernel checks the length.
        if unsafe { bpf_skb_change_tail(ctx.skb.skb, len as u32, 0) } != 0 {
            return None;
        }
    }
    Some(())
}

/// Moves what lies behind the link header so that the byte at `from` comes to lie at `to`.
#[inline(always)]
fn shift(ctx: &TcContext, from: usize, to: usize) -> Option<()> {
    if from == to {
        return Some(());
    }
    ctx.adjust_room(to as i32 - from as i32, BPF_ADJ_ROOM_MAC, 0).ok()
}

/// The checksum field of a datagram whose checksum a device has yet to make (CHECKSUM_PARTIAL):
/// the sum of its pseudo header. `None` if it is whole.
#[inline(always)]
fn unfinished_checksum(ctx: &TcContext, headers: &Headers) -> Option<u16> {
    if headers.proto != Proto::UDP {
        return None;
    }
    let offset = headers.transport + UDP_CHECKSUM;
    if is_unfinished(ctx, offset)? { ctx.load(offset).ok() } else { None }
}

/// The sum of the packet's bytes from `start` to `end`.
#[inline(always)]
fn sum(ctx: &TcContext, start: usize, end: usize) -> Option<Sum> {
    // No packet is all zeroes.
    match sum_bytes(ctx.skb.skb, start, end as i64 - start as i64) {
        0 => None,
        sum => Some(Sum::ZERO.plus(sum)),
    }
}

/// The sum of `left` bytes from `offset` on, 0 if there are not as many. Global, as above.
///
/// The length is signed because the verifier of Linux 6.1 learns from `left <= 0` what it does
/// not from `left == 0`.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn sum_bytes(skb: *mut __sk_buff, mut offset: usize, mut left: i64) -> u32 {
    let mut sum = 0;
    for _ in 0..QUOTE_LEN.div_ceil(CHUNK) {
        if left <= 0 {
            break;
        }
        let len = left.min(CHUNK as i64) as u32;
        let mut bytes = [0_u32; CHUNK / 4];
        let to = bytes.as_mut_ptr();
        // SAFETY: the buffer has at least `len` bytes, and the kernel checks the packet's.
        if unsafe { bpf_skb_load_bytes(skb.cast(), offset as u32, to.cast(), len) } != 0 {
            return 0;
        }
        // SAFETY: the buffer has `CHUNK` bytes, a multiple of four.
        sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, to, CHUNK as u32, sum) as u32 };
        offset += CHUNK;
        left -= CHUNK as i64;
    }
    sum
}
