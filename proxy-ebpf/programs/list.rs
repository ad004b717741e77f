//! What the socket path remembers of UDP sockets, told to user space.
//!
//! A socket's storage is found from the socket alone; this is the one way to all of them. Runs
//! when the agent reads from the iterator, once for each socket of every network namespace.

use aya_ebpf::bindings::seq_file;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write};
use proxy_ebpf::socket::UdpPeers;

/// `struct bpf_iter_meta`, as far as it is read.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub(crate) struct Element {
    meta: *const Meta,
    map: *const c_void,
    sk: *mut c_void,
    value: *const UdpPeers,
}

/// Writes the socket's cookie and what is remembered of it. Both are null at the end.
#[inline(always)]
pub(crate) fn udp_peers(element: &Element) -> i32 {
    if element.sk.is_null() || element.value.is_null() {
        return 0;
    }
    // SAFETY: the kernel passes a socket, null apart; since Linux 5.12.
    let cookie = unsafe { bpf_get_socket_cookie(element.sk) };
    // SAFETY: the kernel passes valid pointers, which the verifier tracks.
    let seq = unsafe { (*element.meta).seq };
    // SAFETY: the lengths are those of what the pointers point to.
    let full = unsafe {
        bpf_seq_write(seq, (&raw const cookie).cast(), size_of::<u64>() as u32)
            | bpf_seq_write(seq, element.value.cast(), size_of::<UdpPeers>() as u32)
    };
    // With more room the kernel asks for this element again.
    i32::from(full != 0)
}
