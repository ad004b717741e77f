//! Sweep: which flow entries have been idle too long.
//!
//! A pure function of all entries and the time. The kernel's table forgets the least recently
//! used entries when it is full; this is what keeps it from being full.

use proxy_ebpf::flow::{
    End, FlowFlags, FlowKey, FlowValue, Stamp, client_and_backend, idle_timeout_seconds,
};
use std::collections::HashMap;

/// What the entries of one flow have seen together.
#[derive(Default)]
struct Seen {
    last: Option<Stamp>,
    flags: u16,
    fins: u32,
}

/// The keys of the entries whose flow has been idle for longer than its timeout at `now`.
pub fn expired(entries: &[(FlowKey, FlowValue)], now: Stamp) -> Vec<FlowKey> {
    let mut flows: HashMap<(End, End, u8), Seen> = HashMap::new();
    for (key, value) in entries {
        let seen = flows.entry(flow(key, value)).or_default();
        seen.flags |= value.flags.0;
        // Each direction has one entry that sees all its packets, and with SNAT a second one.
        let has_snat = value.flags.has(FlowFlags::SNAT);
        seen.fins += u32::from(value.flags.has(FlowFlags::FIN)) * if has_snat { 1 } else { 2 };
        seen.last = match seen.last {
            Some(last) if last.age_seconds(now) <= value.seen.age_seconds(now) => Some(last),
            _ => Some(value.seen),
        };
    }
    let is_expired = |(key, value): &&(FlowKey, FlowValue)| {
        flows.get(&flow(key, value)).is_some_and(|seen| {
            let flags = FlowFlags(seen.flags);
            let timeout = idle_timeout_seconds(key.proto, flags, seen.fins / 2);
            seen.last.is_some_and(|last| last.age_seconds(now) > timeout)
        })
    };
    entries.iter().filter(is_expired).map(|(key, _)| *key).collect()
}

fn flow(key: &FlowKey, value: &FlowValue) -> (End, End, u8) {
    let (client, backend) = client_and_backend(key, value);
    (client, backend, key.proto.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_ebpf::flow::Hook;
    use proxy_ebpf::service::ServiceId;
    use proxy_ebpf::slot::BackendId;
    use proxy_ebpf::{Addr, Port, Proto};

    fn end(last: u32, port: u16) -> End {
        End { addr: Addr::from_v4_word(last.to_be()), port: Port::new(port) }
    }

    fn at(seconds: u64) -> Stamp {
        Stamp::from_nanoseconds(seconds * 1_000_000_000)
    }

    /// The two entries of a flow without SNAT, each with its flags and time.
    fn flow(
        proto: Proto,
        client: u16,
        [forward, reply]: [(FlowFlags, u64); 2],
    ) -> Vec<(FlowKey, FlowValue)> {
        let (c, f, b) = (end(1, client), end(2, 80), end(3, 8080));
        let value = |to, (flags, seen): (FlowFlags, u64)| {
            FlowValue::new(to, flags, ServiceId(1), BackendId(1), at(seen))
        };
        let reply = (reply.0.with(FlowFlags::REPLY), reply.1);
        vec![
            (FlowKey::new(Hook::Ingress, c, f, proto), value(b, forward)),
            (FlowKey::new(Hook::Egress, b, c, proto), value(f, reply)),
        ]
    }

    #[test]
    fn both_directions_live_as_long_as_one_of_them_is_used() {
        let quiet = (FlowFlags::default(), 100);
        let entries = flow(Proto::UDP, 1000, [(FlowFlags::default(), 1000), quiet]);
        assert_eq!(expired(&entries, at(1060)), []);
        assert_eq!(expired(&entries, at(1300)).len(), 2);
    }

    #[test]
    fn closed_flows_go_soon_half_closed_ones_stay_and_established_ones_last() {
        let up = FlowFlags::ESTABLISHED;
        let fin = up.with(FlowFlags::FIN);
        let rst = up.with(FlowFlags::RST);
        let age = |flags: [FlowFlags; 2], seconds: u64| {
            let entries = flow(Proto::TCP, 1000, flags.map(|flags| (flags, 100)));
            expired(&entries, at(100 + seconds)).len()
        };
        assert_eq!(age([rst, up], 30), 2);
        assert_eq!((age([fin, fin], 30), age([fin, fin], 120)), (0, 2));
        assert_eq!((age([fin, up], 120), age([fin, up], 4000)), (0, 2));
        assert_eq!((age([up, up], 80_000), age([up, up], 90_000)), (0, 2));
        let opening = FlowFlags::default();
        assert_eq!((age([opening, opening], 30), age([opening, opening], 120)), (0, 2));
    }

    #[test]
    fn snat_entries_count_each_direction_once() {
        let fin = FlowFlags::SNAT.with(FlowFlags::ESTABLISHED).with(FlowFlags::FIN);
        let up = FlowFlags::SNAT.with(FlowFlags::ESTABLISHED);
        let (c, f, b, s) = (end(1, 1000), end(2, 80), end(3, 8080), end(4, 61000));
        let value = |to, flags| FlowValue::new(to, flags, ServiceId(1), BackendId(1), at(100));
        let reply = |flags: FlowFlags| flags.with(FlowFlags::REPLY);
        let entries = |there: FlowFlags, back: FlowFlags| {
            [
                (FlowKey::new(Hook::Ingress, c, f, Proto::TCP), value(b, there)),
                (FlowKey::new(Hook::Egress, c, b, Proto::TCP), value(s, there)),
                (FlowKey::new(Hook::Ingress, b, s, Proto::TCP), value(c, reply(back))),
                (FlowKey::new(Hook::Egress, b, c, Proto::TCP), value(f, reply(back))),
            ]
        };
        assert_eq!(expired(&entries(fin, up), at(220)).len(), 0, "half closed");
        assert_eq!(expired(&entries(fin, fin), at(220)).len(), 4);
    }

    #[test]
    fn other_flows_are_not_touched() {
        let flags = (FlowFlags::default(), 100);
        let mut entries = flow(Proto::UDP, 1000, [flags, flags]);
        let fresh = (FlowFlags::default(), 1000);
        entries.extend(flow(Proto::UDP, 1001, [fresh, fresh]));
        assert_eq!(expired(&entries, at(1010)).len(), 2);
    }
}
