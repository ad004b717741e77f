//! The pinned maps at one moment, as plain data.

use crate::pinned::{PinnedError, PinnedMaps, Range};
use ipnetwork::IpNetwork;
use proxy_ebpf::Addr;
use proxy_ebpf::choose::Tables;
use proxy_ebpf::frontend::{FrontendKey, FrontendValue, Scope};
use proxy_ebpf::node::NodeAddr;
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo, unpadded};
use proxy_ebpf::slot::Slot;
use proxy_ebpf::source::Source;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that the maps say of services.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The frontends.
    pub frontends: BTreeMap<FrontendKey, FrontendValue>,
    /// The ranges that the frontends name, by the index of their headers.
    pub ranges: BTreeMap<u32, Range>,
    /// The service ports.
    pub services: BTreeMap<ServiceId, ServiceInfo>,
    /// What the service ports have carried.
    pub counters: BTreeMap<ServiceId, ServiceCounters>,
    /// The node's addresses.
    pub node_addrs: BTreeMap<Addr, NodeAddr>,
    /// The prefixes of the pods' addresses.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// The networks that ClusterIPs are taken from.
    pub service_cidrs: Vec<IpNetwork>,
    /// The networks that restricted frontends are open to.
    pub source_ranges: BTreeMap<ServiceId, BTreeSet<IpNetwork>>,
}

/// A service port, and what belongs to it.
#[derive(Clone, Debug)]
pub struct Selected<'a> {
    /// Its number.
    pub id: ServiceId,
    /// Its names.
    pub info: &'a ServiceInfo,
    /// Its frontends, without what its address has beside them.
    pub frontends: Vec<(&'a FrontendKey, FrontendValue)>,
    /// Its backends; `None` if no frontend leads to them.
    pub range: Option<&'a Range>,
}

/// Which services a command is about; `None` is all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Services of this namespace.
    pub namespace: Option<String>,
    /// Services of this name.
    pub name: Option<String>,
}

impl Filter {
    /// Whether the service of `info` is meant.
    pub fn admits(&self, info: &ServiceInfo) -> bool {
        let admits = |wanted: &Option<String>, field| {
            wanted.as_ref().is_none_or(|wanted| wanted == unpadded(field))
        };
        admits(&self.namespace, &info.namespace) && admits(&self.name, &info.name)
    }
}

impl Snapshot {
    /// Reads the maps.
    pub fn read(maps: &PinnedMaps) -> Result<Self, PinnedError> {
        let mut frontends = maps.frontends()?;
        let ranges = maps.ranges(&mut frontends)?;
        let services = maps.services()?;
        let carried = maps.service_counters()?;
        let of = |id: &ServiceId| carried.get(id.0 as usize).copied().unwrap_or_default();
        let counters = services.keys().map(|id| (*id, of(id))).collect();
        Ok(Self {
            counters,
            frontends,
            ranges,
            services,
            node_addrs: maps.node_addrs()?,
            cluster_cidrs: maps.cluster_cidrs()?,
            service_cidrs: maps.service_cidrs()?,
            source_ranges: maps.source_ranges()?,
        })
    }

    /// The range of a frontend; `None` if the slot array does not hold it.
    pub fn range_of(&self, value: FrontendValue) -> Option<&Range> {
        self.ranges.get(&value.range())
    }

    /// The service of a frontend.
    pub fn service_of(&self, value: FrontendValue) -> Option<ServiceId> {
        self.range_of(value).map(|range| range.header.service)
    }

    /// The service ports that `filter` admits, in the order of their names.
    pub fn select(&self, filter: &Filter) -> Vec<Selected<'_>> {
        let mut frontends: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let frontend = |(key, _): &(&FrontendKey, _)| key.scope() != Scope::Address;
        for (key, value) in self.frontends.iter().filter(frontend) {
            frontends.entry(self.service_of(*value)).or_default().push((key, *value));
        }
        let admitted = self.services.iter().filter(|(_, info)| filter.admits(info));
        let mut selected: Vec<_> = admitted
            .map(|(&id, info)| {
                let frontends = frontends.remove(&Some(id)).unwrap_or_default();
                let range = frontends.first().and_then(|(_, value)| self.range_of(*value));
                Selected { id, info, frontends, range }
            })
            .collect();
        selected.sort_by_key(|Selected { id, info, .. }| {
            (info.namespace, info.name, info.port_name, info.proto, info.family, *id)
        });
        selected
    }

    /// The name of a service port, `namespace/name` or `namespace/name:port`.
    pub fn name(&self, id: ServiceId) -> String {
        self.services.get(&id).map_or_else(|| format!("service {}", id.0), display_name)
    }
}

/// `namespace/name`, followed by `:port` where the port has a name.
pub(super) fn display_name(info: &ServiceInfo) -> String {
    let name = format!("{}/{}", unpadded(&info.namespace), unpadded(&info.name));
    match unpadded(&info.port_name) {
        "" => name,
        port => format!("{name}:{port}"),
    }
}

/// A snapshot answers as the maps did, so `explain` runs the programs' own decision on it.
impl Tables for Snapshot {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let (first, range) = self.ranges.range(..=index).next_back()?;
        match index - first {
            0 => Some(range.header.to_slot()),
            offset => range.slots.get(offset as usize - 1).copied(),
        }
    }

    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.node_addrs.get(addr).copied()
    }

    fn admits(&self, source: &Source) -> bool {
        let ranges = self.source_ranges.get(&source.service);
        ranges.is_some_and(|ranges| ranges.iter().any(|range| range.contains(source.addr.into())))
    }
}
