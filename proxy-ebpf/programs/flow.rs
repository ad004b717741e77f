//! The packet path: which flow a packet belongs to, and new flows.
//!
//! See [`proxy_ebpf::flow`] for the entries of a flow. Packets go on through the stack, so that
//! routing, netfilter and the CNI's programs see one consistent flow between client and backend.
//! The hooks fail open for what is not theirs, and closed (the packet is dropped and counted)
//! where a service's packet cannot be translated: sent on as it is, it would reach a stranger.

use crate::maps::{
    CLUSTER_CIDRS, DEVICES, FLOWS, KernelTables, SNAT_CURSORS, SNAT_PORT_FIRST, SNAT_PORT_LAST,
    backend_state, count, count_service, node_ports, now, random, scratch,
};
use crate::{fragment, packet, reject};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, TC_ACT_SHOT, tcx_action_base::TCX_NEXT};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use proxy_ebpf::choose::{Caller, Choice, Destination, choose, find_frontend};
use proxy_ebpf::flow::{End, FlowFlags, FlowKey, FlowValue, Hook, sibling};
use proxy_ebpf::frontend::{FrontendFlags, FrontendValue};
use proxy_ebpf::maps;
use proxy_ebpf::outcome::{Outcome, Program};
use proxy_ebpf::packet::{Form, Headers, Unread};
use proxy_ebpf::slot::BackendFlags;
use proxy_ebpf::{Port, Proto};

/// How many backends are tried before a flow whose address pair is taken is given up.
const CHOICES: u32 = 3;
/// How many ports of the SNAT range are tried before the range counts as exhausted.
const SNAT_TRIES: u32 = 64;

/// What becomes of a packet, and why: the outcome's number, plus [`DROP`] or [`REFUSE`].
///
/// One number, because a function that is not inlined can return no more; and functions are not
/// inlined where the stack of 512 bytes would not hold them together.
struct Verdict(u32);

const DROP: u32 = 1 << 31;
/// The sender is to be told that nobody serves it.
const REFUSE: u32 = 1 << 30;

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
    let Some(headers) = scratch(hook) else {
        count(program, Outcome::Inconsistent as u32);
        return TCX_NEXT;
    };
    let Verdict(verdict) = match (read(ctx, network, headers, hook), hook) {
        (Ok(()), Hook::Ingress) => ingress(ctx, headers),
        (Ok(()), Hook::Egress) => egress(ctx, headers),
        (Err(unread), _) => leave(unread),
    };
    count(program, verdict & !(DROP | REFUSE));
    if hook == Hook::Ingress && verdict & REFUSE != 0 && reject::answer(ctx) {
        return send_back(ctx);
    }
    if verdict & (DROP | REFUSE) == 0 { TCX_NEXT } else { TC_ACT_SHOT }
}

/// Sends the packet out by the device that it came in by.
#[inline(always)]
fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no preconditions.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Reads the headers of the packet; a later fragment has those of its first one.
#[inline(always)]
fn read(ctx: &TcContext, network: usize, headers: &mut Headers, hook: Hook) -> Result<(), Unread> {
    packet::read(ctx, network, headers)?;
    match headers.form {
        Form::Later(id) => fragment::recall(headers, id, hook).ok_or(Unread::Unsupported),
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
fn ingress(ctx: &TcContext, headers: &Headers) -> Verdict {
    let key = FlowKey::new(Hook::Ingress, headers.src, headers.dst, headers.proto);
    let Some(value) = flow(&key) else {
        // A connection begins with a SYN. Anything else is of a connection that another proxy
        // still translates, or of one from this node whose port looks like a NodePort.
        if !headers.has_transport() || headers.proto == Proto::TCP && !headers.tcp_flags.opens() {
            return pass(Outcome::NotOurs);
        }
        return new_flow(ctx, headers, false);
    };
    if headers.has_transport() && begins_anew(headers, value) {
        let known = serves(value);
        // A connection that is still being opened keeps the backend that it was given.
        if !known || value.flags.has(FlowFlags::ESTABLISHED) || was_refused(&key, value) {
            return new_flow(ctx, headers, true);
        }
    }
    matched(ctx, headers, &key, value)
}

#[inline(always)]
fn egress(ctx: &TcContext, headers: &Headers) -> Verdict {
    let key = FlowKey::new(Hook::Egress, headers.src, headers.dst, headers.proto);
    let Some(value) = flow(&key) else {
        return pass(Outcome::NotOurs);
    };
    if value.is_pending()
        && let Err(outcome) = give_snat(ctx, &key, value)
    {
        debug!(ctx, "dropped: no SNAT port, outcome {}", outcome as u32);
        return drop(outcome);
    }
    matched(ctx, headers, &key, value)
}

/// The entry under `key`, to be read and written in place.
#[inline(always)]
fn flow<'a>(key: &FlowKey) -> Option<&'a mut FlowValue> {
    // SAFETY: the kernel keeps the element's memory until this program returns. It may evict the
    // entry and give the element to another flow meanwhile; then this packet is rewritten to
    // that flow's end and lost, as rarely as entries are evicted that a packet has just touched.
    FLOWS.get_ptr_mut(key).map(|value| unsafe { &mut *value })
}

/// Whether the packet asks for a choice although its flow is known: a connection that begins, or
/// a datagram, since UDP flows leave a backend that no longer serves.
#[inline(always)]
fn begins_anew(headers: &Headers, value: &FlowValue) -> bool {
    !value.flags.has(FlowFlags::REPLY)
        && match headers.proto {
            Proto::TCP => headers.tcp_flags.opens(),
            Proto::UDP => !serves(value),
            _ => false,
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
    let End { addr, port } = value.end();
    backend_state(value.backend).serves(value.service, addr, port)
}

/// Translates a packet of a known flow.
#[inline(always)]
fn matched(ctx: &TcContext, headers: &Headers, key: &FlowKey, value: &mut FlowValue) -> Verdict {
    let to = value.end();
    let service = value.service;
    note(headers, key, value);
    if packet::translate(ctx, headers, key.hook(), &to).is_none() {
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
    if headers.proto == Proto::TCP && headers.has_transport() {
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

/// Touches the entry of the other direction, or makes it again if it was evicted.
#[inline(never)]
fn keep_sibling(key: &FlowKey, value: &FlowValue) {
    let (key, end) = sibling(key, value);
    if FLOWS.get_ptr(&key).is_none() {
        let flags =
            FlowFlags((value.flags.0 & FlowFlags::SNAT.0) | (!value.flags.0 & FlowFlags::REPLY.0));
        let value = FlowValue::new(end, flags, value.service, value.backend, value.seen);
        // Full or just made by another CPU: the next packet tries again.
        let _full = FLOWS.insert(&key, &value, BPF_NOEXIST.into());
    }
}

/// A packet that no entry knows (or whose entry must be made anew: `known`).
#[inline(never)]
fn new_flow(ctx: &TcContext, headers: &Headers, known: bool) -> Verdict {
    let value = frontend(headers);
    if value.is_none() {
        return pass(Outcome::NotOurs);
    }
    let from_pod = is_from_pod(ctx);
    let mut forward = FlowValue::default();
    let first = random();
    for choice in 0..CHOICES {
        // The choices lie equally far apart, so that they are as many backends as there are.
        let random = first.wrapping_add(choice * (u32::MAX / CHOICES));
        match choose_backend(headers, value, from_pod, random, &mut forward) {
            CHOSEN => {}
            NO_ENDPOINT if known && headers.proto == Proto::UDP => return stay(ctx, headers),
            NO_ENDPOINT => {
                debug!(ctx, "refused: service {} has no usable endpoint", forward.service.0);
                count_service(forward.service, |counters| counters.refused += 1);
                // Also at a NodePort: what listens there on the node is not the service.
                return refuse(Outcome::NoEndpoint);
            }
            NO_LOCAL_ENDPOINT => {
                debug!(ctx, "dropped: service {} has no endpoint here", forward.service.0);
                count_service(forward.service, |counters| counters.refused += 1);
                return drop(Outcome::NoLocalEndpoint);
            }
            _ => return pass(Outcome::Inconsistent),
        }
        match remember(headers, &forward) {
            Ok(()) => return begin(ctx, headers, &forward),
            Err(Outcome::Collision) => {}
            Err(outcome) => return drop(outcome),
        }
    }
    debug!(ctx, "dropped: service {} has no free backend for this port", forward.service.0);
    drop(Outcome::Collision)
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
    match packet::rewrite(ctx, headers, Hook::Ingress, &forward.end()) {
        Some(()) => pass(Outcome::Chosen),
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

/// Writes the choice for a new flow into `forward`, and returns the number of its outcome.
/// Without a choice only the service in `forward` means something.
#[inline(never)]
fn choose_backend(
    headers: &Headers,
    value: FrontendValue,
    from_pod: bool,
    random: u32,
    forward: &mut FlowValue,
) -> u32 {
    let caller = caller(headers, value, from_pod);
    match choose(&KernelTables, value, caller, random) {
        Some(Choice::Backend(service, slot)) => {
            let backend = End { addr: slot.addr, port: slot.port };
            // The reply passes this node by itself if the backend is here or the client is. A
            // backend that is its own client would answer itself without SNAT.
            let snat =
                slot.addr == headers.src.addr || !from_pod && !slot.flags.has(BackendFlags::LOCAL);
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

/// Keeps a UDP flow whose service has no usable endpoint left.
#[inline(always)]
fn stay(ctx: &TcContext, headers: &Headers) -> Verdict {
    let key = FlowKey::new(Hook::Ingress, headers.src, headers.dst, headers.proto);
    match flow(&key) {
        Some(value) => matched(ctx, headers, &key, value),
        None => pass(Outcome::NotOurs),
    }
}

/// Whether the packet came in from a pod of this node.
#[inline(always)]
fn is_from_pod(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: one word is read; elements change only when a device does.
    unsafe { DEVICES.get(ifindex) }.is_some_and(|device| device.pod != 0)
}

#[inline(always)]
fn caller(headers: &Headers, value: FrontendValue, from_pod: bool) -> Caller {
    if from_pod || !value.flags().has(FrontendFlags::EXTERNAL_LOCAL) {
        return Caller::Internal;
    }
    match CLUSTER_CIDRS.get(&Key::new(128, headers.src.addr)) {
        Some(_) => Caller::Internal,
        None => Caller::External,
    }
}

/// Makes the entries of a new flow, the reply's first: once a packet can be translated, so can
/// its answer.
#[inline(always)]
fn remember(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    insert_reply(headers, forward)?;
    if forward.flags.has(FlowFlags::SNAT) {
        insert_snat(headers, forward)?;
    }
    insert_forward(headers, forward)
}

#[inline(never)]
fn insert_forward(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    let key = FlowKey::new(Hook::Ingress, headers.src, headers.dst, headers.proto);
    FLOWS.insert(&key, forward, BPF_ANY.into()).map_err(|_| Outcome::TableFull)
}

/// Makes the entry that waits for the packet at egress. If there is one from an earlier flow of
/// the client's port to the backend, it keeps its port, and forgets how that flow ended.
#[inline(never)]
fn insert_snat(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    let key = FlowKey::new(Hook::Egress, headers.src, forward.end(), headers.proto);
    if let Some(known) = flow(&key) {
        let (reply_key, client) = sibling(&key, known);
        if let Some(reply) = flow(&reply_key)
            && reply.end() == client
        {
            *reply = forward.with_end(client).with_flags(FlowFlags::REPLY);
            *known = forward.with_end(known.end());
            return Ok(());
        }
    }
    let pending =
        forward.with_end(End { addr: headers.src.addr.unspecified(), port: Port::default() });
    FLOWS.insert(&key, &pending, BPF_ANY.into()).map_err(|_| Outcome::TableFull)
}

/// Makes the entry for the replies. Two flows of one client port to one backend through two
/// frontends would have the same one, so the second flow must look for another backend, unless
/// the first one has ended.
#[inline(never)]
fn insert_reply(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    let key = FlowKey::new(Hook::Egress, forward.end(), headers.src, headers.proto);
    let reply = forward.with_end(headers.dst).with_flags(FlowFlags::REPLY);
    if FLOWS.insert(&key, &reply, BPF_NOEXIST.into()).is_ok() {
        return Ok(());
    }
    if let Some(existing) = flow(&key)
        && existing.end() != headers.dst
    {
        let (other, _) = sibling(&key, existing);
        if !have_ended(existing, flow(&other).as_deref()) {
            return Err(Outcome::Collision);
        }
    }
    FLOWS.insert(&key, &reply, BPF_ANY.into()).map_err(|_| Outcome::TableFull)
}

/// Gives the flow of the pending entry `value` under `key` a source port at the address of the
/// device that the packet leaves by.
#[inline(never)]
fn give_snat(ctx: &TcContext, key: &FlowKey, value: &mut FlowValue) -> Result<(), Outcome> {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: copied at once; elements change only when a device does.
    let device = unsafe { DEVICES.get(ifindex) }.ok_or(Outcome::NoSnatAddress)?;
    let addr = device.snat_addr(key.src().addr);
    if addr.is_unspecified() {
        return Err(Outcome::NoSnatAddress);
    }
    let (client, backend) = (key.src(), key.dst());
    let reply = value.with_end(client).with_flags(FlowFlags::REPLY);
    let first = u32::from(SNAT_PORT_FIRST.load());
    let count = u32::from(SNAT_PORT_LAST.load()) + 1 - first;
    let own = u32::from(client.port.number()).wrapping_sub(first);
    let cursor = backend.addr.digest() & (maps::SNAT_CURSORS - 1);
    let cursor = SNAT_CURSORS.get_ptr_mut(cursor).ok_or(Outcome::Inconsistent)?;
    for attempt in 0..SNAT_TRIES {
        let offset = if attempt == 0 && own < count {
            own
        } else {
            // SAFETY: array elements stay where they are. Two CPUs may read the same number;
            // then one of them finds the port taken and goes on.
            let next = unsafe { cursor.read_volatile() };
            // SAFETY: as above.
            unsafe { cursor.write_volatile(next.wrapping_add(1)) };
            next.checked_rem(count).unwrap_or(0)
        };
        let end = End { addr, port: Port::new((first + offset) as u16) };
        let reply_key = FlowKey::new(Hook::Ingress, backend, end, key.proto);
        if FLOWS.insert(&reply_key, &reply, BPF_NOEXIST.into()).is_ok()
            || take_over(&reply_key) && FLOWS.insert(&reply_key, &reply, BPF_ANY.into()).is_ok()
        {
            *value = value.with_end(end);
            return Ok(());
        }
    }
    Err(Outcome::SnatExhausted)
}

/// Takes the SNAT port away from the connection whose replies have `key`, if that has ended: its
/// entries stay until the sweep, far longer than a busy client can wait for a port.
#[inline(never)]
fn take_over(key: &FlowKey) -> bool {
    let Some(reply) = flow(key) else { return false };
    let (forward_key, _) = sibling(key, reply);
    let Some(forward) = flow(&forward_key) else { return false };
    // Of several CPUs that find the same port, the one that removes the entry has it.
    have_ended(reply, Some(forward))
        && forward.end() == key.dst()
        && FLOWS.remove(&forward_key).is_ok()
}

/// Whether the connection of an entry and its sibling was reset, or closed by both sides.
#[inline(always)]
fn have_ended(value: &FlowValue, sibling: Option<&FlowValue>) -> bool {
    let other = sibling.map_or(FlowFlags::default(), |sibling| sibling.flags);
    let both = FlowFlags(value.flags.0 & other.0);
    value.flags.with(other).has(FlowFlags::RST) || both.has(FlowFlags::FIN)
}
