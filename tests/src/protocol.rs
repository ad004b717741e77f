//! What the lab and its workers say to each other: one JSON document a line, over a socket.
//!
//! Requests carry numbers and are answered in any order. Only data; both sides act elsewhere.

use crate::sprint::{NameSprint, Sprint};
use crate::traffic::{Ask, Failure, Load, NameExchange, Serve};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// A command to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) command: Command,
}

/// The answer to the request of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) id: u64,
    pub(crate) result: Result<serde_json::Value, Failure>,
}

/// What a worker can be told to do. `u64`s are the numbers of the requests that began the thing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Answered when the worker is in its namespace and cgroup: `()`.
    Hello,
    /// Listen: `()`.
    Serve(Serve),
    /// Stop listening: [`crate::ServerReport`].
    StopServing(u64),
    /// Make a socket, ask, close: [`crate::Reply`].
    Ask(Ask),
    /// Make a socket and keep it: [`Opened`].
    Open(Ask),
    /// Ask over a socket that is open: [`crate::Reply`].
    AskAgain { socket: u64, to: Option<String>, payload: usize, timeout: Duration },
    /// Close a socket: `()`.
    Close(u64),
    /// Ask again and again: [`crate::LoadReport`], at the end.
    Load(Load),
    /// The state of a load: [`crate::LoadReport`].
    PeekLoad(u64),
    /// End a load soon: `()`.
    StopLoad(u64),
    /// Start the servers of sprints, which answer with this id: `()`.
    SprintServers(u16),
    /// Run a sprint to its end: [`crate::sprint::SprintReport`].
    Sprint(Sprint),
    /// Run a sprint of DNS queries to its end: [`crate::sprint::SprintReport`].
    NameSprint(NameSprint),
    /// Stand in for a DNS server at this port: `()`.
    ServeNames(u16),
    /// What that server was asked since the last time: a list of texts.
    TakeAsked(u64),
    /// Send a DNS query: the reply's bytes.
    ExchangeNames(NameExchange),
    /// Run a program to its end: [`crate::ExecOutput`].
    Exec { program: String, args: Vec<String> },
}

/// A socket that stays open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) local: SocketAddr,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) connect: Duration,
}
