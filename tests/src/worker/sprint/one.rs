//! One at a time, over blocking sockets.

use super::{PATIENCE, Tally};
use crate::sprint::{Deed, MESSAGE};
use rustix::net::sockopt::set_socket_linger;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What one write of a stream is.
const CHUNK: usize = 128 * 1024;
/// Datagrams between two looks at the clock.
const BATCH: usize = 64;

pub(super) fn connect(tally: &mut Tally<'_>) -> io::Result<()> {
    while !tally.is_over() {
        let to = tally.target();
        match connect_once(tally.sprint.deed, to) {
            Ok((id, took)) => tally.answered(&id, took)?,
            Err(error) => tally.failed(error)?,
        }
    }
    Ok(())
}

/// Gives the server's id, and how long connect(2) took.
fn connect_once(deed: Deed, to: SocketAddr) -> io::Result<([u8; 2], Duration)> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(to)?;
    let took = started.elapsed();
    let mut id = [0; 2];
    stream.read_exact(&mut id)?;
    if deed == Deed::Connect {
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    } else if stream.read(&mut [0])? > 0 {
        return Err(io::Error::other("the server said more than its id"));
    }
    Ok((id, took))
}

pub(super) fn request(tally: &mut Tally<'_>) -> io::Result<()> {
    let mut stream = open(tally)?;
    let mut message = [0; MESSAGE];
    while !tally.is_over() {
        let started = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        tally.answered(&message, started.elapsed())?;
    }
    Ok(())
}

pub(super) fn stream(tally: &mut Tally<'_>) -> io::Result<()> {
    let mut stream = open(tally)?;
    let mut id = [0; 2];
    stream.read_exact(&mut id)?;
    tally.answered(&id, Duration::ZERO)?;
    (tally.started, tally.report.count) = (Instant::now(), 0);
    let chunk = vec![0; CHUNK];
    while !tally.is_over() {
        stream.write_all(&chunk)?;
        tally.report.count += CHUNK as u64;
    }
    Ok(())
}

fn open(tally: &mut Tally<'_>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(tally.target())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub(super) fn new_datagram(tally: &mut Tally<'_>) -> io::Result<()> {
    while !tally.is_over() {
        let started = Instant::now();
        let to = tally.target();
        let asked = bound(to).and_then(|socket| ask(&socket));
        match asked {
            Ok(reply) => tally.answered(&reply, started.elapsed())?,
            Err(error) => tally.failed(error)?,
        }
    }
    Ok(())
}

pub(super) fn datagram(tally: &mut Tally<'_>) -> io::Result<()> {
    let socket = bound(tally.target())?;
    while !tally.is_over() {
        let started = Instant::now();
        match ask(&socket) {
            Ok(reply) => tally.answered(&reply, started.elapsed())?,
            Err(error) => tally.failed(error)?,
        }
    }
    Ok(())
}

pub(super) fn flood(tally: &mut Tally<'_>) -> io::Result<()> {
    let socket = bound(tally.target())?;
    let (id, before) = came(&socket)?;
    tally.answered(&id, Duration::ZERO)?;
    tally.started = Instant::now();
    let message = [0; MESSAGE];
    while !tally.is_over() {
        for _ in 0..BATCH {
            // A full queue on the way is what a flood is for.
            let _ = socket.send(&message);
        }
    }
    tally.ended = Some(Instant::now());
    tally.report.count = came(&socket)?.1 - before;
    Ok(())
}

/// How many datagrams have come to the server, and its id.
fn came(socket: &UdpSocket) -> io::Result<([u8; 2], u64)> {
    socket.set_read_timeout(Some(PATIENCE / 30))?;
    let mut reply = [0; MESSAGE];
    let mut tries = 0..30;
    loop {
        socket.send(b"?")?;
        match socket.recv(&mut reply) {
            Ok(10) => break,
            Ok(_) => return Err(io::Error::other("a reply that is no count")),
            // The question was lost behind the flood.
            Err(_) if tries.next().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    let [a, b, count @ ..] = *reply.first_chunk::<10>().expect("a reply has ten bytes");
    Ok(([a, b], u64::from_le_bytes(count)))
}

/// A socket that sends to `to` and hears from nobody else.
pub(super) fn bound(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn ask(socket: &UdpSocket) -> io::Result<[u8; MESSAGE]> {
    let mut message = [0; MESSAGE];
    socket.send(&message)?;
    match socket.recv(&mut message)? {
        MESSAGE => Ok(message),
        _ => Err(io::Error::other("a reply of another length")),
    }
}
