//! Asking an upstream: a query's bytes in, the reply's bytes out.
//!
//! Tries several servers, each for a short time, so that one that is gone costs a client less
//! than its own patience of five seconds. Every query leaves from a port and with an id of its
//! own, and a reply must repeat both and the question (RFC 5452 section 9.2). It reads nothing
//! else of either.

use rand::seq::SliceRandom as _;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long each try waits; together less than a client's patience.
const TRIES: [Duration; 3] =
    [Duration::from_millis(1000), Duration::from_millis(1300), Duration::from_millis(1700)];
/// The longest reply.
const MOST: usize = 65_535;

/// Asks the `servers` over UDP; `None` if none answers in time.
pub(super) async fn ask_udp(servers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    for (server, patience) in order(servers).into_iter().zip(TRIES) {
        let reply = timeout(patience, exchange_udp(server, query)).await;
        match reply {
            Ok(Ok(reply)) => return Some(reply),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a DNS server does not answer"),
            Err(_) => tracing::debug!(%server, "a DNS server is silent"),
        }
    }
    None
}

/// Asks the `servers` over TCP; `None` if none answers in time.
pub(super) async fn ask_tcp(servers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    for (server, patience) in order(servers).into_iter().zip(TRIES) {
        if let Ok(Ok(reply)) = timeout(patience, exchange_tcp(server, query)).await {
            return Some(reply);
        }
    }
    None
}

/// Which server is tried first, second and third: all once before one twice.
fn order(servers: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut order = servers.to_vec();
    order.shuffle(&mut rand::rng());
    order.iter().cycle().take(if order.is_empty() { 0 } else { TRIES.len() }).copied().collect()
}

async fn exchange_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let sent = with_id(query, rand::random());
    let _ = socket.send(&sent).await?;
    let mut buffer = vec![0; MOST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&sent, &buffer[..length]) {
            return Ok(with_id(&buffer[..length], id(query)));
        }
    }
}

async fn exchange_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let sent = with_id(query, rand::random());
    write_message(&mut stream, &sent).await?;
    let reply = read_message(&mut stream).await?;
    if !answers(&sent, &reply) {
        return Err(io::Error::other("the reply is to something else"));
    }
    Ok(with_id(&reply, id(query)))
}

/// Reads a message with its length before it (RFC 1035 section 4.2.2).
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    let _ = stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes a message with its length before it, in one piece.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&id.to_be_bytes());
    message
}

/// Whether `reply` is a reply to `query`, which has a header.
fn answers(query: &[u8], reply: &[u8]) -> bool {
    let question = &query[12..question_end(query).unwrap_or(12)];
    reply.len() >= 12 + question.len()
        && reply[..2] == query[..2]
        && reply[2] & 0x80 != 0
        && reply[12..12 + question.len()].eq_ignore_ascii_case(question)
}

/// Where the first question ends, if there is a whole one.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    while *message.get(at)? != 0 {
        at += usize::from(message[at]) + 1;
    }
    let end = at + 5;
    (end <= message.len()).then_some(end)
}

/// The type that the first question asks for, if there is a whole one.
pub(super) fn question_type(message: &[u8]) -> Option<u16> {
    let end = question_end(message)?;
    Some(u16::from_be_bytes([message[end - 4], message[end - 3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x02xy\0\0\x01\0\x01";

    #[test]
    fn reply_repeats_id_and_question() {
        let mut reply = [QUERY, b"rest"].concat();
        assert!(!answers(QUERY, &reply), "a query");
        reply[2] |= 0x80;
        assert!(answers(QUERY, &reply));
        reply[13] = b'W';
        assert!(answers(QUERY, &reply), "letters of either case are the same");
        reply[13] = b'v';
        assert!(!answers(QUERY, &reply));
        assert!(!answers(QUERY, &[0x12, 0x34, 0x80]));
        assert!(!answers(&with_id(QUERY, 7), &reply));
    }

    #[test]
    fn type_is_that_of_a_whole_question() {
        assert_eq!(question_type(QUERY), Some(1));
        assert_eq!(question_type(&QUERY[..QUERY.len() - 1]), None);
        assert_eq!(question_type(&QUERY[..14]), None);
    }

    #[test]
    fn every_server_is_tried_before_one_is_tried_again() {
        let servers: Vec<SocketAddr> = vec![([10, 0, 0, 1], 53).into(), ([10, 0, 0, 2], 53).into()];
        let order = order(&servers);
        assert_eq!(order.len(), TRIES.len());
        assert_ne!(order[0], order[1]);
        assert!(super::order(&[]).is_empty());
    }

    #[tokio::test]
    async fn server_that_refuses_does_not_cost_its_patience() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let refusing = closed.local_addr().unwrap();
        drop(closed);
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [refusing, server.local_addr().unwrap()];
        let answer = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let mut wrong = buffer;
            wrong[0] ^= 1;
            wrong[2] |= 0x80;
            let _ = server.send_to(&wrong[..length], from).await.unwrap();
            buffer[2] |= 0x80;
            let _ = server.send_to(&buffer[..length], from).await.unwrap();
        });
        let began = std::time::Instant::now();
        let reply = ask_udp(&servers, QUERY).await.unwrap();
        assert_eq!((id(&reply), reply[2]), (0x1234, 0x81));
        assert!(began.elapsed() < TRIES[0]);
        answer.await.unwrap();
    }
}
