//! The early exit: what can be of no service is left alone, before anything is looked up.
//!
//! See [`proxy_ebpf::filter`] for the bits.

use crate::maps::{ADDR_FILTER, node_ports};
use proxy_ebpf::End;
use proxy_ebpf::filter::AddrBit;

/// Whether something may be served at `end`. NodePorts are told by the port alone: they are few.
#[inline(always)]
pub(crate) fn may_be_served(end: End) -> bool {
    let AddrBit { word, mask } = AddrBit::of(end.addr);
    node_ports().contains(end.port) || ADDR_FILTER.get(word).is_none_or(|bits| bits & mask != 0)
}
