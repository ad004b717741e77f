//! Traffic, as tests ask for it: servers, requests, loads, and what comes of them.
//!
//! Only data; [`Machine`](crate::Machine) has it carried out.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A transport protocol, and how a client uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP; a client connects its socket.
    Udp,
    /// UDP over a socket that is not connected; for a server the same as `Udp`.
    UdpUnconnected,
}

/// A server to run. It answers each line (or datagram) with its name, the client's address as
/// it sees it, and the line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    /// The protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
    /// The address to listen on; all of both families if there is none.
    pub addr: Option<IpAddr>,
    /// The name that it answers with; that of the pod, node or client if there is none.
    pub name: Option<String>,
    /// When a TCP connection ends.
    pub closing: Closing,
}

/// Which side ends a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Closing {
    /// The client, after as many requests as it likes.
    Client,
    /// The server, after one reply; its side of the connection goes to TIME_WAIT.
    Server,
}

impl Serve {
    /// TCP on `port`, all addresses.
    pub fn tcp(port: u16) -> Self {
        let closing = Closing::Client;
        Self { transport: Transport::Tcp, port, addr: None, name: None, closing }
    }

    /// UDP on `port`, all addresses. On a node, which has several, say [`Serve::on`] which.
    pub fn udp(port: u16) -> Self {
        Self { transport: Transport::Udp, ..Self::tcp(port) }
    }

    /// Only on `addr`.
    #[must_use]
    pub fn on(self, addr: impl Into<IpAddr>) -> Self {
        Self { addr: Some(addr.into()), ..self }
    }

    /// With another name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Closing each connection after one reply.
    #[must_use]
    pub fn closing_after_one(self) -> Self {
        Self { closing: Closing::Server, ..self }
    }
}

/// What a server did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ServerReport {
    /// TCP connections accepted.
    pub accepted: u64,
    /// Requests answered.
    pub requests: u64,
    /// TCP connections that are still open, and go on being served.
    pub open: u64,
}

/// A request to a server, and the socket for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The protocol.
    pub transport: Transport,
    /// The server, `ADDRESS:PORT`. `[::ffff:10.96.0.1]:80` asks for IPv4 over an IPv6 socket.
    pub to: String,
    /// The address and port to ask from.
    pub from: Option<SocketAddr>,
    /// How many bytes to send at least; they come back.
    pub payload: usize,
    /// How long to wait for the connection, and for the reply.
    pub timeout: Duration,
}

impl Ask {
    /// A TCP connection to `to`.
    pub fn tcp(to: impl ToString) -> Self {
        let timeout = Duration::from_secs(5);
        Self { transport: Transport::Tcp, to: to.to_string(), from: None, payload: 0, timeout }
    }

    /// A UDP socket connected to `to`.
    pub fn udp(to: impl ToString) -> Self {
        Self { transport: Transport::Udp, ..Self::tcp(to) }
    }

    /// A UDP socket that is not connected, and a datagram to `to`.
    pub fn udp_unconnected(to: impl ToString) -> Self {
        Self { transport: Transport::UdpUnconnected, ..Self::tcp(to) }
    }

    /// From this address and port; the port 0 stands for any.
    #[must_use]
    pub fn from(self, from: SocketAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// With at least `bytes` to send and to get back.
    #[must_use]
    pub fn payload(self, bytes: usize) -> Self {
        Self { payload: bytes, ..self }
    }

    /// Waiting at most `timeout` for the connection and again for the reply.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// A DNS query to send.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NameExchange {
    /// The server.
    pub to: SocketAddr,
    /// Whether over TCP, or else UDP.
    pub tcp: bool,
    /// The port of a UDP socket that stays open for the next query from it; 0 for a new one.
    pub port: u16,
    /// The query's bytes.
    pub query: Vec<u8>,
    /// How long to wait for the reply.
    pub timeout: Duration,
}

/// A server's reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The server's name.
    pub name: String,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
    /// What getpeername(2) says; where the datagram came from for an unconnected UDP socket.
    pub peer: SocketAddr,
    /// What getsockname(2) says.
    pub local: SocketAddr,
    /// How long connect(2) took; zero if the socket was open before.
    pub connect: Duration,
    /// How long the reply took after that.
    pub reply: Duration,
}

/// Requests one after another, from several sockets at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// The request.
    pub ask: Ask,
    /// What becomes of the sockets.
    pub pattern: Pattern,
    /// How many requests are under way at most.
    pub concurrency: usize,
    /// How many requests a second to begin in all; as many as possible if there is none.
    pub per_second: Option<f64>,
    /// When to end; when told to if there is none.
    pub duration: Option<Duration>,
}

/// What a [`Load`] does with its sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Pattern {
    /// A new socket each time; TCP connections end with a reset, so that none is left over.
    New,
    /// A new socket each time, which the server closes first.
    NewUntilServerCloses,
    /// One socket for each of the concurrent requests, replaced when it fails.
    Keep,
}

impl Load {
    /// New sockets, one at a time, as fast as possible, until told to stop.
    pub fn new(ask: Ask) -> Self {
        Self { ask, pattern: Pattern::New, concurrency: 1, per_second: None, duration: None }
    }

    /// With another pattern.
    #[must_use]
    pub fn pattern(self, pattern: Pattern) -> Self {
        Self { pattern, ..self }
    }

    /// With up to `count` requests at once.
    #[must_use]
    pub fn concurrency(self, count: usize) -> Self {
        Self { concurrency: count, ..self }
    }

    /// With `rate` requests a second.
    #[must_use]
    pub fn per_second(self, rate: f64) -> Self {
        Self { per_second: Some(rate), ..self }
    }

    /// For `duration`.
    #[must_use]
    pub fn lasting(self, duration: Duration) -> Self {
        Self { duration: Some(duration), ..self }
    }
}

/// What came of a [`Load`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// How long it has run.
    pub elapsed: Duration,
    /// Requests that were answered, by the server's name.
    pub backends: BTreeMap<String, u64>,
    /// Requests that were not.
    pub failures: BTreeMap<FailureKind, Failures>,
    /// How long an answered request took, its connection included.
    pub latency: Latency,
}

impl LoadReport {
    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.backends.values().sum()
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().map(|failures| failures.count).sum()
    }

    /// Requests answered a second.
    pub fn per_second(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Failures of one kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// What the first said.
    pub first: Failure,
    /// How long after the beginning of the load the first came.
    pub at: Duration,
}

/// Percentiles of a duration, to about 2 %.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half took no longer.
    pub p50: Duration,
    /// 90 % took no longer.
    pub p90: Duration,
    /// 99 % took no longer.
    pub p99: Duration,
    /// 99.9 % took no longer.
    pub p999: Duration,
    /// None took longer.
    pub max: Duration,
}

/// What a program said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExecOutput {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// How something failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum FailureKind {
    /// ECONNREFUSED.
    Refused,
    /// ETIMEDOUT, or the time that was given is over.
    TimedOut,
    /// ECONNRESET or EPIPE.
    Reset,
    /// ECONNABORTED: the socket was destroyed.
    Aborted,
    /// The peer closed the connection before it had replied.
    Closed,
    /// EHOSTUNREACH or ENETUNREACH.
    Unreachable,
    /// EPERM or EACCES.
    NotPermitted,
    /// EADDRINUSE or EADDRNOTAVAIL.
    Address,
    /// The reply was not what the server had been sent.
    Garbled,
    /// Another error of the kernel.
    Other,
    /// The lab itself failed.
    Lab,
}

/// A failure, as the caller of a socket sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// How it failed.
    pub kind: FailureKind,
    /// What was attempted, and what the kernel said.
    pub message: String,
    /// How long it took to fail.
    pub elapsed: Duration,
}

impl Failure {
    /// Whether it was refused, and sooner than a first retransmission (1 s) could have come.
    pub fn refused_at_once(&self) -> bool {
        self.kind == FailureKind::Refused && self.elapsed < Duration::from_millis(500)
    }

    pub(crate) fn lab(message: impl fmt::Display) -> Self {
        Self { kind: FailureKind::Lab, message: message.to_string(), elapsed: Duration::ZERO }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?} after {:?})", self.message, self.kind, self.elapsed)
    }
}

impl std::error::Error for Failure {}
