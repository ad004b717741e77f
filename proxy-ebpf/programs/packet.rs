//! The packet path: reading and rewriting packets at tcx.

use crate::{fragment, icmp};
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect};
use aya_ebpf::programs::TcContext;
use proxy_ebpf::flow::{End, Hook};
use proxy_ebpf::packet::{self, Form, Headers, Packet, Unread};
use proxy_ebpf::{Addr, Port, Proto};

/// Since Linux 6.16 and in stable kernels of that time; keeps CHECKSUM_COMPLETE right for IPv6,
/// where no header checksum balances a changed address.
const BPF_F_IPV6: u64 = 1 << 7;

/// The bits of a VLAN tag that say which VLAN it is; those above are the priority.
const VLAN_ID: u32 = 0xfff;

/// Where an IPv4 header has its checksum.
pub(crate) const IPV4_CHECKSUM: usize = 10;

/// A packet at its hook.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.0.load(offset).ok()
    }
}

/// A first look at the packet, whose network header begins at `network`; see [`packet::peek`].
#[inline(always)]
pub(crate) fn peek(ctx: &TcContext, network: usize) -> Option<packet::Peek> {
    // SAFETY: the context is valid for the whole program; the verifier checks the access.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    packet::peek(&Skb(ctx), u16::from_be(protocol as u16), network)
}

/// Reads the headers of the packet, whose network header begins at `network`, into `headers`.
#[inline(never)]
pub(crate) fn read(ctx: &TcContext, network: usize, headers: &mut Headers) -> Result<(), Unread> {
    // SAFETY: the context is valid for the whole program; the verifier checks the accesses.
    let (protocol, tag) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_tci) };
    // A VLAN's packet on the parent of the VLAN's device is seen again on that device. A tag for
    // VLAN 0 gives a priority only: the packet is the parent's own (IEEE 802.1Q, table 9-2).
    if tag & VLAN_ID != 0 {
        return Err(Unread::NotOurs);
    }
    *headers = packet::read(&Skb(ctx), u16::from_be(protocol as u16), network)?;
    Ok(())
}

/// Rewrites the destination (ingress) or the source (egress) of the packet to `to`, which is of
/// the same family, and repairs the checksums. `None` if the kernel refuses or cannot.
#[inline(always)]
pub(crate) fn translate(ctx: &TcContext, headers: &Headers, hook: Hook, to: &End) -> Option<()> {
    match headers.form {
        Form::Error => icmp::rewrite(ctx, headers, hook, to),
        _ => rewrite(ctx, headers, hook, to),
    }
}

/// [`translate`] for all but ICMP errors.
#[inline(never)]
pub(crate) fn rewrite(ctx: &TcContext, headers: &Headers, hook: Hook, to: &End) -> Option<()> {
    if headers.form == Form::First {
        fragment::remember(headers, hook);
    }
    if headers.has_transport() {
        rewrite_transport(ctx, headers, hook, to)?;
    }
    rewrite_addr(ctx, headers, hook, to)
}

/// Rewrites the port of the end that `hook` does not rewrite, the client's, to `to`, and repairs
/// the checksums. `None` if the kernel refuses.
#[inline(never)]
pub(crate) fn translate_port(
    ctx: &TcContext,
    headers: &Headers,
    hook: Hook,
    to: Port,
) -> Option<()> {
    let (from, offset) = match hook {
        Hook::Ingress => (headers.src.port, headers.transport),
        Hook::Egress => (headers.dst.port, headers.transport + 2),
    };
    match headers.form {
        // The quoted packet went the other way.
        Form::Error => {
            let offset = if hook == Hook::Ingress { offset + 2 } else { offset - 2 };
            icmp::rewrite_port(ctx, headers, offset, from, to)
        }
        Form::Later => Some(()),
        Form::Whole | Form::First => {
            let mangled =
                if headers.proto == Proto::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
            let (old, new) = (u64::from(from.network()), u64::from(to.network()));
            ctx.l4_csum_replace(checksum_offset(headers)?, old, new, mangled | 2).ok()?;
            ctx.store(offset, &to.network(), 0).ok()
        }
    }
}

/// Rewrites a port, and repairs the transport checksum for the new address and port.
///
/// By the kernel's helpers and not by hand: they also do it right for packets whose checksum
/// the device has yet to fill in (CHECKSUM_PARTIAL) or has summed up (CHECKSUM_COMPLETE).
#[inline(always)]
fn rewrite_transport(ctx: &TcContext, headers: &Headers, hook: Hook, to: &End) -> Option<()> {
    let from = rewritten(headers, hook);
    if let Some(offset) = checksum_offset(headers) {
        let mangled = if headers.proto == Proto::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let diff = addr_diff(from.addr, to.addr);
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
        let is_v4 = from.addr.is_v4();
        if is_v4 || ctx.l4_csum_replace(offset, 0, diff, flags | BPF_F_IPV6).is_err() {
            ctx.l4_csum_replace(offset, 0, diff, flags).ok()?;
        }
        let (old, new) = (u64::from(from.port.network()), u64::from(to.port.network()));
        if old != new {
            ctx.l4_csum_replace(offset, old, new, mangled | 2).ok()?;
        }
    } else if from.port != to.port {
        // SCTP's checksum is a CRC32c over the whole packet, but not over the addresses.
        return None;
    }
    let port = headers.transport + if hook == Hook::Ingress { 2 } else { 0 };
    ctx.store(port, &to.port.network(), 0).ok()
}

/// Rewrites an address, and the checksum of its header.
#[inline(always)]
fn rewrite_addr(ctx: &TcContext, headers: &Headers, hook: Hook, to: &End) -> Option<()> {
    let from = rewritten(headers, hook);
    let is_v4 = from.addr.is_v4();
    let offset = headers.network + addr_offset(is_v4, hook);
    if is_v4 {
        let diff = addr_diff(from.addr, to.addr);
        ctx.l3_csum_replace(headers.network + IPV4_CHECKSUM, 0, diff, 0).ok()?;
        return ctx.store(offset, &to.addr.v4_word(), 0).ok();
    }
    // Nothing in a later fragment of IPv6 makes up for the address in the sum of a device.
    let is_later = headers.form == Form::Later;
    let flags = if is_later { u64::from(BPF_F_RECOMPUTE_CSUM) } else { 0 };
    ctx.store(offset, &to.addr.words(), flags).ok()
}

/// The end that is rewritten at `hook`.
#[inline(always)]
fn rewritten(headers: &Headers, hook: Hook) -> End {
    match hook {
        Hook::Ingress => headers.dst,
        Hook::Egress => headers.src,
    }
}

/// Where a network header has the address that is rewritten at `hook`.
#[inline(always)]
pub(crate) const fn addr_offset(is_v4: bool, hook: Hook) -> usize {
    match (hook, is_v4) {
        (Hook::Ingress, true) => 16,
        (Hook::Ingress, false) => 24,
        (Hook::Egress, true) => 12,
        (Hook::Egress, false) => 8,
    }
}

/// Where the packet has the checksum of its transport header, if the protocol has one that an
/// edit can follow.
#[inline(always)]
pub(crate) fn checksum_offset(headers: &Headers) -> Option<usize> {
    match headers.proto {
        Proto::TCP => Some(headers.transport + 16),
        Proto::UDP => Some(headers.transport + 6),
        _ => None,
    }
}

/// Sends the packet out by the device that it came in by.
#[inline(always)]
pub(crate) fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no preconditions.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Whether a device has yet to make the checksum at `offset` (CHECKSUM_PARTIAL), which then holds
/// the sum of the pseudo header. `None` if the kernel refuses.
#[inline(always)]
pub(crate) fn is_unfinished(ctx: &TcContext, offset: usize) -> Option<bool> {
    let field: u16 = ctx.load(offset).ok()?;
    let is_unfinished = is_unfinished_field(ctx, offset, field)?;
    ctx.store(offset, &field, 0).ok()?;
    Some(is_unfinished)
}

/// The same for a checksum that is now `field`, and then may be anything.
#[inline(always)]
pub(crate) fn is_unfinished_field(ctx: &TcContext, offset: usize, field: u16) -> Option<bool> {
    // Nothing says so to a program, but this call leaves such a field alone, and no other.
    ctx.l4_csum_replace(offset, 0, 1, 0).ok()?;
    Some(ctx.load::<u16>(offset).ok()? == field)
}

/// The difference that a changed address makes to a checksum. An IPv4 address makes the same one
/// in its mapped form, since the prefix does not change.
#[inline(always)]
fn addr_diff(from: Addr, to: Addr) -> u64 {
    let (mut from, mut to) = (from.words(), to.words());
    // SAFETY: both buffers are sixteen bytes long, a multiple of four.
    unsafe { bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) as u64 }
}
