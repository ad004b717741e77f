//! The listener for the metrics: `/metrics`, and what kube-proxy answers beside it.

use super::{CounterSource, Metrics, maps};
use crate::http::{self, Connections};
use crate::model::Warning;
use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How many may ask at once.
const CONNECTIONS: usize = 32;

/// Serves `metrics` on `addr` for ever, and the counters of `source` with them. `report` is told
/// when the address cannot be bound, and (`None`) when it can again.
pub async fn serve(
    addr: SocketAddr,
    metrics: Metrics,
    source: Arc<dyn CounterSource>,
    report: impl FnMut(Option<Warning>),
) {
    let what = "metrics (--metrics-bind-address)";
    let connections = Connections::new(CONNECTIONS);
    http::serve(addr, what, router(metrics, source), connections, report).await;
}

fn router(metrics: Metrics, source: Arc<dyn CounterSource>) -> Router {
    let turn = Arc::new(Semaphore::new(1));
    let scrape = move || scrape(metrics.clone(), Arc::clone(&source), Arc::clone(&turn));
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok" }))
        .route("/proxyMode", get(|| async { "shunt" }))
}

/// The agent's own metrics, and those of the maps and of conntrack unless they cannot be read: then
/// they are left out, so that what the agent does can still be watched.
///
/// Waits for its `turn`: a client that goes away leaves no work behind, but for what has begun.
async fn scrape(
    metrics: Metrics,
    source: Arc<dyn CounterSource>,
    turn: Arc<Semaphore>,
) -> impl IntoResponse {
    let turn = turn.acquire_owned().await;
    let mut text = metrics.text();
    let read = move || {
        let _turn = turn;
        (source.counters().map(maps::text), source.conntrack().map(maps::conntrack_text))
    };
    // Thousands of system calls and lines, which other tasks should not wait for.
    let missing =
        |what, error: &(dyn std::error::Error + 'static)| tracing::warn!(error, "no {what}");
    match tokio::task::spawn_blocking(read).await {
        Ok((counters, conntrack)) => {
            match counters {
                Ok(counters) => text += &counters,
                Err(error) => missing("counters", &error),
            }
            match conntrack {
                Ok(conntrack) => text += &conntrack,
                Err(error) => missing("numbers of conntrack", &error),
            }
        }
        Err(error) => missing("counters", &error),
    }
    text += "# EOF\n";
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, open_metrics)], text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{get, listening};
    use crate::netfilter::NetfilterError;
    use crate::netfilter::conntrack::Usage;
    use crate::pinned::{Counters, Fill, NameCount, OutcomeCount, PinnedError, ServiceCount};
    use proxy_ebpf::outcome::{Outcome, Program};
    use proxy_ebpf::service::{ServiceCounters, ServiceInfo};
    use proxy_ebpf::{Proto, dns};

    struct Example;

    impl CounterSource for Example {
        fn counters(&self) -> Result<Counters, PinnedError> {
            let service = |family, connections| ServiceCount {
                info: ServiceInfo::new("default", "web", "http", Proto::TCP, family).unwrap(),
                counters: ServiceCounters { connections, datagrams: 9, refused: 1 },
            };
            Ok(Counters {
                names: vec![NameCount {
                    kind: dns::Kind::Aaaa,
                    outcome: dns::Outcome::NoName,
                    count: 17,
                }],
                outcomes: vec![OutcomeCount {
                    program: Program::Connect,
                    outcome: Outcome::NoEndpoint,
                    count: 12,
                }],
                services: vec![service(4, 40), service(6, 2)],
                fill: vec![Fill { map: "slots", used: 3, max: 10 }],
                no_local: [(("IPv4", "external"), 2)].into(),
            })
        }

        fn conntrack(&self) -> Result<Usage, NetfilterError> {
            Ok(Usage { entries: 5, max: 100 })
        }
    }

    struct Broken;

    impl CounterSource for Broken {
        fn counters(&self) -> Result<Counters, PinnedError> {
            Err(PinnedError::NotPermitted { path: "/".into() })
        }

        fn conntrack(&self) -> Result<Usage, NetfilterError> {
            let error = std::io::ErrorKind::PermissionDenied.into();
            Err(NetfilterError::Kernel("read".to_owned(), error))
        }
    }

    #[tokio::test]
    async fn scrape_has_the_counters_of_the_maps() {
        let addr = listening(router(Metrics::new("1"), Arc::new(Example))).await;
        let text = get(addr, "/metrics").await;
        let labels = "namespace=\"default\",service=\"web\",port=\"http\",protocol=\"TCP\"";
        for line in [
            "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned(),
            "shunt_dns_queries_total{type=\"AAAA\",outcome=\"no_name\",code=\"NXDOMAIN\"} 17"
                .to_owned(),
            "shunt_outcomes_total{program=\"connect\",outcome=\"no_endpoint\"} 12".to_owned(),
            format!("shunt_service_connections_total{{{labels}}} 42"),
            format!("shunt_service_refused_total{{{labels}}} 2"),
            format!("shunt_service_datagrams_total{{{labels}}} 18"),
            "shunt_map_entries{map=\"slots\"} 3".to_owned(),
            "shunt_map_max_entries{map=\"slots\"} 10".to_owned(),
            "shunt_conntrack_entries 5".to_owned(),
            "shunt_conntrack_max_entries 100".to_owned(),
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total\
             {ip_family=\"IPv4\",traffic_policy=\"external\"} 2"
                .to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(get(addr, "/healthz").await.ends_with("\r\n\r\nok"));
        assert!(get(addr, "/proxyMode").await.ends_with("\r\n\r\nshunt"));
    }

    #[tokio::test]
    async fn unreadable_maps_leave_the_agents_own_metrics() {
        let addr = listening(router(Metrics::new("1"), Arc::new(Broken))).await;
        let text = get(addr, "/metrics").await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("shunt_build_info") && !text.contains("shunt_outcomes"), "{text}");
    }
}
