//! The listeners behind `healthCheckNodePort`: one for each Service that has one, and each family.
//!
//! What they should answer comes in through a channel; listeners come and go with it. A port that
//! cannot be bound is a warning, and a notice to the Service's owner, and is tried again.

use super::Health;
use crate::http::{self, Connections, Place};
use crate::model::{Notice, ObjectName, Warning};
use crate::tables::{Family, HealthCheck};
use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

/// The health checks of all Services that have one.
pub type HealthChecks = BTreeMap<ObjectName, HealthCheck>;

/// How many may ask at once, of all Services together: there may be many of these.
const CONNECTIONS: usize = 128;

/// What kube-proxy calls a port that cannot be bound.
const FAILED_TO_START: &str = "FailedToStartServiceHealthcheck";

/// One listener.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    service: ObjectName,
    family: Family,
    port: u16,
}

/// The warnings of all listeners, told together.
#[derive(Clone)]
struct Report {
    warnings: Arc<Mutex<BTreeMap<Key, Warning>>>,
    tell: Arc<dyn Fn(Vec<Warning>) + Send + Sync>,
    notices: mpsc::Sender<Notice>,
}

/// Answers `checks` until their sender is gone. `tell` gets the warnings of all listeners whenever
/// they change; `notices` gets one for each port that cannot be bound.
pub async fn serve(
    mut checks: watch::Receiver<HealthChecks>,
    health: Health,
    tell: impl Fn(Vec<Warning>) + Send + Sync + 'static,
    notices: mpsc::Sender<Notice>,
) {
    let report = Report { warnings: Arc::default(), tell: Arc::new(tell), notices };
    let connections = Connections::new(CONNECTIONS);
    let mut tasks = JoinSet::new();
    let mut listeners: BTreeMap<Key, AbortHandle> = BTreeMap::new();
    loop {
        let wanted = keys(&checks.borrow_and_update());
        listeners.retain(|key, task| {
            let stays = wanted.contains(key);
            if !stays {
                task.abort();
                report.set(key, None);
            }
            stays
        });
        // An aborted listener has let go of its port only when its task has ended, and the port
        // may be another Service's by now.
        while listeners.len() < tasks.len() {
            drop(tasks.join_next().await);
        }
        for key in wanted {
            listeners.entry(key).or_insert_with_key(|key| {
                let router = router(key.clone(), checks.clone(), health.clone());
                tasks.spawn(listen(key.clone(), router, connections.clone(), report.clone()))
            });
        }
        if checks.changed().await.is_err() {
            return;
        }
    }
}

fn keys(checks: &HealthChecks) -> Vec<Key> {
    let of_service = |(service, check): (&ObjectName, &HealthCheck)| {
        let (service, port) = (service.clone(), check.port);
        let key = move |family| Key { service: service.clone(), family, port };
        check.ready.keys().copied().map(key).collect::<Vec<_>>()
    };
    checks.iter().flat_map(of_service).collect()
}

async fn listen(key: Key, router: Router, connections: Connections, report: Report) {
    let place = match key.family {
        Family::V4 => Place::AllV4(key.port),
        Family::V6 => Place::AllV6(key.port),
    };
    let report = |warning| report.set(&key, warning);
    http::serve(place, "healthCheckNodePort", router, connections, report).await;
}

impl Report {
    fn set(&self, key: &Key, warning: Option<Warning>) {
        let subject = format!("Service {}", key.service);
        let warning = warning.map(|Warning { message, .. }| {
            let message = format!("healthCheckNodePort {} is not served: {message}", key.port);
            Warning { subject, message }
        });
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match &warning {
            Some(warning) => warnings.insert(key.clone(), warning.clone()),
            None => warnings.remove(key),
        };
        if known == warning {
            return;
        }
        (self.tell)(warnings.values().cloned().collect());
        if let Some(Warning { message, .. }) = warning {
            let service = key.service.clone();
            // Nobody waits for it; what is too much is in the status still.
            let notice = Notice { service, reason: FAILED_TO_START, message, of_node: true };
            drop(self.notices.try_send(notice));
        }
    }
}

/// Every path and method is answered alike.
fn router(key: Key, checks: watch::Receiver<HealthChecks>, health: Health) -> Router {
    Router::new().fallback(move || async move {
        let ready =
            checks.borrow().get(&key.service).and_then(|c| c.ready.get(&key.family).copied());
        respond(&key.service, ready.unwrap_or(0), health.is_healthy(Timestamp::now()))
    })
}

fn respond(service: &ObjectName, ready: usize, healthy: bool) -> Response {
    let code = if ready > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), ready.into()),
    ];
    let body = json!({
        "service": { "namespace": &*service.namespace, "name": &*service.name },
        "localEndpoints": ready,
        "serviceProxyHealthy": healthy,
    });
    (code, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{get, listening};
    use std::net::TcpListener;
    use std::time::Duration;

    fn checks(port: u16, ready: usize) -> HealthChecks {
        let service = ObjectName { namespace: "shop".into(), name: "web".into() };
        [(service, HealthCheck { port, ready: [(Family::V4, ready)].into() })].into()
    }

    /// Scenarios 97 and 99.
    #[tokio::test]
    async fn answers_follow_the_count_and_the_health_of_the_proxy() {
        let (health, (send, receive)) = (Health::default(), watch::channel(checks(1, 3)));
        health.synced(Timestamp::now());
        let key = keys(&receive.borrow()).remove(0);
        let addr = listening(router(key, receive, health.clone())).await;
        let answer = get(addr, "/any/path").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for header in [
            "content-type: application/json\r\n",
            "x-content-type-options: nosniff\r\n",
            "x-load-balancing-endpoint-weight: 3\r\n",
        ] {
            assert!(answer.to_lowercase().contains(header), "no {header} in {answer}");
        }
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let expected = json!({
            "service": { "namespace": "shop", "name": "web" },
            "localEndpoints": 3,
            "serviceProxyHealthy": true,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap(), expected);

        send.send(checks(1, 0)).unwrap();
        assert!(get(addr, "/").await.starts_with("HTTP/1.1 503"));
        send.send(checks(1, 2)).unwrap();
        health.queued(Timestamp::UNIX_EPOCH);
        let stuck = get(addr, "/").await;
        assert!(stuck.starts_with("HTTP/1.1 503"), "{stuck}");
        assert!(stuck.contains("\"serviceProxyHealthy\":false"), "{stuck}");
    }

    /// Scenario 105.
    #[tokio::test]
    async fn a_busy_port_is_noticed_once_and_served_when_it_is_free() {
        let busy = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        let (send, receive) = watch::channel(checks(port, 1));
        let (warnings_in, mut warnings) = mpsc::unbounded_channel();
        let (notices_in, mut notices) = mpsc::channel(8);
        let tell = move |all: Vec<Warning>| warnings_in.send(all).unwrap();
        let health = Health::default();
        health.synced(Timestamp::now());
        let serving = tokio::spawn(serve(receive, health, tell, notices_in));

        let warning = warnings.recv().await.unwrap().remove(0);
        assert_eq!(warning.subject, "Service shop/web");
        assert!(warning.message.contains(&port.to_string()), "{}", warning.message);
        let notice = notices.recv().await.unwrap();
        assert_eq!((notice.reason, &*notice.service.name), (FAILED_TO_START, "web"));
        drop(busy);
        while !warnings.recv().await.unwrap().is_empty() {}
        let addr = ([127, 0, 0, 1], port).into();
        assert!(get(addr, "/").await.starts_with("HTTP/1.1 200"));
        assert!(notices.try_recv().is_err(), "one port, one notice");

        send.send(HealthChecks::new()).unwrap();
        let free = async {
            while TcpListener::bind(("0.0.0.0", port)).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), free).await.expect("the port is free again");
        drop(send);
        serving.await.unwrap();
    }
}
