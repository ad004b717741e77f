//! A source at work, the API server that it follows, and the objects that it meets.

use anyhow::{Context as _, Result, bail};
use ipnetwork::IpNetwork;
use lab::api::{ApiServer, Fault, Refusal};
use proxy_user::model::{Change, Node, ObjectName, Service, Slice, Warning};
use proxy_user::source::{self, Heard, SourceConfig, SourceError, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How many watches a source holds that is not asked for names.
pub(super) const WATCHES: usize = 5;

pub(super) const WANTED: Wanted<'_> = Wanted { node_name: "node-a", names: false };
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A source at work, and what its changes add up to.
pub(super) struct Seen {
    changes: Receiver<Change>,
    task: JoinHandle<Result<(), SourceError>>,
    pub(super) services: Option<BTreeMap<ObjectName, Service>>,
    pub(super) slices: Option<BTreeMap<ObjectName, Slice>>,
    pub(super) node: Option<Option<Node>>,
    pub(super) service_cidrs: Option<Vec<IpNetwork>>,
    pub(super) warnings: Vec<Warning>,
    /// Services that the last list lacked, though they exist.
    pub(super) kept: BTreeSet<ObjectName>,
    /// How often everything of a kind came: Services, EndpointSlices.
    pub(super) lists: (usize, usize),
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    pub(super) fn start(config: SourceConfig) -> Self {
        let (sender, changes) = channel(16);
        let heard = Heard::default();
        let running = async move { source::run(&config, WANTED, sender, heard).await };
        let task = tokio::spawn(running);
        let (services, slices, node, service_cidrs) = (None, None, None, None);
        let (warnings, kept, lists) = (Vec::new(), BTreeSet::new(), (0, 0));
        Self { changes, task, services, slices, node, service_cidrs, warnings, kept, lists }
    }

    fn take(&mut self, change: Change) {
        const FIRST: &str = "everything of a kind comes before a change of it";
        match change {
            Change::AllServices(all) => {
                self.lists.0 += 1;
                self.services = Some(all.into_iter().map(|one| (one.name.clone(), one)).collect());
            }
            Change::AllSlices(all) => {
                self.lists.1 += 1;
                self.slices = Some(all.into_iter().map(|one| (one.name.clone(), one)).collect());
            }
            Change::Node(node) => self.node = Some(node),
            Change::Service(one) => {
                self.services.as_mut().expect(FIRST).insert(one.name.clone(), *one);
            }
            Change::ServiceGone(name) => {
                self.services.as_mut().expect(FIRST).remove(&name);
            }
            Change::Slice(one) => {
                self.slices.as_mut().expect(FIRST).insert(one.name.clone(), *one);
            }
            Change::SliceGone(name) => {
                self.slices.as_mut().expect(FIRST).remove(&name);
            }
            Change::ServiceCidrs(cidrs) => self.service_cidrs = Some(cidrs),
            Change::KeptServices(names) => self.kept = names,
            Change::OptedOutPods(_) | Change::KeptSlices(_) => {}
            Change::SourceWarnings(warnings) => self.warnings = warnings,
            Change::AllNamespaces(_)
            | Change::Namespace(_)
            | Change::NamespaceGone(_)
            | Change::Corefile(_) => panic!("nobody asked for names"),
        }
    }

    /// Takes changes until `state` holds.
    pub(super) async fn until(&mut self, what: &str, state: impl Fn(&Self) -> bool) -> Result<()> {
        while !state(self) {
            match timeout(PATIENCE, self.changes.recv()).await {
                Ok(Some(change)) => self.take(change),
                Ok(None) => bail!("the source ended before {what}"),
                Err(_) => bail!(
                    "{PATIENCE:?} without a change before {what}; services {}, warnings {:?}",
                    self.service_names(),
                    self.warnings
                ),
            }
        }
        Ok(())
    }

    pub(super) async fn synced(&mut self) -> Result<()> {
        let synced =
            |seen: &Self| seen.services.is_some() && seen.slices.is_some() && seen.node.is_some();
        self.until("everything came once", synced).await
    }

    pub(super) async fn services_are(&mut self, names: &str) -> Result<()> {
        self.until(names, |seen| seen.service_names() == names).await
    }

    pub(super) async fn warned(&mut self, part: &str) -> Result<()> {
        let says =
            |warning: &Warning| format!("{}: {}", warning.subject, warning.message).contains(part);
        self.until(&format!("a warning of {part}"), |seen| seen.warnings.iter().any(says)).await
    }

    pub(super) async fn calm(&mut self) -> Result<()> {
        self.until("no warnings", |seen| seen.warnings.is_empty()).await
    }

    pub(super) fn service_names(&self) -> String {
        let names = self.services.iter().flat_map(|services| services.keys());
        names.map(|name| &*name.name).collect::<Vec<_>>().join(" ")
    }
}

/// An API server with a Node, and a source that follows it.
pub(super) struct Cluster {
    pub(super) api: ApiServer,
    pub(super) seen: Seen,
    pub(super) dir: TempDir,
}

impl Cluster {
    pub(super) async fn start() -> Result<Self> {
        Self::with(|_| Ok(())).await
    }

    /// A cluster, after `prepare`, with Service `a`.
    pub(super) async fn with(prepare: impl FnOnce(&ApiServer) -> Result<()>) -> Result<Self> {
        let api = ApiServer::on_loopback()?;
        api.apply_yaml(NODE)?;
        api.apply_yaml(&service("a"))?;
        prepare(&api)?;
        let dir = tempfile::tempdir()?;
        let seen = Seen::start(kube(&dir, &api.url(), None)?);
        Ok(Self { api, seen, dir })
    }

    /// The source has everything, and its four watches are open.
    pub(super) async fn synced(&mut self) -> Result<()> {
        self.seen.synced().await?;
        wait(|| self.api.watches() == WATCHES).await
    }

    /// A new Service reaches the source.
    pub(super) async fn follows(&mut self, before: &str, name: &str) -> Result<()> {
        self.api.apply_yaml(&service(name))?;
        self.seen.services_are(format!("{before} {name}").trim()).await
    }
}

pub(super) fn kube(dir: &TempDir, url: &str, token: Option<&str>) -> Result<SourceConfig> {
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, ApiServer::kubeconfig(url, token))?;
    Ok(SourceConfig::Kube { kubeconfig: Some(path) })
}

pub(super) fn always(verb: &'static str, resource: &'static str, refusal: Refusal) -> Fault {
    Fault { verb, resource, times: usize::MAX, refusal }
}

pub(super) async fn wait(state: impl Fn() -> bool) -> Result<()> {
    let wait = async {
        while !state() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.context("the API server did not come to the state")
}

pub(super) const NODE: &str = "---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: z1}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

pub(super) fn service(name: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: default, \
         creationTimestamp: '2025-01-02T03:04:05Z'}}, spec: {{clusterIP: 10.96.0.1, \
         ports: [{{port: 80}}]}}}}\n"
    )
}

pub(super) fn slice(name: &str, labels: &str, addr: &str) -> String {
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
         metadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}, \
         ports: [{{name: '', port: 8080}}], endpoints: [{{addresses: [{addr}], nodeName: node-a}}]}}\n"
    )
}
