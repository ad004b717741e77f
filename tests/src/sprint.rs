//! Sprints: the loads of the benchmark, and the servers for them. Only data; the worker runs them
//! in tight loops over plain sockets (see [`crate::worker`]), so that they cost little themselves.
//!
//! A server's reply begins with its id, two bytes, so that every reply names its backend. Clients
//! run on the first CPU and servers on the others, in every measurement alike.

use crate::traffic::{Failure, Latency};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How many bytes a request and its reply have.
pub const MESSAGE: usize = 64;

/// What a server does with those who come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Service {
    /// TCP: says its id and closes the connection.
    Greet,
    /// TCP: answers messages of [`MESSAGE`] bytes until the client closes.
    Echo,
    /// TCP: says its id and reads what comes.
    Drain,
    /// UDP: answers each datagram.
    Datagram,
    /// UDP: counts datagrams, and answers one that begins with `?` with the count.
    Count,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Greet, Self::Echo, Self::Drain, Self::Datagram, Self::Count];

    /// The port at the pods.
    pub const fn port(self) -> u16 {
        8000 + self as u16
    }

    /// Kubernetes' word for the protocol.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Greet | Self::Echo | Self::Drain => "TCP",
            Self::Datagram | Self::Count => "UDP",
        }
    }
}

/// What a client does, as fast as it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Deed {
    /// A TCP connection, the server's id, a reset: no side keeps it in TIME_WAIT.
    Connect,
    /// A TCP connection, the server's id, the server's end of it: the server keeps TIME_WAIT.
    ConnectInOrder,
    /// A connect(2) that ends as soon as the programs at it have run.
    Knock,
    /// A message and its reply, over a TCP connection that stays open.
    Request,
    /// As much as goes through one TCP connection. Counts bytes.
    Stream,
    /// A UDP socket, a datagram and its reply.
    NewDatagram,
    /// A datagram and its reply, over a socket that stays.
    Datagram,
    /// Datagrams one way, over one socket. Counts those that came.
    Flood,
}

impl Deed {
    /// Whom it needs.
    pub const fn service(self) -> Service {
        match self {
            Self::Connect | Self::ConnectInOrder | Self::Knock => Service::Greet,
            Self::Request => Service::Echo,
            Self::Stream => Service::Drain,
            Self::NewDatagram | Self::Datagram => Service::Datagram,
            Self::Flood => Service::Count,
        }
    }

    /// Whether each count takes a time of its own.
    pub const fn has_latency(self) -> bool {
        !matches!(self, Self::Knock | Self::Stream | Self::Flood)
    }

    /// Whether each count is a choice of a backend, so that their spread can be tested.
    pub const fn chooses(self) -> bool {
        matches!(self, Self::Connect | Self::ConnectInOrder | Self::NewDatagram)
    }
}

/// A load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sprint {
    /// What to do.
    pub deed: Deed,
    /// Whom to do it to; of several, any at random each time.
    pub targets: Vec<SocketAddr>,
    /// How many at once. Only TCP connections and requests can be more than one.
    pub concurrency: usize,
    /// For how long.
    pub duration: Duration,
}

/// A load of DNS queries over one UDP socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NameSprint {
    /// The server.
    pub to: SocketAddr,
    /// What is asked, again and again in this order.
    pub questions: Vec<Question>,
    /// How many queries are under way. Of one at a time, each pass through the questions has a
    /// latency.
    pub at_once: usize,
    /// For how long.
    pub duration: Duration,
}

/// A question, and what the reply must say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// The query's bytes: a header, a question, and maybe more.
    pub query: Vec<u8>,
    /// The code of the reply: 0 for what there is, 3 for what there is not.
    pub code: u8,
    /// All addresses in it, in any order.
    pub addrs: Vec<IpAddr>,
}

/// What came of a [`Sprint`], or of a [`NameSprint`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SprintReport {
    /// How long it took.
    pub elapsed: Duration,
    /// What was counted: connections, replies, bytes, datagrams or queries.
    pub count: u64,
    /// Replies by the id of the server.
    pub backends: BTreeMap<u16, u64>,
    /// How often it failed.
    pub failed: u64,
    /// The first failure.
    pub failure: Option<Failure>,
    /// How long it took: connect(2) alone with one TCP connection at a time; from the beginning
    /// to the first byte of the reply otherwise.
    pub latency: Latency,
}

impl SprintReport {
    /// What was counted, a second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}
