//! Servers: a line (or datagram) in, the server's name, the client's address and the line out.

use crate::traffic::{Closing, Failure, Serve, ServerReport, Transport};
use futures::future::join_all;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A server that runs: one task for each address it listens on.
pub(super) struct Server {
    listeners: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    closing: Closing,
    accepted: AtomicU64,
    requests: AtomicU64,
    open: AtomicU64,
}

impl Server {
    /// Listens, and serves until it is stopped.
    pub(super) fn start(serve: &Serve, name: String) -> Result<Self, Failure> {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let addrs = serve.addr.as_ref().map_or(&any[..], std::slice::from_ref);
        let shared = Arc::new(Shared {
            name,
            closing: serve.closing,
            accepted: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            open: AtomicU64::new(0),
        });
        let listen = |addr: &IpAddr| {
            let addr = SocketAddr::new(*addr, serve.port);
            let shared = Arc::clone(&shared);
            let task = match serve.transport {
                Transport::Tcp => tcp_listener(addr).map(|l| tokio::spawn(serve_tcp(l, shared))),
                _ => udp_socket(addr).map(|s| tokio::spawn(serve_udp(s, shared))),
            };
            task.map_err(|error| Failure::from_io(&format!("listen on {addr}"), &error))
        };
        let listeners = addrs.iter().map(listen).collect::<Result<_, _>>()?;
        Ok(Self { listeners, shared })
    }

    /// Closes the listening sockets; open connections go on.
    pub(super) async fn stop(self) -> ServerReport {
        self.listeners.iter().for_each(JoinHandle::abort);
        drop(join_all(self.listeners).await);
        ServerReport {
            accepted: self.shared.accepted.load(Ordering::Relaxed),
            requests: self.shared.requests.load(Ordering::Relaxed),
            open: self.shared.open.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// Appends the reply to `line` (without its end), from `client`.
    fn reply(&self, client: &SocketAddr, line: &[u8], out: &mut Vec<u8>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut head = String::with_capacity(64);
        write!(head, "{} {client} ", self.name).expect("a String takes everything");
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(line);
        out.push(b'\n');
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // Out of files or memory, or a connection that is gone already: the next may do better.
        let Ok((stream, client)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        shared.open.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // The client sees what goes wrong, and reports it.
            let _ = talk(stream, client, &shared).await;
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn talk(mut stream: TcpStream, client: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::with_capacity(4096);
    let mut output = Vec::with_capacity(4096);
    let mut searched = 0;
    loop {
        while let Some(end) = input[searched..].iter().position(|byte| *byte == b'\n') {
            let end = searched + end;
            shared.reply(&client, &input[..end], &mut output);
            drop(input.drain(..=end));
            searched = 0;
            if shared.closing == Closing::Server {
                return stream.write_all(&output).await;
            }
        }
        searched = input.len();
        stream.write_all(&output).await?;
        output.clear();
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut input = vec![0; 65_536];
    let mut output = Vec::with_capacity(65_536);
    loop {
        // An error is an ICMP message about an earlier reply: that client's affair.
        let Ok((length, client)) = socket.recv_from(&mut input).await else { continue };
        let line = &input[..length];
        output.clear();
        shared.reply(&client, line.strip_suffix(b"\n").unwrap_or(line), &mut output);
        let _ = socket.send_to(&output, client).await;
    }
}

fn tcp_listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(addr, SocketType::STREAM)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp_socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(bound(addr, SocketType::DGRAM)?.into())
}

/// A socket that leaves the other family alone, so that each family has one of its own and
/// clients keep their true addresses.
fn bound(addr: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &addr)?;
    Ok(socket)
}
