//! Sockets by their addresses and ports.

use aya_ebpf::bindings::{
    __sk_buff, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use core::mem;
use proxy_ebpf::Proto;
use proxy_ebpf::flow::End;

/// The namespace of the packet's device (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = -1_i64 as u64;

/// The UDP socket at `near` that takes what comes from `far`, in the namespace of id `netns`; null
/// if there is none. It must be released.
#[inline(always)]
pub(crate) fn udp_socket(skb: *mut __sk_buff, far: End, near: End, netns: u64) -> *mut bpf_sock {
    let (mut tuple, size) = tuple(far, near);
    // SAFETY: the tuple is as long as the size says; since Linux 4.20.
    unsafe { bpf_sk_lookup_udp(skb.cast(), &raw mut tuple, size, netns, 0) }
}

/// Whether the node has a socket at `near` that takes what comes from `far`: one that is connected
/// to it, that waits for its TIME_WAIT to end, or that listens to all.
#[inline(always)]
pub(crate) fn is_of_node(skb: *mut __sk_buff, proto: Proto, far: End, near: End) -> bool {
    let socket = if proto == Proto::UDP {
        udp_socket(skb, far, near, CURRENT_NETNS)
    } else if proto == Proto::TCP {
        let (mut tuple, size) = tuple(far, near);
        // SAFETY: as above; since Linux 5.2.
        unsafe { bpf_skc_lookup_tcp(skb.cast(), &raw mut tuple, size, CURRENT_NETNS, 0) }
    } else {
        return false;
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference that the lookup took.
    let _always_zero = unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// What the kernel finds sockets by, and its size. It is as in a packet to the socket: that is the
/// destination.
#[inline(always)]
fn tuple(far: End, near: End) -> (bpf_sock_tuple, u32) {
    let (sport, dport) = (far.port.network(), near.port.network());
    // SAFETY: a union of plain integers; all of it is written.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let size = if far.addr.is_v4() {
        let (saddr, daddr) = (far.addr.v4_word(), near.addr.v4_word());
        tuple.__bindgen_anon_1.ipv4 =
            bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr, daddr, sport, dport };
        size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
    } else {
        let (saddr, daddr) = (far.addr.words(), near.addr.words());
        tuple.__bindgen_anon_1.ipv6 =
            bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr, daddr, sport, dport };
        size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
    };
    (tuple, size as u32)
}
