//! The early exit: what can be of no service is left alone, before anything is looked up.
//!
//! See [`proxy_ebpf::filter`] for the bits.

use crate::maps::{KernelTables, node_ports};
use proxy_ebpf::End;
use proxy_ebpf::choose::Tables as _;

/// Whether something may be served at `end`. NodePorts are told by the port alone: they are few.
#[inline(always)]
pub(crate) fn may_be_served(end: End) -> bool {
    node_ports().contains(end.port) || KernelTables.may_be_services(&end.addr)
}
