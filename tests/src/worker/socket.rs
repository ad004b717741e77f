//! A client's socket: connects, asks, and checks that the reply is the one to its request.

use crate::protocol::Opened;
use crate::traffic::{Ask, Failure, FailureKind, Reply, Transport};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::iter;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

/// A socket that is open.
pub(super) struct Socket {
    kind: Kind,
    /// Whom to ask.
    to: SocketAddr,
    /// How long connect(2) took.
    connect: Duration,
    /// The number of the last request, by which its reply is known.
    serial: u64,
    request: String,
    input: Vec<u8>,
}

enum Kind {
    Tcp(TcpStream),
    Udp(UdpSocket),
    UdpUnconnected(UdpSocket),
}

/// A reply, as far as it has to be read.
pub(super) struct Answer<'a> {
    /// The server's name.
    pub(super) name: &'a str,
    /// The client's address as the server saw it.
    client: &'a str,
    /// Where a datagram came from.
    source: Option<SocketAddr>,
}

impl Socket {
    pub(super) async fn open(ask: &Ask) -> Result<Self, Failure> {
        let to = parse(&ask.to)?;
        let started = Instant::now();
        let opening = async {
            io::Result::Ok(match ask.transport {
                Transport::Tcp => Kind::Tcp(tcp(to, ask.from).await?),
                Transport::Udp => {
                    let socket = udp(to, ask.from).await?;
                    socket.connect(to).await?;
                    Kind::Udp(socket)
                }
                Transport::UdpUnconnected => Kind::UdpUnconnected(udp(to, ask.from).await?),
            })
        };
        let kind = within(ask.timeout, opening).await.map_err(|error| {
            Failure::from_io(&format!("connect to {to}"), &error).since(started)
        })?;
        let connect = started.elapsed();
        Ok(Self { kind, to, connect, serial: 0, request: String::new(), input: Vec::new() })
    }

    pub(super) fn opened(&self) -> Result<Opened, Failure> {
        let (local, peer) = match &self.kind {
            Kind::Tcp(stream) => (stream.local_addr(), Some(stream.peer_addr())),
            Kind::Udp(socket) => (socket.local_addr(), Some(socket.peer_addr())),
            Kind::UdpUnconnected(socket) => (socket.local_addr(), None),
        };
        let named = |error| Failure::from_io("name the ends of the socket", &error);
        let peer = peer.transpose().map_err(named)?;
        Ok(Opened { local: local.map_err(named)?, peer, connect: self.connect })
    }

    /// Asks whom the socket was opened for, or `to`.
    pub(super) async fn ask(
        &mut self,
        to: Option<&str>,
        payload: usize,
        limit: Duration,
    ) -> Result<Reply, Failure> {
        let to = to.map_or(Ok(self.to), parse)?;
        let started = Instant::now();
        let Answer { name, client, source } = self.exchange(to, payload, limit).await?;
        let reply = started.elapsed();
        let name = name.to_owned();
        let client = client.parse().map_err(|_| Failure::garbled(client.as_bytes()))?;
        let Opened { local, peer, connect } = self.opened()?;
        let peer = peer.or(source).unwrap_or(to);
        self.connect = Duration::ZERO;
        Ok(Reply { name, client, peer, local, connect, reply })
    }

    /// Sends a request to `to` and waits for the reply to it.
    pub(super) async fn exchange(
        &mut self,
        to: SocketAddr,
        payload: usize,
        limit: Duration,
    ) -> Result<Answer<'_>, Failure> {
        let started = Instant::now();
        self.serial += 1;
        self.request.clear();
        write!(self.request, "{}", self.serial).expect("a String takes everything");
        self.request.extend(iter::repeat_n('x', payload.saturating_sub(self.request.len())));
        let exchanging = async {
            match &mut self.kind {
                Kind::Tcp(stream) => {
                    self.request.push('\n');
                    stream.write_all(self.request.as_bytes()).await?;
                    let _ = self.request.pop();
                    read_line(stream, &mut self.input).await.map(|()| None)
                }
                Kind::Udp(socket) => {
                    socket.send(self.request.as_bytes()).await?;
                    receive(socket, &self.request, &mut self.input).await.map(Some)
                }
                Kind::UdpUnconnected(socket) => {
                    socket.send_to(self.request.as_bytes(), to).await?;
                    receive(socket, &self.request, &mut self.input).await.map(Some)
                }
            }
        };
        let source = within(limit, exchanging)
            .await
            .map_err(|error| Failure::from_io(&format!("ask {to}"), &error).since(started))?;
        let answer = split(&self.input).filter(|(_, _, echo)| *echo == self.request);
        let (name, client, _) = answer.ok_or_else(|| Failure::garbled(&self.input))?;
        Ok(Answer { name, client, source })
    }

    /// Whom the socket was opened for.
    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    /// Waits for the server to close the connection.
    pub(super) async fn closed(&mut self, limit: Duration) -> Result<(), Failure> {
        let Kind::Tcp(stream) = &mut self.kind else { return Ok(()) };
        let read = within(limit, stream.read(&mut [0])).await;
        let done =
            read.map_err(|error| Failure::from_io("wait for the server to close", &error))?;
        if done == 0 { Ok(()) } else { Err(Failure::garbled(&self.input)) }
    }

    /// Ends a TCP connection with a reset: neither side keeps it in TIME_WAIT.
    pub(super) fn reset(self) {
        if let Kind::Tcp(stream) = &self.kind {
            // A socket that cannot be told so is closed in order.
            let _ = stream.set_zero_linger();
        }
    }
}

async fn tcp(to: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn udp(to: SocketAddr, from: Option<SocketAddr>) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(from.unwrap_or(any)).await
}

async fn read_line(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<()> {
    input.clear();
    while stream.read_buf(input).await? > 0 {
        if input.last() == Some(&b'\n') {
            let _ = input.pop();
            return Ok(());
        }
    }
    Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"))
}

/// Waits for the datagram that answers `request`; a late answer to an earlier one is passed by.
async fn receive(socket: &UdpSocket, request: &str, input: &mut Vec<u8>) -> io::Result<SocketAddr> {
    loop {
        input.clear();
        input.reserve(65_536);
        let (_, source) = socket.recv_buf_from(input).await?;
        let _ = input.pop_if(|byte| *byte == b'\n');
        if split(input).is_none_or(|(_, _, echo)| echo == request) {
            return Ok(source);
        }
    }
}

/// A reply's parts: the server's name, the client's address, the request.
fn split(reply: &[u8]) -> Option<(&str, &str, &str)> {
    let mut parts = str::from_utf8(reply).ok()?.splitn(3, ' ');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

fn parse(addr: &str) -> Result<SocketAddr, Failure> {
    addr.parse().map_err(|_| Failure::lab(format!("`{addr}` is not ADDRESS:PORT")))
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(ErrorKind::TimedOut, format!("nothing in {limit:?}"));
    timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

impl Failure {
    /// What the kernel said when the worker tried to do `what`.
    pub(super) fn from_io(what: &str, error: &io::Error) -> Self {
        let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::CONNREFUSED) => FailureKind::Refused,
            Some(Errno::TIMEDOUT) => FailureKind::TimedOut,
            Some(Errno::CONNRESET | Errno::PIPE) => FailureKind::Reset,
            Some(Errno::CONNABORTED) => FailureKind::Aborted,
            Some(Errno::HOSTUNREACH | Errno::NETUNREACH) => FailureKind::Unreachable,
            Some(Errno::PERM | Errno::ACCESS) => FailureKind::NotPermitted,
            Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL) => FailureKind::Address,
            Some(_) => FailureKind::Other,
            None if error.kind() == ErrorKind::TimedOut => FailureKind::TimedOut,
            None if error.kind() == ErrorKind::UnexpectedEof => FailureKind::Closed,
            None => FailureKind::Other,
        };
        Self { kind, message: format!("{what}: {error}"), elapsed: Duration::ZERO }
    }

    fn since(self, started: Instant) -> Self {
        Self { elapsed: started.elapsed(), ..self }
    }

    fn garbled(reply: &[u8]) -> Self {
        let start = String::from_utf8_lossy(&reply[..reply.len().min(80)]);
        let message = format!("a reply of {} bytes that begins `{start}`", reply.len());
        Self { kind: FailureKind::Garbled, message, elapsed: Duration::ZERO }
    }
}
