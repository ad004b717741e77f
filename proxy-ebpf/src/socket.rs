//! What the socket path remembers of a socket: of a UDP socket in its own storage, of a TCP socket
//! in a ring that all of them share.

use crate::addr::{Addr, Port};
use crate::flow::End;
use crate::service::ServiceId;
use crate::slot::BackendId;

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

/// A destination of a UDP socket that was translated: the frontend it asked for and the backend it
/// was given.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Translation {
    frontend_addr: Addr,
    backend_addr: Addr,
    frontend_port: Port,
    backend_port: Port,
    /// The service of the frontend.
    pub service: ServiceId,
    /// The backend's identity.
    pub backend_id: BackendId,
}

impl Translation {
    /// The translation of `frontend` to `backend`.
    #[inline(always)]
    pub const fn new(frontend: End, backend: End, service: ServiceId, id: BackendId) -> Self {
        Self {
            frontend_addr: frontend.addr,
            backend_addr: backend.addr,
            frontend_port: frontend.port,
            backend_port: backend.port,
            service,
            backend_id: id,
        }
    }

    /// What the socket asked for.
    #[inline(always)]
    pub const fn frontend(&self) -> End {
        End { addr: self.frontend_addr, port: self.frontend_port }
    }

    /// What the socket was given.
    #[inline(always)]
    pub const fn backend(&self) -> End {
        End { addr: self.backend_addr, port: self.backend_port }
    }
}

/// How many destinations of one UDP socket are remembered; the oldest is forgotten first. A
/// resolver asks at most three servers (resolv.conf(5), `MAXNS`).
pub const UDP_DESTINATIONS: usize = 4;

/// The destinations of one UDP socket, connected or not.
///
/// Translations stay in their places, so that a thread that sends takes nothing out of the sight
/// of another that receives.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct UdpPeers {
    translations: [Translation; UDP_DESTINATIONS],
    /// How many have been written; the next one goes to this number modulo the array's length.
    written: u32,
    /// The index of the one that the socket has sent to last.
    latest: u32,
}

impl UdpPeers {
    /// The translation of `frontend`, which is sent to now.
    #[inline(always)]
    pub fn send_to(&mut self, frontend: End) -> Option<Translation> {
        let index = self.find(|known| known.frontend() == frontend)?;
        if self.latest != index as u32 {
            self.latest = index as u32;
        }
        self.translations.get(index).copied()
    }

    /// The translation to `backend`. Of several, the one that was sent to last: a socket that asks
    /// two services with one backend most likely waits for the answer to its last question.
    #[inline(always)]
    pub fn receive_from(&self, backend: End) -> Option<Translation> {
        let index = self.find(|known| known.backend() == backend)?;
        self.translations.get(index).copied()
    }

    /// Remembers `translation`, which is sent to now, in the place of one of the same frontend, or
    /// else of the oldest.
    #[inline(always)]
    pub fn remember(&mut self, translation: Translation) {
        let known = self.find(|known| known.frontend() == translation.frontend());
        let index = known.unwrap_or_else(|| {
            let oldest = self.written as usize % UDP_DESTINATIONS;
            self.written = self.written.wrapping_add(1);
            oldest
        });
        if let Some(place) = self.translations.get_mut(index) {
            *place = translation;
        }
        self.latest = index as u32;
    }

    /// The index of a translation that `matches`, the latest before all others.
    #[inline(always)]
    fn find(&self, matches: impl Fn(&Translation) -> bool) -> Option<usize> {
        let latest = self.latest as usize % UDP_DESTINATIONS;
        if matches(&self.translations[latest]) {
            return Some(latest);
        }
        self.translations.iter().position(matches)
    }
}

const _: () = assert!(TCP_PEERS.is_power_of_two() && size_of::<TcpPeer>() == 32);
const _: () = assert!(size_of::<Translation>() == 44);
const _: () = assert!(size_of::<UdpPeers>() == 44 * UDP_DESTINATIONS + 8);
crate::plain_data!(TcpPeer, Translation, UdpPeers);

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u32, port: u16) -> End {
        End { addr: Addr::from_v4_word(last.to_be()), port: Port::new(port) }
    }

    fn translation(frontend: u32, backend: u32) -> Translation {
        let (frontend, backend) = (end(frontend, 53), end(backend, 5353));
        Translation::new(frontend, backend, ServiceId(1), BackendId(1))
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

    #[test]
    fn a_shared_backend_answers_for_the_frontend_that_was_asked_last() {
        let mut peers = UdpPeers::default();
        peers.remember(translation(1, 9));
        peers.remember(translation(2, 9));
        let answers = |peers: &UdpPeers| peers.receive_from(end(9, 5353)).map(|t| t.frontend());
        assert_eq!(answers(&peers), Some(end(2, 53)));
        assert_eq!(peers.send_to(end(1, 53)), Some(translation(1, 9)));
        assert_eq!(answers(&peers), Some(end(1, 53)));
        assert_eq!(peers.receive_from(end(9, 53)), None, "another port");
    }

    #[test]
    fn a_frontend_is_remembered_once_and_the_oldest_is_forgotten_first() {
        let mut peers = UdpPeers::default();
        for (frontend, backend) in [(1, 11), (2, 12), (3, 13), (4, 14), (1, 21), (5, 15)] {
            peers.remember(translation(frontend, backend));
        }
        assert_eq!(peers.send_to(end(1, 53)), None, "forgotten for 5");
        for (frontend, backend) in [(2, 12), (3, 13), (4, 14), (5, 15)] {
            assert_eq!(peers.send_to(end(frontend, 53)), Some(translation(frontend, backend)));
        }
    }
}
