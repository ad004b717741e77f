//! The metrics that the kernel programs count, read from the maps at each scrape.

use super::encoded;
use crate::netfilter::conntrack::Usage;
use crate::netfilter::{NetfilterError, Socket};
use crate::pinned::{Counters, PinnedError, PinnedMaps, ServiceCount};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use proxy_ebpf::service::{ServiceCounters, ServiceInfo, unpadded};
use std::fmt;

/// Where the counters come from.
pub trait CounterSource: Send + Sync + 'static {
    /// Reads them; may block for some milliseconds.
    fn counters(&self) -> Result<Counters, PinnedError>;
    /// Asks how full conntrack is.
    fn conntrack(&self) -> Result<Usage, NetfilterError>;
}

impl CounterSource for PinnedMaps {
    fn counters(&self) -> Result<Counters, PinnedError> {
        Self::counters(self)
    }

    fn conntrack(&self) -> Result<Usage, NetfilterError> {
        Socket::open()?.conntrack_usage()
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Exit {
    program: &'static str,
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Query {
    r#type: &'static str,
    outcome: &'static str,
    code: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Map {
    map: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct NoLocal {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

/// The service ports, sorted by name; the two families of one are one series. Written from where
/// they lie: as families of metrics, 10,000 of them would be 40,000 copies of their names.
#[derive(Debug)]
struct Services(Vec<ServiceCount>);

impl Services {
    fn new(mut counts: Vec<ServiceCount>) -> Self {
        fn name(count: &ServiceCount) -> [&[u8]; 4] {
            let ServiceInfo { namespace, name, port_name, proto, .. } = &count.info;
            [namespace, name, port_name, std::slice::from_ref(&proto.0)]
        }
        counts.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
        counts.dedup_by(|again, first| {
            let is_same = name(again) == name(first);
            if is_same {
                first.counters.connections += again.counters.connections;
                first.counters.refused += again.counters.refused;
                first.counters.datagrams += again.counters.datagrams;
            }
            is_same
        });
        Self(counts)
    }
}

impl Collector for Services {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Count = fn(&ServiceCounters) -> u64;
        let metrics: [(_, _, Count); 3] = [
            ("connections", "Connections of TCP and SCTP that were given a backend.", |c| {
                c.connections
            }),
            ("refused", "Connections and datagrams that were refused or dropped.", |c| c.refused),
            ("datagrams", "Datagrams of UDP that were given a backend.", |c| c.datagrams),
        ];
        for (name, help, count) in metrics {
            let name = format!("shunt_service_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for ServiceCount { info, counters } in &self.0 {
                let labels = [
                    ("namespace", unpadded(&info.namespace)),
                    ("service", unpadded(&info.name)),
                    ("port", unpadded(&info.port_name)),
                    ("protocol", info.proto.name()),
                ];
                let counter = ConstCounter::new(count(counters));
                counter.encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// `counters` in the OpenMetrics text format, without the end mark.
pub(super) fn text(counters: Counters) -> String {
    let mut registry = Registry::default();
    let outcomes = Family::<Exit, Counter>::default();
    for counter in &counters.outcomes {
        let exit = Exit { program: counter.program.name(), outcome: counter.outcome.name() };
        outcomes.get_or_create(&exit).inc_by(counter.count);
    }
    registry.register("shunt_outcomes", "How often a program ended in a way", outcomes);

    let queries = Family::<Query, Counter>::default();
    for counter in &counters.names {
        let code = match counter.outcome {
            outcome if !outcome.is_answer() => "",
            outcome if outcome.code() == 0 => "NOERROR",
            _ => "NXDOMAIN",
        };
        let outcome = counter.outcome.name();
        let query = Query { r#type: counter.kind.name(), outcome, code };
        queries.get_or_create(&query).inc_by(counter.count);
    }
    registry.register(
        "shunt_dns_queries",
        "Packets of pods at the program that answers names, by type, outcome, and code if answered",
        queries,
    );

    registry.register_collector(Box::new(Services::new(counters.services)));

    let [used, max] = [(); 2].map(|()| Family::<Map, Gauge>::default());
    for fill in &counters.fill {
        used.get_or_create(&Map { map: fill.map }).set(fill.used.into());
        max.get_or_create(&Map { map: fill.map }).set(fill.max.into());
    }
    registry.register("shunt_map_entries", "Entries of a map in use", used);
    registry.register("shunt_map_max_entries", "Entries that a map can hold", max);

    let no_local = Family::<NoLocal, Gauge>::default();
    for (&(ip_family, traffic_policy), &count) in &counters.no_local {
        no_local.get_or_create(&NoLocal { ip_family, traffic_policy }).set(count as i64);
    }
    // A gauge: kube-proxy's name notwithstanding.
    registry.register(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with a Local traffic policy that have endpoints, but none on this node",
        no_local,
    );
    encoded(&registry)
}

/// How full conntrack is, in the OpenMetrics text format, without the end mark.
pub(super) fn conntrack_text(usage: Usage) -> String {
    let mut registry = Registry::default();
    let gauge = |value: u32| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value.into());
        gauge
    };
    let metrics = [
        ("shunt_conntrack_entries", "Entries of conntrack in use", usage.entries),
        ("shunt_conntrack_max_entries", "Entries that conntrack can hold", usage.max),
    ];
    for (name, help, value) in metrics {
        registry.register(name, help, gauge(value));
    }
    encoded(&registry)
}
