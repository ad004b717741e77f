//! `shunt flows`: one row a flow of the packet path.
//!
//! A flow has two or four entries; all of them name the same client and backend
//! ([`client_and_backend`]), and each adds what it knows.

use super::snapshot::display_name;
use super::{Column, Filter, Row, column, span, wide};
use crate::pinned::{PinnedError, PinnedMaps};
use comfy_table::Cell;
use proxy_ebpf::flow::{
    End, FlowFlags, FlowKey, FlowValue, Hook, Stamp, client_and_backend, idle_timeout_seconds,
    sibling_port,
};
use proxy_ebpf::service::{ServiceId, ServiceInfo};
use proxy_ebpf::{Port, Proto};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The flow entries, and what is needed to understand them.
#[derive(Clone, Debug)]
pub struct FlowTable {
    /// The entries.
    pub entries: BTreeMap<FlowKey, FlowValue>,
    /// The service ports.
    pub services: BTreeMap<ServiceId, ServiceInfo>,
    /// When the entries were read.
    pub now: Stamp,
}

impl FlowTable {
    /// Reads the maps.
    pub fn read(maps: &PinnedMaps) -> Result<Self, PinnedError> {
        let (entries, services) = (maps.flows()?, maps.services()?);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let nanoseconds = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        Ok(Self { entries, services, now: Stamp::from_nanoseconds(nanoseconds) })
    }
}

/// A flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FlowRow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// What the client asked for; absent if the entries that know it are gone.
    pub frontend: Option<SocketAddr>,
    /// What it was given.
    pub backend: SocketAddr,
    /// The source that the backend sees, if it is not the client.
    pub snat: Option<SocketAddr>,
    /// TCP: `opening`, `established`, `half-closed`, `closed`, `reset`; otherwise `active`.
    pub state: &'static str,
    /// Seconds since the last packet.
    pub idle_seconds: u64,
    /// Seconds of idleness after which the flow is forgotten.
    pub timeout_seconds: u64,
    /// `namespace/name`, followed by `:port` where the port has a name.
    pub service: String,
}

/// What the entries of a flow seen so far add up to.
struct Flow {
    frontend: Option<End>,
    snat: Option<End>,
    /// The client's port, if the stack sees another one.
    client_port: Option<Port>,
    flags: FlowFlags,
    /// Whether a FIN was seen from the client, and from the backend.
    fin: [bool; 2],
    idle_seconds: u64,
    service: ServiceId,
}

/// The flows of the services that `filter` admits, by service, client and backend.
pub fn flows(table: &FlowTable, filter: &Filter) -> Vec<FlowRow> {
    let mut flows: BTreeMap<(Proto, End, End), Flow> = BTreeMap::new();
    for (key, value) in &table.entries {
        let (client, backend) = client_and_backend(key, value);
        flows
            .entry((key.proto, client, backend))
            .or_insert_with(|| Flow::of(value.service))
            .add(key, value, table.now);
    }
    let everything = *filter == Filter::default();
    let mut rows: Vec<_> = flows
        .into_iter()
        .filter_map(|((proto, client, backend), flow)| {
            let info = table.services.get(&flow.service);
            if !everything && !info.is_some_and(|info| filter.admits(info)) {
                return None;
            }
            Some(flow.row(proto, client, backend, info))
        })
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &FlowRow| (row.frontend, row.client, row.backend);
        a.service.cmp(&b.service).then_with(|| key(a).cmp(&key(b)))
    });
    rows
}

impl Flow {
    fn of(service: ServiceId) -> Self {
        Self {
            frontend: None,
            snat: None,
            client_port: None,
            flags: FlowFlags::default(),
            fin: [false; 2],
            idle_seconds: u64::MAX,
            service,
        }
    }

    fn add(&mut self, key: &FlowKey, value: &FlowValue, now: Stamp) {
        let reply = value.flags.has(FlowFlags::REPLY);
        match (key.hook(), reply) {
            (Hook::Ingress, false) => self.frontend = Some(key.dst()),
            (Hook::Egress, true) => self.frontend = Some(value.end()),
            (Hook::Ingress, true) => self.snat = Some(key.dst()),
            (Hook::Egress, false) if value.is_pending() => {}
            (Hook::Egress, false) => self.snat = Some(value.end()),
        }
        if value.changes_port() {
            let (forward, back) = (sibling_port(key, value), value.client_port);
            self.client_port = Some(if reply { back } else { forward });
        }
        self.flags = self.flags.with(value.flags);
        self.fin[usize::from(reply)] |= value.flags.has(FlowFlags::FIN);
        self.idle_seconds = self.idle_seconds.min(value.seen.age_seconds(now));
    }

    fn fins(&self) -> u32 {
        self.fin.iter().map(|&fin| u32::from(fin)).sum()
    }

    fn state(&self, proto: Proto) -> &'static str {
        match self.fins() {
            _ if proto != Proto::TCP => "active",
            _ if self.flags.has(FlowFlags::RST) => "reset",
            2 => "closed",
            1 => "half-closed",
            _ if self.flags.has(FlowFlags::ESTABLISHED) => "established",
            _ => "opening",
        }
    }

    fn row(self, proto: Proto, seen: End, backend: End, info: Option<&ServiceInfo>) -> FlowRow {
        let client = End { port: self.client_port.unwrap_or(seen.port), ..seen };
        FlowRow {
            protocol: proto.to_string(),
            client: socket_addr(client),
            frontend: self.frontend.map(socket_addr),
            backend: socket_addr(backend),
            snat: self.snat.or((client != seen).then_some(seen)).map(socket_addr),
            state: self.state(proto),
            idle_seconds: self.idle_seconds,
            timeout_seconds: idle_timeout_seconds(proto, self.flags, self.fins()),
            service: info
                .map_or_else(|| format!("service {} (gone)", self.service.0), display_name),
        }
    }
}

fn socket_addr(end: End) -> SocketAddr {
    SocketAddr::new(end.addr.into(), end.port.number())
}

impl Row for FlowRow {
    const COLUMNS: &'static [Column] = &[
        column("PROTO"),
        column("CLIENT"),
        column("FRONTEND"),
        column("BACKEND"),
        column("SNAT"),
        column("STATE"),
        column("IDLE"),
        wide("TIMEOUT"),
        column("SERVICE"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let optional =
            |addr: Option<SocketAddr>| addr.map_or_else(|| "-".into(), |addr| addr.to_string());
        vec![
            Cell::new(&self.protocol),
            Cell::new(self.client),
            Cell::new(optional(self.frontend)),
            Cell::new(self.backend),
            Cell::new(optional(self.snat)),
            Cell::new(self.state),
            Cell::new(span(self.idle_seconds)),
            Cell::new(span(self.timeout_seconds)),
            Cell::new(&self.service),
        ]
    }
}
