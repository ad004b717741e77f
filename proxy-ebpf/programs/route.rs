//! What the kernel's own routes say of the way to a backend.

use crate::maps::DEVICES;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Lookup,
};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::programs::TcContext;
use proxy_ebpf::Addr;
use proxy_ebpf::node::DeviceFlags;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Whether a packet from `src` to `dst` that has come in by the device of `ctx` leaves this node
/// again by an uplink: then the answer to it need not come back. A pod with a device of its own on
/// the uplink's network (macvlan, ipvlan) is on this node, and reached so all the same.
///
/// Policy rules are asked as for the packet, but for those that go by a mark. `false` if the kernel
/// has no route, or leads the packet to itself.
#[inline(never)]
pub(crate) fn leaves_by_uplink(ctx: &TcContext, src: &Addr, dst: &Addr) -> bool {
    // SAFETY: the context is valid for the whole program; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: integers and arrays of integers, for which zero is a value.
    let mut lookup: Lookup = unsafe { core::mem::zeroed() };
    lookup.ifindex = ifindex;
    if dst.is_v4() {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = src.v4_word();
        lookup.__bindgen_anon_4.ipv4_dst = dst.v4_word();
    } else {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = src.words();
        lookup.__bindgen_anon_4.ipv6_dst = dst.words();
    }
    let len = size_of::<Lookup>() as i32;
    // SAFETY: the context is one of tc, and the parameters have the length that is given; since
    // Linux 4.18.
    let found = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut lookup, len, 0) };
    // Only then the index is the one of the device that the packet would leave by.
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) && found != i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
    {
        return false;
    }
    // SAFETY: one word is read; elements change only when a device does.
    let device = unsafe { DEVICES.get(lookup.ifindex) };
    lookup.ifindex == ifindex || device.is_some_and(|device| device.flags.has(DeviceFlags::UPLINK))
}
