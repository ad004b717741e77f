//! The socket path: the destination of a TCP socket is translated once, when it connects, and
//! translated back when the socket asks for its peer. Nothing is done per packet.
//!
//! All hooks fail open: what they cannot decide they leave alone, and the packet path sees it.

use crate::affinity::choose;
use crate::filter;
use crate::maps::{
    HOST_NETNS_COOKIE, KernelTables, OPT_OUTS, OPTED_OUT, TCP_PEERS, count, count_service,
    masquerade_all, node_ports, random, serves_host_sockets_only,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval,
};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use core::ptr;
use proxy_ebpf::affinity::AffinityKey;
use proxy_ebpf::choose::{Caller, Choice, Destination, find_frontend, refusal};
use proxy_ebpf::frontend::{FrontendFlags, FrontendValue};
use proxy_ebpf::outcome::{Outcome, Program};
use proxy_ebpf::service::ServiceId;
use proxy_ebpf::socket::TcpPeer;
use proxy_ebpf::{Addr, End, Port, Proto};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// How the hooks of a family see the address of a `bpf_sock_addr`.
///
/// The hook's family is the one of the address, not of the socket: `connect6` sees IPv4-mapped
/// addresses, which are IPv4 to everything behind this trait.
pub(crate) trait Family {
    fn addr(ctx: &SockAddrContext) -> Addr;
    fn set_addr(ctx: &SockAddrContext, addr: Addr);
}

pub(crate) struct V4;
pub(crate) struct V6;

impl Family for V4 {
    #[inline(always)]
    fn addr(ctx: &SockAddrContext) -> Addr {
        // SAFETY: the context is valid for the whole program; the verifier checks the access.
        Addr::from_v4_word(unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) })
    }

    #[inline(always)]
    fn set_addr(ctx: &SockAddrContext, addr: Addr) {
        // SAFETY: as above; the kernel takes writes of this field from these hooks.
        unsafe { ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, addr.v4_word()) }
    }
}

impl Family for V6 {
    #[inline(always)]
    fn addr(ctx: &SockAddrContext) -> Addr {
        // SAFETY: the context is valid for the whole program; the verifier checks the access,
        // which must be word by word.
        let words = unsafe { &raw const (*ctx.sock_addr).user_ip6 }.cast::<u32>();
        // SAFETY: as above; the field has four words.
        let word = |i: usize| unsafe { ptr::read_volatile(words.add(i)) };
        Addr::from_words([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn set_addr(ctx: &SockAddrContext, addr: Addr) {
        let [w0, w1, w2, w3] = addr.words();
        // SAFETY: as above; the kernel takes writes of this field from these hooks.
        unsafe {
            let words = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
            ptr::write_volatile(words, w0);
            ptr::write_volatile(words.add(1), w1);
            ptr::write_volatile(words.add(2), w2);
            ptr::write_volatile(words.add(3), w3);
        }
    }
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> Port {
    // SAFETY: the context is valid; the field is read as the whole word that the verifier wants,
    // and its low half is the port in network byte order.
    Port::from_network(unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_port) } as u16)
}

#[inline(always)]
fn end<F: Family>(ctx: &SockAddrContext) -> End {
    End { addr: F::addr(ctx), port: port(ctx) }
}

#[inline(always)]
fn set_end<F: Family>(ctx: &SockAddrContext, end: End) {
    F::set_addr(ctx, end.addr);
    let port = u32::from(end.port.network());
    // SAFETY: the context is valid; the kernel takes writes of this field from these hooks.
    unsafe { ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, port) }
}

#[inline(always)]
fn proto(ctx: &SockAddrContext) -> Proto {
    // SAFETY: the context is valid; the verifier checks the access.
    Proto(unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).protocol) } as u8)
}

/// The cookie of the socket's network namespace.
#[inline(always)]
fn namespace(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context of this program type; since Linux 5.7.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Whether the socket is in the node's own network namespace, where NodePorts are also served
/// at loopback addresses.
#[inline(always)]
fn is_in_host_namespace(ctx: &SockAddrContext) -> bool {
    HOST_NETNS_COOKIE.load() == namespace(ctx)
}

/// The frontend that a socket asks for, or why it is none of the socket path's.
///
/// A socket of a pod is left to the packet path where that serves it better. A socket has no
/// source address yet, so one that is open to some sources only is left to it too, as is one whose
/// backends must not see the client; but what the node itself may reach is known, and its address
/// is the one that they are to see.
#[inline(always)]
fn asked_frontend(ctx: &SockAddrContext, to: End) -> Result<FrontendValue, Outcome> {
    if !filter::may_be_served(to) {
        return Err(Outcome::NotOurs);
    }
    let is_host = is_in_host_namespace(ctx);
    let loopback = is_host && to.addr.is_loopback();
    let destination = Destination { addr: to.addr, port: to.port, proto: Proto::TCP };
    let (_, value) = find_frontend(&KernelTables, destination, node_ports(), loopback)
        .ok_or(Outcome::NotOurs)?;
    let flags = value.flags();
    if is_host {
        let is_open =
            !flags.has(FrontendFlags::RESTRICTED) || flags.has(FrontendFlags::ADMITS_NODE);
        return is_open.then_some(value).ok_or(Outcome::LeftToPackets);
    }
    let is_left = serves_host_sockets_only()
        || flags.has(FrontendFlags::RESTRICTED)
        || masquerade_all() && flags.is_cluster_ip()
        || has_bound_port(ctx)
        || is_opted_out();
    if is_left { Err(Outcome::LeftToPackets) } else { Ok(value) }
}

/// Whether the socket has bound a port. Two such sockets that ask two services may be given one
/// backend, and the kernel refuses the second connection of the same addresses and ports; NAT
/// gives it another port.
#[inline(always)]
fn has_bound_port(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid, and its socket is valid in this hook; the verifier checks the
    // accesses.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !sk.is_null() && (*sk).src_port != 0
    }
}

/// How far below the root a pod's cgroup is looked for. A pod of kind, in a node that is a
/// container, is at 6.
const CGROUP_LEVELS: i32 = 12;

/// Whether the process is in a pod that wants the packet path alone. Costs nothing where no pod
/// does; asked only for connections to a service.
#[inline(always)]
fn is_opted_out() -> bool {
    if OPT_OUTS.get(0).is_none_or(|&pods| pods == 0) {
        return false;
    }
    for level in 1..=CGROUP_LEVELS {
        // SAFETY: no preconditions; in these hooks since Linux 6.1. 0 means no such level.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        if OPTED_OUT.get_ptr(&id).is_some() {
            return true;
        }
    }
    false
}

/// Lets the call fail with ECONNREFUSED instead of the EPERM that a plain refusal gives.
#[inline(always)]
fn refuse(ctx: &SockAddrContext, value: FrontendValue, service: ServiceId) -> i32 {
    debug!(ctx, "refused: service {} has no such port or no endpoint", service.0);
    count(Program::Connect, refusal(value.flags()) as u32);
    count_service(service, |counters| counters.refused += 1);
    // SAFETY: allowed in these hooks; since Linux 5.18.
    let _previous = unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// `connect4`, `connect6`.
#[inline(always)]
pub(crate) fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    if proto(ctx) != Proto::TCP {
        return ALLOW;
    }
    let frontend = end::<F>(ctx);
    let value = match asked_frontend(ctx, frontend) {
        Ok(value) => value,
        Err(outcome) => {
            count(Program::Connect, outcome as u32);
            return ALLOW;
        }
    };
    let choice = choose(value, Caller::Internal, random(), |service| {
        AffinityKey::namespace(service, namespace(ctx))
    });
    match choice {
        Some(Choice::Backend(service, slot)) => {
            let backend = End { addr: slot.addr, port: slot.port };
            set_end::<F>(ctx, backend);
            count_service(service, |counters| counters.connections += 1);
            let kept = keep_peer(ctx, frontend, backend);
            let outcome = if kept { Outcome::Chosen } else { Outcome::TableFull };
            count(Program::Connect, outcome as u32);
            ALLOW
        }
        Some(Choice::Refuse(service)) => refuse(ctx, value, service),
        // The packets are dropped silently, as netfilter is told by the packet path, or at output.
        Some(Choice::Drop(service)) => {
            count(Program::Connect, Outcome::NoLocalEndpoint as u32);
            count_service(service, |counters| counters.refused += 1);
            ALLOW
        }
        None => {
            count(Program::Connect, Outcome::Inconsistent as u32);
            ALLOW
        }
    }
}

/// `getpeername4`, `getpeername6`: the peer is what the socket asked for.
#[inline(always)]
pub(crate) fn getpeername<F: Family>(ctx: &SockAddrContext) -> i32 {
    if proto(ctx) != Proto::TCP {
        return ALLOW;
    }
    let cookie = cookie(ctx);
    let peer = end::<F>(ctx);
    let known =
        TCP_PEERS.get(TcpPeer::place(cookie)).and_then(|known| known.frontend(cookie, peer));
    let outcome = match known {
        Some(frontend) => {
            set_end::<F>(ctx, frontend);
            Outcome::Matched
        }
        None => Outcome::NotOurs,
    };
    count(Program::Getpeername, outcome as u32);
    ALLOW
}

/// Remembers what a socket asked for; `false` if there is no place for it.
#[inline(always)]
fn keep_peer(ctx: &SockAddrContext, frontend: End, backend: End) -> bool {
    let cookie = cookie(ctx);
    let Some(peer) = TCP_PEERS.get_ptr_mut(TcpPeer::place(cookie)) else {
        return false;
    };
    // SAFETY: array elements stay where they are. The place is this socket's own until it has come
    // round the ring.
    unsafe { *peer = TcpPeer::new(cookie, frontend, backend) };
    true
}

/// The socket's cookie, which no other socket has while the machine runs.
#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context of this program type; since Linux 4.20.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
