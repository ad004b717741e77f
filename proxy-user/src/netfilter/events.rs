//! What others, and this process, change in nftables, as it happens.
//!
//! An event names the socket whose request it comes from, so that a process knows its own. A
//! transaction's events come together, and its generation last. What is lost is told of.

use super::batch::Table;
use super::socket::{Generation, NFTA_GEN_ID, NetlinkPort};
use super::wire::{Message, messages};
use super::{Family, NFTABLES, NetfilterError};
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket};
use rustix::net::sockopt;
use std::future::poll_fn;
use std::io;

const NETLINK_NETFILTER: isize = 12;
const NFNLGRP_NFTABLES: u32 = 7;
/// How much may wait to be read: the events of some 100,000 elements, in one transaction.
const RECEIVE_BUFFER: usize = 16 << 20;
const NFTA_GEN_PROC_NAME: u16 = 3;
const DATAGRAM: usize = 1 << 16;

/// The kind of an object of nftables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are nft's")]
pub enum Object {
    Table,
    Chain,
    Rule,
    Set,
    Element,
}

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An object was made, changed or deleted.
    Changed(Change),
    /// A transaction is done.
    Done(Transaction),
    /// Events were lost, since more came than could wait: anything may have changed.
    Lost,
}

/// A change of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// What was changed.
    pub object: Object,
    /// Whether it is gone. A table's deletion comes with those of all that was in it, but for
    /// elements.
    pub deleted: bool,
    /// The table that it is, or is in.
    pub table: Table,
    /// The socket whose request it was.
    pub by: NetlinkPort,
}

/// A transaction that is done; its changes came before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// The rule set that it made.
    pub generation: Generation,
    /// The name of the thread that asked for it, such as `nft`.
    pub process: String,
    /// The socket that it was asked for by.
    pub by: NetlinkPort,
}

/// Listens to the events of a network namespace.
pub struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    /// Listens in the network namespace of the calling thread. Must be called in a tokio runtime.
    pub fn open() -> Result<Self, NetfilterError> {
        let open = || -> io::Result<_> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            let netlink = socket.socket_mut();
            sockopt::set_socket_recv_buffer_size_force(&*netlink, RECEIVE_BUFFER)?;
            netlink.bind(&SocketAddr::new(0, 0))?;
            netlink.add_membership(NFNLGRP_NFTABLES)?;
            Ok(socket)
        };
        let failed = |e| NetfilterError::Kernel("listen to the events of nftables".to_owned(), e);
        Ok(Self { socket: open().map_err(failed)?, buffer: vec![0; DATAGRAM] })
    }

    /// Waits for events, and returns those of one datagram; objects that this module does not know,
    /// such as tables of other families, are left out, so there may be none. Nothing is lost if the
    /// future is dropped.
    pub async fn next(&mut self) -> Result<Vec<Event>, NetfilterError> {
        let Self { socket, buffer } = self;
        let received = poll_fn(|ctx| {
            let mut rest = &mut buffer[..];
            let polled = socket.poll_recv(ctx, &mut rest);
            polled.map_ok(|()| DATAGRAM - rest.len())
        });
        let len = match received.await {
            Ok(len) => len,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(vec![Event::Lost]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            Err(e) => {
                let read = "read the events of nftables".to_owned();
                return Err(NetfilterError::Kernel(read, e));
            }
        };
        Ok(messages(&buffer[..len]).filter_map(event).collect())
    }
}

/// The event of a message: `NFT_MSG_NEW…`, `NFT_MSG_DEL…`.
fn event(message: Message<'_>) -> Option<Event> {
    let attributes = message.attributes();
    let by = NetlinkPort(message.port);
    let (object, deleted) = match message.kind.checked_sub(NFTABLES)? {
        0 => (Object::Table, false),
        2 => (Object::Table, true),
        3 => (Object::Chain, false),
        5 => (Object::Chain, true),
        6 => (Object::Rule, false),
        8 => (Object::Rule, true),
        9 => (Object::Set, false),
        11 => (Object::Set, true),
        12 => (Object::Element, false),
        14 => (Object::Element, true),
        15 => {
            let generation = Generation(attributes.word(NFTA_GEN_ID)?);
            let process = attributes.text(NFTA_GEN_PROC_NAME).unwrap_or_default();
            return Some(Event::Done(Transaction { generation, process, by }));
        }
        _ => return None,
    };
    // The name of the table is the first attribute of all of them.
    let table = Table { family: Family::from_number(message.family())?, name: attributes.text(1)? };
    Some(Event::Changed(Change { object, deleted, table, by }))
}
