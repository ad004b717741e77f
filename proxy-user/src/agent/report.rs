//! What the agent says of itself: status, health, metrics, logs, warnings.

use crate::apply::{Applier, ApplyError, Store};
use crate::config::AgentConfig;
use crate::control;
use crate::health::checks::{self, HealthChecks};
use crate::health::{self, Health};
use crate::loader::{Dataplane, devices};
use crate::metrics::{self, Metrics};
use crate::model::{Interface, Notice, Warning, World};
use crate::pinned::PinnedMaps;
use crate::preflight;
use crate::sockets;
use crate::source::{self, SourceConfig};
use crate::status::{Attachment, DnsStatus, Drift, Objects, Status};
use crate::tables::ServiceKey;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

/// How often the programs' log is read.
const LOG_PERIOD: Duration = Duration::from_millis(50);
/// How soon the control socket is tried again.
const CONTROL_RETRY: Duration = Duration::from_secs(1);
/// How soon it is noticed that kube-proxy's rules are gone.
const KUBE_PROXY_PERIOD: Duration = Duration::from_secs(30);
/// How many Services are named when a table has no room for them.
const SERVICES_NAMED: usize = 10;
/// How many warnings of one origin are shown.
const WARNINGS_SHOWN: usize = 100;
/// How many notices may wait for the API server; what is more is in the status alone.
const NOTICES: usize = 64;

/// What went wrong, told by any task; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Problems {
    /// By where they come from; each origin replaces its own.
    by_origin: Arc<Mutex<BTreeMap<&'static str, Vec<Warning>>>>,
    changed: Arc<Notify>,
}

impl Problems {
    pub(super) fn set(&self, origin: &'static str, warnings: Vec<Warning>) {
        let mut by_origin = self.by_origin.lock().unwrap_or_else(PoisonError::into_inner);
        if by_origin.insert(origin, warnings.clone()).unwrap_or_default() != warnings {
            self.changed.notify_one();
        }
    }

    fn all(&self) -> Vec<Warning> {
        let by_origin = self.by_origin.lock().unwrap_or_else(PoisonError::into_inner);
        by_origin.values().flat_map(|all| bounded(all.iter().cloned(), all.len())).collect()
    }
}

/// The agent's voice.
pub(super) struct Report {
    status: Status,
    problems: Problems,
    published: watch::Sender<Arc<Status>>,
}

impl Report {
    pub(super) fn new(config: &AgentConfig, preflight: Vec<Warning>) -> Self {
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: config.node_name.clone(),
            source: match &config.source {
                SourceConfig::Kube { .. } => "kube".to_owned(),
                SourceConfig::Files { manifests } => format!("files {}", manifests.display()),
            },
            started: Timestamp::now(),
            synced: None,
            last_change: None,
            objects: Objects::default(),
            attachments: Vec::new(),
            drift: None,
            dns: None,
            warnings: Vec::new(),
        };
        let problems = Problems::default();
        problems.set("preflight", preflight);
        let published = watch::Sender::new(Arc::new(status.clone()));
        Self { status, problems, published }
    }

    /// Whether the agent ran `at` these milliseconds since 1970; what was triggered before says
    /// nothing of how long this agent took, and whoever writes a slice may write any time into it.
    pub(super) fn has_seen(&self, at: i64) -> bool {
        at >= self.status.started.as_millisecond()
    }

    /// Whether the maps hold, at `now`, all that they should.
    pub(super) fn written(&mut self, all: bool, now: Timestamp) {
        match (all, self.status.synced) {
            (true, None) => tracing::info!("in sync"),
            (false, Some(_)) => tracing::warn!("not in sync: not everything could be written"),
            _ => {}
        }
        self.status.synced = all.then(|| self.status.synced.unwrap_or(now));
    }

    pub(super) fn changed(&mut self, now: Timestamp) {
        self.status.last_change = Some(now);
    }

    pub(super) fn dns(&mut self, dns: DnsStatus) {
        self.status.dns = Some(dns);
    }

    pub(super) fn drift(&mut self, repaired: u64) {
        let before = self.status.drift.as_ref().map_or(0, |drift| drift.repaired_total);
        if repaired > 0 {
            tracing::warn!(repaired, "maps or links were not what they should be; repaired");
        }
        let checked = Timestamp::now();
        let repaired_total = before + repaired;
        self.status.drift = Some(Drift { checked, repaired, repaired_total });
        self.problem("drift", Vec::new());
    }

    /// Says what the maps did not take; sorts that only if it has changed.
    pub(super) fn apply_errors<S: Store>(&self, applier: &mut Applier<S>) {
        self.problem("apply", apply_warnings(applier.passing_errors().iter()));
        if let Some(errors) = applier.changed_failures() {
            self.problem("unwritten", apply_warnings(errors));
        }
    }

    /// Replaces the warnings of `origin`.
    pub(super) fn problem(&self, origin: &'static str, warnings: Vec<Warning>) {
        self.problems.set(origin, warnings);
    }

    /// Where other tasks tell what went wrong.
    pub(super) fn problems(&self) -> Problems {
        self.problems.clone()
    }

    /// Returns when a problem has come or gone since the last call.
    pub(super) async fn problem_changed(&self) {
        self.problems.changed.notified().await;
    }

    /// Publishes the status, and logs the warnings that are new.
    pub(super) fn publish(&self, world: &World, attachments: Vec<Attachment>, own: Vec<Warning>) {
        let mut warnings = own;
        warnings.extend(self.problems.all());
        warnings.sort();
        let objects = Objects {
            services: world.services().len(),
            slices: world.slice_count(),
            endpoints: world.endpoint_count(),
        };
        let status = Status { objects, attachments, warnings, ..self.status.clone() };
        self.published.send_if_modified(|published| {
            for warning in &status.warnings {
                // Both are sorted; there may be hundreds.
                if published.warnings.binary_search(warning).is_err() {
                    tracing::warn!(subject = warning.subject, "{}", warning.message);
                }
            }
            let changed = **published != status;
            *published = Arc::new(status);
            changed
        });
    }

    /// Follows the node's devices, again and again if that fails.
    pub(super) fn spawn_follow(
        &self,
        tasks: &mut JoinSet<()>,
        health: &Health,
        interfaces: watch::Sender<Vec<Interface>>,
    ) {
        let (problems, health) = (self.problems.clone(), health.clone());
        let tell = move |warnings: Vec<Warning>| {
            health.failing("devices", &warnings, Timestamp::now());
            problems.set("devices", warnings);
        };
        tasks.spawn(async move {
            loop {
                let listed = || tell(Vec::new());
                if let Err(error) = devices::follow(&interfaces, listed).await {
                    let message = chain(&error);
                    let subject = "devices".to_owned();
                    tell(vec![Warning { subject, message }]);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// Looks for processes of the node that listen where a NodePort is, whenever `changed` says
    /// that Services may have changed.
    pub(super) fn spawn_watch_listeners(
        &self,
        tasks: &mut JoinSet<()>,
        config: &AgentConfig,
        changed: &Arc<Notify>,
        maps: Arc<PinnedMaps>,
    ) {
        let (problems, changed) = (self.problems.clone(), Arc::clone(changed));
        let node_ports = super::node_ports(config);
        tasks.spawn(async move {
            loop {
                changed.notified().await;
                let maps = Arc::clone(&maps);
                let problem = |message| Warning { subject: "sockets".to_owned(), message };
                let looking = move || sockets::shadowed(&maps, node_ports);
                let warnings = match tokio::task::spawn_blocking(looking).await {
                    Ok(Ok(shadowed)) => shadowed.into_iter().collect(),
                    Ok(Err(error)) => vec![problem(chain(&error))],
                    Err(error) => vec![problem(chain(&error))],
                };
                problems.set("sockets", warnings);
            }
        });
    }

    /// Warns of kube-proxy's rules for as long as they are there. If there are none at first, who
    /// makes some later knows what they do.
    pub(super) fn spawn_watch_for_kube_proxy(&self, tasks: &mut JoinSet<()>) {
        let problems = self.problems.clone();
        tasks.spawn(async move {
            while let Ok(warning) = tokio::task::spawn_blocking(preflight::kube_proxy).await {
                let is_gone = warning.is_none();
                problems.set("kube-proxy", warning.into_iter().collect());
                if is_gone {
                    return;
                }
                tokio::time::sleep(KUBE_PROXY_PERIOD).await;
            }
        });
    }

    /// Answers load balancers that ask about Services, on the thread of `listeners`.
    pub(super) fn spawn_health_checks(
        &self,
        listeners: &Handle,
        health: &Health,
        checks: watch::Receiver<HealthChecks>,
        notices: mpsc::Sender<Notice>,
    ) {
        let problems = self.problems.clone();
        let tell = move |warnings| problems.set("health checks", warnings);
        listeners.spawn(checks::serve(checks, health.clone(), tell, notices));
    }

    /// Answers health checks, scrapes and the command line, on the thread of `listeners`.
    pub(super) fn spawn_servers(
        &self,
        listeners: &Handle,
        config: &AgentConfig,
        health: &Health,
        metrics: &Metrics,
        counters: Arc<PinnedMaps>,
    ) {
        let problem = |origin: &'static str| {
            let problems = self.problems.clone();
            move |warning: Option<Warning>| problems.set(origin, warning.into_iter().collect())
        };
        let healthz = config.healthz_bind_address;
        let (health, counted) = (health.clone(), metrics.clone());
        listeners.spawn(health::serve(healthz, health, counted, problem("healthz")));
        let address = config.metrics_bind_address;
        listeners.spawn(metrics::serve(address, metrics.clone(), counters, problem("metrics")));
        let (path, status) = (config.control_socket.clone(), self.published.subscribe());
        let report = problem("control socket");
        listeners.spawn(async move {
            // Another agent may answer for a moment more, or a directory be missing.
            while let Err(error) = control::serve(&path, status.clone(), || report(None)).await {
                let subject = "--control-socket".to_owned();
                report(Some(Warning { subject, message: chain(&error) }));
                tokio::time::sleep(CONTROL_RETRY).await;
            }
        });
    }
}

/// Tells the owners of Services of the notices that come to the sender.
pub(super) fn spawn_notices(tasks: &mut JoinSet<()>, config: &AgentConfig) -> mpsc::Sender<Notice> {
    let (notices_in, notices) = mpsc::channel(NOTICES);
    let (source, node) = (config.source.clone(), config.node_name.clone());
    tasks.spawn(async move { source::publish(&source, &node, notices).await });
    notices_in
}

/// The first warnings, and how many of the `count` there are in all are left out. A tenant may
/// have thousands, and whoever reads the status looks for the others.
pub(super) fn bounded(warnings: impl Iterator<Item = Warning>, count: usize) -> Vec<Warning> {
    let mut shown: Vec<_> = warnings.take(WARNINGS_SHOWN).collect();
    if let Some(more @ 1..) = count.checked_sub(shown.len()) {
        let message = format!("{more} more warnings are not shown; they come when others go");
        shown.push(Warning { subject: "status".to_owned(), message });
    }
    shown
}

/// One warning for each Service that is not served as it should be, and one for all Services
/// beyond the first ones: a full table would otherwise give thousands.
fn apply_warnings<'a>(errors: impl Iterator<Item = &'a ApplyError>) -> Vec<Warning> {
    let mut services: BTreeMap<String, (usize, &ApplyError)> = BTreeMap::new();
    for error in errors {
        let subject = match error.service() {
            Some(ServiceKey { port, .. }) => format!("Service {}/{}", port.namespace, port.name),
            None => "names in the kernel".to_owned(),
        };
        services.entry(subject).or_insert((0, error)).0 += 1;
    }
    let more = services.len().saturating_sub(SERVICES_NAMED);
    let warning = |(subject, (count, first)): (String, (usize, &ApplyError))| {
        let message = match count {
            1 => chain(first),
            _ => format!("{}, and {} more like this", chain(first), count - 1),
        };
        Warning { subject, message }
    };
    let mut warnings: Vec<_> = services.into_iter().take(SERVICES_NAMED).map(warning).collect();
    if more > 0 {
        let message = format!("{more} more Services are not served as they should be");
        warnings.push(Warning { subject: "kernel maps".to_owned(), message });
    }
    warnings
}

/// The programs log at the agent's level, if that is fine enough for single packets.
pub(super) fn program_log_level(level: tracing::Level) -> Option<aya_log::Level> {
    (level >= tracing::Level::DEBUG).then_some(aya_log::Level::Debug)
}

/// Writes the programs' log lines into the agent's log, if they log at all.
pub(super) fn spawn_log(tasks: &mut JoinSet<()>, dataplane: &mut Dataplane, level: tracing::Level) {
    if program_log_level(level).is_none() {
        return;
    }
    match dataplane.take_log() {
        Ok(mut log) => drop(tasks.spawn(async move {
            let mut tick = tokio::time::interval(LOG_PERIOD);
            loop {
                tick.tick().await;
                log.flush();
            }
        })),
        Err(error) => tracing::warn!("the programs' log cannot be read: {}", chain(&error)),
    }
}

/// An error and its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_beyond_the_first_ones_are_counted() {
        let warning = |number: usize| Warning {
            subject: format!("Service default/s{number}"),
            message: "is faulty".to_owned(),
        };
        let shown = |count| bounded((0..count).map(warning), count);
        assert_eq!(shown(WARNINGS_SHOWN).len(), WARNINGS_SHOWN);
        let shown = shown(10_000);
        assert_eq!(shown.len(), WARNINGS_SHOWN + 1);
        assert!(shown[WARNINGS_SHOWN].message.starts_with("9900 more "), "{shown:?}");
    }
}
