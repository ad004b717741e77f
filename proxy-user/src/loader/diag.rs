//! The connected UDP sockets of this network namespace: listed, and closed.
//!
//! Speaks `NETLINK_SOCK_DIAG` (sock_diag(7), the kernel's `linux/inet_diag.h`). Closing a socket
//! needs `CAP_NET_ADMIN`.

use netlink_sys::{Socket, SocketAddr};
use proxy_ebpf::flow::End;
use proxy_ebpf::{Addr, Port};
use std::io;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// What the kernel calls the state of a connected UDP socket.
const TCP_ESTABLISHED: u32 = 1;

/// Lengths of `struct nlmsghdr` and `struct inet_diag_sockid`.
const HEADER: usize = 16;
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
    let mut socket = open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let body = request(family, &[0; ID]);
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        exchange(&mut socket, SOCK_DIAG_BY_FAMILY, flags, &body, |message| {
            found.extend(connected(message));
        })?;
    }
    Ok(found)
}

/// Closes `socket`: calls that wait on it, and the next one, fail with ECONNABORTED. One that is
/// gone is no error.
pub fn destroy(socket: &ConnectedSocket) -> io::Result<()> {
    let body = request(socket.family, &socket.id);
    let result = exchange(&mut open()?, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &body, |_| ());
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    let _own = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let states: u32 = 1 << TCP_ESTABLISHED;
    let mut body = vec![family, libc::IPPROTO_UDP as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// Sends a request, and hands the body of each message of the answer to `take`.
fn exchange(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    body: &[u8],
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend(body);
    let _sent = socket.send(&message, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((len, kind)) = word(rest, 0).zip(half(rest, 4)) {
            let len = (len as usize).clamp(HEADER, rest.len().max(HEADER));
            let Some(body) = rest.get(HEADER..len) else { break };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return match word(body, 0).unwrap_or(0) as i32 {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                _ => take(body),
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
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

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}
