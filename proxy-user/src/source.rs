//! The source: where Services, EndpointSlices and the own Node come from.
//!
//! Kubernetes objects go in, [`Change`]s come out; the types of Kubernetes stop here. Both
//! sources give the same changes for the same objects: everything of a kind once, then what
//! differs. A source that cannot be read changes nothing, says so in
//! [`Change::SourceWarnings`], and tries again.

pub mod convert;
mod files;
mod heard;
mod kube;
pub mod objects;
#[cfg(test)]
mod tests;

pub use heard::Heard;

use crate::model::{Change, Notice, Warning};
use ::kube::config::{InferConfigError, KubeconfigError};
use std::path::PathBuf;
use tokio::sync::mpsc::{Receiver, Sender};

/// Where objects come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceConfig {
    /// A Kubernetes API server.
    Kube {
        /// How to reach it; without, `KUBECONFIG` says it, else the pod's service account.
        kubeconfig: Option<PathBuf>,
    },
    /// Files in a folder, watched while the agent runs.
    Files {
        /// The folder.
        manifests: PathBuf,
    },
}

/// Why a source cannot begin. Nothing that happens later ends it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {}: give the right file with --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: Box<KubeconfigError>,
    },
    /// Nothing says where the API server is.
    #[error(
        "cannot find the Kubernetes API: give a file with --kubeconfig or KUBECONFIG, or run in a \
         pod with a service account"
    )]
    NoKubeconfig(#[source] Box<InferConfigError>),
    /// The kubeconfig can be read, but no client can be made of it.
    #[error("cannot make a client of the kubeconfig: check its certificates and credentials")]
    Client(#[source] Box<::kube::Error>),
    /// The folder of manifests cannot be read.
    #[error("cannot read the folder {}: give the right folder with --manifests", path.display())]
    Manifests {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        error: std::io::Error,
    },
}

/// What is asked of a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted<'a> {
    /// The name of the own Node.
    pub node_name: &'a str,
    /// Whether all that has a DNS name is asked for: the Services of other proxies, the
    /// Namespaces, and the Corefile.
    pub names: bool,
}

/// Sends what `config` says of the cluster, as far as it is `wanted`, to `changes`, until the
/// receiver is dropped. Tells `heard` when it is current.
///
/// # Errors
///
/// Only at the beginning, for a configuration that time does not heal.
pub async fn run(
    config: &SourceConfig,
    wanted: Wanted<'_>,
    changes: Sender<Change>,
    heard: Heard,
) -> Result<(), SourceError> {
    match config {
        SourceConfig::Kube { kubeconfig } => {
            kube::run(kubeconfig.as_deref(), wanted, &changes, &heard).await
        }
        SourceConfig::Files { manifests } => files::run(manifests, wanted, &changes).await,
    }
}

/// Tells the owners of Services of `notices`, where the source has a way to, until their sender is
/// gone.
pub async fn publish(config: &SourceConfig, node_name: &str, mut notices: Receiver<Notice>) {
    match config {
        SourceConfig::Kube { kubeconfig } => {
            kube::events::publish(kubeconfig.as_deref(), node_name, notices).await;
        }
        SourceConfig::Files { .. } => while notices.recv().await.is_some() {},
    }
}

/// The receiver of the changes is gone: the agent is ending.
#[derive(Debug)]
struct Closed;

async fn send(changes: &Sender<Change>, change: Change) -> Result<(), Closed> {
    changes.send(change).await.map_err(|_| Closed)
}

fn no_node(name: &str) -> Warning {
    Warning {
        subject: format!("Node {name}"),
        message: "there is no such Node, so its zone, addresses and pod ranges are unknown: \
                  check --node-name"
            .into(),
    }
}
