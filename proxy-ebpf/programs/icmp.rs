//! ICMP errors about packets of a flow: the quoted packet is translated as well as the one that
//! quotes it, so that whoever sent it knows it again.
//!
//! An error that leaves seems to come from the end that the quoted packet was sent to, as with
//! netfilter: a client of a NodePort hears of a small MTU behind it from the node, which it knows
//! a way to, and not from a router among pods.
//!
//! By hand, and not by the kernel's helpers: every byte that changes is covered by a checksum that
//! changes with it, so the sum of the whole packet, which a device may have made, stays.

use crate::packet::{IPV4_CHECKSUM, addr_offset, checksum_offset};
use aya_ebpf::programs::TcContext;
use proxy_ebpf::checksum::{Sum, update};
use proxy_ebpf::flow::{End, Hook};
use proxy_ebpf::packet::Headers;
use proxy_ebpf::packet::answer::ICMP_LEN;
use proxy_ebpf::{Addr, Port, Proto};

/// Where an ICMP header has its checksum.
const CHECKSUM: usize = 2;

/// Rewrites an error at `hook` to `to`: its destination (ingress) or its source (egress), and the
/// other end of the quoted packet. `None` if the kernel refuses.
#[inline(never)]
pub(crate) fn rewrite(ctx: &TcContext, headers: &Headers, hook: Hook, to: &End) -> Option<()> {
    let Headers { network: quote, outer: network, .. } = *headers;
    let is_v4 = to.addr.is_v4();
    // The headers are those of the quoted packet in reverse.
    let (from, quoted, port) = match hook {
        Hook::Ingress => (headers.dst, Hook::Egress, headers.transport),
        Hook::Egress => (headers.src, Hook::Ingress, headers.transport + 2),
    };
    let outer = network + addr_offset(is_v4, hook);
    let addr = change(from.addr, to.addr);
    let outer_addr = change(load_addr(ctx, outer, is_v4)?, to.addr);
    let ports = Sum::ZERO.minus(from.port.network().into()).plus(to.port.network().into());

    let checksum = edit_quoted_checksum(ctx, headers, addr.and(ports));
    let mut change = ports.and(checksum);
    if is_v4 {
        // The sum of an IPv4 header stays, for its checksum is in it.
        edit_checksum(ctx, quote + IPV4_CHECKSUM, addr)?;
        edit_checksum(ctx, network + IPV4_CHECKSUM, outer_addr)?;
    } else {
        change = change.and(addr).and(outer_addr);
    }
    edit_checksum(ctx, quote - ICMP_LEN + CHECKSUM, change)?;
    store_addr(ctx, outer, to.addr)?;
    store_addr(ctx, quote + addr_offset(is_v4, quoted), to.addr)?;
    ctx.store(port, &to.port.network(), 0).ok()
}

/// Rewrites the port at `offset` of the packet that an error quotes. `None` if the kernel refuses.
#[inline(always)]
pub(crate) fn rewrite_port(
    ctx: &TcContext,
    headers: &Headers,
    offset: usize,
    from: Port,
    to: Port,
) -> Option<()> {
    let port = Sum::ZERO.minus(from.network().into()).plus(to.network().into());
    let checksum = edit_quoted_checksum(ctx, headers, port);
    edit_checksum(ctx, headers.network - ICMP_LEN + CHECKSUM, port.and(checksum))?;
    ctx.store(offset, &to.network(), 0).ok()
}

#[inline(always)]
fn change(from: Addr, to: Addr) -> Sum {
    Sum::ZERO.minus_all(from.words()).plus_all(to.words())
}

#[inline(always)]
fn load_addr(ctx: &TcContext, offset: usize, is_v4: bool) -> Option<Addr> {
    if is_v4 {
        ctx.load(offset).ok().map(Addr::from_v4_word)
    } else {
        ctx.load(offset).ok().map(Addr::from_words)
    }
}

#[inline(always)]
fn store_addr(ctx: &TcContext, offset: usize, addr: Addr) -> Option<()> {
    if addr.is_v4() {
        ctx.store(offset, &addr.v4_word(), 0).ok()
    } else {
        ctx.store(offset, &addr.words(), 0).ok()
    }
}

/// Applies `change` to the checksum at `offset`.
#[inline(always)]
fn edit_checksum(ctx: &TcContext, offset: usize, change: Sum) -> Option<()> {
    let old: u16 = ctx.load(offset).ok()?;
    ctx.store(offset, &update(old, change), 0).ok()
}

/// Applies `change` to the transport checksum of the quoted packet, if it has one and the quote
/// goes as far. Returns how that changes what quotes it.
#[inline(always)]
fn edit_quoted_checksum(ctx: &TcContext, headers: &Headers, change: Sum) -> Sum {
    let Some(offset) = checksum_offset(headers) else { return Sum::ZERO };
    let Ok(old) = ctx.load::<u16>(offset) else { return Sum::ZERO };
    let is_udp = headers.proto == Proto::UDP;
    if is_udp && old == 0 {
        return Sum::ZERO;
    }
    let new = match update(old, change) {
        0 if is_udp => u16::MAX,
        new => new,
    };
    match ctx.store(offset, &new, 0) {
        Ok(()) => Sum::ZERO.minus(old.into()).plus(new.into()),
        Err(_) => Sum::ZERO,
    }
}
