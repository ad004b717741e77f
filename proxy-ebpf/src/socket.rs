//! What the socket path remembers of a TCP socket, in a ring that all of them share.

use crate::addr::{Addr, End, Port};

/// How many TCP sockets are remembered; a power of two.
pub const TCP_PEERS: u32 = 262_144;

/// What a TCP socket asked for, in the place of its cookie.
///
/// Cookies are given out one after the other, so a place is taken again only after as many other
/// sockets have connected to services (or were given a cookie for another reason). Then the
/// socket's peer is the backend, as it is for everyone else who looks at the connection. A socket's
/// own storage would last as long as the socket, but to make and to free it costs a twentieth of a
/// new connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TcpPeer {
    cookie: u64,
    frontend_addr: Addr,
    frontend_port: Port,
    zero: u16,
    backend: u32,
}

impl TcpPeer {
    /// The socket of `cookie` asked for `frontend` and was given `backend`.
    #[inline(always)]
    pub const fn new(cookie: u64, frontend: End, backend: End) -> Self {
        let (frontend_addr, frontend_port) = (frontend.addr, frontend.port);
        Self { cookie, frontend_addr, frontend_port, zero: 0, backend: backend.digest() }
    }

    /// The place of the socket of `cookie`.
    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        cookie as u32 & (TCP_PEERS - 1)
    }

    /// What the socket of `cookie` asked for, if this is its place and its peer is the backend that
    /// it was given.
    #[inline(always)]
    pub fn frontend(&self, cookie: u64, peer: End) -> Option<End> {
        let frontend = End { addr: self.frontend_addr, port: self.frontend_port };
        (self.cookie == cookie && self.backend == peer.digest()).then_some(frontend)
    }
}

const _: () = assert!(size_of::<TcpPeer>() == 32);
crate::plain_data!(TcpPeer);

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u32, port: u16) -> End {
        End { addr: Addr::from_v4_word(last.to_be()), port: Port::new(port) }
    }

    #[test]
    fn a_place_answers_for_its_socket_and_backend_only() {
        let cookie = 7 + u64::from(TCP_PEERS);
        let peer = TcpPeer::new(cookie, end(1, 80), end(9, 8080));
        assert_eq!(peer.frontend(cookie, end(9, 8080)), Some(end(1, 80)));
        assert_eq!(peer.frontend(cookie, end(9, 8081)), None);
        assert_eq!(TcpPeer::place(7), TcpPeer::place(cookie));
        assert_eq!(peer.frontend(7, end(9, 8080)), None, "another socket's");
        assert_eq!(TcpPeer::default().frontend(7, end(9, 8080)), None);
    }
}
