//! The packet path: the entries of flows, made, kept and given SNAT ports.
//!
//! See [`proxy_ebpf::flow`] for what they are.

use crate::filter;
use crate::maps::{DEVICES, FLOWS, SNAT_CURSORS, SNAT_PORT_FIRST, SNAT_PORT_LAST, now};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::programs::TcContext;
use proxy_ebpf::flow::{End, FlowFlags, FlowKey, FlowValue, Hook, sibling};
use proxy_ebpf::maps;
use proxy_ebpf::outcome::Outcome;
use proxy_ebpf::packet::Headers;
use proxy_ebpf::{Port, Proto};

/// How many ports of the SNAT range are tried before the range counts as exhausted.
const SNAT_TRIES: u32 = 64;

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
    filter::admit(key);
    Ok(())
}

/// Touches the entry of the other direction, or makes it again if it was evicted.
#[inline(never)]
pub(crate) fn keep_sibling(key: &FlowKey, value: &FlowValue) {
    let (key, end) = sibling(key, value);
    if FLOWS.get_ptr(&key).is_none() {
        let flags =
            FlowFlags((value.flags.0 & FlowFlags::SNAT.0) | (!value.flags.0 & FlowFlags::REPLY.0));
        let value = FlowValue::new(end, flags, value.service, value.backend, value.seen);
        // Full or just made by another CPU: the next packet tries again.
        let _full = insert(&key, &value, BPF_NOEXIST);
    }
}

/// Makes the entries of a new flow, the reply's first: once a packet can be translated, so can
/// its answer.
///
/// Two flows of one client port to one backend through two frontends would have the same entry
/// for the replies. That is a collision, unless the first flow has ended or they may `share` it.
#[inline(always)]
pub(crate) fn remember(
    headers: &Headers,
    forward: &mut FlowValue,
    share: bool,
) -> Result<(), Outcome> {
    insert_reply(headers, forward, share)?;
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
    insert(&key, &pending, BPF_ANY).map_err(|_| Outcome::TableFull)
}

#[inline(never)]
fn insert_reply(headers: &Headers, forward: &mut FlowValue, share: bool) -> Result<(), Outcome> {
    let key = FlowKey::new(Hook::Egress, forward.end(), headers.src, headers.proto);
    let reply = forward.with_end(headers.dst).with_flags(FlowFlags::REPLY);
    if insert(&key, &reply, BPF_NOEXIST).is_ok() {
        return Ok(());
    }
    if let Some(existing) = flow(&key)
        && existing.end() != headers.dst
    {
        let (other_key, _) = sibling(&key, existing);
        let other = flow(&other_key);
        if !have_ended(existing, other.as_deref()) {
            if !share {
                return Err(Outcome::Collision);
            }
            if let Some(other) = other {
                other.flags = other.flags.with(FlowFlags::SHARED);
            }
            forward.flags = forward.flags.with(FlowFlags::SHARED);
        }
    }
    insert(&key, &reply, BPF_ANY).map_err(|_| Outcome::TableFull)
}

/// Lets the replies come from the frontend of the flow `value` under `key`, which shares them
/// with another flow: the one that was asked last answers.
#[inline(never)]
pub(crate) fn take_replies(key: &FlowKey, value: &FlowValue) {
    let (reply_key, frontend) = sibling(key, value);
    if let Some(reply) = flow(&reply_key)
        && reply.end() != frontend
    {
        *reply = reply.with_end(frontend);
        reply.service = value.service;
    }
}

/// Makes way for datagrams past all services, which begin with this one: an earlier flow, through
/// a service to the same backend from the same port of the client, would take the answers for its
/// own. Those that passed within this second keep their entries.
#[inline(never)]
pub(crate) fn make_way(headers: &Headers) {
    let key = FlowKey::new(Hook::Egress, headers.dst, headers.src, headers.proto);
    let Some(reply) = flow(&key) else { return };
    let (forward_key, _) = sibling(&key, reply);
    let rests = reply.seen != now() && flow(&forward_key).is_none_or(|other| other.seen != now());
    if headers.proto == Proto::UDP && rests && reply.flags.has(FlowFlags::REPLY) {
        // Gone already, if not removed.
        let _gone = FLOWS.remove(&key);
        let snat_key = FlowKey::new(Hook::Egress, headers.src, headers.dst, headers.proto);
        let _gone = FLOWS.remove(&snat_key);
    }
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
        if insert(&reply_key, &reply, BPF_NOEXIST).is_ok()
            || take_over(&reply_key) && insert(&reply_key, &reply, BPF_ANY).is_ok()
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
