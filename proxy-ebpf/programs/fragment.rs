//! Fragments: what the first one of a packet says of the flow is remembered for the others.
//!
//! Each hook remembers for itself, by the addresses as it sees them. A fragment that overtakes
//! the first one is left alone, for it may be anyone's; the receiver then lacks it, and the sender
//! sends the whole packet again. Linux sends the first one first.

use crate::maps::FRAGMENTS;
use aya_ebpf::bindings::BPF_ANY;
use proxy_ebpf::flow::Hook;
use proxy_ebpf::packet::Headers;
use proxy_ebpf::packet::ip::FragmentId;
use proxy_ebpf::{Addr, Port, Proto};

/// What the fragments of one packet have in common.
#[repr(C)]
pub(crate) struct Key {
    src: Addr,
    dst: Addr,
    id: FragmentId,
    /// IPv6 knows fragments without it (RFC 8200 section 4.5): 0.
    proto: Proto,
    hook: u8,
    zero: u16,
}

/// What the first fragment says.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    src: Port,
    dst: Port,
    proto: Proto,
    zero: [u8; 3],
}

#[inline(always)]
fn key(headers: &Headers, hook: Hook) -> Key {
    let (src, dst) = (headers.src.addr, headers.dst.addr);
    let proto = if src.is_v4() { headers.proto } else { Proto::default() };
    Key { src, dst, id: headers.fragment, proto, hook: hook as u8, zero: 0 }
}

/// Remembers the first fragment of a packet.
#[inline(never)]
pub(crate) fn remember(headers: &Headers, hook: Hook) {
    let key = key(headers, hook);
    let (src, dst, proto) = (headers.src.port, headers.dst.port, headers.proto);
    let ports = Ports { src, dst, proto, zero: [0; 3] };
    // A table of least recently used entries makes room.
    let _full = FRAGMENTS.insert(&key, &ports, BPF_ANY.into());
}

/// Completes the headers of a later fragment. `None` if its first one is not known.
#[inline(never)]
pub(crate) fn recall(headers: &mut Headers, hook: Hook) -> Option<()> {
    let key = key(headers, hook);
    // SAFETY: copied at once. A recycled element would give the ports of another packet; then
    // this one is lost, as rarely as the table overflows within a packet's time.
    let Ports { src, dst, proto, .. } = *unsafe { FRAGMENTS.get(&key) }?;
    headers.src.port = src;
    headers.dst.port = dst;
    headers.proto = proto;
    Some(())
}
