//! The early exit: what can be of no service is left alone, before anything is looked up.
//!
//! See [`proxy_ebpf::filter`] for the bitmaps.

use crate::maps::{ADDR_FILTER, FLOW_FILTER, is_snat_port, node_ports};
use proxy_ebpf::filter::{AddrBit, GENERATION, Generation, flow_byte, is_of_flow};
use proxy_ebpf::flow::{End, FlowKey, FlowValue, Hook};
use proxy_ebpf::packet::Peek;
use proxy_ebpf::{Addr, Proto};

/// Whether something may be served at `end`.
///
/// NodePorts are told by the port alone: they are few.
#[inline(always)]
pub(crate) fn may_be_served(end: End) -> bool {
    node_ports().contains(end.port) || may_be_service(end.addr)
}

/// Whether SNAT may have led the packet to the node, as an answer.
#[inline(always)]
fn may_be_answer(packet: &Peek) -> bool {
    is_snat_port(packet.dst.port) && may_be_flow(packet.src, packet.dst)
}

/// Whether `addr` may be a service's.
#[inline(always)]
fn may_be_service(addr: Addr) -> bool {
    let AddrBit { word, mask } = AddrBit::of(addr);
    match ADDR_FILTER.get(word) {
        Some(bits) => bits & mask != 0,
        None => true,
    }
}

/// Whether a packet at `hook` may be of a flow, begin one, or (UDP) stand in the way of one.
#[inline(always)]
pub(crate) fn may_match(packet: &Peek, hook: Hook) -> bool {
    match hook {
        Hook::Ingress => {
            may_be_served(packet.dst)
                || may_be_answer(packet)
                || packet.proto == Proto::UDP && may_be_flow(packet.dst, packet.src)
        }
        Hook::Egress => may_be_flow(packet.src, packet.dst) || may_be_service(packet.dst.addr),
    }
}

/// Whether there may be an entry for packets from `src` to `dst` that [`is_of_flow`].
#[inline(always)]
fn may_be_flow(src: End, dst: End) -> bool {
    match byte(flow_byte(src, dst)) {
        // SAFETY: a byte of an array element, as `byte` says.
        Some(known) => generation().counts(unsafe { known.read_volatile() }),
        None => true,
    }
}

/// Lets packets of the entry `value` under `key` pass the filter from now on.
///
/// Invariant: called after the entry was made, so that the agent either finds the entry or comes
/// before this.
#[inline(always)]
pub(crate) fn admit(key: &FlowKey, value: &FlowValue) {
    if is_of_flow(key, value)
        && let Some(known) = byte(flow_byte(key.src(), key.dst()))
    {
        // SAFETY: as above; whoever writes it meanwhile writes as new a generation.
        unsafe { known.write_volatile(generation().0) }
    }
}

#[inline(always)]
fn generation() -> Generation {
    Generation(FLOW_FILTER.get(GENERATION).copied().unwrap_or(0) as u8)
}

/// A byte of the filter of flows. Array elements stay where they are, and have eight bytes each.
#[inline(always)]
fn byte(index: u32) -> Option<*mut u8> {
    let element = FLOW_FILTER.get_ptr_mut(index / 8)?;
    Some(element.cast::<u8>().wrapping_add(index as usize % 8))
}
