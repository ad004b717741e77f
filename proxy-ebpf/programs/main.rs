//! Shunt's kernel programs: the entry points.
//!
//! `socket` is the socket path (cgroup hooks), the rest the packet path (tcx): `flow` decides,
//! `packet` reads and rewrites, with `icmp` and `fragment` for what is no whole packet of a flow;
//! `reject` answers what is refused, `retired` moves UDP sockets whose backend is gone. For both,
//! `filter` leaves early and `affinity` chooses. `dns` answers pods' queries of names, before the
//! packet path sees them.

#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is moved is copied, and the stack has 512 bytes"
)]

mod affinity;
mod dns;
mod entries;
mod filter;
mod flow;
mod fragment;
mod icmp;
mod list;
mod maps;
mod packet;
mod reject;
mod retired;
mod socket;
mod tuple;

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use proxy_ebpf::flow::Hook;
use socket::{V4, V6};

/// The length of an Ethernet header without a VLAN tag.
const ETHERNET: usize = 14;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect::<V6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::recvmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::recvmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::getpeername::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::getpeername::<V6>(&ctx)
}

/// Ingress of a device with Ethernet headers.
#[classifier]
fn ingress(ctx: TcContext) -> i32 {
    flow::at_hook(&ctx, Hook::Ingress, ETHERNET)
}

/// Egress of a device with Ethernet headers.
#[classifier]
fn egress(ctx: TcContext) -> i32 {
    flow::at_hook(&ctx, Hook::Egress, ETHERNET)
}

/// Ingress of a device without a link layer, such as a tunnel.
#[classifier]
fn ingress_bare(ctx: TcContext) -> i32 {
    flow::at_hook(&ctx, Hook::Ingress, 0)
}

/// Egress of a device without a link layer, such as a tunnel.
#[classifier]
fn egress_bare(ctx: TcContext) -> i32 {
    flow::at_hook(&ctx, Hook::Egress, 0)
}

/// Lists what the socket path remembers of UDP sockets; aya has no macro for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
extern "C" fn udp_sockets(element: &list::Element) -> i32 {
    list::udp_peers(element)
}

/// Ingress of the node's side of a pod's veth, before [`ingress`].
#[classifier]
fn names(ctx: TcContext) -> i32 {
    dns::at_ingress(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
