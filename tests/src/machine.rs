//! A machine of the lab: a network namespace, a cgroup, and a worker that acts in them.
//!
//! Pods, nodes and clients are machines. What a test wants done goes to the worker as a command;
//! what the kernel answered comes back as a value or a [`Failure`].

mod remote;

use crate::cgroup;
use crate::netns::{Netns, Via};
use crate::network::ETH0;
use crate::protocol::{Command, Opened};
use crate::sprint::{NameSprint, Sprint, SprintReport};
use crate::traffic::{
    Ask, ExecOutput, Failure, Load, LoadReport, NameExchange, Reply, Serve, ServerReport, Transport,
};
use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use remote::{Pending, Remote};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A pod, a node or a client; clones are the same machine.
#[derive(Clone)]
pub struct Machine(Arc<Inner>);

struct Inner {
    remote: Remote,
    addrs: Addrs,
    netns: Netns,
    cgroup: PathBuf,
}

/// The addresses of a machine, one of each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addrs {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Machine {
    /// Starts the worker of a machine whose network is complete.
    pub(crate) async fn start(netns: Netns, addrs: Addrs, cgroup: PathBuf) -> Result<Self> {
        let remote = Remote::start(&netns, &cgroup)?;
        let machine = Self(Arc::new(Inner { remote, addrs, netns, cgroup }));
        machine.0.remote.call::<()>(Command::Hello).await.context("start the worker")?;
        Ok(machine)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.remote.name()
    }

    /// Its addresses.
    pub fn addrs(&self) -> Addrs {
        self.0.addrs
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.0.addrs.v4
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.0.addrs.v6
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// The cgroup of its processes.
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// The process id of its worker.
    pub fn pid(&self) -> u32 {
        self.0.remote.pid()
    }

    /// Starts a server.
    pub async fn serve(&self, serve: Serve) -> Result<Server, Failure> {
        let (id, pending) = self.0.remote.begin(Command::Serve(serve)).await?;
        pending.result::<()>().await?;
        Ok(Server { machine: self.clone(), id })
    }

    /// Opens a TCP connection to `to`, asks, and closes it.
    pub async fn tcp(&self, to: impl ToString) -> Result<Reply, Failure> {
        self.ask(Ask::tcp(to)).await
    }

    /// Asks `to` over a connected UDP socket of its own.
    pub async fn udp(&self, to: impl ToString) -> Result<Reply, Failure> {
        self.ask(Ask::udp(to)).await
    }

    /// Makes a socket, asks, and closes it.
    pub async fn ask(&self, ask: Ask) -> Result<Reply, Failure> {
        self.0.remote.call(Command::Ask(ask)).await
    }

    /// Makes a socket that stays open; it asks nothing yet.
    pub async fn open(&self, ask: Ask) -> Result<Socket, Failure> {
        let (transport, payload, timeout) = (ask.transport, ask.payload, ask.timeout);
        let (id, pending) = self.0.remote.begin(Command::Open(ask)).await?;
        let opened = pending.result().await?;
        Ok(Socket { machine: self.clone(), id, opened, transport, payload, timeout })
    }

    /// Runs a load to its end; it must have a duration.
    pub async fn load(&self, load: Load) -> Result<LoadReport, Failure> {
        if load.duration.is_none() {
            return Err(Failure::lab("this load never ends: give it a duration, or start_load"));
        }
        self.0.remote.call(Command::Load(load)).await
    }

    /// Starts a load and lets it run.
    pub async fn start_load(&self, load: Load) -> Result<RunningLoad, Failure> {
        let (id, pending) = self.0.remote.begin(Command::Load(load)).await?;
        Ok(RunningLoad { machine: self.clone(), id, pending })
    }

    /// Stands in for a DNS server at `port`, on all addresses, over UDP and TCP. Every name has
    /// the addresses 192.0.2.53 and 2001:db8::53.
    pub async fn serve_names(&self, port: u16) -> Result<NameServer, Failure> {
        let (id, pending) = self.0.remote.begin(Command::ServeNames(port)).await?;
        pending.result::<()>().await?;
        Ok(NameServer { machine: self.clone(), id })
    }

    /// Sends a DNS query, and gives the reply's bytes.
    pub async fn exchange_names(&self, exchange: NameExchange) -> Result<Vec<u8>, Failure> {
        self.0.remote.call(Command::ExchangeNames(exchange)).await
    }

    /// Starts the servers of sprints, which answer with `id`, below 1024; they end with the
    /// machine.
    pub async fn serve_sprints(&self, id: u16) -> Result<(), Failure> {
        self.0.remote.call(Command::SprintServers(id)).await
    }

    /// Runs a sprint to its end.
    pub async fn sprint(&self, sprint: Sprint) -> Result<SprintReport, Failure> {
        self.0.remote.call(Command::Sprint(sprint)).await
    }

    /// Runs a sprint of DNS queries to its end.
    pub async fn sprint_names(&self, sprint: NameSprint) -> Result<SprintReport, Failure> {
        self.0.remote.call(Command::NameSprint(sprint)).await
    }

    /// Runs a program in the machine's namespace and cgroup, to its end.
    pub async fn exec(
        &self,
        program: impl AsRef<Path>,
        args: &[&str],
    ) -> Result<ExecOutput, Failure> {
        let program = program.as_ref().display().to_string();
        let args = args.iter().map(ToString::to_string).collect();
        self.0.remote.call(Command::Exec { program, args }).await
    }

    /// Routes `to` by the router `via`; a route to the same network is replaced.
    pub async fn route(&self, to: &str, via: impl Into<IpAddr>) -> Result<()> {
        let to = to.parse().with_context(|| format!("`{to}` is no network"))?;
        self.0.netns.add_route(to, Via::Gateway(via.into())).await
    }

    /// Routes `to` by the router `via`, with packets of at most `mtu` bytes.
    pub async fn route_narrow(&self, to: &str, via: impl Into<IpAddr>, mtu: u32) -> Result<()> {
        let to = to.parse().with_context(|| format!("`{to}` is no network"))?;
        self.0.netns.add_route(to, Via::Narrow(via.into(), ETH0, mtu)).await
    }

    /// Makes it a router: it forwards, and tells nobody of ways around it.
    pub fn forward(&self) -> Result<()> {
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/eth0/send_redirects", "0"),
        ] {
            self.0.netns.sysctl(key, value)?;
        }
        Ok(())
    }

    /// Gives eth0 another address, such as `172.18.0.77/16`.
    pub async fn add_addr(&self, addr: &str) -> Result<()> {
        self.0.netns.add_addr(ETH0, network(addr)?).await
    }

    /// Takes an address away from eth0.
    pub async fn delete_addr(&self, addr: &str) -> Result<()> {
        self.0.netns.delete_addr(ETH0, network(addr)?).await
    }

    /// Kills every process of the machine at once; what it is asked from then on fails.
    pub fn kill(&self) -> Result<()> {
        cgroup::kill(&self.0.cgroup)
    }
}

fn network(addr: &str) -> Result<IpNetwork> {
    addr.parse().with_context(|| format!("`{addr}` is not ADDRESS/PREFIX"))
}

/// A server that listens until it is stopped, or its machine ends.
pub struct Server {
    machine: Machine,
    id: u64,
}

impl Server {
    /// Closes the listening sockets. Open connections go on being served.
    pub async fn stop(self) -> Result<ServerReport, Failure> {
        self.machine.0.remote.call(Command::StopServing(self.id)).await
    }
}

/// A stand-in for a DNS server, which ends with its machine.
pub struct NameServer {
    machine: Machine,
    id: u64,
}

impl NameServer {
    /// The names and the numbers of the types that it was asked for, since the last call.
    pub async fn take_asked(&self) -> Result<Vec<String>, Failure> {
        self.machine.0.remote.call(Command::TakeAsked(self.id)).await
    }
}

/// A socket that is open until it is closed, or its machine ends.
pub struct Socket {
    machine: Machine,
    id: u64,
    opened: Opened,
    transport: Transport,
    payload: usize,
    timeout: Duration,
}

impl Socket {
    /// What getsockname(2) said when it was opened.
    pub fn local(&self) -> SocketAddr {
        self.opened.local
    }

    /// What getpeername(2) said when it was opened; `None` if it is not connected.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.opened.peer
    }

    /// How long connect(2) took.
    pub fn connect_time(&self) -> Duration {
        self.opened.connect
    }

    /// Asks whom it was opened for.
    pub async fn ask(&self) -> Result<Reply, Failure> {
        self.again(None).await
    }

    /// Asks someone else; only an unconnected UDP socket can.
    pub async fn ask_of(&self, to: impl ToString) -> Result<Reply, Failure> {
        if self.transport != Transport::UdpUnconnected {
            return Err(Failure::lab("a connected socket asks whom it is connected to"));
        }
        self.again(Some(to.to_string())).await
    }

    async fn again(&self, to: Option<String>) -> Result<Reply, Failure> {
        let Self { id: socket, payload, timeout, .. } = *self;
        let command = Command::AskAgain { socket, to, payload, timeout };
        self.machine.0.remote.call(command).await
    }

    /// Closes it.
    pub async fn close(self) -> Result<(), Failure> {
        self.machine.0.remote.call(Command::Close(self.id)).await
    }
}

/// A load that runs.
pub struct RunningLoad {
    machine: Machine,
    id: u64,
    pending: Pending,
}

impl RunningLoad {
    /// What has come of it so far.
    pub async fn report(&self) -> Result<LoadReport, Failure> {
        self.machine.0.remote.call(Command::PeekLoad(self.id)).await
    }

    /// Waits until `reached` says so of a report, or the load's machine fails.
    pub async fn until(
        &self,
        reached: impl Fn(&LoadReport) -> bool,
    ) -> Result<LoadReport, Failure> {
        loop {
            let report = self.report().await?;
            if reached(&report) {
                return Ok(report);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends it after the requests that are under way.
    pub async fn stop(self) -> Result<LoadReport, Failure> {
        self.machine.0.remote.call::<()>(Command::StopLoad(self.id)).await?;
        self.pending.result().await
    }

    /// Waits for its end.
    pub async fn finish(self) -> Result<LoadReport, Failure> {
        self.pending.result().await
    }
}
