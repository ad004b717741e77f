//! The socket path: a destination is translated when a socket connects or sends, and translated
//! back when the socket asks for its peer or receives. Nothing is done per packet of a connected
//! socket.
//!
//! All hooks fail open: what they cannot decide they leave alone, and the packet path sees it.

use crate::affinity::choose;
use crate::filter;
use crate::maps::{
    self, DNS_ASKERS, DNS_NETNS, HOST_NETNS_COOKIE, KernelTables, OPT_OUTS, OPTED_OUT, TCP_PEERS,
    UDP_PEERS, count, count_service, hides_clients, node_ports, random,
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
use proxy_ebpf::flow::End;
use proxy_ebpf::frontend::{FrontendFlags, FrontendValue};
use proxy_ebpf::outcome::{Outcome, Program};
use proxy_ebpf::service::ServiceId;
use proxy_ebpf::slot::Slot;
use proxy_ebpf::socket::{TcpPeer, Translation, UdpPeers};
use proxy_ebpf::{Addr, Port, Proto};

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

/// The frontend that the caller asks for.
///
/// A socket has no source address yet, so one that is open to some sources only is left to the
/// packet path, as is one whose backends must not see the client; but what the node itself may
/// reach is known, and its address is the one that they are to see.
#[inline(always)]
fn asked_frontend(ctx: &SockAddrContext, to: Destination) -> Option<FrontendValue> {
    if !filter::may_be_served(End { addr: to.addr, port: to.port }) {
        return None;
    }
    let loopback = to.addr.is_loopback() && is_in_host_namespace(ctx);
    let (_, value) = find_frontend(&KernelTables, to, node_ports(), loopback)?;
    let flags = value.flags();
    if flags.has(FrontendFlags::RESTRICTED) {
        return (flags.has(FrontendFlags::ADMITS_NODE) && is_in_host_namespace(ctx))
            .then_some(value);
    }
    if hides_clients(flags) && !is_in_host_namespace(ctx) {
        return None;
    }
    (!is_opted_out()).then_some(value)
}

/// The backend for a connection or a first datagram to a frontend with `value`.
#[inline(always)]
fn choose_backend(ctx: &SockAddrContext, value: FrontendValue) -> Option<Choice> {
    choose(value, Caller::Internal, random(), |service| {
        AffinityKey::namespace(service, namespace(ctx))
    })
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

/// Whether a query to a frontend with `value` is left as it is, for the program at the pod's veth
/// that answers names. It is translated here for who has none: the node itself, and pods of which
/// that program has not yet seen a packet.
#[inline(always)]
fn is_answered_at_veth(ctx: &SockAddrContext, value: FrontendValue) -> bool {
    if !value.flags().has(FrontendFlags::DNS) {
        return false;
    }
    // SAFETY: the helper takes the context of this program type; since Linux 5.7.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns == HOST_NETNS_COOKIE.load() {
        return false;
    }
    if DNS_NETNS.get_ptr(netns).is_some() {
        return true;
    }
    // SAFETY: the context's socket is valid in this hook.
    if let Some(asker) = unsafe { DNS_ASKERS.get_or_insert_ptr_mut(ctx, None).as_mut() } {
        *asker = netns;
    }
    false
}

/// Lets the call fail with ECONNREFUSED instead of the EPERM that a plain refusal gives.
#[inline(always)]
fn refuse(
    ctx: &SockAddrContext,
    program: Program,
    frontend: FrontendValue,
    service: ServiceId,
) -> i32 {
    debug!(ctx, "refused: service {} has no such port or no endpoint", service.0);
    count(program, refusal(frontend.flags()) as u32);
    count_service(service, |counters| counters.refused += 1);
    // SAFETY: allowed in these hooks; since Linux 5.18.
    let _previous = unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// Leaves the address alone, so that the packet path drops the packets silently.
#[inline(always)]
fn leave_to_packet_path(program: Program, service: ServiceId) -> i32 {
    count(program, Outcome::NoLocalEndpoint as u32);
    count_service(service, |counters| counters.refused += 1);
    ALLOW
}

/// `connect4`, `connect6`.
#[inline(always)]
pub(crate) fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let proto = proto(ctx);
    if proto != Proto::TCP && proto != Proto::UDP {
        return ALLOW;
    }
    let frontend = end::<F>(ctx);
    let to = Destination { addr: frontend.addr, port: frontend.port, proto };
    let value = asked_frontend(ctx, to).filter(|value| !is_answered_at_veth(ctx, *value));
    let Some(value) = value else {
        if proto == Proto::UDP {
            forget_peers(ctx);
        }
        count(Program::Connect, Outcome::NotOurs as u32);
        return ALLOW;
    };
    match choose_backend(ctx, value) {
        Some(Choice::Backend(service, slot)) => {
            let translation = translate::<F>(ctx, frontend, service, slot);
            let kept = if proto == Proto::TCP {
                keep_tcp_peer(ctx, &translation)
            } else {
                keep_udp_peer(ctx, translation)
            };
            count(Program::Connect, kept_or_full(kept) as u32);
            ALLOW
        }
        Some(Choice::Refuse(service)) => refuse(ctx, Program::Connect, value, service),
        Some(Choice::Drop(service)) => leave_to_packet_path(Program::Connect, service),
        None => {
            count(Program::Connect, Outcome::Inconsistent as u32);
            ALLOW
        }
    }
}

/// `sendmsg4`, `sendmsg6`: UDP datagrams that carry a destination.
///
/// A socket keeps its backend for a destination for as long as the backend serves, or nothing
/// else does.
#[inline(always)]
pub(crate) fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let frontend = end::<F>(ctx);
    let to = Destination { addr: frontend.addr, port: frontend.port, proto: Proto::UDP };
    let value = asked_frontend(ctx, to).filter(|value| !is_answered_at_veth(ctx, *value));
    let Some(value) = value else {
        count(Program::Sendmsg, Outcome::NotOurs as u32);
        return ALLOW;
    };
    let known = udp_peers(ctx).and_then(|peers| peers.send_to(frontend));
    if let Some(known) = &known
        && serves(known)
    {
        set_end::<F>(ctx, known.backend());
        count(Program::Sendmsg, Outcome::Matched as u32);
        return ALLOW;
    }
    match choose_backend(ctx, value) {
        Some(Choice::Backend(service, slot)) => {
            let translation = translate::<F>(ctx, frontend, service, slot);
            let kept = keep_udp_peer(ctx, translation);
            count(Program::Sendmsg, kept_or_full(kept) as u32);
            ALLOW
        }
        Some(Choice::Refuse(service)) => match known {
            Some(known) => {
                set_end::<F>(ctx, known.backend());
                count(Program::Sendmsg, Outcome::Matched as u32);
                ALLOW
            }
            None => refuse(ctx, Program::Sendmsg, value, service),
        },
        Some(Choice::Drop(service)) => leave_to_packet_path(Program::Sendmsg, service),
        None => {
            count(Program::Sendmsg, Outcome::Inconsistent as u32);
            ALLOW
        }
    }
}

/// `recvmsg4`, `recvmsg6`: a datagram from a backend seems to come from the frontend.
#[inline(always)]
pub(crate) fn recvmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let source = end::<F>(ctx);
    let outcome = match udp_peers(ctx).and_then(|peers| peers.receive_from(source)) {
        Some(translation) => {
            set_end::<F>(ctx, translation.frontend());
            Outcome::Matched
        }
        None => Outcome::NotOurs,
    };
    count(Program::Recvmsg, outcome as u32);
    ALLOW
}

/// `getpeername4`, `getpeername6`: the peer is what the socket asked for.
#[inline(always)]
pub(crate) fn getpeername<F: Family>(ctx: &SockAddrContext) -> i32 {
    let peer = end::<F>(ctx);
    let known = if proto(ctx) == Proto::TCP {
        let cookie = cookie(ctx);
        TCP_PEERS.get(TcpPeer::place(cookie)).and_then(|known| known.frontend(cookie, peer))
    } else {
        udp_peers(ctx).and_then(|peers| peers.receive_from(peer)).map(|known| known.frontend())
    };
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

#[inline(always)]
fn kept_or_full(kept: bool) -> Outcome {
    if kept { Outcome::Chosen } else { Outcome::TableFull }
}

/// Points the call at the backend in `slot`.
#[inline(always)]
fn translate<F: Family>(
    ctx: &SockAddrContext,
    frontend: End,
    service: ServiceId,
    slot: Slot,
) -> Translation {
    let backend = End { addr: slot.addr, port: slot.port };
    set_end::<F>(ctx, backend);
    count_service(service, |counters| counters.connections += 1);
    Translation::new(frontend, backend, service, slot.backend)
}

/// Whether the backend of `translation` still serves.
#[inline(always)]
fn serves(translation: &Translation) -> bool {
    maps::serves(translation.backend_id, translation.service, translation.backend())
}

/// Remembers what a TCP socket asked for; `false` if there is no place for it.
#[inline(always)]
fn keep_tcp_peer(ctx: &SockAddrContext, translation: &Translation) -> bool {
    let cookie = cookie(ctx);
    let Some(peer) = TCP_PEERS.get_ptr_mut(TcpPeer::place(cookie)) else {
        return false;
    };
    // SAFETY: array elements stay where they are. The place is this socket's own until it has come
    // round the ring.
    unsafe { *peer = TcpPeer::new(cookie, translation.frontend(), translation.backend()) };
    true
}

/// The socket's cookie, which no other socket has while the machine runs.
#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context of this program type; since Linux 4.20.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Remembers a destination of a UDP socket; `false` if the kernel has no memory for it.
#[inline(always)]
fn keep_udp_peer(ctx: &SockAddrContext, translation: Translation) -> bool {
    // SAFETY: the context's socket is valid in this hook.
    let Some(peers) = (unsafe { UDP_PEERS.get_or_insert_ptr_mut(ctx, None).as_mut() }) else {
        return false;
    };
    peers.remember(translation);
    true
}

/// What is remembered of a UDP socket, if anything is.
#[inline(always)]
fn udp_peers<'a>(ctx: &SockAddrContext) -> Option<&'a mut UdpPeers> {
    // SAFETY: the context's socket is valid in this hook, and keeps its storage until the hook has
    // ended. Threads that use one socket at once may tear a translation; its backend's digest
    // then does not match, and the next datagram mends it.
    unsafe { UDP_PEERS.get_ptr_mut(ctx).as_mut() }
}

/// Forgets what a UDP socket connected to before, now that it connects to something that is no
/// service: the old translation must not answer for the new peer. Resolvers reuse sockets so.
#[inline(always)]
fn forget_peers(ctx: &SockAddrContext) {
    if let Some(peers) = udp_peers(ctx) {
        *peers = UdpPeers::default();
    }
}
