//! The command line: what can be asked, and the answers of the commands that only read.
//!
//! `agent` and `cleanup` change the node, and are dispatched in `main`. Flags of the reading
//! commands are the agent's where both have them, with the same variables.

use crate::config::{AgentArgs, BPFFS_ROOT, CONTROL_SOCKET};
use crate::control::{self, ControlError};
use crate::loader::links::filters;
use crate::loader::pin_directory;
use crate::nat;
use crate::netfilter::conntrack::{self, Status};
use crate::netfilter::{self, NetfilterError};
use crate::pinned::{PinnedError, PinnedMaps};
use crate::show::{
    self, Document, Filter, FlowRow, Flows, Format, NameAnswer, NameQuestion, Netfilter, Output,
    Question, ShowError, Snapshot, StatusReport,
};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use hickory_proto::rr::{Name, RecordType};
use jiff::Timestamp;
use proxy_ebpf::choose::Destination;
use proxy_ebpf::{Port, Proto};
use std::error::Error;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  an error; it is on standard error
  2  the command line is not understood
  3  explain: there is no frontend at the destination
     dns:     there is no such name
     status:  no agent runs, or it is not in sync yet";

/// Shunt, a Service proxy: one agent a node, and commands that show what it does.
///
/// All commands but `agent` and `cleanup` only read, from the maps that the kernel programs use;
/// they work with the agent stopped.
#[derive(Parser, Debug)]
#[command(name = "shunt", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of the commands that read what an agent left.
#[derive(Args, Debug)]
pub struct View {
    /// The BPF file system below which the maps are pinned.
    #[arg(long, value_name = "PATH", env = "SHUNT_BPFFS_ROOT", default_value = BPFFS_ROOT)]
    pub bpffs_root: PathBuf,
    /// The socket on which the agent tells its status.
    #[arg(
        long,
        value_name = "PATH",
        env = "SHUNT_CONTROL_SOCKET",
        default_value = CONTROL_SOCKET
    )]
    pub control_socket: PathBuf,
    /// How answers are printed.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Keep the maps of this node true to the cluster's Services, until stopped.
    Agent(AgentArgs),
    /// Detach all programs and remove all maps of Shunt from this node.
    ///
    /// Services stop being reached until an agent runs again. Doing it twice is no error.
    Cleanup {
        /// The BPF file system below which the maps are pinned.
        #[arg(long, value_name = "PATH", env = "SHUNT_BPFFS_ROOT", default_value = BPFFS_ROOT)]
        bpffs_root: PathBuf,
        /// Also while an agent runs, which then serves nothing until it is started again.
        #[arg(long)]
        force: bool,
    },
    /// A command that only reads.
    #[command(flatten)]
    Query(Query),
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The commands that only read.
#[derive(Subcommand, Debug)]
pub enum Query {
    /// Show whether this node is in sync, what is attached, and what was refused.
    ///
    /// What it says of nftables and conntrack is of the network namespace in which it runs.
    #[command(after_help = EXIT_CODES)]
    Status(View),
    /// List the Services, where they are reached, and what they carried.
    #[command(visible_alias = "svc")]
    Services(Selection),
    /// List the backends of the Services, and their states.
    Backends(Selection),
    /// List the connections and flows that Services have translated, from conntrack.
    ///
    /// Reads the network namespace in which it runs: run it on the node, not in a pod. Connections
    /// that got their backend when their socket connected are not translated, and not listed.
    Flows {
        /// Only flows of this Service.
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_service)]
        service: Option<Filter>,
        /// Show at most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Where to read, how to print.
        #[command(flatten)]
        view: View,
    },
    /// Say what a query of a name gets, who answers it, and why.
    #[command(after_help = EXIT_CODES)]
    Dns {
        /// The name, such as `web.shop.svc`; the cluster's zone is added behind `svc` and `pod`.
        name: String,
        /// The type.
        #[arg(value_name = "TYPE", default_value = "A")]
        kind: RecordType,
        /// The address of the pod that asks; without it, any pod of this node.
        #[arg(long, value_name = "IP")]
        from: Option<IpAddr>,
        /// Where to read, how to print.
        #[command(flatten)]
        view: View,
    },
    /// Say what happens to a new connection, step by step, and which object causes it.
    #[command(after_help = EXIT_CODES)]
    Explain {
        /// The destination, such as `10.96.0.10:53` or `[fd00::a]:53`.
        #[arg(value_name = "ADDR:PORT")]
        destination: SocketAddr,
        /// The protocol.
        #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
        proto: Protocol,
        /// The caller's address; without it, a process on this node.
        #[arg(long, value_name = "IP")]
        from: Option<IpAddr>,
        /// Where to read, how to print.
        #[command(flatten)]
        view: View,
    },
}

/// Which Services are listed.
#[derive(Args, Debug)]
pub struct Selection {
    /// Only Services of this name.
    pub name: Option<String>,
    /// Only Services of this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Services of all namespaces; the default.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Where to read, how to print.
    #[command(flatten)]
    pub view: View,
}

/// A transport protocol, as it is written on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl From<Protocol> for Proto {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::TCP,
            Protocol::Udp => Self::UDP,
            Protocol::Sctp => Self::SCTP,
        }
    }
}

/// What a command comes to, other than an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// The command did what it was asked.
    Done = 0,
    /// The answer is no: no frontend, not in sync.
    No = 3,
}

/// Why a command could not answer.
#[derive(thiserror::Error, Debug)]
#[error(transparent)]
pub enum CliError {
    /// The maps.
    Pinned(#[from] PinnedError),
    /// The agent.
    Control(#[from] ControlError),
    /// Conntrack.
    Netfilter(#[from] NetfilterError),
    /// The encoding of the answer.
    Show(#[from] ShowError),
    /// Nothing matches the name that was given.
    #[error("no Service {0} has a frontend on this node")]
    NoSuchService(String),
    /// What was given is no name.
    #[error("{0:?} is no DNS name")]
    NoName(String),
    /// A caller of the one family does not reach a destination of the other.
    #[error("--from must be of the destination's family, IPv4 or IPv6")]
    Families,
    /// Standard output.
    #[error("cannot write the answer")]
    Write(#[source] std::io::Error),
}

/// Runs a command that only reads.
pub fn answer(query: &Query) -> Result<Exit, CliError> {
    let mut exit = Exit::Done;
    match query {
        Query::Status(view) => {
            let report = status(view)?;
            if !report.in_sync {
                exit = Exit::No;
            }
            print(&report, view)?;
        }
        Query::Services(selection) => {
            let view = &selection.view;
            let rows = show::services(&snapshot(view)?, &selection.filter());
            print(&selection.found(rows)?, view)?;
        }
        Query::Backends(selection) => {
            let view = &selection.view;
            let snapshot = snapshot(view)?;
            let filter = selection.filter();
            selection.found(snapshot.select(&filter))?;
            print(&show::backends(&snapshot, &filter), view)?;
        }
        Query::Flows { service, limit, view } => {
            let mut rows = flows(view, &service.clone().unwrap_or_default())?;
            let left_out = limit.map_or(0, |limit| rows.len().saturating_sub(limit));
            rows.truncate(rows.len() - left_out);
            print(&rows, view)?;
            if left_out > 0 {
                eprintln!("and {left_out} more flows");
            }
        }
        Query::Dns { name, kind, from, view } => {
            let answer = look_up(view, name, *kind, *from)?;
            if answer.exists() == Some(false) {
                exit = Exit::No;
            }
            print(&answer, view)?;
        }
        Query::Explain { destination, proto, from, view } => {
            let to = Destination {
                addr: destination.ip().to_canonical().into(),
                port: Port::new(destination.port()),
                proto: (*proto).into(),
            };
            let from = from.map(|from| from.to_canonical());
            if from.is_some_and(|from| from.is_ipv4() != to.addr.is_v4()) {
                return Err(CliError::Families);
            }
            let explanation = show::explain(&snapshot(view)?, Question { to, from });
            if explanation.frontend.is_none() {
                exit = Exit::No;
            }
            print(&explanation, view)?;
        }
    }
    Ok(exit)
}

/// Prints the completions for `shell`.
pub fn complete(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "shunt", &mut script);
    write(&script)
}

/// The status of the node; maps that cannot be read are an error only if no agent runs.
fn status(view: &View) -> Result<StatusReport, CliError> {
    let agent = control::status(&view.control_socket)?;
    let counters = match PinnedMaps::open(&view.bpffs_root).and_then(|maps| maps.counters()) {
        Err(error) if agent.is_none() => return Err(error.into()),
        counters => counters.map_err(|error| chain(&error)),
    };
    let mut links = show::pinned_links(&pin_directory(&view.bpffs_root).join("links"));
    links.extend(filters());
    let report = StatusReport::new(agent, links, counters, Timestamp::now());
    let conntrack = netfilter::Socket::open().and_then(|mut socket| socket.conntrack_usage());
    Ok(report.with_netfilter(Netfilter {
        tables: nat::check().map_err(|error| chain(&error)),
        conntrack: conntrack.map_err(|error| chain(&error)),
    }))
}

/// What conntrack knows of the Services that `filter` admits.
fn flows(view: &View, filter: &Filter) -> Result<Vec<FlowRow>, CliError> {
    let snapshot = snapshot(view)?;
    let mut flows = Flows::new(&snapshot, filter);
    let translated = conntrack::Filter { status: Status::DESTINATION_NAT, ..Default::default() };
    netfilter::Socket::open()?.connections(&translated, |entry| flows.add(&entry))?;
    Ok(flows.rows())
}

/// What a query of `name` gets.
fn look_up(
    view: &View,
    name: &str,
    kind: RecordType,
    from: Option<IpAddr>,
) -> Result<NameAnswer, CliError> {
    let agent = control::status(&view.control_socket)?;
    let dns = agent.and_then(|agent| agent.dns);
    let zone = dns.as_ref().map_or("cluster.local", |dns| dns.zone.as_str());
    let is_short = name.ends_with(".svc") || name.ends_with(".pod");
    let full = if is_short { format!("{name}.{zone}.") } else { format!("{name}.") };
    let full = full.replace("..", ".");
    let question = NameQuestion {
        name: Name::from_ascii(&full).map_err(|_| CliError::NoName(name.to_owned()))?,
        kind,
        from: from.map(|from| from.to_canonical()),
    };
    let maps = PinnedMaps::open(&view.bpffs_root)?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
    Ok(show::name_answer(&maps, &question, now)?)
}

fn snapshot(view: &View) -> Result<Snapshot, CliError> {
    Ok(Snapshot::read(&PinnedMaps::open(&view.bpffs_root)?)?)
}

/// An error and its sources in one line.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |error| (*error).source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

fn print(document: &impl Document, view: &View) -> Result<(), CliError> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = !plain && std::io::stdout().is_terminal();
    let text = show::render(document, Output { format: view.output, colour })?;
    if text.is_empty() {
        eprintln!("nothing to show");
    }
    write(text.as_bytes())
}

/// Writes to standard output; that its reader has seen enough is no error.
fn write(text: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::Write(error)),
        _ => Ok(()),
    }
}

impl Selection {
    fn filter(&self) -> Filter {
        Filter { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// `rows`, unless a Service was named and there is none.
    fn found<R>(&self, rows: Vec<R>) -> Result<Vec<R>, CliError> {
        match (&self.name, &self.namespace) {
            (Some(name), Some(namespace)) if rows.is_empty() => {
                Err(CliError::NoSuchService(format!("{namespace}/{name}")))
            }
            (Some(name), None) if rows.is_empty() => Err(CliError::NoSuchService(name.clone())),
            _ => Ok(rows),
        }
    }
}

fn parse_service(text: &str) -> Result<Filter, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(Filter { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()) })
        }
        _ => Err("write it as NAMESPACE/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn destination_needs_address_and_port() {
        let parse = |text| Cli::try_parse_from(["shunt", "explain", text]);
        assert!(parse("10.96.0.10:53").is_ok() && parse("[fd00::a]:53").is_ok());
        assert!(parse("10.96.0.10").is_err() && parse("fd00::a:53").is_err());
    }

    #[test]
    fn one_namespace_and_all_exclude_each_other() {
        let both = Cli::try_parse_from(["shunt", "services", "-A", "-n", "default"]);
        assert!(both.is_err());
    }

    #[test]
    fn named_service_that_is_not_there_is_an_error() {
        let selection = |arguments: &[&str]| {
            let arguments = ["shunt", "services"].iter().chain(arguments);
            match Cli::try_parse_from(arguments).unwrap().command {
                Command::Query(Query::Services(selection)) => selection,
                other => panic!("{other:?}"),
            }
        };
        assert!(selection(&["web"]).found(Vec::<u8>::new()).is_err());
        assert!(selection(&["web"]).found(vec![1]).is_ok());
        assert!(selection(&[]).found(Vec::<u8>::new()).is_ok());
    }
}
