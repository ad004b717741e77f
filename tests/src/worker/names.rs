//! DNS: a server that stands in for the cluster's own, and queries as bytes.
//!
//! The server gives every name one address that no other has, and remembers what it was asked,
//! so that a test knows which queries left the node.

use crate::traffic::{Failure, NameExchange};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// What the server says of every name.
const V4: [u8; 4] = [192, 0, 2, 53];
const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53];

/// A server that runs, and what it was asked: the names and types, in order.
pub(super) struct NameServer {
    tasks: Vec<JoinHandle<()>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// Listens at `port` on all addresses, over UDP and TCP.
    pub(super) async fn start(port: u16) -> Result<Self, Failure> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let failed = |error| Failure::from_io(&format!("listen on {addr}"), &error);
        let udp = UdpSocket::bind(addr).await.map_err(failed)?;
        let tcp = TcpListener::bind(addr).await.map_err(failed)?;
        let tasks = vec![
            tokio::spawn(serve_udp(udp, asked.clone())),
            tokio::spawn(serve_tcp(tcp, asked.clone())),
        ];
        Ok(Self { tasks, asked })
    }

    /// What it was asked since the last time this was asked.
    pub(super) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve_udp(socket: UdpSocket, asked: Arc<Mutex<Vec<String>>>) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = reply(&buffer[..length], &asked) {
            // A reply that cannot be sent is lost, as on the way.
            drop(socket.send_to(&reply, client).await);
        }
    }
}

async fn serve_tcp(listener: TcpListener, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let asked = asked.clone();
        tokio::spawn(async move {
            loop {
                let query = read(&mut stream).await?;
                let Some(reply) = reply(&query, &asked) else { return Ok(()) };
                write(&mut stream, &reply).await?;
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            io::Result::Ok(())
        });
    }
}

/// The reply to `query`, if it is one.
fn reply(query: &[u8], asked: &Mutex<Vec<String>>) -> Option<Vec<u8>> {
    let (mut at, mut name) = (12, String::new());
    while *query.get(at)? != 0 {
        let label = query.get(at + 1..at + 1 + usize::from(query[at]))?;
        name += &format!("{}.", String::from_utf8_lossy(label));
        at += label.len() + 1;
    }
    let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{name} {kind}"));
    let data: &[u8] = match kind {
        1 => &V4,
        28 => &V6,
        _ => &[],
    };
    let mut reply = query.get(..at + 5)?.to_vec();
    // A reply, from one that recurses.
    reply[2] |= 0x80;
    reply[3] = 0x80;
    reply[6..12].copy_from_slice(&[0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    if !data.is_empty() {
        reply.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 5, 0, data.len() as u8]);
        reply.extend(data);
    }
    Some(reply)
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// The sockets that stay open between queries, by their ports.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<u16, Arc<UdpSocket>>>);

impl Clients {
    /// Sends a query, and gives the reply.
    pub(super) async fn exchange(&self, exchange: NameExchange) -> Result<Vec<u8>, Failure> {
        let NameExchange { to, tcp, port, query, timeout: patience } = exchange;
        let run = async {
            if tcp {
                let mut stream = TcpStream::connect(to).await?;
                write(&mut stream, &query).await?;
                return read(&mut stream).await;
            }
            let socket = self.socket(port, to).await?;
            socket.send(&query).await?;
            let mut buffer = vec![0; 65_535];
            let length = socket.recv(&mut buffer).await?;
            buffer.truncate(length);
            Ok(buffer)
        };
        let what = format!("ask the DNS server {to}");
        match timeout(patience, run).await {
            Ok(result) => result.map_err(|error| Failure::from_io(&what, &error)),
            Err(_) => Err(Failure::from_io(&what, &io::ErrorKind::TimedOut.into())),
        }
    }

    /// The socket at `port`, connected to `to` when it was made.
    async fn socket(&self, port: u16, to: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = known().get(&port) {
            return Ok(Arc::clone(socket));
        }
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
        };
        let socket = Arc::new(UdpSocket::bind(any).await?);
        socket.connect(to).await?;
        if port != 0 {
            known().insert(port, Arc::clone(&socket));
        }
        Ok(socket)
    }
}
