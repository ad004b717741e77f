//! The sockets of this network namespace that listen.
//!
//! Speaks `NETLINK_SOCK_DIAG` (sock_diag(7), the kernel's `linux/inet_diag.h`).

use super::netlink::{Action, Request, ask, half, word};
use proxy_ebpf::{Addr, End, Port, Proto};
use std::io;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// What the kernel calls the state of a UDP socket that is not connected, and of a TCP socket that
/// listens.
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// The length of `struct inet_diag_sockid`.
const ID: usize = 48;

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
    let list =
        Request { protocol: NETLINK_SOCK_DIAG, kind: SOCK_DIAG_BY_FAMILY, action: Action::List };
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        ask(list, &request(family, proto, state, &[0; ID]), &mut take)?;
    }
    Ok(())
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, proto: Proto, state: u32, id: &[u8; ID]) -> Vec<u8> {
    let states: u32 = 1 << state;
    let mut body = vec![family, proto.0, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
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
