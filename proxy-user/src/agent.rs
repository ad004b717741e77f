//! The agent: everything put together, on one task that owns all state.
//!
//! Changes of the source and of the node's devices come in; passes over the plan and the maps
//! go out. Nothing is written before the source is in sync; what fails is reported and tried
//! again; on SIGTERM everything is left forwarding.

mod clock;
mod contests;
mod dns;
mod judge;
mod layouts;
mod nat;
mod node;
mod opt_out;
mod report;
mod retry;
mod settings;
mod stale;

use crate::apply::{Applier, ApplyError, Quarantine, StoreError};
use crate::config::{AgentConfig, SocketPath};
use crate::health::Health;
use crate::health::checks::HealthChecks;
use crate::http;
use crate::loader::store::MapStore;
use crate::loader::{self, Dataplane, LoadError, sys};
use crate::metrics::Metrics;
use crate::model::{Change, Interface, Node, Touched, Warning, World};
use crate::pinned::{PinnedError, PinnedMaps};
use crate::plan::Planner;
use crate::preflight::{self, PreflightError};
use crate::source::{self, Heard, SourceConfig, SourceError, Wanted};
use crate::sysctls;
use clock::{NAMES_GOOD, at, finished, fresh_until, ticker};
use contests::Contests;
use dns::DnsState;
use jiff::Timestamp;
use nat::Doubt;
use node::NodeState;
use opt_out::OptOut;
use proxy_ebpf::Proto;
use report::{Report, bounded, chain};
use settings::{node_ports, planner, settings};
use stale::AfterUdp;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// How often the agent's loop turns when nothing happens.
const TURN_PERIOD: Duration = Duration::from_secs(10);
/// How long news may take to reach the status: a burst of changes is told once.
const PUBLISH_PERIOD: Duration = Duration::from_millis(50);
/// How often it is said that the names in the kernel are good.
const VOUCH_PERIOD: Duration = Duration::from_secs(2);
/// How often it is tried whether another agent has ended.
const LOCK_PERIOD: Duration = Duration::from_millis(100);
/// How long the first pass waits for the list of the node's devices, which takes milliseconds.
const DEVICES_WAIT: Duration = Duration::from_secs(2);
/// How many changes may wait before a source has to wait too.
const CHANGES: usize = 4_096;

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum AgentError {
    /// The machine does not fit.
    Preflight(#[from] PreflightError),
    /// The programs cannot be loaded.
    Load(#[from] LoadError),
    /// The pinned maps cannot be adopted.
    Restore(#[from] StoreError),
    /// The pinned maps cannot be read.
    Pinned(#[from] PinnedError),
    /// The source is not to be had.
    Source(#[from] SourceError),
    /// Health, metrics and the command line have no thread.
    #[error("cannot start the thread of the listeners")]
    Listeners(#[source] std::io::Error),
    /// No signals.
    #[error("cannot wait for signals")]
    Signal(#[source] std::io::Error),
}

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(config: AgentConfig) -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
    let machine = preflight::check(&config)?;
    let warnings = [config.warnings.as_slice(), &machine.warnings].concat();
    for warning in &warnings {
        tracing::warn!(subject = warning.subject, "{}", warning.message);
    }
    let _lock = tokio::select! {
        lock = lock(&config.bpffs_root) => lock?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut dataplane = Dataplane::load(&settings(&config))?;
    let mut applier = Applier::restore(dataplane.take_store()?)?;
    let pinned = Arc::new(PinnedMaps::open(&config.bpffs_root)?);
    let mut tasks = JoinSet::new();
    let (changes_in, changes) = mpsc::channel(CHANGES);
    let wanted = Wanted { node_name: &config.node_name, names: config.dns.is_some() };
    let heard = Heard::default();
    let source = source::run(&config.source, wanted, changes_in, heard.clone());
    let (interfaces_in, interfaces) = watch::channel(Vec::new());
    let report = Report::new(&config, warnings);
    report.problem("sysctls", sysctls::set_conntrack(&config.conntrack));
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let health = Health::default();
    if matches!(config.source, SourceConfig::Files { .. }) {
        // A folder need not say anything of the node, and a Node that is not there is not leaving.
        health.node(Some(&Node::default()));
    }
    report::spawn_log(&mut tasks, &mut dataplane, config.log_level);
    report.spawn_follow(&mut tasks, &health, interfaces_in);
    report.spawn_watch_for_kube_proxy(&mut tasks);
    let listeners = http::start_thread().map_err(AgentError::Listeners)?;
    report.spawn_servers(&listeners, &config, &health, &metrics, Arc::clone(&pinned));
    let after_udp = AfterUdp::spawn(&mut tasks, &report, &config, &metrics, pinned);
    let (doubts_in, nat_doubts) = mpsc::channel(nat::DOUBTS);
    nat::spawn_watch(&mut tasks, dataplane.nat_port(), report.problems(), doubts_in);
    let (health_checks, checks) = watch::channel(HealthChecks::new());
    let notices = report::spawn_notices(&mut tasks, &config);
    report.spawn_health_checks(&listeners, &health, checks, notices.clone());

    let dns = config.dns.clone().map(DnsState::new);
    if dns.is_none()
        && let Err(error) = applier.write_zone(None, 0)
    {
        // Before the names of an earlier agent go: they would be denied.
        tracing::warn!("{}", chain(&error));
    }
    let mut planner = planner(&config);
    if config.dns.is_some() {
        planner = planner.with_names();
    }
    let node = NodeState::new(dataplane, machine.cgroup_root, &config);
    let mut agent = Agent {
        world: World::default(),
        planner,
        applier,
        node,
        dns,
        heard,
        touched: Touched::default(),
        triggers: Vec::new(),
        synced: false,
        bpffs_root: config.bpffs_root.clone(),
        min_sync_period: config.min_sync_period,
        next_pass: None,
        last_pass: None,
        next_publish: None,
        node_retry: None,
        next_retry: None,
        retry_delay: retry::FIRST_DELAY,
        reclaim: None,
        opt_out: OptOut::default(),
        spares_redirected: config.socket_path == SocketPath::Auto,
        contests: Contests::new(notices),
        after_udp,
        nat_doubts,
        health_checks,
        health,
        metrics,
        report,
    };
    tokio::select! {
        result = source => result.map_err(Into::into),
        () = agent.follow(changes, interfaces, config.drift_check_period) => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Waits until no other agent has the pins: a rolling update may start the new one first.
async fn lock(bpffs_root: &Path) -> Result<File, LoadError> {
    let mut waits = false;
    loop {
        if let Some(lock) = loader::try_lock(bpffs_root)? {
            return Ok(lock);
        }
        if !waits {
            tracing::info!("another agent runs on this node; waiting for it to end");
        }
        waits = true;
        sleep(LOCK_PERIOD).await;
    }
}

/// All state of the agent.
struct Agent {
    world: World,
    planner: Planner,
    applier: Applier<MapStore>,
    node: NodeState,
    /// `None` if names are left to the cluster's DNS service.
    dns: Option<DnsState>,
    /// When the source was last heard of.
    heard: Heard,
    /// What has changed since the last pass.
    touched: Touched,
    /// When the changes since the last pass were triggered, in milliseconds since 1970.
    triggers: Vec<i64>,
    synced: bool,
    bpffs_root: PathBuf,
    min_sync_period: Duration,
    next_pass: Option<Instant>,
    last_pass: Option<Instant>,
    next_publish: Option<Instant>,
    /// When the node is brought to what it should be once more, after that failed.
    node_retry: Option<Instant>,
    /// When rows are tried again that the maps did not take, if there are some.
    next_retry: Option<Instant>,
    retry_delay: Duration,
    /// Waits for the programs that may still read what was replaced.
    reclaim: Option<JoinHandle<Option<Quarantine>>>,
    opt_out: OptOut,
    /// Whether pods whose connections somebody redirects opt out too.
    spares_redirected: bool,
    contests: Contests,
    after_udp: AfterUdp,
    /// Whether somebody else may have changed the tables of nftables.
    nat_doubts: mpsc::Receiver<Doubt>,
    health_checks: watch::Sender<HealthChecks>,
    health: Health,
    metrics: Metrics,
    report: Report,
}

impl Agent {
    /// Follows changes for ever.
    async fn follow(
        &mut self,
        mut changes: mpsc::Receiver<Change>,
        mut interfaces: watch::Receiver<Vec<Interface>>,
        drift_check_period: Duration,
    ) {
        let mut drift = ticker(drift_check_period);
        let mut vouch = ticker(VOUCH_PERIOD);
        let mut turn = ticker(TURN_PERIOD);
        loop {
            self.health.turned(Timestamp::now());
            tokio::select! {
                _ = turn.tick() => continue,
                change = changes.recv() => match change {
                    Some(change) => {
                        self.take(change);
                        while let Ok(change) = changes.try_recv() {
                            self.take(change);
                        }
                        self.schedule();
                    }
                    None => return,
                },
                () = at(self.next_pass) => self.pass(),
                () = at(self.next_retry) => self.retry(),
                Ok(()) = interfaces.changed() => {
                    self.node.set_interfaces(interfaces.borrow_and_update().clone());
                    if !self.synced && self.next_pass.is_some() {
                        self.next_pass = Some(Instant::now());
                    }
                    self.update_node();
                }
                quarantine = finished(&mut self.reclaim) => self.release(quarantine),
                () = at(self.node_retry) => self.update_node(),
                () = at(self.opt_out.next_search) => self.search_opted_out(),
                Some(doubt) = self.nat_doubts.recv() => self.mend_nat(doubt),
                () = self.report.problem_changed() => {}
                _ = drift.tick() => self.check_drift(),
                _ = vouch.tick() => {
                    self.contests.tick(Instant::now());
                    self.contests.update(&mut self.planner);
                    self.vouch();
                    continue;
                }
                () = at(self.next_publish) => {
                    self.publish();
                    continue;
                }
            }
            self.next_publish.get_or_insert_with(|| Instant::now() + PUBLISH_PERIOD);
        }
    }

    /// Takes a change into the world.
    fn take(&mut self, change: Change) {
        match &change {
            Change::Service(_) | Change::ServiceGone(_) => self.metrics.changes(1, 0),
            Change::Slice(slice) => {
                self.metrics.changes(0, 1);
                self.triggers.extend(slice.triggered.filter(|&at| self.report.has_seen(at)));
            }
            Change::SliceGone(_) => self.metrics.changes(0, 1),
            _ => {}
        }
        let is_node = matches!(change, Change::Node(_) | Change::ServiceCidrs(_));
        let is_opt_out = matches!(change, Change::OptedOutPods(_));
        let is_corefile = matches!(change, Change::Corefile(_));
        let touched = self.world.apply(change);
        self.touched.merge(touched);
        if is_opt_out && let Some(pods) = self.world.opted_out_pods() {
            let redirected = pods.redirected.iter().filter(|_| self.spares_redirected);
            self.opt_out.set(pods.socket_path.iter().chain(redirected).cloned().collect());
        }
        if is_node {
            self.health.node(self.world.node());
        }
        if is_node || is_opt_out {
            self.update_node();
        }
        if is_corefile && self.synced {
            self.update_dns(&Touched::default());
        }
    }

    /// Plans the next pass: at once if the last one is long ago, else after the least time.
    fn schedule(&mut self) {
        if !self.world.synced() || self.synced && self.touched.is_empty() {
            return;
        }
        let now = Timestamp::now();
        self.health.queued(now);
        self.metrics.queued(now);
        self.metrics.pending(self.touched.services.len(), self.triggers.len());
        let earliest = match self.last_pass {
            Some(last) => last + self.min_sync_period,
            // What the node's own packets find depends on its addresses.
            None if !self.node.has_interfaces() => Instant::now() + DEVICES_WAIT,
            None => Instant::now(),
        };
        self.next_pass.get_or_insert(earliest);
    }

    /// Brings the maps to what the world says.
    fn pass(&mut self) {
        let began = Instant::now();
        self.next_pass = None;
        if !self.synced {
            self.node.look(&self.world);
            self.take_node_addrs();
        }
        let touched = std::mem::take(&mut self.touched);
        let delta = self.planner.update(&self.world, &touched);
        let udp = !self.synced || delta.services.keys().any(|key| key.port.proto == Proto::UDP);
        if self.synced {
            self.applier.apply(delta);
        } else {
            // The tables hold all of it; a second time would be the most memory ever.
            drop(delta);
            self.applier.apply_all(self.planner.tables());
        }
        self.update_dns(&touched);
        if !self.synced {
            self.synced = true;
            self.update_node();
            self.remove_other_layouts();
            self.next_publish = Some(Instant::now());
            // Behind everything that is needed once: the lists and the loading of the programs.
            drop(tokio::task::spawn_blocking(sys::trim_memory));
        }
        if udp {
            self.after_udp.notify();
        }
        self.health_checks.send_if_modified(|known| {
            let checks = self.planner.health_checks();
            let changed = known != checks;
            if changed {
                known.clone_from(checks);
            }
            changed
        });
        self.finish_pass(began);
    }

    fn finish_pass(&mut self, began: Instant) {
        let now = Timestamp::now();
        self.last_pass = Some(Instant::now());
        self.report.changed(now);
        self.judge();
        self.metrics.pending(0, 0);
        self.metrics.sync_finished(began.elapsed(), now);
        for trigger in self.triggers.drain(..) {
            self.metrics.programmed(trigger, now.as_millisecond());
        }
        self.reclaim();
    }

    /// Brings devices and addresses to what is planned for the node.
    fn update_node(&mut self) {
        if self.synced {
            if self.repair_node() > 0 {
                // conntrack may know flows by datagrams that came before a device had its program.
                self.after_udp.notify();
            }
            self.take_node_addrs();
            self.schedule();
        }
    }

    /// Brings what is answered of names to what the world says; behind the names themselves, so
    /// that none is denied that is about to be written.
    fn update_dns(&mut self, touched: &Touched) {
        let Some(dns) = &mut self.dns else { return };
        let age = self.heard.age();
        let doubt = if !self.applier.has_all_names() {
            Some("not all names could be written to the kernel")
        } else if age >= NAMES_GOOD {
            Some("the API server has not been heard of for 15 s, so no name is answered")
        } else {
            None
        };
        let row = dns.update(&self.world, touched, doubt);
        self.report.dns(dns.status());
        let written = self.applier.write_zone(Some(&row), fresh_until(age));
        self.report.problem("zone", written.err().iter().map(zone_warning).collect());
    }

    /// Says that the names in the kernel are still good.
    fn vouch(&mut self) {
        if self.synced {
            self.update_dns(&Touched::default());
        }
    }

    fn search_opted_out(&mut self) {
        let warnings = self.node.search_opted_out(&mut self.opt_out);
        self.report.problem("opt-out", warnings);
    }

    /// Compares maps and links with what they should be, and repairs them.
    fn check_drift(&mut self) {
        if !self.synced {
            return;
        }
        let repaired = self.repair_node();
        self.after_udp.notify();
        self.search_opted_out();
        match self.applier.heal(self.planner.tables()) {
            Ok((rows, _)) => {
                self.judge();
                self.report.drift(rows + repaired);
                self.failing("drift", Vec::new(), Vec::new());
            }
            Err(error) => self.failing("drift", Vec::new(), vec![map_warning(&error)]),
        }
        self.reclaim();
    }

    /// Tells everyone who asks.
    fn publish(&mut self) {
        self.next_publish = None;
        let mut warnings = bounded(self.world.warnings(), self.world.warning_count());
        warnings.extend(bounded(self.planner.warnings(), self.planner.warning_count()));
        self.contests.update(&mut self.planner);
        self.report.publish(&self.world, self.node.attachments(), warnings);
    }
}

fn zone_warning(error: &ApplyError) -> Warning {
    Warning { subject: "--dns".to_owned(), message: chain(error) }
}

fn map_warning(error: &StoreError) -> Warning {
    Warning { subject: format!("map {}", error.map), message: chain(error) }
}
