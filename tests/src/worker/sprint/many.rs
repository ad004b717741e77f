//! Many at once, over epoll.

use super::{PATIENCE, Tally};
use crate::sprint::{Deed, MESSAGE};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect as connect_to, socket_with};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A connection under way.
struct Client {
    stream: TcpStream,
    started: Instant,
    /// Whether its server has said who it is.
    answered: bool,
}

pub(super) fn connect(tally: &mut Tally<'_>) -> io::Result<()> {
    let wait_for_end = tally.sprint.deed == Deed::ConnectInOrder;
    let on_event = |client: &mut Client, tally: &mut Tally<'_>| -> io::Result<Next> {
        let mut id = [0; 2];
        if !client.answered {
            client.stream.read_exact(&mut id)?;
            tally.answered(&id, client.started.elapsed())?;
            client.answered = true;
        }
        if !wait_for_end {
            set_socket_linger(&client.stream, Some(Duration::ZERO))?;
            return Ok(Next::Replace);
        }
        match client.stream.read(&mut id) {
            Ok(0) => Ok(Next::Replace),
            Ok(_) => Err(io::Error::other("the server said more than its id")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Next::Wait),
            Err(error) => Err(error),
        }
    };
    turn(tally, |_| Ok(()), on_event)
}

pub(super) fn request(tally: &mut Tally<'_>) -> io::Result<()> {
    let on_open = |client: &mut Client| {
        // Connected before the first message, by a blocking connect(2) on this machine's wires.
        set_tcp_nodelay(&client.stream, true)?;
        client.stream.write_all(&[0; MESSAGE])
    };
    let on_event = |client: &mut Client, tally: &mut Tally<'_>| {
        let mut message = [0; MESSAGE];
        client.stream.read_exact(&mut message)?;
        tally.answered(&message, client.started.elapsed())?;
        client.started = Instant::now();
        client.stream.write_all(&message)?;
        Ok(Next::Wait)
    };
    turn(tally, on_open, on_event)
}

/// What becomes of a connection.
enum Next {
    Wait,
    Replace,
}

/// Keeps the connections of the sprint going until its end.
fn turn(
    tally: &mut Tally<'_>,
    on_open: impl Fn(&mut Client) -> io::Result<()>,
    mut on_event: impl FnMut(&mut Client, &mut Tally<'_>) -> io::Result<Next>,
) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let blocking = tally.sprint.deed == Deed::Request;
    let mut clients = Vec::new();
    for index in 0..tally.sprint.concurrency {
        clients.push(open(tally, &epoll, index, blocking, &on_open)?);
    }
    let mut events: Vec<Event> = Vec::with_capacity(clients.len());
    let patience = PATIENCE.try_into().expect("three seconds are a timespec");
    // Connections that are open at the end are waited for: to leave them out would be to leave out
    // the choices that were slow.
    let mut open_ones = clients.len();
    let closes = tally.sprint.deed != Deed::Request;
    while open_ones > 0 {
        if tally.ended.is_none() && tally.is_over() {
            tally.ended = Some(Instant::now());
            if !closes {
                break;
            }
        }
        events.clear();
        if epoll::wait(&epoll, spare_capacity(&mut events), Some(&patience))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection got anywhere"));
        }
        for event in &events {
            let index = event.data.u64() as usize;
            match on_event(&mut clients[index], tally) {
                Ok(Next::Wait) => continue,
                Ok(Next::Replace) => {}
                Err(error) => tally.failed(error)?,
            }
            if tally.ended.is_some() {
                epoll::delete(&epoll, &clients[index].stream)?;
                open_ones -= 1;
                continue;
            }
            clients[index] = open(tally, &epoll, index, blocking, &on_open)?;
        }
    }
    Ok(())
}

/// Opens a connection; closing it takes it out of `epoll`.
fn open(
    tally: &mut Tally<'_>,
    epoll: &OwnedFd,
    index: usize,
    blocking: bool,
    on_open: impl Fn(&mut Client) -> io::Result<()>,
) -> io::Result<Client> {
    loop {
        let to = tally.target();
        let started = Instant::now();
        let flags = SocketFlags::CLOEXEC;
        let flags = if blocking { flags } else { flags | SocketFlags::NONBLOCK };
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect_to(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {
                let mut client = Client { stream: socket.into(), started, answered: false };
                on_open(&mut client)?;
                let data = EventData::new_u64(index as u64);
                epoll::add(epoll, &client.stream, data, EventFlags::IN)?;
                return Ok(client);
            }
            Err(error) => tally.failed(error.into())?,
        }
    }
}
