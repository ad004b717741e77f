//! Shunt's kernel programs: the entry points.
//!
//! `socket` is the socket path (cgroup hooks), `ingress` the packet path (tcx): both choose a
//! backend and remember nothing but affinity. For both, `filter` leaves early and `affinity`
//! chooses, `route` asks the kernel's routes. `dns` answers pods' queries of names, before the packet path sees them.

#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is moved is copied, and the stack has 512 bytes"
)]

mod affinity;
mod dns;
mod filter;
mod ingress;
mod maps;
mod packet;
mod route;
mod socket;

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
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
    ingress::at_ingress(&ctx, ETHERNET)
}

/// Ingress of a device without a link layer, such as a tunnel.
#[classifier]
fn ingress_bare(ctx: TcContext) -> i32 {
    ingress::at_ingress(&ctx, 0)
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
