//! Sockets of this network namespace: those that listen, listed; connected UDP ones, also closed.
//!
//! Speaks `NETLINK_SOCK_DIAG` (sock_diag(7), the kernel's `linux/inet_diag.h`). Closing a socket
//! needs `CAP_NET_ADMIN`.

use super::netlink::{Request, ask, half, word};
use proxy_ebpf::flow::End;
use proxy_ebpf::{Addr, Port, Proto};
use std::io;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// What the kernel calls the state of a connected UDP socket, of one that is not connected, and
/// of a TCP socket that listens.
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// The length of `struct inet_diag_sockid`.
const ID: usize = 48;

/// A connected UDP socket.
#[derive(Clone, Debug)]
pub struct ConnectedSocket {
    /// Whom it is connected to.
    pub peer: End,
    /// Its cookie, as programs see it.
    pub cookie: u64,
    family: u8,
    /// The kernel's name of it, `struct inet_diag_sockid`.
    id: [u8; ID],
}

/// All connected UDP sockets.
pub fn connected_udp() -> io::Result<Vec<ConnectedSocket>> {
    let mut found = Vec::new();
    list(Proto::UDP, TCP_ESTABLISHED, |message| found.extend(connected(message)))?;
    Ok(found)
}

/// Where TCP sockets listen, and where UDP sockets that are not connected are bound.
pub fn listening() -> io::Result<Vec<(Proto, End)>> {
    let mut found = Vec::new();
    for (proto, state) in [(Proto::TCP, TCP_LISTEN), (Proto::UDP, TCP_CLOSE)] {
        list(proto, state, |message| {
            let end = message.get(4..4 + ID).and_then(|id| end(*message.first()?, id, 4, 0));
            found.extend(end.map(|end| (proto, end)));
        })?;
    }
    Ok(found)
}

/// Hands each socket of `proto` in `state`, a `struct inet_diag_msg`, to `take`.
fn list(proto: Proto, state: u32, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let list = Request { protocol: NETLINK_SOCK_DIAG, kind: SOCK_DIAG_BY_FAMILY, dump: true };
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        ask(list, &request(family, proto, state, &[0; ID]), &mut take)?;
    }
    Ok(())
}

/// Closes `socket`: calls that wait on it, and the next one, fail with ECONNABORTED. One that is
/// gone is no error.
pub fn destroy(socket: &ConnectedSocket) -> io::Result<()> {
    let body = request(socket.family, Proto::UDP, TCP_ESTABLISHED, &socket.id);
    let close = Request { protocol: NETLINK_SOCK_DIAG, kind: SOCK_DESTROY, dump: false };
    match ask(close, &body, |_| ()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, proto: Proto, state: u32, id: &[u8; ID]) -> Vec<u8> {
    let states: u32 = 1 << state;
    let mut body = vec![family, proto.0, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// The socket that a `struct inet_diag_msg` tells of.
fn connected(message: &[u8]) -> Option<ConnectedSocket> {
    let family = *message.first()?;
    let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
    let peer = end(family, &id, 20, 2)?;
    let cookie = u64::from(word(&id, 40)?) | u64::from(word(&id, 44)?) << 32;
    Some(ConnectedSocket { peer, cookie, family, id })
}

/// The address at `addr` and the port at `port` of a `struct inet_diag_sockid`.
fn end(family: u8, id: &[u8], addr: usize, port: usize) -> Option<End> {
    let [w0, w1, w2, w3] = [0, 4, 8, 12].map(|at| word(id, addr + at).unwrap_or_default());
    let addr = match i32::from(family) {
        libc::AF_INET => Addr::from_v4_word(w0),
        _ => Addr::from_words([w0, w1, w2, w3]),
    };
    Some(End { addr, port: Port::from_network(half(id, port)?) })
}
