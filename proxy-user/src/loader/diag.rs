//! The connected UDP sockets of this network namespace: listed, and closed.
//!
//! Speaks `NETLINK_SOCK_DIAG` (sock_diag(7), the kernel's `linux/inet_diag.h`). Closing a socket
//! needs `CAP_NET_ADMIN`.

use super::netlink::{Request, ask, half, word};
use proxy_ebpf::flow::End;
use proxy_ebpf::{Addr, Port};
use std::io;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// What the kernel calls the state of a connected UDP socket.
const TCP_ESTABLISHED: u32 = 1;

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
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let body = request(family, &[0; ID]);
        let list = Request { protocol: NETLINK_SOCK_DIAG, kind: SOCK_DIAG_BY_FAMILY, dump: true };
        ask(list, &body, |message| found.extend(connected(message)))?;
    }
    Ok(found)
}

/// Closes `socket`: calls that wait on it, and the next one, fail with ECONNABORTED. One that is
/// gone is no error.
pub fn destroy(socket: &ConnectedSocket) -> io::Result<()> {
    let body = request(socket.family, &socket.id);
    let close = Request { protocol: NETLINK_SOCK_DIAG, kind: SOCK_DESTROY, dump: false };
    match ask(close, &body, |_| ()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let states: u32 = 1 << TCP_ESTABLISHED;
    let mut body = vec![family, libc::IPPROTO_UDP as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// The socket that a `struct inet_diag_msg` tells of.
fn connected(message: &[u8]) -> Option<ConnectedSocket> {
    let family = *message.first()?;
    let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
    let [w0, w1, w2, w3] = [20, 24, 28, 32].map(|at| word(&id, at).unwrap_or_default());
    let addr = match i32::from(family) {
        libc::AF_INET => Addr::from_v4_word(w0),
        _ => Addr::from_words([w0, w1, w2, w3]),
    };
    let peer = End { addr, port: Port::from_network(half(&id, 2)?) };
    let cookie = u64::from(word(&id, 40)?) | u64::from(word(&id, 44)?) << 32;
    Some(ConnectedSocket { peer, cookie, family, id })
}
