//! What UDP services lead to at one moment, and which conntrack entries do not fit it.

use crate::netfilter::conntrack::{Entry, Status};
use crate::pinned::{PinnedError, PinnedMaps, Range};
use ipnetwork::IpNetwork;
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::frontend::{FrontendKey, FrontendValue, Scope};
use proxy_ebpf::node::NodeAddr;
use proxy_ebpf::{Addr, End, Port, Proto};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

/// The frontends of UDP and their serving backends, and where frontends may have been.
#[derive(Debug)]
pub(super) struct Served {
    /// The range of each frontend.
    ranges: HashMap<FrontendKey, u32>,
    /// The backends in a range: those that new flows are given, and those that keep what they
    /// have.
    backends: HashMap<u32, HashSet<End>>,
    /// The node's addresses.
    node_addrs: BTreeMap<Addr, NodeAddr>,
    /// The networks that ClusterIPs are taken from.
    service_networks: Vec<IpNetwork>,
    node_ports: NodePortRange,
    /// Frontends that are gone.
    pub(super) departed: HashSet<FrontendKey>,
}

impl Served {
    /// Reads the maps.
    pub(super) fn read(maps: &PinnedMaps, node_ports: NodePortRange) -> Result<Self, PinnedError> {
        let mut frontends = frontends(maps)?;
        let backends = maps.ranges(&mut frontends)?;
        let ends = |(index, range): (u32, Range)| {
            let ends = range.slots.iter().map(|slot| End { addr: slot.addr, port: slot.port });
            (index, ends.collect())
        };
        Ok(Self {
            ranges: frontends.into_iter().map(|(key, value)| (key, value.range())).collect(),
            backends: backends.into_iter().map(ends).collect(),
            node_addrs: maps.node_addrs()?,
            service_networks: maps.service_cidrs()?,
            node_ports,
            departed: HashSet::new(),
        })
    }

    /// Whether there is such a frontend.
    pub(super) fn has(&self, key: &FrontendKey) -> bool {
        self.ranges.contains_key(key)
    }

    /// All frontends.
    pub(super) fn frontends(&self) -> impl Iterator<Item = FrontendKey> {
        self.ranges.keys().copied()
    }

    /// Whether the client of `entry` asked for a frontend, and is led to something that does not
    /// serve it.
    ///
    /// An entry that was made before there was a frontend is not translated: it leads to the
    /// frontend's own address, where nobody serves. An entry whose frontend is gone counts only
    /// if it is translated; otherwise Shunt has nothing to do with it.
    pub(super) fn is_stale(&self, entry: &Entry) -> bool {
        let original = entry.key.original;
        if original.proto != Proto::UDP.0 {
            return false;
        }
        let asked = end(original.destination);
        match self.backends(asked) {
            Some(backends) => !backends.contains(&end(entry.reply.source)),
            None => entry.status.contains(Status::DESTINATION_NAT) && self.has_been_frontend(asked),
        }
    }

    /// The serving backends of the frontend at `asked`, if there is one.
    fn backends(&self, asked: End) -> Option<&HashSet<End>> {
        let range = self.ranges.get(&service(asked)).or_else(|| {
            self.accepts_node_port(asked).then(|| self.ranges.get(&node_port(asked))).flatten()
        })?;
        self.backends.get(range)
    }

    /// Whether `asked`, which is no frontend, is where a Service was: seen to go, or by its
    /// address.
    ///
    /// A ClusterIP that is an address of this node is the node's (a DNS cache of the node, say).
    fn has_been_frontend(&self, asked: End) -> bool {
        if self.departed.contains(&service(asked)) || self.accepts_node_port(asked) {
            return true;
        }
        let is_own = self.node_addrs.contains_key(&asked.addr);
        !is_own && self.service_networks.iter().any(|network| network.contains(asked.addr.into()))
    }

    fn accepts_node_port(&self, asked: End) -> bool {
        self.node_ports.contains(asked.port)
            && self.node_addrs.get(&asked.addr).is_some_and(|addr| addr.accepts_node_ports())
    }
}

/// The frontends of UDP.
pub(super) fn frontends(
    maps: &PinnedMaps,
) -> Result<BTreeMap<FrontendKey, FrontendValue>, PinnedError> {
    let mut frontends = maps.frontends()?;
    frontends.retain(|key, _| key.proto == Proto::UDP && key.scope() != Scope::Address);
    Ok(frontends)
}

const fn service(End { addr, port }: End) -> FrontendKey {
    FrontendKey::service(addr, port, Proto::UDP)
}

const fn node_port(End { addr, port }: End) -> FrontendKey {
    FrontendKey::node_port(addr, port, Proto::UDP)
}

fn end(addr: SocketAddr) -> End {
    End { addr: addr.ip().into(), port: Port::new(addr.port()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::conntrack::{Key, Tuple};

    fn at(text: &str) -> End {
        end(text.parse().unwrap())
    }

    /// A ClusterIP, an external IP and a NodePort, each of both families, with the same backends;
    /// a ClusterIP without any; one at an address of the node.
    fn served() -> Served {
        let keys = [
            service(at("10.96.0.1:53")),
            service(at("[fd00:96::1]:53")),
            service(at("203.0.113.1:53")),
            node_port(at("0.0.0.0:30053")),
            node_port(at("[::]:30053")),
        ];
        let all = ["10.244.0.2:5353", "10.244.1.3:5353", "[fd00:244::2]:5353"];
        let mut ranges: HashMap<_, _> = keys.map(|key| (key, 1)).into();
        ranges.insert(service(at("10.96.0.2:53")), 2);
        let node_addrs = [
            ("192.168.0.1", NodeAddr::NODE_PORT),
            ("fd00::1", NodeAddr::NODE_PORT),
            ("172.17.0.1", NodeAddr::OWN),
            ("10.96.0.10", NodeAddr::OWN),
        ];
        let addr = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
        Served {
            ranges,
            backends: [(1, all.map(at).into()), (2, HashSet::new())].into(),
            node_addrs: node_addrs.map(|(text, node)| (addr(text), node)).into(),
            service_networks: ["10.96.0.0/16", "fd00:96::/64"].map(|n| n.parse().unwrap()).into(),
            node_ports: NodePortRange { first: 30_000, last: 32_767 },
            departed: [service(at("203.0.113.9:53"))].into(),
        }
    }

    /// An entry of a client that asked `asked` and is led to `to`; translated if they differ.
    fn entry(asked: &str, to: &str, proto: Proto) -> Entry {
        let (asked, to): (SocketAddr, SocketAddr) = (asked.parse().unwrap(), to.parse().unwrap());
        let client = SocketAddr::new(to.ip(), 40_000);
        let tuple = |source, destination| Tuple { proto: proto.0, source, destination };
        let status = if asked == to { Status::default() } else { Status::DESTINATION_NAT };
        Entry {
            key: Key { original: tuple(client, asked), zone: 0, id: 1 },
            // The client may be hidden.
            reply: tuple(to, "192.168.0.1:61000".parse().unwrap()),
            status,
            timeout: None,
            mark: 0,
            tcp: None,
            counters: None,
        }
    }

    fn check(cases: &[(&str, &str)], stale: bool) {
        let served = served();
        for (asked, to) in cases {
            let entry = entry(asked, to, Proto::UDP);
            assert_eq!(served.is_stale(&entry), stale, "{asked} → {to}");
        }
    }

    #[test]
    fn entries_that_lead_to_a_serving_backend_stay() {
        check(
            &[
                ("10.96.0.1:53", "10.244.0.2:5353"),
                ("[fd00:96::1]:53", "[fd00:244::2]:5353"),
                ("203.0.113.1:53", "10.244.1.3:5353"),
                ("192.168.0.1:30053", "10.244.1.3:5353"),
                ("[fd00::1]:30053", "[fd00:244::2]:5353"),
            ],
            false,
        );
    }

    #[test]
    fn entries_that_lead_to_another_address_or_port_are_stale() {
        check(
            &[
                ("10.96.0.1:53", "10.244.0.9:5353"),
                ("10.96.0.1:53", "10.244.0.2:5354"),
                ("[fd00:96::1]:53", "[fd00:244::9]:5353"),
                ("203.0.113.1:53", "10.244.0.9:5353"),
                ("192.168.0.1:30053", "10.244.0.9:5353"),
                ("[fd00::1]:30053", "[fd00:244::9]:5353"),
            ],
            true,
        );
    }

    #[test]
    fn entries_from_before_the_frontend_and_those_of_one_without_backends_are_stale() {
        check(
            &[
                ("10.96.0.1:53", "10.96.0.1:53"),
                ("192.168.0.1:30053", "192.168.0.1:30053"),
                ("10.96.0.2:53", "10.96.0.2:53"),
                ("10.96.0.2:53", "10.244.0.2:5353"),
            ],
            true,
        );
    }

    #[test]
    fn translated_entries_of_services_that_are_gone_are_stale() {
        check(
            &[
                ("10.96.0.3:53", "10.244.0.2:5353"),
                ("10.96.0.1:54", "10.244.0.2:5353"),
                ("[fd00:96::3]:53", "[fd00:244::2]:5353"),
                ("192.168.0.1:30054", "10.244.0.2:5353"),
                ("203.0.113.9:53", "10.244.0.2:5353"),
            ],
            true,
        );
    }

    #[test]
    fn what_is_no_services_stays() {
        check(
            &[
                // Not translated, and no frontend.
                ("10.96.0.3:53", "10.96.0.3:53"),
                ("192.168.0.1:30054", "192.168.0.1:30054"),
                // Translated by somebody else: elsewhere, at a port of no NodePort, at an address
                // that takes none.
                ("8.8.8.8:53", "10.244.0.2:5353"),
                ("192.168.0.1:53", "10.244.0.2:5353"),
                ("172.17.0.1:30053", "10.244.0.9:5353"),
                // The node's own, although a ClusterIP.
                ("10.96.0.10:53", "10.96.0.10:53"),
                ("10.96.0.10:53", "10.244.0.9:5353"),
            ],
            false,
        );
    }

    #[test]
    fn only_udp_is_looked_at() {
        for proto in [Proto::TCP, Proto::SCTP] {
            assert!(!served().is_stale(&entry("10.96.0.1:53", "10.244.0.9:5353", proto)));
        }
    }
}
