//! What the socket path remembers of a socket, in the socket's own storage.

use crate::addr::{Addr, Port};
use crate::flow::End;
use crate::service::ServiceId;
use crate::slot::BackendId;

/// A destination of a socket that was translated: the frontend it asked for and the backend it
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
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct UdpPeers {
    /// The translations, in no order; an unused one is all zero.
    pub translations: [Translation; UDP_DESTINATIONS],
    /// How many have been written; the next one goes to this number modulo the array's length.
    pub written: u32,
}

const _: () = assert!(size_of::<Translation>() == 44);
const _: () = assert!(size_of::<UdpPeers>() == 44 * UDP_DESTINATIONS + 4);
crate::plain_data!(Translation, UdpPeers);
