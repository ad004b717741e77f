//! A folder of manifests as the source, read again whenever something in it changes.
//!
//! Every look at the folder compares it with what was last read, so an event only says that it
//! is time to look; a look every few seconds finds what no event tells, such as an edit behind a
//! symbolic link.

mod folder;
mod manifest;
#[cfg(test)]
mod tests;

use super::{Closed, SourceError, Wanted, send};
use crate::model::Change;
use folder::Folder;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

/// How often the folder is looked at without an event.
const LOOK: Duration = Duration::from_secs(5);
/// How long the folder must rest before it is read: a file is often written in pieces.
const REST: Duration = Duration::from_millis(30);
/// After so many events without a rest it is read all the same.
const RESTLESS: usize = 20;

/// Sends what the manifests in `path` say, until the receiver is dropped.
pub(super) async fn run(
    path: &Path,
    wanted: Wanted<'_>,
    changes: &Sender<Change>,
) -> Result<(), SourceError> {
    let wrong = |error| SourceError::Manifests { path: path.into(), error };
    std::fs::read_dir(path).map_err(wrong)?;
    let Closed = follow(Folder::new(path, wanted), path, changes).await;
    Ok(())
}

async fn follow(mut folder: Folder, path: &Path, changes: &Sender<Change>) -> Closed {
    let events = Arc::new(Notify::new());
    let mut watched: Option<(Identity, RecommendedWatcher)> = None;
    loop {
        // Watched before it is read, so that no change falls between.
        let identity = folder.identity().ok();
        if watched.as_ref().map(|(identity, _)| *identity) != identity {
            watched = identity.and_then(|identity| Some((identity, watch(path, &events)?)));
        }
        let scanned = tokio::task::spawn_blocking(move || {
            let found = folder.scan();
            (folder, found)
        });
        let (back, found) = match scanned.await {
            Ok(scanned) => scanned,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        folder = back;
        for change in found {
            if send(changes, change).await.is_err() {
                return Closed;
            }
        }
        tokio::select! {
            () = changes.closed() => return Closed,
            _ = timeout(LOOK, events.notified()) => {}
        }
        for _ in 0..RESTLESS {
            if timeout(REST, events.notified()).await.is_err() {
                break;
            }
        }
    }
}

/// Device and inode of a folder.
type Identity = (u64, u64);

/// Lets `events` know of every change in the folder at `path`; without it, the regular looks
/// remain.
fn watch(path: &Path, events: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let events = events.clone();
    let heard = move |event: notify::Result<notify::Event>| {
        // Reading the files must not lead to reading them again.
        if !matches!(event, Ok(notify::Event { kind: EventKind::Access(_), .. })) {
            events.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            let error = io::Error::other(error.to_string());
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot watch {}, edits take {LOOK:?} to apply: raise fs.inotify.max_user_instances",
                path.display()
            );
        })
        .ok()
}
