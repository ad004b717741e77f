//! The decision: which frontend a destination is, and which backend a new connection gets.
//!
//! Generic over where the tables lie, so that the kernel programs, `shunt explain` and the tests
//! run the same code. Never writes, never counts.

use crate::addr::{Addr, End, Port, Proto, mix};
use crate::frontend::{FrontendFlags, FrontendKey, FrontendValue};
use crate::node::{DeviceFlags, NodeAddr};
use crate::outcome::Outcome;
use crate::service::ServiceId;
use crate::slot::{BackendFlags, RangeHeader, Slot};
use crate::source::Source;

/// Read access to the tables that a decision needs.
pub trait Tables {
    /// Whether `addr` may be a service's own: `false` spares a lookup, and is certain.
    #[inline(always)]
    fn may_be_services(&self, _addr: &Addr) -> bool {
        true
    }
    /// The value under `key`.
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue>;
    /// The element `index` of the slot array.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// What `addr` is good for, if it is an address of this node.
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr>;
    /// Whether a range of the service holds the source.
    fn admits(&self, source: &Source) -> bool;
}

/// The ports among which NodePorts are looked for, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodePortRange {
    /// The lowest NodePort.
    pub first: u16,
    /// The highest NodePort.
    pub last: u16,
}

impl NodePortRange {
    /// Whether `port` is one of them.
    #[inline(always)]
    pub const fn contains(self, port: Port) -> bool {
        port.number() >= self.first && port.number() <= self.last
    }
}

/// Who opens the connection, as far as traffic policies care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A pod of the cluster, or this node.
    Internal,
    /// Anyone else.
    External,
}

/// Where a packet came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// The source address.
    pub addr: Addr,
    /// The device by which it came in.
    pub device: DeviceFlags,
}

/// A destination as the caller wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
    /// The protocol.
    pub proto: Proto,
}

/// What is done with a new connection to a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// It goes to the backend in the slot.
    Backend(ServiceId, Slot),
    /// No endpoint is usable anywhere, or the service has no such port: it is refused at once.
    Refuse(ServiceId),
    /// The policy wants a local endpoint and there are only others: it is dropped silently, so
    /// that a load balancer's health check, not the client's error, moves the traffic.
    Drop(ServiceId),
}

/// The frontend at `to`, if there is one.
///
/// A service's own address comes before a NodePort; last comes what a ClusterIP has beside its
/// frontends. `loopback` says whether NodePorts are also served at loopback addresses: only to
/// the sockets of the node's own network namespace.
#[inline(always)]
pub fn find_frontend<T: Tables>(
    tables: &T,
    to: Destination,
    node_ports: NodePortRange,
    loopback: bool,
) -> Option<(FrontendKey, FrontendValue)> {
    let key = FrontendKey::service(to.addr, to.port, to.proto);
    let found = if tables.may_be_services(&to.addr) { read_frontend(tables, &key) } else { None };
    if let Some(value) = found {
        return Some((key, value));
    }
    let key = if node_ports.contains(to.port) && accepts_node_ports(tables, &to.addr, loopback) {
        FrontendKey::node_port(to.addr, to.port, to.proto)
    } else {
        FrontendKey::address(to.addr)
    };
    read_frontend(tables, &key).map(|value| (key, value))
}

#[inline(always)]
fn accepts_node_ports<T: Tables>(tables: &T, addr: &Addr, loopback: bool) -> bool {
    match tables.node_addr(addr) {
        Some(addr) => addr.accepts_node_ports(),
        None => loopback && addr.is_loopback(),
    }
}

/// The value under `key`. Looked up once more if there was none or another key's: the kernel puts
/// a new element before the old one and then takes the old one out, and a reader that was between
/// them has seen neither.
#[inline(always)]
fn read_frontend<T: Tables>(tables: &T, key: &FrontendKey) -> Option<FrontendValue> {
    match tables.frontend(key) {
        Some(value) if value.tag() == key.tag() => Some(value),
        _ => tables.frontend(key).filter(|value| value.tag() == key.tag()),
    }
}

/// The service that does not let `addr` in by a frontend with `value`. Comes before the choice:
/// whoever is shut out is not told whether there is an endpoint.
#[inline(always)]
pub fn shut_out<T: Tables>(tables: &T, value: FrontendValue, addr: Addr) -> Option<ServiceId> {
    if !value.flags().has(FrontendFlags::RESTRICTED) {
        return None;
    }
    let RangeHeader { service, .. } = RangeHeader::from_slot(&tables.slot(value.range())?);
    (!tables.admits(&Source { service, addr })).then_some(service)
}

/// The choice for a new connection of `caller` to a frontend with `value`.
///
/// With affinity, `recall` gives the backend that the client has, if it is in the set whose flag
/// it is asked for; no other service pays for that.
///
/// `random` is uniform over all 32-bit numbers; it is scaled to the number of backends, with a
/// bias below n / 2³². `None` if the slot array does not hold what the frontend names, which the
/// writer rules out.
#[inline(always)]
pub fn choose<T: Tables>(
    tables: &T,
    value: FrontendValue,
    caller: Caller,
    random: u32,
    recall: impl FnOnce(&RangeHeader, BackendFlags) -> Option<Slot>,
) -> Option<Choice> {
    let header = RangeHeader::from_slot(&tables.slot(value.range())?);
    if header.cluster == 0 || value.flags().has(FrontendFlags::REFUSED) {
        return Some(Choice::Refuse(header.service));
    }
    let (first, count, set) = if uses_local_set(value.flags(), caller) {
        (1 + header.cluster, header.local, BackendFlags::IN_LOCAL_SET)
    } else {
        (1, header.cluster, BackendFlags::IN_CLUSTER_SET)
    };
    if count == 0 {
        return Some(Choice::Drop(header.service));
    }
    if header.affinity_seconds != 0
        && let Some(slot) = recall(&header, set)
    {
        return Some(Choice::Backend(header.service, slot));
    }
    let index = ((random as u64 * count as u64) >> 32) as u32;
    let slot = tables.slot(value.range().wrapping_add(first + index))?;
    Some(Choice::Backend(header.service, slot))
}

/// Why a frontend with `flags` refuses.
#[inline(always)]
pub const fn refusal(flags: FrontendFlags) -> Outcome {
    if flags.has(FrontendFlags::REFUSED) { Outcome::NoPort } else { Outcome::NoEndpoint }
}

/// Whether `caller` gets the local set of a frontend with `flags`.
#[inline(always)]
pub const fn uses_local_set(flags: FrontendFlags, caller: Caller) -> bool {
    flags.has(FrontendFlags::INTERNAL_LOCAL)
        || matches!(caller, Caller::External) && flags.has(FrontendFlags::EXTERNAL_LOCAL)
}

/// Who sends a packet by the device `device` to a frontend with `flags`. `is_pod` says whether its
/// source is a pod's address, and is asked only where the policy depends on it.
#[inline(always)]
pub fn caller(flags: FrontendFlags, device: DeviceFlags, is_pod: impl FnOnce() -> bool) -> Caller {
    if device.leads_to_pods() || !flags.has(FrontendFlags::EXTERNAL_LOCAL) || is_pod() {
        Caller::Internal
    } else {
        Caller::External
    }
}

/// Whether the backend in `slot`, chosen at a frontend with `flags`, is to see the node's address
/// instead of the client's, because its answer would otherwise not come back through this node.
///
/// The answer comes back by itself if the backend is on this node or the client is a pod of it.
/// `is_elsewhere` says of a backend on this node that the way to it leaves the node all the same;
/// it is asked only where that matters, and never where `externalTrafficPolicy: Local` promises
/// the client's address. `masquerade_all` is `--masquerade-all`.
#[inline(always)]
pub fn hides_client(
    flags: FrontendFlags,
    sender: Sender,
    slot: &Slot,
    masquerade_all: bool,
    is_elsewhere: impl FnOnce() -> bool,
) -> bool {
    let is_here = slot.flags.has(BackendFlags::LOCAL);
    let is_outsider = !sender.device.leads_to_pods();
    if is_here && is_outsider && !flags.has(FrontendFlags::EXTERNAL_LOCAL) && is_elsewhere() {
        return true;
    }
    // A backend that is its own client would answer itself.
    slot.addr == sender.addr
        || !is_here && !sender.device.has(DeviceFlags::POD)
        || is_here && sender.device.has(DeviceFlags::UNSEEN_BRIDGE)
        || masquerade_all && flags.is_cluster_ip()
}

/// A number for the choice that the datagrams from `src` to `dst` share, uniform over all 32-bit
/// numbers for who does not know `key`.
///
/// Two first datagrams of one flow may be under way at once, as the queries for A and AAAA of one
/// resolver are. conntrack makes one flow of them only if both are translated alike
/// (`nf_ct_resolve_clash`).
#[inline(always)]
pub const fn datagram_digest(key: u32, src: End, dst: End) -> u32 {
    mix(mix(key, src.digest()), dst.digest())
}

#[cfg(test)]
mod tests;
