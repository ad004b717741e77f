//! UDP sockets that are connected to a backend which serves no longer.
//!
//! The socket path translates once, at connect; a backend that goes takes the connected UDP
//! sockets with it. Their datagrams still pass the device of their pod, addressed to the backend.
//! There the packet path looks whose they are, and gives them a backend of the service that the
//! socket asked for; the replies seem to come from the backend that it is connected to.

use crate::maps::{self, BRIDGES, DEVICES, KernelTables, RETIRED, UDP_PEERS, node_ports};
use crate::tuple;
use aya_ebpf::bindings::BPF_TCP_ESTABLISHED;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use core::ptr;
use proxy_ebpf::Proto;
use proxy_ebpf::choose::{Destination, find_frontend};
use proxy_ebpf::flow::End;
use proxy_ebpf::frontend::FrontendValue;
use proxy_ebpf::node::LinkAddr;
use proxy_ebpf::packet::Headers;
use proxy_ebpf::socket::{Translation, UdpPeers};

/// The last translation that [`is_sent_to`] found, out of the way of the 512-byte stack.
#[btf_map(name = "retired_scratch")]
static SCRATCH: PerCpuArray<Translation, 1> = PerCpuArray::new();

/// Whether the datagram goes to a backend which serves no longer, from a socket that it was given
/// to. [`frontend`] then has what the socket asked for.
#[inline(never)]
pub(crate) fn is_sent_to(ctx: &TcContext, headers: &Headers) -> bool {
    // Spares every other datagram the search for its socket.
    if RETIRED.get_ptr(&headers.dst).is_none() {
        return false;
    }
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: one word is read; elements change only when a device does.
    let Some(netns) = unsafe { DEVICES.get(ifindex) }.map(|device| device.netns) else {
        return false;
    };
    if netns < 0 {
        return false;
    }
    // As a packet to the socket would name them: the socket is the destination.
    let socket = tuple::udp_socket(ctx.skb.skb, headers.dst, headers.src, netns as u64);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null, and held until it is released below; the verifier checks the access.
    let connected = unsafe { (*socket).state } == BPF_TCP_ESTABLISHED;
    // The kernel takes the address of the map's definition for the map.
    let map = (&raw const UDP_PEERS).cast_mut().cast();
    // SAFETY: as above; without a value nothing is made.
    let peers = unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), 0) };
    let peers = peers.cast::<UdpPeers>();
    let scratch = SCRATCH.get_ptr_mut(0);
    let mut found = false;
    // SAFETY: null, or the socket's storage, which is copied before the socket is let go.
    if let (Some(peers), Some(scratch), true) = (unsafe { peers.as_ref() }, scratch, connected)
        && let Some(translation) = peers.receive_from(headers.dst)
    {
        // SAFETY: the copy of this CPU, where no other program writes while this one runs.
        unsafe { *scratch = translation };
        found = true;
    }
    // SAFETY: the reference that the lookup took.
    let _always_zero = unsafe { bpf_sk_release(socket.cast()) };
    found
}

/// The value of the frontend that the sender of the last datagram which [`is_sent_to`] a retired
/// backend asked for; [`FrontendValue::NONE`] if that backend still serves it.
#[inline(never)]
pub(crate) fn frontend() -> FrontendValue {
    let Some(translation) = SCRATCH.get(0) else { return FrontendValue::NONE };
    if maps::serves(translation.backend_id, translation.service, translation.backend()) {
        return FrontendValue::NONE;
    }
    let End { addr, port } = translation.frontend();
    let to = Destination { addr, port, proto: Proto::UDP };
    find_frontend(&KernelTables, to, node_ports(), false)
        .map_or(FrontendValue::NONE, |(_, value)| value)
}

/// Addresses the frame to the bridge that it came to, and so to the node, if it came to one.
///
/// A socket's backend on the same bridge has the frames for itself: they would go to a pod that
/// does not know the address that they have now, or to none.
#[inline(never)]
pub(crate) fn lead_to_node(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: one word is read; elements change only when a device does.
    let Some(LinkAddr { bytes, .. }) = (unsafe { BRIDGES.get(ifindex) }).copied() else {
        return true;
    };
    ctx.store(0, &bytes, 0).is_ok()
}
