//! `shunt flows`: one row for each conntrack entry that a Service has translated.
//!
//! Takes the entries one by one and says which frontend each client asked for, by the maps as they
//! are now. Connections that got their backend when their socket connected are not translated, and
//! not among them.

use super::snapshot::display_name;
use super::{Column, Filter, Row, Snapshot, column, span};
use crate::netfilter::conntrack::{Entry, Status, TcpState};
use comfy_table::Cell;
use proxy_ebpf::choose::{Destination, NodePortRange, find_frontend};
use proxy_ebpf::frontend::Scope;
use proxy_ebpf::{Port, Proto};
use serde::Serialize;
use std::net::SocketAddr;

/// Where the NodePort of a Service that is gone is looked for: the API server's default range.
/// Those of Services that are there are found wherever they are.
const NODE_PORTS: NodePortRange = NodePortRange { first: 30_000, last: 32_767 };

/// A flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FlowRow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// What the client asked for.
    pub frontend: SocketAddr,
    /// What it was given.
    pub backend: SocketAddr,
    /// The source that the backend sees, if it is not the client.
    pub snat: Option<SocketAddr>,
    /// TCP: `opening`, `established`, `half-closed`, `closed`; otherwise `unanswered` or
    /// `answered`.
    pub state: &'static str,
    /// Seconds without a packet after which the flow is forgotten; absent if a flow table of
    /// nftables forwards it.
    pub timeout_seconds: Option<u64>,
    /// `namespace/name`, followed by `:port` where the port has a name; absent if the Service is
    /// gone, or no longer reached there.
    pub service: Option<String>,
}

/// The flows of some Services, as they are found.
#[derive(Debug)]
pub struct Flows<'a> {
    snapshot: &'a Snapshot,
    filter: &'a Filter,
    rows: Vec<FlowRow>,
}

impl<'a> Flows<'a> {
    /// Of the Services in `snapshot` that `filter` admits.
    pub const fn new(snapshot: &'a Snapshot, filter: &'a Filter) -> Self {
        Self { snapshot, filter, rows: Vec::new() }
    }

    /// Takes an entry, which may be no flow of a Service.
    pub fn add(&mut self, entry: &Entry) {
        let original = entry.key.original;
        let to = Destination {
            addr: original.destination.ip().into(),
            port: Port::new(original.destination.port()),
            proto: Proto(original.proto),
        };
        if !entry.status.contains(Status::DESTINATION_NAT) {
            return;
        }
        let Some(service) = self.service(to) else { return };
        self.rows.push(FlowRow {
            protocol: to.proto.to_string(),
            client: original.source,
            frontend: original.destination,
            backend: entry.reply.source,
            snat: (entry.reply.destination != original.source).then_some(entry.reply.destination),
            state: state(entry),
            timeout_seconds: entry.timeout.map(|timeout| timeout.as_secs()),
            service,
        });
    }

    /// The flows, by service, frontend and client.
    pub fn rows(mut self) -> Vec<FlowRow> {
        let key = |row: &FlowRow| (row.frontend, row.client, row.backend);
        self.rows
            .sort_unstable_by(|a, b| a.service.cmp(&b.service).then_with(|| key(a).cmp(&key(b))));
        self.rows
    }

    /// The wanted service at `to`; `Some(None)` if it is gone, `None` if none is wanted.
    fn service(&self, to: Destination) -> Option<Option<String>> {
        let any = NodePortRange { first: 0, last: u16::MAX };
        match find_frontend(self.snapshot, to, any, false) {
            Some((key, value)) if key.scope() != Scope::Address => {
                let id = self.snapshot.service_of(value)?;
                let info = self.snapshot.services.get(&id)?;
                self.filter.admits(info).then(|| Some(display_name(info)))
            }
            _ => (*self.filter == Filter::default() && self.has_been_frontend(to)).then_some(None),
        }
    }

    /// Whether a Service was at `to`, as far as its address tells.
    fn has_been_frontend(&self, to: Destination) -> bool {
        match self.snapshot.node_addrs.get(&to.addr) {
            Some(addr) => addr.accepts_node_ports() && NODE_PORTS.contains(to.port),
            None => self.snapshot.service_cidrs.iter().any(|cidr| cidr.contains(to.addr.into())),
        }
    }
}

fn state(entry: &Entry) -> &'static str {
    match entry.tcp {
        Some(TcpState::Established) => "established",
        Some(TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck) => "half-closed",
        Some(TcpState::TimeWait | TcpState::Close) => "closed",
        Some(_) => "opening",
        None if entry.status.contains(Status::SEEN_REPLY) => "answered",
        None => "unanswered",
    }
}

impl Row for FlowRow {
    const COLUMNS: &'static [Column] = &[
        column("PROTO"),
        column("CLIENT"),
        column("FRONTEND"),
        column("BACKEND"),
        column("SNAT"),
        column("STATE"),
        column("TIMEOUT"),
        column("SERVICE"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            Cell::new(&self.protocol),
            Cell::new(self.client),
            Cell::new(self.frontend),
            Cell::new(self.backend),
            Cell::new(or_none(self.snat.map(|snat| snat.to_string()))),
            Cell::new(self.state),
            Cell::new(or_none(self.timeout_seconds.map(span))),
            Cell::new(self.service.as_deref().unwrap_or("(gone)")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::conntrack::{Key, Tuple};
    use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue};
    use proxy_ebpf::node::NodeAddr;
    use proxy_ebpf::service::{ServiceId, ServiceInfo};
    use proxy_ebpf::slot::RangeHeader;
    use std::net::IpAddr;
    use std::time::Duration;

    /// A ClusterIP 10.96.0.1:53 of UDP and a NodePort 192.168.0.1:30080 of TCP.
    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        let cluster_ip = FrontendKey::service(addr("10.96.0.1"), Port::new(53), Proto::UDP);
        let node_port = FrontendKey::node_port(addr("0.0.0.0"), Port::new(30_080), Proto::TCP);
        for (id, key, name, port) in [(1, cluster_ip, "dns", "dns"), (2, node_port, "web", "")] {
            let value = FrontendValue::new(&key, 10 * id, FrontendFlags::NONE);
            snapshot.frontends.insert(key, value);
            let service = ServiceId(id);
            let header = RangeHeader {
                service,
                cluster: 0,
                local: 0,
                affinity_seconds: 0,
                draining: 0,
                zero: 0,
            };
            let range = crate::pinned::Range { header, slots: Vec::new() };
            snapshot.ranges.insert(10 * id, range);
            let info = ServiceInfo::new("default", name, port, key.proto, 4).unwrap();
            snapshot.services.insert(service, info);
        }
        snapshot.node_addrs.insert(addr("192.168.0.1"), NodeAddr::NODE_PORT);
        snapshot.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
        snapshot
    }

    /// Client, what it asked for, the backend, and what the backend sees.
    fn entry(proto: Proto, [client, asked, backend, seen]: [&str; 4]) -> Entry {
        let tuple = |source: &str, destination: &str| Tuple {
            proto: proto.0,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        Entry {
            key: Key { original: tuple(client, asked), zone: 0, id: 1 },
            reply: tuple(backend, seen),
            status: Status(Status::DESTINATION_NAT.0 | Status::SEEN_REPLY.0),
            timeout: Some(Duration::from_secs(100)),
            mark: 0,
            tcp: (proto == Proto::TCP).then_some(TcpState::Established),
            counters: None,
        }
    }

    fn rows(entries: &[Entry], filter: &Filter) -> Vec<FlowRow> {
        let snapshot = snapshot();
        let mut flows = Flows::new(&snapshot, filter);
        entries.iter().for_each(|entry| flows.add(entry));
        flows.rows()
    }

    const POD: &str = "10.244.0.5:40000";
    const BACKEND: &str = "10.244.0.2:5353";

    #[test]
    fn a_flow_names_its_service_and_what_the_backend_sees() {
        let node = "192.168.0.1:61000";
        let entries = [
            entry(Proto::TCP, ["198.51.100.7:40000", "192.168.0.1:30080", BACKEND, node]),
            entry(Proto::UDP, [POD, "10.96.0.1:53", BACKEND, POD]),
        ];
        let found = rows(&entries, &Filter::default());
        let [dns, web] = &found[..] else { panic!("{found:?}") };
        assert_eq!(dns.service.as_deref(), Some("default/dns:dns"));
        assert_eq!((dns.snat, dns.state, dns.timeout_seconds), (None, "answered", Some(100)));
        assert_eq!(web.service.as_deref(), Some("default/web"));
        assert_eq!((web.snat, web.state), (Some(node.parse().unwrap()), "established"));
        let only = Filter { namespace: Some("default".into()), name: Some("web".into()) };
        assert_eq!(rows(&entries, &only), std::slice::from_ref(web));
    }

    #[test]
    fn flows_of_a_service_that_is_gone_are_marked() {
        for asked in ["10.96.0.9:53", "10.96.0.1:54", "192.168.0.1:30081"] {
            let entries = [entry(Proto::UDP, [POD, asked, BACKEND, POD])];
            let found = rows(&entries, &Filter::default());
            assert_eq!(found.len(), 1, "{asked}");
            assert_eq!(found[0].service, None, "{asked}");
            let only = Filter { namespace: Some("default".into()), name: None };
            assert!(rows(&entries, &only).is_empty(), "{asked}");
        }
    }

    #[test]
    fn what_others_translate_and_what_is_not_translated_is_no_flow() {
        let elsewhere = [
            entry(Proto::UDP, [POD, "8.8.8.8:53", BACKEND, POD]),
            entry(Proto::UDP, [POD, "192.168.0.1:53", BACKEND, POD]),
            Entry {
                status: Status::SEEN_REPLY,
                ..entry(Proto::UDP, [POD, "10.96.0.1:53", "10.96.0.1:53", POD])
            },
        ];
        assert!(rows(&elsewhere, &Filter::default()).is_empty());
    }
}
