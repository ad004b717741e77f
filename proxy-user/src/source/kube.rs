//! A Kubernetes API server as the source.
//!
//! Each kind is listed, then watched from the list's version on. This is what `kube::runtime`'s
//! watcher does as well, but that one retries for ever when a watch is answered with HTTP 410,
//! opens watches without a pause when a server ends each at once, passes over an event that it
//! cannot read, and lets a list on a dead connection hang.

mod explain;
mod feed;

use super::{Closed, SourceError, send};
use crate::model::{Change, Warning};
use explain::explain;
use feed::{Feed, OwnNode, Services, Slices};
use futures::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::DefaultBackoff;
use kube::{Api, Client, Config, Error, ResourceExt as _};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::env;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};

/// Objects in one page of a list: a hundred slices of a hundred endpoints are about 3 MB.
const PAGE: u32 = 100;
/// How long an API server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a streamed list may pause. A server that does not know streamed lists never ends one.
const LIST_PAUSE: Duration = Duration::from_secs(10);
/// How long a watch may be silent. API servers send a bookmark every minute.
const WATCH_PAUSE: Duration = Duration::from_secs(180);
/// A watch that ends sooner counts as a failure, so that the next one waits.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// Sends what the API server of `kubeconfig` says, until the receiver is dropped.
pub(super) async fn run(
    kubeconfig: Option<&Path>,
    node_name: &str,
    changes: &Sender<Change>,
) -> Result<(), SourceError> {
    let connection = connect(kubeconfig).await?;
    let report = Report { changes, warnings: Mutex::default() };
    let Closed = tokio::select! {
        closed = Watch::new(Services::default(), kubeconfig, &connection, &report).run() => closed,
        closed = Watch::new(Slices::default(), kubeconfig, &connection, &report).run() => closed,
        closed = Watch::new(OwnNode::new(node_name), kubeconfig, &connection, &report).run() => closed,
    };
    Ok(())
}

/// A client, and the address that it talks to.
#[derive(Clone)]
struct Connection {
    client: Client,
    server: String,
}

async fn connect(kubeconfig: Option<&Path>) -> Result<Connection, SourceError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let wrong =
                |error| SourceError::Kubeconfig { path: path.into(), error: Box::new(error) };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(wrong)?
        }
        // In a pod, its service account is meant and no kubeconfig of a home directory.
        None => match Config::incluster() {
            Ok(config) if env::var_os("KUBECONFIG").is_none() => config,
            _ => {
                Config::infer().await.map_err(|error| SourceError::NoKubeconfig(Box::new(error)))?
            }
        },
    };
    // It would retry 429 and 503 for minutes without a word.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| SourceError::Client(Box::new(error)))?;
    Ok(Connection { client, server: server.trim_end_matches('/').into() })
}

/// The warnings of all watches, sent together whenever one of them changes.
struct Report<'a> {
    changes: &'a Sender<Change>,
    warnings: Mutex<BTreeMap<&'static str, Warning>>,
}

impl Report<'_> {
    async fn set(&self, resource: &'static str, warning: Option<Warning>) -> Result<(), Closed> {
        // Held while sending, so that the last report sent is the last one made.
        let mut warnings = self.warnings.lock().await;
        if warnings.get(resource) == warning.as_ref() {
            return Ok(());
        }
        match warning {
            Some(warning) => drop(warnings.insert(resource, warning)),
            None => drop(warnings.remove(resource)),
        }
        let mut all: Vec<_> = warnings.values().cloned().collect();
        all.sort();
        all.dedup();
        send(self.changes, Change::SourceWarnings(all)).await
    }
}

/// Why following a kind stopped.
enum Stop {
    /// The agent is ending.
    Closed,
    /// The watch ended, and can go on from its version.
    Ended,
    /// The version is too old: list again.
    Expired,
    /// The server does not stream lists.
    NoStreamedLists,
    /// The server refuses, or cannot be reached.
    Failed(Error),
    /// The server did not answer in time.
    Silent,
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// Follows one kind.
struct Watch<'a, F: Feed> {
    feed: F,
    kubeconfig: Option<&'a Path>,
    server: String,
    api: Api<F::Object>,
    report: &'a Report<'a>,
    /// Up to where the objects are known; `None` before a list.
    version: Option<String>,
    /// Whether lists are asked for as streams, which cost both sides less memory (KEP-3157).
    streamed_lists: bool,
}

impl<'a, F: Feed> Watch<'a, F> {
    fn new(
        feed: F,
        kubeconfig: Option<&'a Path>,
        connection: &Connection,
        report: &'a Report<'a>,
    ) -> Self {
        Self {
            feed,
            kubeconfig,
            server: connection.server.clone(),
            api: Api::all(connection.client.clone()),
            report,
            version: None,
            streamed_lists: true,
        }
    }

    /// Follows the kind until the agent ends.
    async fn run(mut self) -> Closed {
        let mut backoff = DefaultBackoff::default();
        loop {
            let begun = Instant::now();
            let Err(stop) = self.follow().await;
            let warning = match stop {
                Stop::Closed => return Closed,
                Stop::Ended if begun.elapsed() >= SHORT_WATCH => continue,
                Stop::Ended => None,
                Stop::Expired => {
                    self.version = None;
                    None
                }
                Stop::NoStreamedLists => {
                    self.streamed_lists = false;
                    continue;
                }
                Stop::Failed(error) => Some(self.failed(&error).await),
                Stop::Silent => Some(Warning {
                    subject: format!("Kubernetes API {}", self.server),
                    message: format!("it does not answer when asked for {}", F::RESOURCE),
                }),
            };
            if warning.is_some() && self.report.set(F::RESOURCE, warning).await.is_err() {
                return Closed;
            }
            sleep(backoff.next().unwrap_or(ANSWER)).await;
        }
    }

    /// Decides what is still good after `error`, and puts it into words.
    async fn failed(&mut self, error: &Error) -> Warning {
        let warning = explain(&self.server, F::RESOURCE, error);
        match error {
            // The kubeconfig may hold new credentials by now, or a new address.
            Error::Api(status) if status.code == 401 => match connect(self.kubeconfig).await {
                Ok(connection) => {
                    self.server = connection.server;
                    self.api = Api::all(connection.client);
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the credentials"
                ),
            },
            Error::Api(status) if matches!(status.code, 403 | 429 | 502 | 503) => {}
            // The version may be what the server cannot cope with: after etcd was restored from
            // a backup, say, it lies in the future.
            Error::Api(_) | Error::SerdeError(_) => self.version = None,
            _ => {}
        }
        warning
    }

    async fn follow(&mut self) -> Result<Infallible, Stop> {
        if self.version.is_none() && !self.streamed_lists {
            self.list().await?;
        }
        self.watch().await
    }

    /// Reads the whole list page by page, and sends it.
    async fn list(&mut self) -> Result<(), Stop> {
        let (labels, fields) = self.feed.selectors();
        let mut params =
            ListParams { label_selector: labels, field_selector: fields, ..Default::default() }
                .limit(PAGE);
        self.feed.begin_list();
        loop {
            let page = timeout(ANSWER, self.api.list(&params)).await.map_err(|_| Stop::Silent)?;
            let page = page.map_err(stop)?;
            page.items.iter().for_each(|object| self.feed.listed(object));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.version = page.metadata.resource_version;
                return self.listed().await;
            }
        }
    }

    async fn listed(&mut self) -> Result<(), Stop> {
        send(self.report.changes, self.feed.end_list()).await?;
        Ok(self.report.set(F::RESOURCE, self.feed.warning()).await?)
    }

    /// Watches from the known version on, or from a streamed list.
    async fn watch(&mut self) -> Result<Infallible, Stop> {
        let mut listing = self.version.is_none();
        let (label_selector, field_selector) = self.feed.selectors();
        let params = WatchParams {
            label_selector,
            field_selector,
            timeout: None,
            bookmarks: true,
            send_initial_events: listing,
        };
        // No version asks for the newest state: an older one could take back what was seen.
        let version = self.version.as_deref().unwrap_or_default();
        let answer = timeout(ANSWER, self.api.watch(&params, version)).await;
        let events = match answer.map_err(|_| Stop::Silent)? {
            Err(Error::Api(status))
                if listing && !matches!(status.code, 401 | 403 | 410 | 429 | 500..) =>
            {
                return Err(Stop::NoStreamedLists);
            }
            other => other.map_err(stop)?,
        };
        if listing {
            self.feed.begin_list();
        } else {
            self.report.set(F::RESOURCE, self.feed.warning()).await?;
        }
        let mut events = pin!(events);
        loop {
            let pause = if listing { LIST_PAUSE } else { WATCH_PAUSE };
            let event = match timeout(pause, events.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(Stop::Ended),
                Err(_) if listing => return Err(Stop::NoStreamedLists),
                Err(_) => return Err(Stop::Ended),
            };
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) if listing => {
                    self.feed.listed(&object);
                }
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    let change = self.feed.applied(&object);
                    self.changed(object.resource_version(), change).await?;
                }
                // It may name an object that was listed.
                Ok(WatchEvent::Deleted(_)) if listing => return Err(Stop::Expired),
                Ok(WatchEvent::Deleted(object)) => {
                    let change = self.feed.deleted(&object);
                    self.changed(object.resource_version(), Some(change)).await?;
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    let metadata = bookmark.metadata;
                    if listing && metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        listing = false;
                        self.listed().await?;
                    }
                    if !listing {
                        self.version = Some(metadata.resource_version);
                    }
                }
                Ok(WatchEvent::Error(status)) => return Err(stop(Error::Api(status))),
                Err(Error::SerdeError(error)) => {
                    return Err(Stop::Failed(Error::SerdeError(error)));
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a watch broke");
                    return Err(Stop::Ended);
                }
            }
        }
    }

    /// Sends `change`; only then does the watch go on from `version`.
    async fn changed(
        &mut self,
        version: Option<String>,
        change: Option<Change>,
    ) -> Result<(), Stop> {
        if let Some(change) = change {
            send(self.report.changes, change).await?;
            self.report.set(F::RESOURCE, self.feed.warning()).await?;
        }
        self.version = version;
        Ok(())
    }
}

fn stop(error: Error) -> Stop {
    match error {
        Error::Api(status) if status.code == 410 => Stop::Expired,
        error => Stop::Failed(error),
    }
}
