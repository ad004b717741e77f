//! The `shunt` binary: reads the command line, runs the command, turns errors into exit codes.

use anyhow::anyhow;
use clap::Parser as _;
use proxy_user::agent;
use proxy_user::cli::{self, Cli, Command};
use proxy_user::config::{AgentArgs, AgentConfig, LogFormat};
use proxy_user::loader;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{ErrorKind, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shunt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(args) => run_agent(args)?,
        Command::Cleanup { bpffs_root, force } => clean_up(&bpffs_root, force)?,
        Command::Query(query) => return Ok(ExitCode::from(cli::answer(&query)? as u8)),
        Command::Completions { shell } => cli::complete(shell)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn clean_up(bpffs_root: &Path, force: bool) -> anyhow::Result<()> {
    loader::cleanup(bpffs_root, force).map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy => anyhow!(
            "an agent runs on this node and needs what is to be removed: stop it first (`kubectl \
             delete -k`, not the pod alone, which would come back), or use --force"
        ),
        _ => anyhow::Error::new(error)
            .context(format!("cannot remove {}: run as root", bpffs_root.join("shunt").display())),
    })
}

fn run_agent(args: AgentArgs) -> anyhow::Result<()> {
    let config = args.resolve()?;
    start_log(&config);
    loader::sys::keep_memory_small();
    raise_file_limit();
    // One thread does all the work; others wait for the kernel.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent::run(config))?;
    tracing::info!("stopped; the maps and programs stay and forward");
    Ok(())
}

/// Lets the agent have as many files open as the machine allows it: maps, links and sockets of all
/// listeners together may be more than the usual 1,024.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

fn start_log(config: &AgentConfig) {
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let log = match config.log_format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    let level = LevelFilter::from_level(config.log_level);
    // The client logs each attempt of each watch as an error; the agent says once what is wrong.
    let client = if config.log_level < Level::DEBUG { LevelFilter::OFF } else { level };
    let filter = Targets::new().with_default(level).with_target("kube_client", client);
    tracing_subscriber::registry().with(log).with(filter).init();
}
