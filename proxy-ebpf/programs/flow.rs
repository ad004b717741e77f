//! The packet path: which flow a packet belongs to, and new flows.
//!
//! See [`proxy_ebpf::flow`] for the entries of a flow. Packets go on through the stack, so that
//! routing, netfilter and the CNI's programs see one consistent flow between client and backend.
//! The hooks fail open for what is not theirs, and closed (the packet is dropped and counted)
//! where a service's packet cannot be translated: sent on as it is, it would reach a stranger.

use crate::affinity::choose;
use crate::entries::{flow, give_snat, gives_way, keep_sibling, make_way, remember};
use crate::maps::{
    self, CLUSTER_CIDRS, DEVICES, KernelTables, Scratch, count, count_service, hides_clients,
    is_service_addr, node_ports, now, random, scratch,
};
use crate::{filter, fragment, packet, reject, retired};
use aya_ebpf::bindings::{TC_ACT_SHOT, tcx_action_base::TCX_NEXT};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use proxy_ebpf::affinity::AffinityKey;
use proxy_ebpf::choose::{Caller, Choice, Destination, find_frontend, refusal, shut_out};
use proxy_ebpf::flow::{End, FlowFlags, FlowKey, FlowValue, Hook, sibling};
use proxy_ebpf::frontend::{FrontendFlags, FrontendValue};
use proxy_ebpf::node::Device;
use proxy_ebpf::outcome::{Outcome, Program};
use proxy_ebpf::packet::{Form, Headers, Unread};
use proxy_ebpf::slot::BackendFlags;
use proxy_ebpf::{Port, Proto};

/// What becomes of a packet, and why: the outcome's number, plus [`DROP`] or [`REFUSE`].
///
/// One number, because a function that is not inlined can return no more; and functions are not
/// inlined where the stack of 512 bytes would not hold them together.
struct Verdict(u32);

const DROP: u32 = 1 << 31;
/// The sender is to be told that nobody serves it.
const REFUSE: u32 = 1 << 30;
/// No verdict: the flow that the packet belongs to stays as it is. Whoever has its entry at hand
/// goes on.
const STAY: u32 = 1 << 29;

const fn pass(outcome: Outcome) -> Verdict {
    Verdict(outcome as u32)
}

const fn drop(outcome: Outcome) -> Verdict {
    Verdict(outcome as u32 | DROP)
}

const fn refuse(outcome: Outcome) -> Verdict {
    Verdict(outcome as u32 | REFUSE)
}

/// The hook of a device whose packets begin with `network` bytes of link layer.
#[inline(always)]
pub(crate) fn at_hook(ctx: &TcContext, hook: Hook, network: usize) -> i32 {
    let program = match hook {
        Hook::Ingress => Program::Ingress,
        Hook::Egress => Program::Egress,
    };
    if passes_by(ctx, hook, network) {
        count(program, Outcome::NotOurs as u32);
        return TCX_NEXT;
    }
    let Some(Scratch { headers, forward }) = scratch(hook) else {
        count(program, Outcome::Inconsistent as u32);
        return TCX_NEXT;
    };
    let Verdict(verdict) = match (read(ctx, network, headers, hook), hook) {
        (Ok(()), Hook::Ingress) => ingress(ctx, headers, forward),
        (Ok(()), Hook::Egress) => egress(ctx, headers),
        (Err(unread), _) => leave(unread),
    };
    count(program, verdict & !(DROP | REFUSE));
    if hook == Hook::Ingress && verdict & REFUSE != 0 && reject::answer(ctx) {
        return packet::send_back(ctx);
    }
    if verdict & (DROP | REFUSE) == 0 { TCX_NEXT } else { TC_ACT_SHOT }
}

/// Whether a first look tells that the packet is of no service.
///
/// Not inlined: what it has on the stack is gone before the work begins that needs nearly all of
/// it.
#[inline(never)]
fn passes_by(ctx: &TcContext, hook: Hook, network: usize) -> bool {
    packet::peek(ctx, network).is_some_and(|packet| !filter::may_match(&packet, hook))
}

/// Reads the headers of the packet; a later fragment has those of its first one.
#[inline(always)]
fn read(ctx: &TcContext, network: usize, headers: &mut Headers, hook: Hook) -> Result<(), Unread> {
    packet::read(ctx, network, headers)?;
    match headers.form {
        Form::Later => fragment::recall(headers, hook).ok_or(Unread::Unsupported),
        _ => Ok(()),
    }
}

#[inline(always)]
fn leave(unread: Unread) -> Verdict {
    pass(match unread {
        Unread::NotOurs => Outcome::NotOurs,
        Unread::Unsupported => Outcome::Unsupported,
        Unread::Malformed => Outcome::Malformed,
    })
}

#[inline(always)]
fn ingress(ctx: &TcContext, headers: &Headers, forward: &mut FlowValue) -> Verdict {
    let key = FlowKey::new(Hook::Ingress, headers.src, headers.dst, headers.proto);
    let Some(value) = flow(&key) else {
        return if begins_flow(headers) {
            new_flow(ctx, headers, false, forward)
        } else {
            pass(Outcome::NotOurs)
        };
    };
    if headers.has_transport() && begins_anew(headers, value) {
        let known = serves(value);
        // A connection that is still being opened keeps the backend that it was given.
        if !known || value.flags.has(FlowFlags::ESTABLISHED) || was_refused(&key, value) {
            let verdict = new_flow(ctx, headers, true, forward);
            if verdict.0 != STAY {
                return verdict;
            }
        }
    }
    matched(ctx, headers, &key, value)
}

#[inline(always)]
fn egress(ctx: &TcContext, headers: &Headers) -> Verdict {
    let key = FlowKey::new(Hook::Egress, headers.src, headers.dst, headers.proto);
    let Some(value) = flow(&key) else {
        return if begins_flow(headers) { leave_node(headers) } else { pass(Outcome::NotOurs) };
    };
    if headers.has_transport()
        && headers.proto == Proto::TCP
        && headers.tcp_flags.syn()
        && gives_way(&key, value)
    {
        return pass(Outcome::NotOurs);
    }
    if value.is_pending()
        && let Err(outcome) = give_snat(ctx, &key, value)
    {
        debug!(ctx, "dropped: no SNAT port, outcome {}", outcome as u32);
        return drop(outcome);
    }
    matched(ctx, headers, &key, value)
}

/// Whether a packet without a flow may begin one.
///
/// A connection begins with a SYN, an association with an INIT. Anything else is of one that
/// another proxy still translates, or of one from this node whose port looks like a NodePort.
#[inline(always)]
fn begins_flow(headers: &Headers) -> bool {
    headers.has_transport() && (headers.proto == Proto::UDP || headers.tcp_flags.opens())
}

/// A packet without a flow that is about to leave the node.
///
/// What the socket path has left alone, or has not seen (a process that is opted out), is still on
/// its way to the service's address. The default route leads it to a stranger at best.
#[inline(never)]
fn leave_node(headers: &Headers) -> Verdict {
    let value = frontend(headers);
    if value.is_none() {
        return no_frontend(headers);
    }
    let flags = value.flags();
    if flags.has(FrontendFlags::REFUSED) {
        drop(Outcome::NoPort)
    } else if flags.has(FrontendFlags::INTERNAL_LOCAL) {
        drop(Outcome::NoLocalEndpoint)
    } else if flags.is_cluster_ip() {
        drop(Outcome::Untranslated)
    } else if flags.has(FrontendFlags::RESTRICTED) && !flags.has(FrontendFlags::ADMITS_NODE) {
        drop(Outcome::SourceNotAllowed)
    } else {
        // A balancer or a router outside may have the address too.
        pass(Outcome::NotOurs)
    }
}

/// A packet to an address, port and protocol that no service has.
#[inline(always)]
fn no_frontend(headers: &Headers) -> Verdict {
    if is_service_addr(&headers.dst.addr) {
        drop(Outcome::Unallocated)
    } else {
        pass(Outcome::NotOurs)
    }
}

/// Whether the packet asks for a choice although its flow is known: a connection that begins, or
/// a datagram, since UDP flows leave a backend that no longer serves.
#[inline(always)]
fn begins_anew(headers: &Headers, value: &FlowValue) -> bool {
    !value.flags.has(FlowFlags::REPLY)
        && match headers.proto {
            Proto::UDP => !serves(value),
            _ => headers.tcp_flags.opens(),
        }
}

/// Whether the backend has answered with a reset: then the connection is over, though nothing
/// has established it, and its end must not be taken for that of the next one.
#[inline(never)]
fn was_refused(key: &FlowKey, value: &FlowValue) -> bool {
    let (reply, _) = sibling(key, value);
    flow(&reply).is_some_and(|reply| reply.flags.has(FlowFlags::RST))
}

#[inline(always)]
fn serves(value: &FlowValue) -> bool {
    maps::serves(value.backend, value.service, value.end())
}

/// Translates a packet of a known flow.
#[inline(always)]
fn matched(ctx: &TcContext, headers: &Headers, key: &FlowKey, value: &mut FlowValue) -> Verdict {
    let FlowValue { client_port, .. } = *value;
    let (to, service) = (value.end(), value.service);
    note(headers, key, value);
    let moved = key.hook() == Hook::Ingress && value.flags.has(FlowFlags::MOVED);
    if packet::translate(ctx, headers, key.hook(), &to).is_none()
        || client_port != Port::default()
            && packet::translate_port(ctx, headers, key.hook(), client_port).is_none()
        || moved && !retired::lead_to_node(ctx)
    {
        return drop(Outcome::RewriteFailed);
    }
    // A packet with SNAT passes two entries; the one that knows the frontend counts.
    if key.hook() == Hook::Ingress && !value.flags.has(FlowFlags::REPLY)
        || key.hook() == Hook::Egress && value.flags.has(FlowFlags::REPLY)
    {
        let bytes = u64::from(ctx.len()).saturating_sub(headers.network as u64);
        count_service(service, |counters| {
            counters.packets += 1;
            counters.bytes += bytes;
        });
    }
    pass(Outcome::Matched)
}

/// Writes down that a packet was seen, about once a second also in the entry of the other
/// direction, which may see no packets of its own and must not be evicted before this one.
#[inline(always)]
fn note(headers: &Headers, key: &FlowKey, value: &mut FlowValue) {
    if headers.proto != Proto::UDP && headers.has_transport() {
        let tcp = headers.tcp_flags;
        let mut flags = value.flags;
        if !tcp.syn() {
            flags = flags.with(FlowFlags::ESTABLISHED);
        }
        if tcp.fin() {
            flags = flags.with(FlowFlags::FIN);
        }
        if tcp.rst() {
            flags = flags.with(FlowFlags::RST);
        }
        if flags != value.flags {
            value.flags = flags;
        }
    }
    let now = now();
    if value.seen != now {
        value.seen = now;
        keep_sibling(key, value);
    }
}

/// A packet that no entry knows, or whose entry must be made anew: `known`. A UDP flow with an
/// entry and without any other backend is to [`STAY`]. The new entry is made in `forward`.
#[inline(never)]
fn new_flow(ctx: &TcContext, headers: &Headers, known: bool, forward: &mut FlowValue) -> Verdict {
    let sender = sender(ctx);
    let mut value = frontend(headers);
    let is_datagram = sender & Device::POD != 0 && headers.proto == Proto::UDP;
    let moves = value.is_none() && is_datagram && retired::is_sent_to(ctx, headers);
    if moves {
        value = retired::frontend();
    }
    if value.is_none() {
        make_way(headers, sender & Device::POD != 0);
        return no_frontend(headers);
    }
    match choose_backend(headers, value, sender, forward) {
        CHOSEN => {}
        // Nothing else serves: the socket stays where it is.
        NO_ENDPOINT | NO_LOCAL_ENDPOINT if moves && !known => return pass(Outcome::NotOurs),
        NO_ENDPOINT if known && headers.proto == Proto::UDP => return Verdict(STAY),
        NO_ENDPOINT => {
            let service = forward.service;
            debug!(ctx, "refused: service {} has no such port or no endpoint", service.0);
            count_service(service, |counters| counters.refused += 1);
            // Also at a NodePort: what listens there on the node is not the service.
            return refuse(refusal(value.flags()));
        }
        NO_LOCAL_ENDPOINT => {
            let service = forward.service;
            debug!(ctx, "dropped: service {} has no endpoint here", service.0);
            count_service(service, |counters| counters.refused += 1);
            return drop(Outcome::NoLocalEndpoint);
        }
        SOURCE_NOT_ALLOWED => {
            let service = forward.service;
            debug!(ctx, "dropped: service {} is not open to this source", service.0);
            count_service(service, |counters| counters.refused += 1);
            return drop(Outcome::SourceNotAllowed);
        }
        _ => return pass(Outcome::Inconsistent),
    }
    if moves {
        forward.flags = forward.flags.with(FlowFlags::MOVED);
    }
    match remember(ctx, headers, forward) {
        Ok(()) => begin(ctx, headers, forward),
        Err(outcome) => {
            let service = forward.service;
            debug!(ctx, "dropped: service {}, outcome {}", service.0, outcome as u32);
            drop(outcome)
        }
    }
}

/// Translates the first packet of a new flow.
#[inline(never)]
fn begin(ctx: &TcContext, headers: &Headers, forward: &FlowValue) -> Verdict {
    let bytes = u64::from(ctx.len()).saturating_sub(headers.network as u64);
    count_service(forward.service, |counters| {
        counters.connections += 1;
        counters.packets += 1;
        counters.bytes += bytes;
    });
    if packet::rewrite(ctx, headers, Hook::Ingress, &forward.end()).is_none()
        || forward.flags.has(FlowFlags::MOVED) && !retired::lead_to_node(ctx)
    {
        return drop(Outcome::RewriteFailed);
    }
    if !forward.changes_port() {
        return pass(Outcome::Chosen);
    }
    match packet::translate_port(ctx, headers, Hook::Ingress, forward.client_port) {
        Some(()) => pass(Outcome::PortChanged),
        None => drop(Outcome::RewriteFailed),
    }
}

/// The value of the frontend that the packet goes to, or [`FrontendValue::NONE`].
#[inline(never)]
fn frontend(headers: &Headers) -> FrontendValue {
    let End { addr, port } = headers.dst;
    let to = Destination { addr, port, proto: headers.proto };
    find_frontend(&KernelTables, to, node_ports(), false)
        .map_or(FrontendValue::NONE, |(_, value)| value)
}

const CHOSEN: u32 = Outcome::Chosen as u32;
const NO_ENDPOINT: u32 = Outcome::NoEndpoint as u32;
const NO_LOCAL_ENDPOINT: u32 = Outcome::NoLocalEndpoint as u32;
const SOURCE_NOT_ALLOWED: u32 = Outcome::SourceNotAllowed as u32;

/// Writes the choice for a new flow into `forward`, and returns the number of its outcome.
/// Without a choice only the service in `forward` means something. `sender` is as [`sender`] says.
#[inline(never)]
fn choose_backend(
    headers: &Headers,
    value: FrontendValue,
    sender: u32,
    forward: &mut FlowValue,
) -> u32 {
    if let Some(service) = shut_out(&KernelTables, value, headers.src.addr) {
        forward.service = service;
        return SOURCE_NOT_ALLOWED;
    }
    let caller = caller(headers, value, sender);
    let client = |service| AffinityKey::address(service, headers.src.addr);
    match choose(value, caller, random(), client) {
        Some(Choice::Backend(service, slot)) => {
            let backend = End { addr: slot.addr, port: slot.port };
            // The reply passes this node by itself if the backend is here or the client is. A
            // backend that is its own client would answer itself without SNAT.
            let snat = slot.addr == headers.src.addr
                || sender & Device::POD == 0 && !slot.flags.has(BackendFlags::LOCAL)
                || hides_clients(value.flags());
            let flags = if snat { FlowFlags::SNAT } else { FlowFlags::default() };
            *forward = FlowValue::new(backend, flags, service, slot.backend, now());
            CHOSEN
        }
        Some(Choice::Refuse(service)) => {
            forward.service = service;
            NO_ENDPOINT
        }
        Some(Choice::Drop(service)) => {
            forward.service = service;
            NO_LOCAL_ENDPOINT
        }
        None => Outcome::Inconsistent as u32,
    }
}

/// What the device that the packet came in by says of its sender: the flags of [`Device::pod`].
#[inline(always)]
fn sender(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: one word is read; elements change only when a device does.
    unsafe { DEVICES.get(ifindex) }.map_or(0, |device| device.pod)
}

#[inline(always)]
fn caller(headers: &Headers, value: FrontendValue, sender: u32) -> Caller {
    if sender & (Device::POD | Device::LOCAL) != 0
        || !value.flags().has(FrontendFlags::EXTERNAL_LOCAL)
    {
        return Caller::Internal;
    }
    match CLUSTER_CIDRS.get(&Key::new(128, headers.src.addr)) {
        Some(_) => Caller::Internal,
        None => Caller::External,
    }
}
