//! Metrics: what the agent did, and what the maps counted.
//!
//! Names, labels and buckets are kube-proxy's wherever the meaning is the same, so that
//! dashboards go on working; the rest begins with `shunt_`. kube-proxy syncs each family by
//! itself and Shunt both at once, so both values of `ip_family` say the same, but for
//! `no_local_endpoints_total`, which counts services, and the entries deleted from conntrack.

mod maps;
mod server;

pub use maps::CounterSource;
pub use server::serve;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The agent's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    sync_duration: PerFamily<Histogram>,
    programming_duration: PerFamily<Histogram>,
    last_sync: PerFamily<Seconds>,
    last_queued: PerFamily<Seconds>,
    endpoint_changes: PerFamily<Counter>,
    endpoint_changes_pending: PerFamily<Gauge>,
    service_changes: PerFamily<Counter>,
    service_changes_pending: PerFamily<Gauge>,
    purged: PerFamily<Counter>,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
}

/// Seconds since 1970.
type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct IpFamily {
    ip_family: &'static str,
}

/// A metric that exists for each family.
struct PerFamily<M>(Family<IpFamily, M, fn() -> M>);

impl<M: Clone> PerFamily<M>
where
    Family<IpFamily, M, fn() -> M>: Metric,
{
    fn new(registry: &mut Registry, name: &str, help: &str, new: fn() -> M) -> Self {
        let family = Family::new_with_constructor(new);
        registry.register(format!("kubeproxy_{name}"), help, family.clone());
        let metric = Self(family);
        // So that every series exists from the start.
        metric.each(|_| ());
        metric
    }

    fn each<R>(&self, act: impl Fn(&M) -> R)
    where
        fn() -> M: MetricConstructor<M>,
    {
        for ip_family in ["IPv4", "IPv6"] {
            act(&self.0.get_or_create(&IpFamily { ip_family }));
        }
    }
}

impl Metrics {
    /// The metrics of an agent of `version`.
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let build = Family::<[(&str, String); 1], Gauge>::default();
        build.get_or_create(&[("version", version.to_owned())]).set(1);
        r.register("shunt_build_info", "The version of the agent", build);
        let (healthz, livez) = (Family::default(), Family::default());
        r.register("kubeproxy_proxy_healthz", "Answers on /healthz", healthz.clone());
        r.register("kubeproxy_proxy_livez", "Answers on /livez", livez.clone());
        let inner = Inner {
            sync_duration: PerFamily::new(
                r,
                "sync_proxy_rules_duration_seconds",
                "How long a sync took",
                || Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            ),
            programming_duration: PerFamily::new(
                r,
                "network_programming_duration_seconds",
                "From the change of a pod or Service until the maps held it",
                || Histogram::new(programming_buckets()),
            ),
            last_sync: PerFamily::new(
                r,
                "sync_proxy_rules_last_timestamp_seconds",
                "When the last successful sync ended",
                Gauge::default,
            ),
            last_queued: PerFamily::new(
                r,
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "When a sync was last asked for",
                Gauge::default,
            ),
            endpoint_changes: PerFamily::new(
                r,
                "sync_proxy_rules_endpoint_changes",
                "Changes of EndpointSlices seen",
                Counter::default,
            ),
            endpoint_changes_pending: PerFamily::new(
                r,
                "sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that are not in the maps yet",
                Gauge::default,
            ),
            service_changes: PerFamily::new(
                r,
                "sync_proxy_rules_service_changes",
                "Changes of Services seen",
                Counter::default,
            ),
            service_changes_pending: PerFamily::new(
                r,
                "sync_proxy_rules_service_changes_pending",
                "Changes of Services that are not in the maps yet",
                Gauge::default,
            ),
            purged: PerFamily::new(
                r,
                "conntrack_reconciler_deleted_entries",
                "Conntrack entries of UDP that were deleted, since their backend no longer serves",
                Counter::default,
            ),
            healthz,
            livez,
            registry,
        };
        Self(Arc::new(inner))
    }

    /// A sync has succeeded at `now`, after `took`.
    pub fn sync_finished(&self, took: Duration, now: Timestamp) {
        self.0.sync_duration.each(|histogram| histogram.observe(took.as_secs_f64()));
        self.0.last_sync.each(|gauge| gauge.set(seconds(now)));
    }

    /// What changed in the cluster at `trigger_ms` is in the maps at `now_ms`, both in
    /// milliseconds since 1970. A trigger in the future, from another clock, counts as now.
    pub fn programmed(&self, trigger_ms: i64, now_ms: i64) {
        let seconds = (now_ms - trigger_ms).max(0) as f64 / 1000.0;
        self.0.programming_duration.each(|histogram| histogram.observe(seconds));
    }

    /// A sync was asked for at `now`.
    pub fn queued(&self, now: Timestamp) {
        self.0.last_queued.each(|gauge| gauge.set(seconds(now)));
    }

    /// So many changes of Services and of EndpointSlices have come.
    pub fn changes(&self, services: u64, slices: u64) {
        self.0.service_changes.each(|counter| counter.inc_by(services));
        self.0.endpoint_changes.each(|counter| counter.inc_by(slices));
    }

    /// So many changes of Services and of EndpointSlices wait for a sync.
    pub fn pending(&self, services: usize, slices: usize) {
        self.0.service_changes_pending.each(|gauge| gauge.set(services as i64));
        self.0.endpoint_changes_pending.each(|gauge| gauge.set(slices as i64));
    }

    /// So many conntrack entries of UDP were deleted, of IPv4 and of IPv6.
    pub fn purged(&self, v4: u64, v6: u64) {
        for (ip_family, entries) in [("IPv4", v4), ("IPv6", v6)] {
            self.0.purged.0.get_or_create(&IpFamily { ip_family }).inc_by(entries);
        }
    }

    /// `/healthz` was answered with `code`.
    pub fn healthz(&self, code: u16) {
        self.0.healthz.get_or_create(&Code { code }).inc();
    }

    /// `/livez` was answered with `code`.
    pub fn livez(&self, code: u16) {
        self.0.livez.get_or_create(&Code { code }).inc();
    }

    /// The agent's metrics in the OpenMetrics text format, without the end mark.
    pub fn text(&self) -> String {
        encoded(&self.0.registry)
    }
}

fn encoded(registry: &Registry) -> String {
    let mut encoded = String::new();
    text::encode_registry(&mut encoded, registry).expect("a String takes all that is written");
    encoded
}

fn seconds(now: Timestamp) -> f64 {
    now.as_millisecond() as f64 / 1000.0
}

/// kube-proxy's buckets: 0.25, 0.5, 1–59 by 1, 60–115 by 5, 120–300 by 30.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let by = |first, step, count| (0..count).map(move |i| f64::from(first + step * i));
    [0.25, 0.5].into_iter().chain(by(1, 1, 59)).chain(by(60, 5, 12)).chain(by(120, 30, 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_kube_proxy() {
        let metrics = Metrics::new("1.2.3");
        metrics.sync_finished(Duration::from_millis(3), Timestamp::from_second(50).unwrap());
        metrics.programmed(1_000, 3_500);
        metrics.programmed(9_000, 3_500);
        metrics.queued(Timestamp::from_second(49).unwrap());
        metrics.changes(2, 5);
        metrics.pending(1, 4);
        metrics.purged(6, 7);
        let text = metrics.text();
        for line in [
            "shunt_build_info{version=\"1.2.3\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\",ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"3.0\",ip_family=\"IPv4\"} 2",
            "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"} 2.5",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 50.0",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 49.0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family=\"IPv4\"} 5",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family=\"IPv4\"} 4",
            "kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_proxy_rules_service_changes_pending{ip_family=\"IPv6\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 6",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn programming_buckets_are_those_of_kube_proxy() {
        let buckets: Vec<f64> = programming_buckets().collect();
        assert_eq!(buckets.len(), 2 + 59 + 12 + 7);
        assert_eq!((buckets[2], buckets[60], buckets[61]), (1.0, 59.0, 60.0));
        assert_eq!((buckets[72], buckets[73], buckets[79]), (115.0, 120.0, 300.0));
    }
}
