//! A Kubernetes API server as the source.
//!
//! Each kind is listed, then watched from the list's version on. This is what `kube::runtime`'s
//! watcher does as well, but that one retries for ever when a watch is answered with HTTP 410,
//! opens watches without a pause when a server ends each at once, passes over an event that it
//! cannot read, and lets a list on a dead connection hang. `kube`'s client decodes whole objects,
//! and takes a list with one that it cannot decode for unreadable; so it only carries the bytes.

mod backoff;
pub(super) mod events;
mod explain;
mod feed;
mod reader;
mod watch;

use super::{Closed, Heard, SourceError, Wanted, send};
use crate::model::{Change, Warning};
use events::ObjectEvent;
use feed::{Corefile, Feed, Few, Namespaces, OwnNode, OwnPods, ServiceCidrs, Services, Slices};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::{Mutex, Notify};
use watch::Watch;

/// How many events may wait for the API server; what is more is in the status alone.
const EVENTS: usize = 64;

/// Sends what the API server of `kubeconfig` says, until the receiver is dropped.
pub(super) async fn run(
    kubeconfig: Option<&Path>,
    wanted: Wanted<'_>,
    changes: &Sender<Change>,
    heard: &Heard,
) -> Result<(), SourceError> {
    let connection = connect(kubeconfig).await?;
    let (events, told) = channel(EVENTS);
    let report = Report {
        changes,
        warnings: Mutex::default(),
        answered: Notify::new(),
        events,
        heard: wanted.names.then_some(heard),
    };
    let at = (kubeconfig, &connection, &report);
    let Closed = tokio::select! {
        () = changes.closed() => Closed,
        closed = events::tell(kubeconfig, wanted.node_name, told) => closed,
        closed = follow(Services::new(wanted.names), at) => closed,
        closed = follow(Slices::new(), at) => closed,
        closed = follow(Few::of(OwnNode(wanted.node_name.into())), at) => closed,
        closed = follow(Few::of(ServiceCidrs), at) => closed,
        closed = follow(Few::of(OwnPods(wanted.node_name.into())), at) => closed,
        closed = follow(Namespaces::default(), at), if wanted.names => closed,
        closed = follow(Few::of(Corefile), at), if wanted.names => closed,
    };
    Ok(())
}

async fn follow<F: Feed>(
    feed: F,
    (kubeconfig, connection, report): (Option<&Path>, &Connection, &Report<'_>),
) -> Closed {
    Watch::new(feed, kubeconfig, connection, report).run().await
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
    warnings: Mutex<BTreeMap<&'static str, Vec<Warning>>>,
    /// Wakes those whom the server did not answer, when it answers one of them.
    answered: Notify,
    /// What owners of objects should see.
    events: Sender<ObjectEvent>,
    /// Told when a watch is current, if names are wanted.
    heard: Option<&'a Heard>,
}

impl Report<'_> {
    async fn set(&self, resource: &'static str, of_resource: Vec<Warning>) -> Result<(), Closed> {
        // Held while sending, so that the last report sent is the last one made.
        let mut warnings = self.warnings.lock().await;
        let known = warnings.entry(resource).or_default();
        if *known == of_resource {
            return Ok(());
        }
        *known = of_resource;
        let mut all: Vec<_> = warnings.values().flatten().cloned().collect();
        all.sort();
        all.dedup();
        send(self.changes, Change::SourceWarnings(all)).await
    }
}
