//! HTTP listeners that outlive a busy port and hostile clients.
//!
//! Takes an address and a router; binds, or says why it cannot and tries again. A connection is
//! asked once and has little time, and a listener has few connections. All listeners share one
//! thread, apart from the agent's own, so that no number of questions delays a change. Never ends
//! the agent.

mod connections;

pub use connections::Connections;

use crate::model::Warning;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};

/// How long to wait after the first failed attempt; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// How long to wait at most.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long a client may take for the headers of its request.
const HEADERS: Duration = Duration::from_secs(5);

/// How many bytes the headers of a request may have; hyper takes no less.
const HEADER_BYTES: usize = 8_192;

/// How long is waited when a connection cannot be accepted: out of descriptors, say, it would be a
/// busy loop.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where a listener listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At an address; `::` are all addresses of both families, or of IPv4 where the kernel has no
    /// IPv6.
    Addr(SocketAddr),
    /// At all IPv4 addresses, on this port.
    AllV4(u16),
    /// At all IPv6 addresses and no IPv4 ones, on this port.
    AllV6(u16),
}

impl From<SocketAddr> for Place {
    fn from(addr: SocketAddr) -> Self {
        Self::Addr(addr)
    }
}

impl Place {
    fn addr(self) -> SocketAddr {
        match self {
            Self::Addr(addr) => addr,
            Self::AllV4(port) => (Ipv4Addr::UNSPECIFIED, port).into(),
            Self::AllV6(port) => (Ipv6Addr::UNSPECIFIED, port).into(),
        }
    }

    fn bind(self) -> io::Result<TcpListener> {
        let is_both = matches!(self, Self::Addr(addr) if addr.ip() == Ipv6Addr::UNSPECIFIED);
        match listener(self.addr(), !is_both) {
            Err(error) if is_both && has_no_ipv6(&error) => Self::AllV4(self.addr().port()).bind(),
            result => result,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// A listener at `addr`; whatever `net.ipv6.bindv6only` says, `only_v6` decides.
fn listener(addr: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let family = if addr.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, only_v6)?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &addr)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Starts the thread of all listeners; it lives as long as the process.
pub fn start_thread() -> io::Result<Handle> {
    // One scrape at a time reads the maps, beside this thread.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(std::future::pending::<()>());
    let _detached = std::thread::Builder::new().name("listeners".to_owned()).spawn(run)?;
    Ok(handle)
}

/// Serves `router` at `place` for ever, over no more than `connections`. `what` says in words which
/// listener this is; `report` is told each time the address cannot be bound, and (`None`) when it
/// was.
pub async fn serve(
    place: impl Into<Place>,
    what: &str,
    router: Router,
    connections: Connections,
    mut report: impl FnMut(Option<Warning>),
) {
    let place = place.into();
    let mut wait = FIRST_WAIT;
    loop {
        match place.bind() {
            Ok(listener) => {
                report(None);
                accept(&listener, &router, &connections).await;
            }
            Err(error) => {
                let message = format!("cannot listen on {place}: {error}; retried until it can");
                report(Some(Warning { subject: format!("listener for {what}"), message }));
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Serves who connects to `listener`, for ever.
async fn accept(listener: &TcpListener, router: &Router, connections: &Connections) -> ! {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => connections.spawn(from.ip(), answer(stream, router.clone())),
            Err(error) if is_of_the_client(&error) => {}
            Err(_) => {
                connections.close_one();
                tokio::time::sleep(ACCEPT_WAIT).await;
            }
        }
    }
}

/// Whether a client went away before it was accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers one request: who holds a connection open, or sends many requests before it has read an
/// answer, gains nothing by it.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that went away, or speaks something else, has lost its own answer, nothing else.
    drop(connection.await);
}

#[cfg(test)]
pub(crate) mod tests;
