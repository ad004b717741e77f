//! A socket to the kernel's netfilter: requests, lists, and batches that are done wholly or not at
//! all.
//!
//! The socket belongs to the network namespace of the thread that opens it, wherever it is used
//! afterwards. One request at a time: the kernel answers while the request is being sent.

use super::batch::Batch;
use super::wire::{
    Attributes, HEADER, Head, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, Writer, messages,
};
use super::{NFTABLES, NetfilterError};
use netlink_sys::{Socket as Netlink, SocketAddr};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use std::io;

const NETLINK_NETFILTER: isize = 12;
const NFT_MSG_GETGEN: u16 = NFTABLES | 16;
pub(super) const NFTA_GEN_ID: u16 = 1;
/// Where the attributes of an extended acknowledgement begin if the request is not repeated in it:
/// behind the error and the request's header.
const EXTENDED: usize = 4 + HEADER;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// How much the kernel may have waiting for the agent: the errors of a large batch, or a piece of
/// a list.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The kernel fills at most 32 KiB at a time with a list, and only if so much is asked for.
const DATAGRAM: usize = 1 << 16;
/// How often a list that changed while it was read is read again.
pub(super) const ATTEMPTS: usize = 8;
/// Requests are numbered from here, so that their answers are not taken for a batch's.
const FIRST_REQUEST: u32 = 1 << 31;

/// The number of a netlink socket in its network namespace (`nlmsg_pid`): events repeat it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetlinkPort(pub u32);

/// The number of the rule set in force: every transaction of anybody makes the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generation(pub u32);

/// A socket of the protocol `NETLINK_NETFILTER`. Almost everything needs `CAP_NET_ADMIN`.
pub struct Socket {
    socket: Netlink,
    port: NetlinkPort,
    sequence: u32,
    buffer: Vec<u8>,
    /// The length of the longest batch that the socket takes.
    send_buffer: usize,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Subsystem and message.
    pub(super) kind: u16,
    /// `NFPROTO_…`.
    pub(super) family: u8,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetfilterError> {
        let failed = |e| NetfilterError::Kernel("open a netlink socket to netfilter".to_owned(), e);
        let mut socket = Netlink::new(NETLINK_NETFILTER).map_err(failed)?;
        let own = socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // An error would else repeat the request, which may have 64 KiB of elements.
        socket.set_cap_ack(true).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
            .map_err(|e| failed(e.into()))?;
        let port = NetlinkPort(own.port_number());
        let buffer = vec![0; DATAGRAM];
        Ok(Self { socket, port, sequence: FIRST_REQUEST, buffer, send_buffer: 0 })
    }

    /// The number by which events name the transactions of this socket.
    pub fn port(&self) -> NetlinkPort {
        self.port
    }

    /// The number of the rule set in force. While it is what it was after the agent's last
    /// transaction, no table of this namespace has changed.
    pub fn generation(&mut self) -> Result<Generation, NetfilterError> {
        let mut found = None;
        let get = Request { kind: NFT_MSG_GETGEN, family: 0 };
        self.ask(get, |_| (), |message| found = message.attributes().word(NFTA_GEN_ID))
            .and_then(|()| found.ok_or_else(|| io::ErrorKind::InvalidData.into()))
            .map(Generation)
            .map_err(|e| NetfilterError::Kernel("read the rule set's generation".to_owned(), e))
    }

    /// Has the kernel do what is in `batch`, all or nothing.
    ///
    /// On an error nothing has changed, and it names the first object that the kernel refused.
    pub fn commit(&mut self, mut batch: Batch) -> Result<(), NetfilterError> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes = batch.finish();
        let failed = |e: rustix::io::Errno| {
            NetfilterError::Kernel("send a transaction to nftables".to_owned(), e.into())
        };
        if bytes.len() > self.send_buffer {
            sockopt::set_socket_send_buffer_size_force(&self.socket, bytes.len())
                .map_err(failed)?;
            self.send_buffer = bytes.len();
        }
        let _sent = send(&self.socket, bytes, SendFlags::empty()).map_err(failed)?;
        // The kernel has worked the batch off before it returns: what it has to say of it is here.
        let mut first: Option<(u32, io::Error, Option<String>)> = None;
        let mut more = 0;
        loop {
            let len = match recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => {
                    let read = "read what nftables says of a transaction".to_owned();
                    return Err(NetfilterError::Kernel(read, e.into()));
                }
            };
            for message in messages(&self.buffer[..len]) {
                let errno = message.errno();
                if message.kind != NLMSG_ERROR || errno == 0 || message.sequence >= FIRST_REQUEST {
                    continue;
                }
                if first.is_some() {
                    more += 1;
                }
                first.get_or_insert_with(|| {
                    (message.sequence, io::Error::from_raw_os_error(errno), reason(&message))
                });
            }
        }
        first.map_or(Ok(()), |(sequence, source, reason)| {
            let object = batch.label(sequence).to_owned();
            Err(NetfilterError::Refused { object, reason, more, source })
        })
    }

    /// Sends a request and hands the messages of the answer to `take`.
    pub(super) fn ask(
        &mut self,
        request: Request,
        body: impl FnOnce(&mut Writer),
        take: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let sequence = self.send(request, NLM_F_ACK, body)?;
        self.receive(sequence, take).map(|_| ())
    }

    /// Hands each message of a list to `take`, once. Returns whether it is the list of one moment:
    /// it is not if somebody has changed the rule set while it was read.
    pub(super) fn list(
        &mut self,
        request: Request,
        body: impl FnOnce(&mut Writer),
        take: impl FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        let sequence = self.send(request, NLM_F_DUMP, body)?;
        self.receive(sequence, take)
    }

    /// Collects a list with `take`, from the start again as long as it changes meanwhile.
    pub(super) fn collect<T: Default>(
        &mut self,
        request: Request,
        body: impl Fn(&mut Writer),
        take: impl Fn(&mut T, &Message<'_>),
    ) -> io::Result<T> {
        for _ in 0..ATTEMPTS {
            let mut found = T::default();
            match self.list(request, &body, |message| take(&mut found, message)) {
                Ok(true) => return Ok(found),
                Ok(false) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other("it changes faster than it can be read"))
    }

    fn send(
        &mut self,
        request: Request,
        flags: u16,
        body: impl FnOnce(&mut Writer),
    ) -> io::Result<u32> {
        self.sequence = self.sequence.checked_add(1).unwrap_or(FIRST_REQUEST);
        let mut writer = Writer::default();
        let head = Head {
            kind: request.kind,
            flags: NLM_F_REQUEST | flags,
            sequence: self.sequence,
            family: request.family,
            resource: 0,
        };
        writer.message(head, body);
        let _sent = send(&self.socket, writer.as_slice(), SendFlags::empty())?;
        Ok(self.sequence)
    }

    /// Reads up to the end of the answer to the request `sequence`; answers to an earlier request,
    /// which nobody read to its end, are passed over.
    fn receive(&mut self, sequence: u32, mut take: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            let len = match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            for message in messages(&self.buffer[..len]) {
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match (message.kind, message.errno()) {
                    (NLMSG_ERROR | NLMSG_DONE, 0) => return Ok(whole),
                    (NLMSG_ERROR | NLMSG_DONE, errno) => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    _ => take(&message),
                }
            }
        }
    }
}

/// What the kernel says of an error beside its number.
fn reason(error: &Message<'_>) -> Option<String> {
    const BOTH: u16 = NLM_F_CAPPED | NLM_F_ACK_TLVS;
    let attributes = error.body.get(EXTENDED..).filter(|_| error.flags & BOTH == BOTH)?;
    Attributes(attributes).text(NLMSGERR_ATTR_MSG)
}
