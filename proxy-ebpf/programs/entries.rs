//! The packet path: the entries of flows, made, kept and given SNAT ports.
//!
//! See [`proxy_ebpf::flow`] for what they are.

use crate::maps::{
    DEVICES, FLOWS, SNAT_CURSORS, SNAT_PORT_FIRST, SNAT_PORT_LAST, is_snat_port, now,
};
use crate::{filter, tuple};
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use proxy_ebpf::flow::{End, FlowFlags, FlowKey, FlowValue, Hook, Stamp, sibling, sibling_port};
use proxy_ebpf::maps;
use proxy_ebpf::outcome::Outcome;
use proxy_ebpf::packet::Headers;
use proxy_ebpf::{Addr, Port, Proto};

/// How many ports of the SNAT range are tried before the range counts as exhausted.
const SNAT_TRIES: u32 = 64;
/// How many of them only if no connection has left an entry there: the backend may still have it
/// (TIME_WAIT).
const SNAT_FREE_TRIES: u32 = 8;

/// The flags that the entries of a flow have in common.
const KEPT: FlowFlags = FlowFlags::SNAT.with(FlowFlags::MOVED);

/// What a port is looked for: an entry for replies, but for its port.
#[repr(C)]
struct Search {
    key: FlowKey,
    reply: FlowValue,
}

/// The search of each hook, out of the way of the 512-byte stack.
#[btf_map(name = "searches")]
static SEARCHES: PerCpuArray<Search, 2> = PerCpuArray::new();

/// The entry under `key`, to be read and written in place.
#[inline(always)]
pub(crate) fn flow<'a>(key: &FlowKey) -> Option<&'a mut FlowValue> {
    // SAFETY: the kernel keeps the element's memory until this program returns. It may evict the
    // entry and give the element to another flow meanwhile; then this packet is rewritten to
    // that flow's end and lost, as rarely as entries are evicted that a packet has just touched.
    FLOWS.get_ptr_mut(key).map(|value| unsafe { &mut *value })
}

/// Makes or replaces an entry, as `flags` say.
#[inline(always)]
fn insert(key: &FlowKey, value: &FlowValue, flags: u32) -> Result<(), i32> {
    FLOWS.insert(key, value, flags.into())?;
    filter::admit(key, value);
    Ok(())
}

/// Touches the entry of the other direction, or makes it again if it was evicted.
#[inline(never)]
pub(crate) fn keep_sibling(key: &FlowKey, value: &FlowValue) {
    let client_port = sibling_port(key, value);
    let (key, end) = sibling(key, value);
    if FLOWS.get_ptr(&key).is_none() {
        let flags = FlowFlags((value.flags.0 & KEPT.0) | (!value.flags.0 & FlowFlags::REPLY.0));
        let value = FlowValue::new(end, flags, value.service, value.backend, value.seen)
            .with_client_port(client_port);
        // Full or just made by another CPU: the next packet tries again.
        let _full = insert(&key, &value, BPF_NOEXIST);
    }
}

/// Makes the entries of a new flow, the reply's first: once a packet can be translated, so can
/// its answer.
#[inline(always)]
pub(crate) fn remember(
    ctx: &TcContext,
    headers: &Headers,
    forward: &mut FlowValue,
) -> Result<(), Outcome> {
    match insert_reply(headers, forward) {
        Err(Outcome::Collision) => change_port(ctx, headers, forward)?,
        result => result?,
    }
    if forward.flags.has(FlowFlags::SNAT) {
        insert_snat(headers, forward)?;
    }
    insert_forward(headers, forward)
}

#[inline(never)]
fn insert_forward(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    let key = FlowKey::new(Hook::Ingress, headers.src, headers.dst, headers.proto);
    insert(&key, forward, BPF_ANY).map_err(|_| Outcome::TableFull)
}

/// Makes the entry that waits for the packet at egress. If there is one from an earlier flow of
/// the client's port to the backend, it keeps its port, and forgets how that flow ended.
#[inline(never)]
fn insert_snat(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    let client = forward.other_end(headers.src);
    let key = FlowKey::new(Hook::Egress, client, forward.end(), headers.proto);
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
    insert(&key, &pending, BPF_ANY).map_err(|_| Outcome::TableFull)
}

/// Two flows of one client port to one backend through two frontends would have the same entry
/// for the replies. That is a collision, unless the first flow has ended.
#[inline(never)]
fn insert_reply(headers: &Headers, forward: &FlowValue) -> Result<(), Outcome> {
    let key = FlowKey::new(Hook::Egress, forward.end(), headers.src, headers.proto);
    let reply = forward.with_end(headers.dst).with_flags(FlowFlags::REPLY);
    if insert(&key, &reply, BPF_NOEXIST).is_ok() {
        return Ok(());
    }
    if let Some(existing) = flow(&key)
        && existing.end() != headers.dst
    {
        let (other_key, _) = sibling(&key, existing);
        if !have_ended(existing, flow(&other_key).as_deref()) {
            return Err(Outcome::Collision);
        }
    }
    insert(&key, &reply, BPF_ANY).map_err(|_| Outcome::TableFull)
}

/// Lets the flow seem to come from another port of its client, and makes the entry for the
/// replies. A later connection of the client's port to the frontend comes from there as well.
#[inline(never)]
fn change_port(ctx: &TcContext, headers: &Headers, forward: &mut FlowValue) -> Result<(), Outcome> {
    // Its checksum covers the ports, and is no sum.
    if headers.proto == Proto::SCTP {
        return Err(Outcome::Collision);
    }
    let known = port_of(headers, forward);
    let reply = forward
        .with_end(headers.dst)
        .with_flags(FlowFlags::REPLY)
        .with_client_port(headers.src.port);
    let client = End { addr: headers.src.addr, port: known };
    let key = FlowKey::new(Hook::Egress, forward.end(), client, headers.proto);
    forward.client_port = claim_port(ctx, key, reply)?;
    Ok(())
}

/// What the client's port is already changed to on the way to the backend; 0 if it is not.
#[inline(never)]
fn port_of(headers: &Headers, forward: &FlowValue) -> Port {
    let key = FlowKey::new(Hook::Ingress, headers.src, headers.dst, headers.proto);
    match flow(&key) {
        Some(known) if known.end() == forward.end() => known.client_port,
        _ => Port::default(),
    }
}

/// Makes way for a datagram past all services: a flow through a service, to the same backend from
/// the same port of the client, would take the answer for its own. Who has asked last is answered:
/// the next datagram of the flow makes its entries again.
///
/// `is_first` says that no hook can have translated the datagram before this one. Else it may be the
/// flow's own, as on a bridge behind its port, and a flow of this second keeps its entries.
#[inline(never)]
pub(crate) fn make_way(headers: &Headers, is_first: bool) {
    if headers.proto != Proto::UDP {
        return;
    }
    let key = FlowKey::new(Hook::Egress, headers.dst, headers.src, headers.proto);
    let Some(reply) = flow(&key) else { return };
    if !reply.flags.has(FlowFlags::REPLY) {
        return;
    }
    let (forward_key, _) = sibling(&key, reply);
    let forward = flow(&forward_key);
    if !is_first && forward.as_ref().is_some_and(|forward| forward.seen == now()) {
        return;
    }
    // What is gone already needs no removal.
    if reply.flags.has(FlowFlags::SNAT) {
        // Only a new flow makes the entries that hide the client.
        let _gone = FLOWS.remove(&forward_key);
        let key = FlowKey::new(Hook::Egress, headers.src, headers.dst, headers.proto);
        if let Some(snat) = flow(&key) {
            let _gone = FLOWS.remove(&sibling(&key, snat).0);
            let _gone = FLOWS.remove(&key);
        }
    } else if let Some(forward) = forward {
        forward.seen = Stamp(forward.seen.0.wrapping_sub(1));
    }
    let _gone = FLOWS.remove(&key);
}

/// Whether a connection past all services begins in the place of the one that `value` under `key`
/// belongs to, which has ended; the entry is then removed. A connection to a service has its
/// entries made anew at ingress, before a SYN of its own comes here.
#[inline(never)]
pub(crate) fn gives_way(key: &FlowKey, value: &FlowValue) -> bool {
    let (other_key, _) = sibling(key, value);
    have_ended(value, flow(&other_key).as_deref()) && FLOWS.remove(key).is_ok()
}

/// Gives the flow of the pending entry `value` under `key` a source port at the address of the
/// device that the packet leaves by.
#[inline(never)]
pub(crate) fn give_snat(
    ctx: &TcContext,
    key: &FlowKey,
    value: &mut FlowValue,
) -> Result<(), Outcome> {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: copied at once; elements change only when a device does.
    let device = unsafe { DEVICES.get(ifindex) }.ok_or(Outcome::NoSnatAddress)?;
    let addr = device.snat_addr(key.src().addr);
    if addr.is_unspecified() {
        return Err(Outcome::NoSnatAddress);
    }
    let client = key.src();
    let reply = value.with_end(client).with_flags(FlowFlags::REPLY);
    let port = if is_snat_port(client.port) { client.port } else { own_port(client) };
    let reply_key = FlowKey::new(Hook::Ingress, key.dst(), End { addr, port }, key.proto);
    let port = claim_port(ctx, reply_key, reply)?;
    *value = value.with_end(End { addr, port });
    Ok(())
}

/// The port of the SNAT range that is the client's, whatever else is known: a range that has room
/// for them gives each port of a client another. So a connection comes from the port that the
/// client's port had before, also after the entries have been lost (RFC 6056 section 3.3.3).
#[inline(always)]
fn own_port(client: End) -> Port {
    snat_port(u32::from(client.port.number()).wrapping_add(client.addr.digest()))
}

/// Makes `reply` the entry under `key` with another receiving port: the one in `key`, unless it is
/// 0 or taken, or else the next one of the SNAT range. Returns the port.
#[inline(always)]
fn claim_port(ctx: &TcContext, key: FlowKey, reply: FlowValue) -> Result<Port, Outcome> {
    let hook = key.hook() as u32;
    let (sender, wanted) = (key.src().addr, key.dst().port);
    let search = SEARCHES.get_ptr_mut(hook).ok_or(Outcome::Inconsistent)?;
    // SAFETY: the copy of this CPU; a hook is not entered again before it is left.
    unsafe { *search = Search { key, reply } };
    for attempt in 0..SNAT_TRIES {
        let is_wanted = attempt == 0 && wanted != Port::default();
        let port = if is_wanted { wanted } else { next_port(sender)? };
        let may_follow = attempt >= SNAT_FREE_TRIES;
        if claim(ctx.skb.skb, hook, port.network().into(), may_follow.into()) != 0 {
            return Ok(port);
        }
    }
    Err(Outcome::SnatExhausted)
}

/// The port of the SNAT range behind the one that was tried last towards `backend`.
#[inline(always)]
fn next_port(backend: Addr) -> Result<Port, Outcome> {
    let cursor = SNAT_CURSORS.get_ptr_mut(backend.digest() & (maps::SNAT_CURSORS - 1));
    let cursor = cursor.ok_or(Outcome::Inconsistent)?;
    // SAFETY: array elements stay where they are. Two CPUs may read the same number; then one of
    // them finds the port taken and goes on.
    let next = unsafe { cursor.read_volatile() };
    // SAFETY: as above.
    unsafe { cursor.write_volatile(next.wrapping_add(1)) };
    Ok(snat_port(next))
}

/// Port `number` of the SNAT range, which begins anew behind its last one.
#[inline(always)]
fn snat_port(number: u32) -> Port {
    let first = SNAT_PORT_FIRST.load();
    let count = u32::from(SNAT_PORT_LAST.load()) + 1 - u32::from(first);
    Port::new(first + number.checked_rem(count).unwrap_or(0) as u16)
}

/// Makes the entry that the search of the hook of this number is for, with the port `port` in
/// network byte order. Returns 0 if the port is taken, at the node's addresses by a socket too.
/// `may_follow` says whether one is free that another client's connection has left.
///
/// Global: the verifier looks at it once, and not for each port that may be tried.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn claim(skb: *mut __sk_buff, hook: u32, port: u32, may_follow: u32) -> u32 {
    // SAFETY: as in `claim_port`, the only caller.
    let Some(Search { key, reply }) =
        SEARCHES.get_ptr_mut(hook).map(|search| unsafe { &mut *search })
    else {
        return 0;
    };
    *key = key.with_dst_port(Port::from_network(port as u16));
    if hook == Hook::Ingress as u32 && tuple::is_of_node(skb, key.proto, key.src(), key.dst()) {
        return 0;
    }
    let claimed = insert(key, reply, BPF_NOEXIST).is_ok()
        || is_left(key, reply, may_follow != 0) && insert(key, reply, BPF_ANY).is_ok();
    claimed.into()
}

/// Whether the entry under `key` may become `reply`: it is of the same client already, or, if it
/// `may_follow`, of a connection that has ended. The entries of such a one stay until the sweep,
/// far longer than a busy client can wait for a port. Datagrams never end; their flow leaves a
/// changed port when it rests and all other ports have been given out since, and begins anew.
#[inline(always)]
fn is_left(key: &FlowKey, reply: &FlowValue, may_follow: bool) -> bool {
    let Some(known) = flow(key) else { return false };
    if known.end() == reply.end() && known.client_port == reply.client_port {
        return true;
    }
    let (forward_key, _) = sibling(key, known);
    let Some(forward) = flow(&forward_key).filter(|_| may_follow) else { return false };
    let rests = key.proto == Proto::UDP && key.hook() == Hook::Egress;
    // Of several CPUs that find the same port, the one that removes the entry has it.
    (have_ended(known, Some(forward)) || rests && known.rests(now()) && forward.rests(now()))
        && sibling(&forward_key, forward).0 == *key
        && FLOWS.remove(&forward_key).is_ok()
}

/// Whether the connection of an entry and its sibling was reset, or closed by both sides.
#[inline(always)]
fn have_ended(value: &FlowValue, sibling: Option<&FlowValue>) -> bool {
    let other = sibling.map_or(FlowFlags::default(), |sibling| sibling.flags);
    let both = FlowFlags(value.flags.0 & other.0);
    value.flags.with(other).has(FlowFlags::RST) || both.has(FlowFlags::FIN)
}
