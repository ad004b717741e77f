//! Watches: a response that lasts, one JSON event a line.

use super::fault::status;
use super::kinds::Kind;
use super::selector::Selector;
use super::store::Step;
use super::{Shared, Signal};
use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as signal};
use tokio::time::{Instant, sleep_until};

/// How long before the end of a watch its last bookmark is sent
/// (`cacheWatcher.nextBookmarkTime` in k8s.io/apiserver).
const BEFORE_END: Duration = Duration::from_secs(2);

/// A watch that a client asked for.
pub(super) struct Watch {
    pub(super) kind: &'static Kind,
    pub(super) selector: Selector,
    /// The version from which on changes are sent; `None` sends all objects first.
    pub(super) version: Option<u64>,
    /// Whether the end of the first objects is marked.
    pub(super) marks_end: bool,
    pub(super) bookmarks: bool,
    pub(super) duration: Duration,
    /// Whether it breaks off halfway through the first objects.
    pub(super) breaks_off: bool,
}

/// The watch is over: the client is gone, or it was broken off.
struct Over;

impl Watch {
    /// The body of the response.
    pub(super) fn body(self, shared: Arc<Shared>) -> Body {
        let (lines, received) = mpsc::channel(64);
        let signal = shared.signal.subscribe();
        tokio::spawn(async move {
            let end = Instant::now() + self.duration;
            let mut out = Out { lines, truncate: false };
            let Err(Over) = self.run(&shared, signal, &mut out, end).await;
        });
        Body::from_stream(stream::unfold(received, |mut received| async {
            received.recv().await.map(|line| (line, received))
        }))
    }

    async fn run(
        &self,
        shared: &Shared,
        mut signal: signal::Receiver<Signal>,
        out: &mut Out,
        end: Instant,
    ) -> Result<std::convert::Infallible, Over> {
        self.thaw(&mut signal, out).await?;
        let mut seen = *signal.borrow_and_update();
        // An API server sends a bookmark before it ends a watch.
        let mut bookmark_at = end.checked_sub(BEFORE_END);
        let mut version = match self.version {
            Some(version) => version,
            None => self.send_all(shared, out).await?,
        };
        loop {
            let steps = {
                let store = &shared.state().store;
                store.since(version).map(|steps| (store.version(), steps.to_vec()))
            };
            let Some((now, steps)) = steps else { return self.expire(out).await };
            version = now;
            let poison = shared.state().poison.clone();
            for step in steps {
                if let Some(event) = self.event(&step) {
                    out.truncate |=
                        poison.as_ref().is_some_and(|text| step.after.to_string().contains(text));
                    out.send(event, &step.after).await?;
                }
            }
            tokio::select! {
                changed = signal.changed() => changed.map_err(|_| Over)?,
                () = out.lines.closed() => return Err(Over),
                () = sleep_until(bookmark_at.unwrap_or(end)), if bookmark_at.is_some() => {
                    bookmark_at = None;
                    self.bookmark(out, version, false).await?;
                }
                () = sleep_until(end) => return Err(Over),
            }
            self.thaw(&mut signal, out).await?;
            let now = *signal.borrow_and_update();
            if now.drops != seen.drops {
                return out.break_off().await;
            }
            if now.expirations != seen.expirations {
                return self.expire(out).await;
            }
            out.truncate |= now.truncations != seen.truncations;
            if now.bookmarks != seen.bookmarks {
                self.bookmark(out, version, false).await?;
            }
            seen = now;
        }
    }

    /// Waits while watches are frozen.
    async fn thaw(&self, signal: &mut signal::Receiver<Signal>, out: &Out) -> Result<(), Over> {
        tokio::select! {
            thawed = signal.wait_for(|signal| !signal.frozen) => thawed.map(drop).map_err(|_| Over),
            () = out.lines.closed() => Err(Over),
        }
    }

    async fn send_all(&self, shared: &Shared, out: &mut Out) -> Result<u64, Over> {
        let (version, objects) = {
            let state = shared.state();
            let objects = state.store.objects(self.kind.plural).map(|(_, object)| object.clone());
            (state.store.version(), objects.collect::<Vec<_>>())
        };
        for (i, object) in objects.iter().filter(|object| self.selector.matches(object)).enumerate()
        {
            if self.breaks_off && i == objects.len() / 2 {
                return out.break_off().await;
            }
            out.send("ADDED", object).await?;
        }
        if self.marks_end {
            self.bookmark(out, version, true).await?;
        }
        Ok(version)
    }

    /// What a change is to a client that sees only the selected objects; `None` is nothing.
    fn event(&self, step: &Step) -> Option<&'static str> {
        if step.resource != self.kind.plural {
            return None;
        }
        let before = step.before.as_ref().is_some_and(|object| self.selector.matches(object));
        let after = !step.deleted && self.selector.matches(&step.after);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
        }
    }

    async fn bookmark(&self, out: &mut Out, version: u64, end: bool) -> Result<(), Over> {
        if !self.bookmarks {
            return Ok(());
        }
        let annotations =
            if end { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
        let object = json!({
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "metadata": {"resourceVersion": version.to_string(), "annotations": annotations},
        });
        out.send("BOOKMARK", &object).await
    }

    async fn expire<T>(&self, out: &mut Out) -> Result<T, Over> {
        let object = status(410, "Expired", "too old resource version");
        out.send("ERROR", &object).await?;
        Err(Over)
    }
}

/// The stream to the client.
struct Out {
    lines: mpsc::Sender<io::Result<Bytes>>,
    /// Whether the next event is cut in two.
    truncate: bool,
}

impl Out {
    /// Sends an event. The type comes first, as from an API server: clients need not keep the
    /// object until they know what to read it as.
    async fn send(&mut self, event: &str, object: &Value) -> Result<(), Over> {
        let mut line = format!("{{\"type\":\"{event}\",\"object\":{object}}}\n").into_bytes();
        if self.truncate {
            line.truncate(line.len() / 2);
        }
        self.lines.send(Ok(line.into())).await.map_err(|_| Over)?;
        if self.truncate { Err(Over) } else { Ok(()) }
    }

    /// Lets the connection break, without the end of the body.
    async fn break_off<T>(&self) -> Result<T, Over> {
        self.lines.send(Err(io::Error::other("broken off"))).await.map_err(|_| Over)?;
        Err(Over)
    }
}
