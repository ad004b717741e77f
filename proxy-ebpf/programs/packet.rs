//! A packet at tcx, as programs read and return it.

use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use proxy_ebpf::packet::Packet;

/// The bits of a VLAN tag that say which VLAN it is; those above are the priority.
const VLAN_ID: u32 = 0xfff;

/// A packet at its hook.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.0.load(offset).ok()
    }
}

/// The Ethernet type of the packet's network header.
#[inline(always)]
pub(crate) fn ethertype(ctx: &TcContext) -> u16 {
    // SAFETY: the context is valid for the whole program; the verifier checks the access.
    u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16)
}

/// The VLAN that the packet is tagged for. 0 is no VLAN: a tag for it gives a priority only (IEEE
/// 802.1Q, table 9-2).
#[inline(always)]
pub(crate) fn vlan_id(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_tci & VLAN_ID }
}

/// Sends the packet out by the device that it came in by.
#[inline(always)]
pub(crate) fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no preconditions.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Whether a device has yet to make the checksum at `offset`, which now is `field` and then may be
/// anything (CHECKSUM_PARTIAL). `None` if the kernel refuses.
#[inline(always)]
pub(crate) fn is_unfinished_field(ctx: &TcContext, offset: usize, field: u16) -> Option<bool> {
    // Nothing says so to a program, but this call leaves such a field alone, and no other.
    ctx.l4_csum_replace(offset, 0, 1, 0).ok()?;
    Some(ctx.load::<u16>(offset).ok()? == field)
}
