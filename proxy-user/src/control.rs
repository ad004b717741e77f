//! The control socket: the agent's status, for the command line on the same node.
//!
//! Whoever connects gets one JSON document ([`Status`]) and the end of the stream. The server
//! reads nothing, so a client cannot ask for anything, and root alone may connect.

use crate::http::Connections;
use crate::status::Status;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many may ask at once.
const CONNECTIONS: usize = 16;

/// Why there is no status.
#[derive(thiserror::Error, Debug)]
pub enum ControlError {
    /// Another agent answers on the socket.
    #[error("another agent answers on {}: stop it, or give this one a --control-socket", .0.display())]
    InUse(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen on the control socket {}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// This process may not connect.
    #[error("connecting to the agent's socket {} is not permitted: run as root", .0.display())]
    NotPermitted(PathBuf),
    /// The agent did not answer.
    #[error("the agent does not answer on {}", .path.display())]
    Read {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The agent's answer is not a status.
    #[error(
        "the answer on {} is not understood: is the agent of another version than this shunt?",
        .path.display()
    )]
    Decode {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Answers on the socket `path` until the sender of `status` is gone.
///
/// A socket that a dead agent left behind is replaced. `listening` is called once it answers.
pub async fn serve(
    path: &Path,
    mut status: watch::Receiver<Arc<Status>>,
    listening: impl FnOnce(),
) -> Result<(), ControlError> {
    let listener = listen(path).await?;
    listening();
    let connections = Connections::new(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _gone = status.wait_for(|_| false) => return Ok(()),
        };
        let Ok((mut stream, _)) = accepted else {
            // Out of descriptors, say; at once would be a busy loop.
            connections.close_one();
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let status = Arc::clone(&status.borrow());
        // All are root on this node.
        connections.spawn(IpAddr::V4(Ipv4Addr::LOCALHOST), async move {
            if let Ok(document) = serde_json::to_vec(&*status) {
                // A client that went away has lost its own answer, nothing else.
                drop(tokio::time::timeout(PATIENCE, stream.write_all(&document)).await);
            }
        });
    }
}

/// Binds beside `path` and renames, so that the socket appears with its final mode, and takes
/// the place of a stale one.
async fn listen(path: &Path) -> Result<UnixListener, ControlError> {
    match tokio::net::UnixStream::connect(path).await {
        Err(error) if error.kind() != ErrorKind::WouldBlock => {}
        // The other agent answers, or is too busy to.
        _ => return Err(ControlError::InUse(path.into())),
    }
    let bind = || {
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        let unfinished = path.with_extension("new");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unfinished)?;
        std::fs::set_permissions(&unfinished, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&unfinished, path)?;
        Ok(listener)
    };
    bind().map_err(|source| ControlError::Listen { path: path.into(), source })
}

/// The status of the agent behind the socket `path`; `None` if no agent runs.
pub fn status(path: &Path) -> Result<Option<Status>, ControlError> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(None),
                ErrorKind::PermissionDenied => Err(ControlError::NotPermitted(path.into())),
                _ => Err(ControlError::Read { path: path.into(), source: error }),
            };
        }
    };
    let mut document = Vec::new();
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.read_to_end(&mut document))
        .map_err(|source| ControlError::Read { path: path.into(), source })?;
    serde_json::from_slice(&document)
        .map(Some)
        .map_err(|source| ControlError::Decode { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Objects;
    use jiff::Timestamp;

    fn example(node: &str) -> Arc<Status> {
        Arc::new(Status {
            version: "0.1.0".into(),
            pid: 7,
            node: node.into(),
            source: "kube".into(),
            started: Timestamp::UNIX_EPOCH,
            synced: None,
            last_change: None,
            objects: Objects { services: 3, slices: 4, endpoints: 5 },
            attachments: Vec::new(),
            drift: None,
            dns: None,
            warnings: Vec::new(),
        })
    }

    async fn ask(path: &Path) -> Result<Option<Status>, ControlError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || status(&path)).await.unwrap()
    }

    async fn answered(path: &Path) -> Status {
        loop {
            if let Some(status) = ask(path).await.unwrap() {
                return status;
            }
        }
    }

    #[tokio::test]
    async fn newest_status_comes_over_the_socket_and_stale_sockets_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/agent.sock");
        assert!(ask(&path).await.unwrap().is_none(), "no directory, no agent");
        std::fs::create_dir(dir.path().join("run")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(ask(&path).await.unwrap().is_none(), "a stale socket is no agent");

        let (send, receive) = watch::channel(example("a"));
        let serving = tokio::spawn({
            let path = path.clone();
            async move { serve(&path, receive, || ()).await }
        });
        assert_eq!(answered(&path).await, *example("a"));
        send.send(example("b")).unwrap();
        assert_eq!(answered(&path).await, *example("b"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let second = serve(&path, watch::channel(example("c")).1, || ()).await;
        assert!(matches!(second, Err(ControlError::InUse(_))), "{second:?}");
        assert_eq!(answered(&path).await, *example("b"));

        drop(send);
        serving.await.unwrap().unwrap();
        assert!(ask(&path).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn answer_of_another_version_is_told_apart_from_no_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            use std::io::Write as _;
            listener.accept().unwrap().0.write_all(b"{\"version\":\"9\"}").unwrap();
        });
        assert!(matches!(ask(&path).await, Err(ControlError::Decode { .. })));
        server.join().unwrap();
    }
}
