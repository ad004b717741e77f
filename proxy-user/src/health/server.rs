//! The listener for [`Health`]: `/livez` and `/healthz`, JSON over plain HTTP.

use super::{Health, Report};
use crate::http::{self, Connections};
use crate::metrics::Metrics;
use crate::model::Warning;
use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use std::net::SocketAddr;

/// How many may ask at once.
const CONNECTIONS: usize = 128;

/// Serves `health` on `addr` for ever, and counts the answers. `report` is told when the address
/// cannot be bound, and (`None`) when it can again.
pub async fn serve(
    addr: SocketAddr,
    health: Health,
    metrics: Metrics,
    report: impl FnMut(Option<Warning>),
) {
    let what = "health (--healthz-bind-address)";
    let connections = Connections::new(CONNECTIONS);
    http::serve(addr, what, router(health, metrics), connections, report).await;
}

fn router(health: Health, metrics: Metrics) -> Router {
    let (alive, counter) = (health.clone(), metrics.clone());
    let livez = move || async move {
        let report = alive.livez(Timestamp::now());
        counter.livez(report.code);
        respond(&report)
    };
    let healthz = move || async move {
        let report = health.healthz(Timestamp::now());
        metrics.healthz(report.code);
        respond(&report)
    };
    Router::new().route("/livez", any(livez)).route("/healthz", any(healthz))
}

fn respond(report: &Report) -> Response {
    let code = StatusCode::from_u16(report.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let nosniff = (HeaderName::from_static("x-content-type-options"), "nosniff");
    let json = (header::CONTENT_TYPE, "application/json");
    (code, [json, nosniff], serde_json::to_string(&report.body).unwrap_or_default()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{get, listening};
    use crate::model::Node;

    #[tokio::test]
    async fn answers_over_http_are_those_of_health_and_are_counted() {
        let (health, metrics) = (Health::default(), Metrics::new("1"));
        let addr = listening(router(health.clone(), metrics.clone())).await;

        let unseen = get(addr, "/healthz").await;
        assert!(unseen.starts_with("HTTP/1.1 503"), "{unseen}");
        assert!(unseen.contains("\"nodeEligible\":false"), "{unseen}");
        health.node(Some(&Node::default()));
        let unsynced = get(addr, "/healthz").await;
        assert!(unsynced.starts_with("HTTP/1.1 503"), "{unsynced}");
        assert!(unsynced.contains("\"nodeEligible\":true"), "{unsynced}");
        health.synced(Timestamp::now());
        let seen = get(addr, "/healthz").await;
        assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        let headers = seen.to_lowercase();
        assert!(headers.contains("content-type: application/json\r\n"), "{seen}");
        assert!(headers.contains("x-content-type-options: nosniff\r\n"), "{seen}");

        assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        health.turned(Timestamp::UNIX_EPOCH);
        assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 503"));
        let text = metrics.text();
        assert!(text.contains("kubeproxy_proxy_healthz_total{code=\"200\"} 1\n"), "{text}");
        assert!(text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 2\n"), "{text}");
        assert!(text.contains("kubeproxy_proxy_livez_total{code=\"503\"} 1\n"), "{text}");
    }
}
