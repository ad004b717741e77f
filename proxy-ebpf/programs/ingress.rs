//! The packet path: which backend a packet goes to that opens a connection to a service.
//!
//! Takes a packet that comes in by a device of the node or of a pod, and says in `skb->priority`
//! what is to become of its connection; see [`proxy_ebpf::priority`]. Nothing in the packet
//! changes, and nothing is remembered but affinity: the nat chains of the table `shunt` do what
//! the number says, and only for what conntrack takes for a new connection. So a SYN or a
//! datagram of a connection that is there already is harmless, and is never refused.
//!
//! The hook fails open: the packet always goes on. A packet to a service that the table does not
//! translate is dropped there, not here.

use crate::affinity::choose;
use crate::filter::may_be_served;
use crate::maps::{
    CLUSTER_CIDRS, DEVICES, DIGEST_KEY, KernelTables, count, count_service, is_service_addr,
    masquerade_all, node_ports, random,
};
use crate::packet::{Skb, ethertype, vlan_id};
use crate::route::leaves_by_uplink;
use aya_ebpf::bindings::tcx_action_base::TCX_NEXT;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use proxy_ebpf::affinity::AffinityKey;
use proxy_ebpf::choose::{
    Choice, Destination, Sender, Tables as _, caller, datagram_digest, find_frontend, hides_client,
    refusal, shut_out,
};
use proxy_ebpf::node::DeviceFlags;
use proxy_ebpf::outcome::{Outcome, Program};
use proxy_ebpf::packet::{self, Headers, Unread};
use proxy_ebpf::priority::Priority;
use proxy_ebpf::service::ServiceId;
use proxy_ebpf::{Addr, Proto};

/// The hook of a device whose packets begin with `network` bytes of link layer.
#[inline(always)]
pub(crate) fn at_ingress(ctx: &TcContext, network: usize) -> i32 {
    disown(ctx);
    let outcome = match opening(ctx, network) {
        Ok(headers) => decide(ctx, &headers),
        Err(Unread::NotOurs) => Outcome::NotOurs,
        Err(Unread::Unsupported) => Outcome::Unsupported,
        Err(Unread::Malformed) => Outcome::Malformed,
    };
    count(Program::Ingress, outcome as u32);
    TCX_NEXT
}

/// Takes away a priority that looks like one of Shunt's: a pod or a VLAN device may have set it.
#[inline(always)]
fn disown(ctx: &TcContext) {
    // SAFETY: the context is valid for the whole program; the verifier checks the access.
    if Priority(unsafe { (*ctx.skb.skb).priority }).is_tagged() {
        say(ctx, Priority(0));
    }
}

/// Tells netfilter what is to become of the packet's connection.
#[inline(always)]
fn say(ctx: &TcContext, priority: Priority) {
    // SAFETY: the context is valid; the kernel takes writes of this field.
    unsafe { (*ctx.skb.skb).priority = priority.0 }
}

/// The headers of a packet that may open a connection to a service.
#[inline(always)]
fn opening(ctx: &TcContext, network: usize) -> Result<Headers, Unread> {
    // A VLAN's packet on the parent of the VLAN's device is seen again on that device.
    if vlan_id(ctx) != 0 {
        return Err(Unread::NotOurs);
    }
    let (packet, ethertype) = (Skb(ctx), ethertype(ctx));
    let headers = match packet::peek(&packet, ethertype, network) {
        Some(headers) => headers,
        None => packet::read(&packet, ethertype, network)?,
    };
    if may_be_served(headers.dst) && packet::opens(&packet, &headers)? {
        Ok(headers)
    } else {
        Err(Unread::NotOurs)
    }
}

/// Decides about a connection and says so.
#[inline(always)]
fn decide(ctx: &TcContext, headers: &Headers) -> Outcome {
    let Headers { src, dst, proto, .. } = *headers;
    let to = Destination { addr: dst.addr, port: dst.port, proto };
    let Some((_, value)) = find_frontend(&KernelTables, to, node_ports(), false) else {
        // NodeLocal DNSCache listens at the ClusterIP of the DNS service, which then is the node's.
        if !is_service_addr(&dst.addr) || KernelTables.node_addr(&dst.addr).is_some() {
            return Outcome::NotOurs;
        }
        say(ctx, Priority::DROP);
        return Outcome::Unallocated;
    };
    if let Some(service) = shut_out(&KernelTables, value, src.addr) {
        return turn_away(ctx, service, Priority::DROP, Outcome::SourceNotAllowed);
    }
    let flags = value.flags();
    let sender = Sender { addr: src.addr, device: device(ctx) };
    let caller = caller(flags, sender.device, || is_pod(src.addr));
    let random = match proto {
        Proto::UDP => datagram_digest(DIGEST_KEY.load(), src, dst),
        _ => random(),
    };
    let client = |service| AffinityKey::address(service, src.addr);
    match choose(value, caller, random, client) {
        Some(Choice::Backend(service, slot)) => {
            let is_elsewhere = || leaves_by_uplink(ctx, &src.addr, &slot.addr);
            let hide = hides_client(flags, sender, &slot, masquerade_all(), is_elsewhere);
            say(ctx, Priority::backend(slot.backend, hide));
            count_service(service, |counters| match proto {
                Proto::UDP => counters.datagrams += 1,
                _ => counters.connections += 1,
            });
            Outcome::Chosen
        }
        Some(Choice::Refuse(service)) => turn_away(ctx, service, Priority::REFUSE, refusal(flags)),
        Some(Choice::Drop(service)) => {
            turn_away(ctx, service, Priority::DROP, Outcome::NoLocalEndpoint)
        }
        None => Outcome::Inconsistent,
    }
}

#[inline(always)]
fn turn_away(ctx: &TcContext, service: ServiceId, priority: Priority, outcome: Outcome) -> Outcome {
    say(ctx, priority);
    count_service(service, |counters| counters.refused += 1);
    outcome
}

/// What the device is that the packet came in by.
#[inline(always)]
fn device(ctx: &TcContext) -> DeviceFlags {
    // SAFETY: the context is valid; the verifier checks the access.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: one word is read; elements change only when a device does.
    unsafe { DEVICES.get(ifindex) }.map_or(DeviceFlags::NODE, |device| device.flags)
}

/// Whether `addr` is a pod's, as far as `--cluster-cidr` or the Node says.
#[inline(always)]
fn is_pod(addr: Addr) -> bool {
    CLUSTER_CIDRS.get(&Key::new(Addr::BITS, addr)).is_some()
}
