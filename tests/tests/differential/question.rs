//! Who asks what, and what can come of it.

use crate::population::{Frontend, Service};
use lab::Transport;
use std::fmt;
use std::net::IpAddr;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Client {
    /// A pod without a server, on the node of that number.
    Pod(u8),
    /// The first backend, which may be its own client.
    Backend,
    /// The first node.
    Node,
    /// A client outside, which reaches services by the first node.
    Outsider,
}

impl Client {
    pub(crate) const ALL: [Self; 5] =
        [Self::Pod(1), Self::Pod(2), Self::Backend, Self::Node, Self::Outsider];

    /// The node that it is on, or that its packets come to first.
    pub(crate) const fn node(self) -> u8 {
        match self {
            Self::Pod(node) => node,
            _ => 1,
        }
    }

    pub(crate) const fn is_pod(self) -> bool {
        matches!(self, Self::Pod(_) | Self::Backend)
    }
}

/// A client that asks a frontend.
pub(crate) struct Question<'a> {
    pub(crate) client: Client,
    pub(crate) service: &'a Service,
    pub(crate) frontend: Frontend,
    pub(crate) transport: Transport,
    pub(crate) v4: bool,
}

impl Question<'_> {
    /// The node that translates.
    pub(crate) const fn asked_node(&self) -> u8 {
        match self.frontend {
            Frontend::NodePort(node) => node,
            _ => self.client.node(),
        }
    }
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, service, frontend, transport, v4 } = self;
        let family = if *v4 { "IPv4" } else { "IPv6" };
        let number = service.number;
        write!(f, "service {number}: {client:?} → {frontend:?}, {transport:?}, {family}")
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Answer {
    /// Who answered, and the client's address as it saw it.
    From(String, IpAddr),
    /// Nobody, and the client was told at once.
    Refusal,
    /// Nobody, and the client was not told.
    Silence,
    /// The sender was not let send: how netfilter drops and rejects what its own node sends.
    Forbidden,
    /// Something else, which nobody should do.
    Failure(String),
}

/// Every client asks every frontend, over both protocols and families.
pub(crate) fn questions(services: &[Service]) -> Vec<Question<'_>> {
    let mut questions = Vec::new();
    for service in services {
        for frontend in service.frontends() {
            for client in Client::ALL {
                for transport in [Transport::Tcp, Transport::Udp] {
                    for v4 in [true, false] {
                        questions.push(Question { client, service, frontend, transport, v4 });
                    }
                }
            }
        }
    }
    questions
}
