//! Following one kind: its list, then its watch, and what to do when either fails.

use super::backoff::Backoff;
use super::explain::explain;
use super::feed::Feed;
use super::reader::{Nonsense, Reader, Said};
use super::{Connection, Report, connect};
use crate::model::Warning;
use crate::source::{Closed, send};
use futures::{AsyncBufReadExt as _, AsyncReadExt as _};
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use std::convert::Infallible;
use std::io;
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
const WATCH_PAUSE: Duration = Duration::from_secs(90);
/// How long a watch lasts, in seconds, on which names are vouched for. API servers send a bookmark
/// two seconds before its end, and nothing shows sooner that a watch misses nothing.
const NAMES_WATCH: u32 = 8;
/// How long such a watch may be silent.
const NAMES_PAUSE: Duration = Duration::from_secs(10);
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
    /// The connection broke, within a line or not.
    Broken { error: io::Error, within_line: bool },
    /// What was sent is no line of a watch, or no list.
    Nonsense(serde_json::Error),
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
    reader: Reader<F>,
    kubeconfig: Option<&'a Path>,
    server: String,
    client: Client,
    report: &'a Report<'a>,
    /// How many watches in a row have brought nothing, not even a bookmark.
    silent: u32,
    /// Whether the current watch has brought something.
    has_brought: bool,
    /// The version at which the last watch that broke did so within a line.
    broke_at: Option<String>,
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
            reader: Reader::new(feed),
            kubeconfig,
            server: connection.server.clone(),
            client: connection.client.clone(),
            report,
            silent: 0,
            has_brought: false,
            broke_at: None,
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
            let was_listed = self.reader.version.is_some();
            if open_since.is_some() && matches!(stop, Stop::Ended | Stop::Broken { .. }) {
                self.doubt(&stop);
            }
            let warning = match stop {
                Stop::Closed => return Closed,
                Stop::Ended if lasted => continue,
                Stop::Ended | Stop::Broken { .. } if !was_listed => {
                    Some(self.warning(format!("it breaks off the list of {}", F::RESOURCE)))
                }
                Stop::Ended | Stop::Broken { .. } => None,
                Stop::Nonsense(error) => Some(self.failed(&Error::SerdeError(error)).await),
                Stop::Expired => {
                    self.reader.version = None;
                    None
                }
                Stop::NoStreamedLists => {
                    self.streamed_lists = false;
                    continue;
                }
                // An older cluster, which may be upgraded one day.
                Stop::Failed(Error::Api(status)) if F::OPTIONAL && status.code == 404 => {
                    self.reader.begin_list();
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
            if warning.is_some() && self.tell(warning).await.is_err() {
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

    /// Decides whether the next watch may go on from the version of one that ended.
    ///
    /// A watch that breaks within a line, twice at one version, may break at that line. Watches that
    /// bring nothing may be stuck, or there may be nothing to bring and no bookmarks: so
    /// lists grow rarer while it lasts.
    fn doubt(&mut self, stop: &Stop) {
        if let Stop::Broken { error, within_line } = stop {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, resource = F::RESOURCE, "a watch broke");
            let known = within_line.then(|| self.reader.version.clone()).flatten();
            if known.is_some() && self.broke_at == known {
                self.broke_at = None;
                self.reader.version = None;
                return;
            }
            self.broke_at = known;
        }
        if !self.has_brought {
            self.silent += 1;
            if self.silent >= 2 && self.silent.is_power_of_two() {
                tracing::info!(resource = F::RESOURCE, "watches bring nothing; listing again");
                self.reader.version = None;
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
            Error::Api(_) | Error::SerdeError(_) => self.reader.version = None,
            _ => self.reconnect().await,
        }
        self.warning(explain(F::RESOURCE, error))
    }

    fn warning(&self, message: String) -> Warning {
        Warning { subject: format!("Kubernetes API {}", self.server), message }
    }

    /// Tells what is wrong with the server, or else with its answers, and with single objects.
    async fn tell(&mut self, trouble: Option<Warning>) -> Result<(), Closed> {
        for event in self.reader.take_events() {
            let subject = format!("{} {}", event.kind, event.name);
            if self.report.events.try_send(event).is_err() {
                tracing::warn!(subject, "too many events wait; it gets none");
            }
        }
        let trouble = trouble.or_else(|| self.reader.feed.warning());
        let warnings = trouble.into_iter().chain(self.reader.warnings()).collect();
        self.report.set(F::RESOURCE, warnings).await
    }

    /// Reads the kubeconfig again: it may hold a new token, certificate or address by now.
    async fn reconnect(&mut self) {
        match connect(self.kubeconfig).await {
            Ok(connection) => {
                self.server = connection.server;
                self.client = connection.client;
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot reconnect");
            }
        }
    }

    async fn follow(&mut self) -> Result<Infallible, Stop> {
        if self.reader.version.is_none() && !self.streamed_lists {
            self.list().await?;
        }
        self.watch().await
    }

    /// Reads the whole list page by page, and sends it.
    async fn list(&mut self) -> Result<(), Stop> {
        let (labels, fields) = self.reader.feed.selectors();
        let mut params =
            ListParams { label_selector: labels, field_selector: fields, ..Default::default() }
                .limit(PAGE);
        self.reader.begin_list();
        loop {
            let page = timeout(ANSWER, self.page(&params)).await.map_err(|_| Stop::Silent)??;
            params.continue_token = self.reader.page(&page).map_err(nonsense)?;
            if params.continue_token.is_none() {
                return self.listed().await;
            }
        }
    }

    async fn page(&self, params: &ListParams) -> Result<Vec<u8>, Stop> {
        let request = Request::new(F::PATH).list(params).map_err(Error::BuildRequest);
        let stream = self.client.request_stream(request.map_err(stop)?).await.map_err(stop)?;
        let mut page = Vec::new();
        // As if the server could not be reached: it could not, for so long.
        let read = pin!(stream).read_to_end(&mut page).await.map_err(Error::ReadEvents);
        read.map(|_| page).map_err(stop)
    }

    async fn listed(&mut self) -> Result<(), Stop> {
        self.heard();
        for change in self.reader.end_list() {
            send(self.report.changes, change).await?;
        }
        Ok(self.opened().await?)
    }

    /// The server answers: what is wrong now are the objects.
    async fn opened(&mut self) -> Result<(), Closed> {
        self.open_since = Some(Instant::now());
        self.report.answered.notify_waiters();
        self.tell(None).await
    }

    /// The watch is current now.
    fn heard(&self) {
        if let Some(heard) = self.report.heard.filter(|_| F::NAMES) {
            heard.now(F::RESOURCE);
        }
    }

    /// Watches from the known version on, or from a streamed list.
    async fn watch(&mut self) -> Result<Infallible, Stop> {
        let listing = self.reader.version.is_none();
        let (label_selector, field_selector) = self.reader.feed.selectors();
        let vouches = F::NAMES && self.report.heard.is_some();
        let params = WatchParams {
            label_selector,
            field_selector,
            timeout: (vouches && !listing).then_some(NAMES_WATCH),
            bookmarks: true,
            send_initial_events: listing,
        };
        // No version asks for the newest state: an older one could take back what was seen.
        let version = self.reader.version.as_deref().unwrap_or_default();
        let request = Request::new(F::PATH).watch(&params, version).map_err(Error::BuildRequest);
        let request = request.map_err(stop)?;
        let answer = timeout(ANSWER, self.client.request_stream(request)).await;
        let stream = match answer.map_err(|_| Stop::Silent)? {
            Err(Error::Api(status))
                if listing && !matches!(status.code, 401 | 403 | 410 | 429 | 500..) =>
            {
                return Err(Stop::NoStreamedLists);
            }
            other => other.map_err(stop)?,
        };
        self.has_brought = false;
        if listing {
            self.reader.begin_list();
        } else {
            // It is told all from the version on; but after two that brought nothing, it might
            // be that nothing is ever told.
            if self.silent < 2 {
                self.heard();
            }
            self.opened().await?;
        }
        let pause = if vouches { NAMES_PAUSE } else { WATCH_PAUSE };
        let mut stream = pin!(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let listing = self.reader.is_listing();
            let pause = if listing { LIST_PAUSE } else { pause };
            match timeout(pause, stream.read_until(b'\n', &mut line)).await {
                Ok(Ok(0)) => return Err(Stop::Ended),
                Ok(Ok(_)) if !line.ends_with(b"\n") => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Err(Stop::Broken { error, within_line: true });
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return Err(Stop::Broken { error, within_line: !line.is_empty() });
                }
                Err(_) if listing => return Err(Stop::NoStreamedLists),
                Err(_) => return Err(Stop::Ended),
            }
            if !line.trim_ascii().is_empty() {
                self.take(&line).await?;
            }
        }
    }

    /// Takes a line of a watch.
    async fn take(&mut self, line: &[u8]) -> Result<(), Stop> {
        let said = self.reader.line(line).map_err(nonsense)?;
        self.has_brought = true;
        self.silent = 0;
        match said {
            Said::Listed(changes) => {
                self.heard();
                for change in changes {
                    send(self.report.changes, change).await?;
                }
                self.opened().await?;
            }
            Said::Something(_) if self.reader.is_listing() => {}
            Said::Something(change) => {
                self.heard();
                if let Some(change) = change {
                    send(self.report.changes, change).await?;
                }
                self.tell(None).await?;
            }
        }
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

fn nonsense(nonsense: Nonsense) -> Stop {
    match nonsense {
        Nonsense::Json(error) => Stop::Nonsense(error),
        Nonsense::Status(status) => stop(Error::Api(status)),
        // It may name an object that was listed.
        Nonsense::DeletedInList => Stop::Expired,
    }
}
