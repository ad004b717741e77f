//! The metrics that the kernel programs count, read from the maps at each scrape.

use super::encoded;
use crate::pinned::{Counters, PinnedError, PinnedMaps};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use proxy_ebpf::service::unpadded;

/// Where the counters come from.
pub trait CounterSource: Send + Sync + 'static {
    /// Reads them; may block for some milliseconds.
    fn counters(&self) -> Result<Counters, PinnedError>;
}

impl CounterSource for PinnedMaps {
    fn counters(&self) -> Result<Counters, PinnedError> {
        Self::counters(self)
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
struct ServicePort {
    namespace: String,
    service: String,
    port: String,
    protocol: &'static str,
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

/// `counters` in the OpenMetrics text format, without the end mark.
///
/// The two families of a service port are one series.
pub(super) fn text(counters: &Counters) -> String {
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

    let [connections, refused, packets, bytes] =
        [(); 4].map(|()| Family::<ServicePort, Counter>::default());
    for service in &counters.services {
        let port = ServicePort {
            namespace: unpadded(&service.info.namespace).to_owned(),
            service: unpadded(&service.info.name).to_owned(),
            port: unpadded(&service.info.port_name).to_owned(),
            protocol: service.info.proto.name(),
        };
        let counted = service.counters;
        connections.get_or_create(&port).inc_by(counted.connections);
        refused.get_or_create(&port).inc_by(counted.refused);
        packets.get_or_create(&port).inc_by(counted.packets);
        bytes.get_or_create(&port).inc_by(counted.bytes);
    }
    for (name, help, family) in [
        ("connections", "Connections and flows that were given a backend", connections),
        ("refused", "Connections and flows that were refused or dropped", refused),
        ("packets", "Packets translated on the packet path, both directions", packets),
        ("bytes", "Bytes of those packets, from the network header on", bytes),
    ] {
        registry.register(format!("shunt_service_{name}"), help, family);
    }

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
