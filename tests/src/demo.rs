//! The demo: a cluster of two nodes in one machine, and what Shunt does in it, step by step.
//!
//! Takes nothing from outside; gives a readable line for each fact, or one JSON document, and
//! whether all of it held. Every step is real traffic between network namespaces: what a step
//! says, a socket has seen.

mod change;
mod commands;
mod judge;
mod keep;
mod outcome;
mod reach;
mod refuse;
mod screen;
mod web;
mod world;

pub use outcome::{Fact, Outcome, Report, StepReport, Transcript};

use anyhow::{Context, Result};
use screen::Screen;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use world::World;

/// How long a step may take on a busy machine; one that hangs fails then.
const LIMIT: Duration = Duration::from_secs(40);

/// What the exit code of a process says that was ended by SIGINT.
const INTERRUPTED: u8 = 130;

/// How the demo is to be shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// One JSON document on standard output, and nothing else there.
    pub json: bool,
    /// Leave the cluster up after the steps, until Ctrl-C.
    pub keep: bool,
}

/// Runs the demo. The exit code is 0 only if every step held.
pub async fn run(options: Options) -> Result<ExitCode> {
    let screen = Screen::new(options.json);
    let mut signals = Signals::watch()?;
    let mut demo = Demo { screen, world: None, report: Report::default(), started: Instant::now() };
    let finished = tokio::select! {
        () = demo.steps() => true,
        () = signals.next() => false,
    };
    if !finished {
        screen.interrupted();
        return Ok(ExitCode::from(INTERRUPTED));
    }
    screen.report(&demo.report)?;
    if let Some(world) = demo.world.as_ref().filter(|_| options.keep) {
        screen.tell(&keep::how_to_look_around(world).await?);
        signals.next().await;
    }
    Ok(if demo.report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo under way. Dropping it removes the cluster.
struct Demo {
    screen: Screen,
    world: Option<World>,
    report: Report,
    started: Instant,
}

impl Demo {
    /// Runs all steps; one that fails does not keep the others from running.
    async fn steps(&mut self) {
        self.screen.heading();
        self.start().await;
        self.step("ClusterIP", reach::cluster_ip).await;
        self.step("Source address", reach::source_address).await;
        self.step("NodePort", reach::node_port).await;
        self.step("UDP", reach::udp).await;
        self.step("IPv6", reach::ipv6).await;
        self.step("Rollout", change::rollout).await;
        self.step("Unready pod", refuse::unready).await;
        self.step("No endpoints", refuse::no_endpoints).await;
        self.step("Agent killed", change::agent_killed).await;
        self.step("Commands", commands::commands).await;
        self.report.finish(self.started.elapsed());
    }

    async fn start(&mut self) {
        self.screen.begin("Cluster");
        let started = Instant::now();
        let outcome = match within_limit(World::start()).await {
            Ok((world, outcome)) => {
                self.world = Some(world);
                Ok(outcome)
            }
            Err(error) => Err(error),
        };
        self.add("Cluster", started, outcome);
    }

    /// Runs a step, if there is a cluster to run it in.
    async fn step(&mut self, name: &str, step: impl AsyncFnOnce(&mut World) -> Result<Outcome>) {
        let Some(world) = &mut self.world else { return };
        self.screen.begin(name);
        let started = Instant::now();
        let outcome = within_limit(step(world)).await;
        self.add(name, started, outcome);
    }

    fn add(&mut self, name: &str, started: Instant, outcome: Result<Outcome>) {
        let step = StepReport::new(name, started.elapsed(), outcome);
        self.screen.step(&step);
        self.report.steps.push(step);
    }
}

async fn within_limit<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(LIMIT, step).await.with_context(|| format!("not done after {LIMIT:?}"))?
}

/// What the user or the system ends the demo with.
struct Signals([Signal; 3]);

impl Signals {
    fn watch() -> Result<Self> {
        let watch = |kind| signal(kind).context("watch for signals");
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(watch);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
