//! Flows: what the packet path remembers of a connection.
//!
//! A packet of a flow passes one ingress hook and one egress hook in each direction, and every
//! hook makes one lookup. An entry at ingress says where the packet goes: it rewrites the
//! destination. An entry at egress says where the packet seems to come from: it rewrites the
//! source. So a flow from client C to frontend F, given backend B and, if the reply would not
//! pass this node by itself, SNAT to S, has these entries:
//!
//! | hook    | packet | rewritten to   | direction |
//! |---------|--------|----------------|-----------|
//! | ingress | C → F  | destination B  | forward   |
//! | egress  | C → B  | source S       | forward, only with SNAT |
//! | ingress | B → S  | destination C  | reply, only with SNAT |
//! | egress  | B → C  | source F       | reply     |
//!
//! Between the hooks the stack sees one consistent flow C ↔ B.
//!
//! Two flows from one port of C, through two frontends, may be given the same B. The stack, and B,
//! could not tell them apart, so the later one seems to come from another port of C: the entries
//! that know F rewrite that port as well, and C is in the other two what the stack sees.

use crate::addr::{Addr, Port, Proto, mix};
use crate::service::ServiceId;
use crate::slot::BackendId;

/// Where a packet meets the program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hook {
    /// From the device into the stack; the destination is rewritten.
    Ingress,
    /// From the stack to the device; the source is rewritten.
    Egress,
}

/// One end of a flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct End {
    /// The address.
    pub addr: Addr,
    /// The transport port.
    pub port: Port,
}

impl End {
    /// A 32-bit digest: equal ends have equal digests, others rarely do.
    #[inline(always)]
    pub const fn digest(&self) -> u32 {
        mix(self.addr.digest(), self.port.network() as u32)
    }
}

/// The key of a flow entry: a packet's addresses and ports, and the hook it meets.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    src: Addr,
    dst: Addr,
    src_port: Port,
    dst_port: Port,
    /// The transport protocol.
    pub proto: Proto,
    hook: u8,
    zero: u16,
}

impl FlowKey {
    /// The key of a packet from `src` to `dst` at `hook`.
    #[inline(always)]
    pub const fn new(hook: Hook, src: End, dst: End, proto: Proto) -> Self {
        let (src_port, dst_port) = (src.port, dst.port);
        let hook = hook as u8;
        Self { src: src.addr, dst: dst.addr, src_port, dst_port, proto, hook, zero: 0 }
    }

    /// The packet's source.
    #[inline(always)]
    pub const fn src(&self) -> End {
        End { addr: self.src, port: self.src_port }
    }

    /// The packet's destination.
    #[inline(always)]
    pub const fn dst(&self) -> End {
        End { addr: self.dst, port: self.dst_port }
    }

    /// The same key, but of packets to the port `port`.
    #[must_use]
    #[inline(always)]
    pub const fn with_dst_port(mut self, port: Port) -> Self {
        self.dst_port = port;
        self
    }

    /// The hook at which packets match.
    #[inline(always)]
    pub const fn hook(&self) -> Hook {
        if self.hook == Hook::Ingress as u8 { Hook::Ingress } else { Hook::Egress }
    }
}

/// What an entry has seen, and what it is.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FlowFlags(pub u16);

impl FlowFlags {
    /// The entry matches packets from the backend to the client.
    pub const REPLY: Self = Self(1);
    /// The flow has SNAT.
    pub const SNAT: Self = Self(1 << 1);
    /// TCP and SCTP: a packet that is no SYN and no INIT has matched. A later one of those then
    /// begins another connection.
    pub const ESTABLISHED: Self = Self(1 << 2);
    /// TCP: a FIN has matched.
    pub const FIN: Self = Self(1 << 3);
    /// TCP: a RST has matched.
    pub const RST: Self = Self(1 << 4);
    /// The client's socket is connected to a backend that serves no longer. If both are on one
    /// bridge, its frames are for that one, past the node.
    pub const MOVED: Self = Self(1 << 5);

    /// Both sets of flags.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A coarse point in time: units of 2³⁰ ns (1.07 s) of `CLOCK_MONOTONIC`, wrapping after 146
/// years. Coarse because reading the exact clock costs more than the lookup it would stamp.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Stamp(pub u32);

impl Stamp {
    /// The stamp of `nanoseconds` of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self((nanoseconds >> 30) as u32)
    }

    /// Seconds from this stamp to `now`; 0 if this one is later.
    pub const fn age_seconds(self, now: Self) -> u64 {
        let units = now.0.wrapping_sub(self.0);
        if units > u32::MAX / 2 { 0 } else { ((units as u64) << 30) / 1_000_000_000 }
    }
}

/// The value of a flow entry.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FlowValue {
    addr: Addr,
    port: Port,
    /// What the entry is and has seen.
    pub flags: FlowFlags,
    /// The service that the flow belongs to.
    pub service: ServiceId,
    /// What the client's port becomes; 0 if it stays. Only in the two entries that know the
    /// frontend.
    pub client_port: Port,
    zero: u16,
    /// The backend that the flow was given.
    pub backend: BackendId,
    /// When a packet last matched.
    pub seen: Stamp,
    /// Makes an element of the map 128 bytes, with the kernel's 48 and the key: two lines of the
    /// cache, which no other flow's entry shares, since another CPU would be writing to that.
    line: u32,
}

impl FlowValue {
    /// An entry that rewrites matching packets to `end`.
    #[inline(always)]
    pub const fn new(
        end: End,
        flags: FlowFlags,
        service: ServiceId,
        backend: BackendId,
        seen: Stamp,
    ) -> Self {
        let End { addr, port } = end;
        let client_port = Port::new(0);
        Self { addr, port, flags, service, client_port, zero: 0, backend, seen, line: 0 }
    }

    /// What the destination (ingress) or the source (egress) becomes.
    #[inline(always)]
    pub const fn end(&self) -> End {
        End { addr: self.addr, port: self.port }
    }

    /// The same entry, but rewriting to `end`, and nothing else.
    #[must_use]
    #[inline(always)]
    pub const fn with_end(mut self, end: End) -> Self {
        self.addr = end.addr;
        self.port = end.port;
        self.client_port = Port::new(0);
        self
    }

    /// The same entry, but rewriting the client's port to `port`.
    #[must_use]
    #[inline(always)]
    pub const fn with_client_port(mut self, port: Port) -> Self {
        self.client_port = port;
        self
    }

    /// The same entry with `flags` set as well.
    #[must_use]
    #[inline(always)]
    pub const fn with_flags(mut self, flags: FlowFlags) -> Self {
        self.flags = self.flags.with(flags);
        self
    }

    /// What the entry makes of the packet's `end` of which it changes no more than the port.
    #[inline(always)]
    pub const fn other_end(&self, end: End) -> End {
        let port = if self.changes_port() { self.client_port } else { end.port };
        End { addr: end.addr, port }
    }

    /// Whether no packet has matched for a second or two.
    #[inline(always)]
    pub const fn rests(&self, now: Stamp) -> bool {
        now.0.wrapping_sub(self.seen.0) >= 2
    }

    /// Whether the entry changes the client's port.
    #[inline(always)]
    pub const fn changes_port(&self) -> bool {
        self.client_port.network() != 0
    }

    /// Whether the entry waits for its first packet at egress, where the SNAT address is known.
    #[inline(always)]
    pub const fn is_pending(&self) -> bool {
        self.port.network() == 0
    }
}

/// The key of the entry that matches the packets of the other direction at the other hook, and
/// what that entry rewrites them to.
///
/// The two entries of such a pair are made together, and keep each other alive.
#[inline(always)]
pub const fn sibling(key: &FlowKey, value: &FlowValue) -> (FlowKey, End) {
    match key.hook() {
        Hook::Ingress => {
            let to = value.other_end(key.src());
            (FlowKey::new(Hook::Egress, value.end(), to, key.proto), key.dst())
        }
        Hook::Egress => {
            let from = value.other_end(key.dst());
            (FlowKey::new(Hook::Ingress, from, value.end(), key.proto), key.src())
        }
    }
}

/// What the sibling of an entry changes the client's port to, which is what it was; 0 if it stays.
#[inline(always)]
pub const fn sibling_port(key: &FlowKey, value: &FlowValue) -> Port {
    match key.hook() {
        _ if !value.changes_port() => Port::new(0),
        Hook::Ingress => key.src().port,
        Hook::Egress => key.dst().port,
    }
}

/// Client and backend of the flow that an entry belongs to, as the stack sees them: all entries of
/// a flow agree on it.
pub const fn client_and_backend(key: &FlowKey, value: &FlowValue) -> (End, End) {
    match (key.hook(), value.flags.has(FlowFlags::REPLY)) {
        (Hook::Ingress, false) => (value.other_end(key.src()), value.end()),
        (Hook::Egress, false) => (key.src(), key.dst()),
        (Hook::Ingress, true) => (value.end(), key.src()),
        (Hook::Egress, true) => (key.dst(), key.src()),
    }
}

/// How long a flow may be idle, in seconds.
///
/// `flags` are those of all the flow's entries together; `fins` is how many directions have
/// sent a FIN. TCP's times are those that kube-proxy sets for nf_conntrack (established one day,
/// half closed one hour) and nf_conntrack's own; a service's idle connection must not die
/// earlier here than there.
pub const fn idle_timeout_seconds(proto: Proto, flags: FlowFlags, fins: u32) -> u64 {
    match proto {
        Proto::TCP if flags.has(FlowFlags::RST) => 10,
        Proto::TCP if fins >= 2 => 60,
        Proto::TCP if fins == 1 => 3_600,
        Proto::TCP if flags.has(FlowFlags::ESTABLISHED) => 86_400,
        Proto::TCP => 60,
        Proto::SCTP => 3_600,
        _ => 120,
    }
}

const _: () = assert!(size_of::<End>() == 20);
const _: () = assert!(size_of::<FlowKey>() == 40 && size_of::<FlowValue>() == 40);
crate::plain_data!(End, FlowKey, FlowValue);

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u32, port: u16) -> End {
        End { addr: Addr::from_v4_word(last.to_be()), port: Port::new(port) }
    }

    #[test]
    fn every_entry_of_a_flow_names_the_same_client_and_backend() {
        let (c, f, b, s) = (end(1, 1000), end(2, 80), end(3, 8080), end(4, 61000));
        let entry = |hook, src, dst, to, flags| {
            let value = FlowValue::new(to, flags, ServiceId(1), BackendId(2), Stamp(3));
            client_and_backend(&FlowKey::new(hook, src, dst, Proto::TCP), &value)
        };
        let forward = FlowFlags::SNAT;
        let reply = FlowFlags::REPLY;
        assert_eq!(entry(Hook::Ingress, c, f, b, forward), (c, b));
        assert_eq!(entry(Hook::Egress, c, b, s, forward), (c, b));
        assert_eq!(entry(Hook::Ingress, b, s, c, reply), (c, b));
        assert_eq!(entry(Hook::Egress, b, c, f, reply), (c, b));
        let forward = FlowKey::new(Hook::Ingress, end(1, 999), f, Proto::TCP);
        let value = FlowValue::new(b, FlowFlags::SNAT, ServiceId(1), BackendId(2), Stamp(3));
        assert_eq!(client_and_backend(&forward, &value.with_client_port(c.port)), (c, b));
    }

    #[test]
    fn siblings_undo_each_other() {
        let (c, f, b, s) = (end(1, 1000), end(2, 80), end(3, 8080), end(4, 61000));
        let value =
            |to| FlowValue::new(to, FlowFlags::default(), ServiceId(1), BackendId(2), Stamp(3));
        let pairs = [
            ((Hook::Ingress, c, f, b), (Hook::Egress, b, c, f)),
            ((Hook::Egress, c, b, s), (Hook::Ingress, b, s, c)),
        ];
        for (one, other) in pairs {
            for ((hook, src, dst, to), (hook2, src2, dst2, to2)) in [(one, other), (other, one)] {
                let key = FlowKey::new(hook, src, dst, Proto::UDP);
                let expected = FlowKey::new(hook2, src2, dst2, Proto::UDP);
                assert_eq!(sibling(&key, &value(to)), (expected, to2));
            }
        }
        let seen = end(1, 62_000);
        let forward = FlowKey::new(Hook::Ingress, c, f, Proto::UDP);
        let reply = FlowKey::new(Hook::Egress, b, seen, Proto::UDP);
        let (there, back) =
            (value(b).with_client_port(seen.port), value(f).with_client_port(c.port));
        assert_eq!(sibling(&forward, &there), (reply, f));
        assert_eq!(sibling(&reply, &back), (forward, b));
        assert_eq!(sibling_port(&forward, &there), c.port);
        assert_eq!(sibling_port(&reply, &back), seen.port);
    }

    #[test]
    fn age_counts_seconds_and_never_goes_back() {
        let stamp = |seconds: u64| Stamp::from_nanoseconds(seconds * 1_000_000_000);
        let age = stamp(100).age_seconds(stamp(160));
        assert!((58..=61).contains(&age), "{age}");
        assert_eq!(stamp(160).age_seconds(stamp(100)), 0);
        assert_eq!(Stamp(u32::MAX).age_seconds(Stamp(0)), 1);
    }

    #[test]
    fn closing_ends_a_tcp_flow_sooner_and_half_closed_ones_linger() {
        let up = FlowFlags::ESTABLISHED;
        let idle = |flags, fins| idle_timeout_seconds(Proto::TCP, flags, fins);
        assert!(idle(up.with(FlowFlags::RST), 0) < idle(up, 2));
        assert!(idle(up, 2) < idle(up, 1) && idle(up, 1) < idle(up, 0));
        assert!(idle(FlowFlags::default(), 0) < idle(up, 0));
    }
}
