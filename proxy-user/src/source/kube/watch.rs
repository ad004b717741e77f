//! Following one kind: its list, then its watch, and what to do when either fails.

use super::backoff::Backoff;
use super::explain::explain;
use super::feed::Feed;
use super::{Connection, Report, connect};
use crate::model::{Change, Warning};
use crate::source::{Closed, send};
use futures::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Error, ResourceExt as _};
use std::convert::Infallible;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Objects in one page of a list: a hundred slices of a hundred endpoints are about 3 MB.
const PAGE: u32 = 100;
/// How long an API server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a streamed list may pause. A server that does not know streamed lists never ends one.
const LIST_PAUSE: Duration = Duration::from_secs(5);
/// How long a watch may be silent. API servers send a bookmark every minute.
const WATCH_PAUSE: Duration = Duration::from_secs(180);
/// How long a kind that the server does not know is not asked for again.
const ABSENT: Duration = Duration::from_secs(600);
/// A watch that ends sooner counts as a failure, so that the next one waits.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// A server that could not be reached for as long is taken for one that starts anew.
const LONG_ABSENCE: Duration = Duration::from_secs(5);

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
pub(super) struct Watch<'a, F: Feed> {
    feed: F,
    kubeconfig: Option<&'a Path>,
    server: String,
    api: Api<F::Object>,
    report: &'a Report<'a>,
    /// Up to where the objects are known; `None` before a list.
    version: Option<String>,
    /// Since when the current watch is open, and its list complete.
    open_since: Option<Instant>,
    /// Whether lists are asked for as streams, which cost both sides less memory (KEP-3157).
    streamed_lists: bool,
}

impl<'a, F: Feed> Watch<'a, F> {
    /// A watch of what `feed` asks for.
    pub(super) fn new(
        feed: F,
        kubeconfig: Option<&'a Path>,
        connection: &Connection,
        report: &'a Report<'a>,
    ) -> Self {
        Self {
            feed,
            kubeconfig,
            server: connection.server.clone(),
            api: F::api(connection.client.clone()),
            report,
            version: None,
            open_since: None,
            streamed_lists: true,
        }
    }

    /// Follows the kind until the agent ends.
    pub(super) async fn run(mut self) -> Closed {
        let mut backoff = Backoff::default();
        let mut away_since: Option<Instant> = None;
        loop {
            let Err(stop) = self.follow().await;
            let open_since = self.open_since.take();
            let lasted = open_since.is_some_and(|time| time.elapsed() >= SHORT_WATCH);
            let is_away = matches!(&stop, Stop::Failed(error) if is_unreachable(error));
            if !is_away && away_since.take().is_some_and(|since| since.elapsed() >= LONG_ABSENCE) {
                // It starts, and refuses what it does not know yet.
                backoff = Backoff::default();
            }
            if is_away {
                let _ = away_since.get_or_insert_with(Instant::now);
            }
            let is_busy = matches!(&stop, Stop::Failed(Error::Api(status)) if status.code == 429);
            if lasted {
                backoff = Backoff::default();
            }
            let warning = match stop {
                Stop::Closed => return Closed,
                Stop::Ended if lasted => continue,
                Stop::Ended if self.version.is_none() => {
                    Some(self.warning(format!("it breaks off the list of {}", F::RESOURCE)))
                }
                Stop::Ended => None,
                Stop::Expired => {
                    self.version = None;
                    None
                }
                Stop::NoStreamedLists => {
                    self.streamed_lists = false;
                    continue;
                }
                // An older cluster, which may be upgraded one day.
                Stop::Failed(Error::Api(status)) if F::OPTIONAL && status.code == 404 => {
                    self.feed.begin_list();
                    if self.listed().await.is_err() {
                        return Closed;
                    }
                    sleep(ABSENT).await;
                    continue;
                }
                Stop::Failed(error) => Some(self.failed(&error).await),
                Stop::Silent => {
                    Some(self.warning(format!("it does not answer when asked for {}", F::RESOURCE)))
                }
            };
            // Who was answered and failed then is not woken: two of them would wake each other.
            let was_refused = warning.is_some() && open_since.is_none() && !is_busy;
            if warning.is_some() && self.report.set(F::RESOURCE, warning).await.is_err() {
                return Closed;
            }
            let pause =
                if is_away && F::PROBES { Backoff::next_probe } else { Backoff::next_delay };
            tokio::select! {
                () = sleep(pause(&mut backoff)) => {}
                () = self.report.answered.notified(), if was_refused => {}
            }
        }
    }

    /// Decides what is still good after `error`, and puts it into words.
    async fn failed(&mut self, error: &Error) -> Warning {
        match error {
            Error::Api(status) if matches!(status.code, 403 | 429 | 502 | 503) => {}
            Error::Api(status) if status.code == 401 => self.reconnect().await,
            // The version may be what the server cannot cope with: after etcd was restored from
            // a backup, say, it lies in the future.
            Error::Api(_) | Error::SerdeError(_) => self.version = None,
            _ => self.reconnect().await,
        }
        self.warning(explain(F::RESOURCE, error))
    }

    fn warning(&self, message: String) -> Warning {
        Warning { subject: format!("Kubernetes API {}", self.server), message }
    }

    /// Reads the kubeconfig again: it may hold a new token, certificate or address by now.
    async fn reconnect(&mut self) {
        match connect(self.kubeconfig).await {
            Ok(connection) => {
                self.server = connection.server;
                self.api = F::api(connection.client);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot reconnect");
            }
        }
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
        Ok(self.opened().await?)
    }

    /// The server answers: what is wrong now are the objects.
    async fn opened(&mut self) -> Result<(), Closed> {
        self.open_since = Some(Instant::now());
        self.report.answered.notify_waiters();
        self.report.set(F::RESOURCE, self.feed.warning()).await
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
            self.opened().await?;
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

/// Whether no API server answered at all.
const fn is_unreachable(error: &Error) -> bool {
    !matches!(error, Error::Api(_) | Error::SerdeError(_))
}

fn stop(error: Error) -> Stop {
    match error {
        Error::Api(status) if status.code == 410 => Stop::Expired,
        error => Stop::Failed(error),
    }
}
