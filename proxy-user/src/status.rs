//! What the agent says of itself: the document behind `shunt status` and the control socket.

use crate::model::Warning;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The state of a running agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// The node that it serves.
    pub node: String,
    /// Where its objects come from, such as `kube` or `files /etc/shunt/manifests`.
    pub source: String,
    /// When it started.
    pub started: Timestamp,
    /// Since when the maps hold what the source says; `None` until the first sync, and while
    /// something could not be written.
    pub synced: Option<Timestamp>,
    /// When a change was last written to the maps.
    pub last_change: Option<Timestamp>,
    /// What it knows of the cluster.
    pub objects: Objects,
    /// The programs, and where they are attached.
    pub attachments: Vec<Attachment>,
    /// The last comparison of maps and links with what they should be.
    pub drift: Option<Drift>,
    /// How names are answered; absent if the cluster's DNS service alone does it.
    #[serde(default)]
    pub dns: Option<DnsStatus>,
    /// What an operator should look at.
    pub warnings: Vec<Warning>,
}

/// How the names of the cluster are answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DnsStatus {
    /// The cluster's zone.
    pub zone: String,
    /// Whether it is said of names that they do not exist.
    pub denies: bool,
    /// Why, or why not.
    pub reason: String,
    /// How long answers may be kept, in seconds.
    pub ttl: u32,
}

/// How many objects the agent knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Objects {
    /// Services, headless and ExternalName ones included.
    pub services: usize,
    /// EndpointSlices.
    pub slices: usize,
    /// Endpoints in all EndpointSlices.
    pub endpoints: usize,
}

/// A program attached to a cgroup or a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// The program's name, such as `connect4` or `ingress`.
    pub program: String,
    /// The cgroup's path or the device's name.
    pub target: String,
}

/// The result of a drift check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drift {
    /// When it was made.
    pub checked: Timestamp,
    /// Rows and links that were not what they should be in this check, and were repaired.
    pub repaired: u64,
    /// The same, since the agent started.
    pub repaired_total: u64,
}
