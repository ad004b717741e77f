//! HTTP listeners that outlive a busy port.
//!
//! Takes an address and a router; binds, or says why it cannot and tries again. Never ends the
//! agent.

use crate::model::Warning;
use axum::Router;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;

/// How long to wait after the first failed attempt; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// How long to wait at most.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where a listener listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At an address.
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

    async fn bind(self) -> io::Result<TcpListener> {
        if !matches!(self, Self::AllV6(_)) {
            return TcpListener::bind(self.addr()).await;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &self.addr())?;
        listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

/// Serves `router` at `place` for ever. `what` says in words which listener this is; `report` is
/// told each time the address cannot be bound, and (`None`) when it was.
pub async fn serve(
    place: impl Into<Place>,
    what: &str,
    router: Router,
    mut report: impl FnMut(Option<Warning>),
) {
    let place = place.into();
    let mut wait = FIRST_WAIT;
    loop {
        let error = match place.bind().await {
            Ok(listener) => {
                report(None);
                wait = FIRST_WAIT;
                match axum::serve(listener, router.clone()).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let message = format!("cannot listen on {place}: {error}; retried until it can");
        report(Some(Warning { subject: format!("listener for {what}"), message }));
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use axum::routing::get as on_get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    /// Serves `router` on a free loopback port, until the test ends.
    pub(crate) async fn listening(router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
        addr
    }

    /// The whole response to a GET, headers included.
    pub(crate) async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn busy_port_is_reported_and_served_once_it_is_free() {
        let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = busy.local_addr().unwrap();
        let (send, mut receive) = mpsc::unbounded_channel();
        let router = Router::new().route("/", on_get(|| async { "here" }));
        let serving = tokio::spawn(async move {
            serve(addr, "test", router, |warning| send.send(warning).unwrap()).await;
        });

        let warning = receive.recv().await.unwrap().expect("the port is busy");
        assert!(warning.message.contains(&addr.to_string()), "{}", warning.message);
        drop(busy);
        while receive.recv().await.unwrap().is_some() {}
        assert!(get(addr, "/").await.ends_with("here"));
        serving.abort();
    }
}
