//! `shunt services`: one row a service port and family.

use super::snapshot::{Filter, Selected, Snapshot};
use super::{Column, Row, column, judged, wide};
use crate::pinned::Range;
use comfy_table::Cell;
use ipnetwork::IpNetwork;
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue, Scope};
use proxy_ebpf::service::unpadded;
use proxy_ebpf::slot::{BackendFlags, Slot};
use serde::Serialize;
use std::fmt;
use std::net::IpAddr;

/// A service port in one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ServiceRow {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The number of the service port in the maps.
    pub id: u32,
    /// Where it is reached.
    pub frontends: Vec<FrontendRef>,
    /// Backends of the cluster set that are ready.
    pub ready: usize,
    /// Backends of the cluster set.
    pub cluster: usize,
    /// Backends of the local set; 0 where no frontend has the policy `Local`.
    pub local: usize,
    /// Client-IP affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
    /// The networks that `loadBalancerSourceRanges` open its balancer's addresses to; empty if
    /// they are open to all.
    pub source_ranges: Vec<IpNetwork>,
    /// Connections of TCP and SCTP that were given a backend.
    pub connections: u64,
    /// Datagrams of UDP that were given a backend.
    pub datagrams: u64,
    /// Connections and datagrams that were refused or dropped.
    pub refused: u64,
}

/// A frontend, as it is shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct FrontendRef {
    /// `ClusterIP`, `NodePort`, `ExternalIP` or `LoadBalancer`.
    pub kind: &'static str,
    /// The address; absent for a NodePort, which is reached at the node's addresses.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// `Cluster` or `Local`: the traffic policy that applies to the frontend.
    pub policy: &'static str,
}

impl FrontendRef {
    pub(super) fn new(key: &FrontendKey, value: FrontendValue) -> Self {
        let flags = value.flags();
        let local =
            flags.has(FrontendFlags::INTERNAL_LOCAL) || flags.has(FrontendFlags::EXTERNAL_LOCAL);
        Self {
            kind: flags.kind(),
            address: (key.scope() == Scope::Service).then(|| key.addr.into()),
            port: key.port.number(),
            policy: if local { "Local" } else { "Cluster" },
        }
    }
}

impl fmt::Display for FrontendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(addr)) => write!(f, "{} {addr}:{}", self.kind, self.port),
            Some(IpAddr::V6(addr)) => write!(f, "{} [{addr}]:{}", self.kind, self.port),
            None => write!(f, "{} *:{}", self.kind, self.port),
        }
    }
}

/// The service ports that `filter` admits.
pub fn services(snapshot: &Snapshot, filter: &Filter) -> Vec<ServiceRow> {
    let rows =
        snapshot.select(filter).into_iter().map(|Selected { id, info, frontends, range }| {
            let cluster: &[Slot] = range.map_or(&[], Range::cluster);
            let mut refs: Vec<_> =
                frontends.iter().map(|(key, value)| FrontendRef::new(key, *value)).collect();
            refs.sort();
            let counters = snapshot.counters.get(&id).copied().unwrap_or_default();
            ServiceRow {
                namespace: unpadded(&info.namespace).to_owned(),
                name: unpadded(&info.name).to_owned(),
                port_name: unpadded(&info.port_name).to_owned(),
                protocol: info.proto.to_string(),
                family: if info.family == 4 { "IPv4" } else { "IPv6" },
                id: id.0,
                frontends: refs,
                ready: cluster.iter().filter(|slot| slot.flags.has(BackendFlags::READY)).count(),
                cluster: cluster.len(),
                local: range.map_or(0, |range| range.local().len()),
                affinity_seconds: range.map_or(0, |range| range.header.affinity_seconds),
                source_ranges: snapshot
                    .source_ranges
                    .get(&id)
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect(),
                connections: counters.connections,
                datagrams: counters.datagrams,
                refused: counters.refused,
            }
        });
    rows.collect()
}

impl Row for ServiceRow {
    const COLUMNS: &'static [Column] = &[
        column("NAMESPACE"),
        column("NAME"),
        column("PORT"),
        column("PROTO"),
        column("FRONTENDS"),
        column("READY"),
        column("LOCAL"),
        column("CONNECTIONS"),
        column("DATAGRAMS"),
        column("REFUSED"),
        wide("AFFINITY"),
        wide("SOURCES"),
        wide("FAMILY"),
        wide("ID"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let frontends: Vec<_> = self.frontends.iter().map(ToString::to_string).collect();
        let has_local = self.frontends.iter().any(|frontend| frontend.policy == "Local");
        vec![
            Cell::new(&self.namespace),
            Cell::new(&self.name),
            Cell::new(if self.port_name.is_empty() { "-" } else { &self.port_name }),
            Cell::new(&self.protocol),
            Cell::new(frontends.join(", ")),
            judged(format!("{}/{}", self.ready, self.cluster), self.ready > 0),
            Cell::new(if has_local { self.local.to_string() } else { "-".into() }),
            Cell::new(self.connections),
            Cell::new(self.datagrams),
            Cell::new(self.refused),
            Cell::new(match self.affinity_seconds {
                0 => "-".into(),
                seconds => super::span(seconds.into()),
            }),
            Cell::new(match &self.source_ranges[..] {
                [] => "-".into(),
                ranges => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            }),
            Cell::new(self.family),
            Cell::new(self.id),
        ]
    }
}
