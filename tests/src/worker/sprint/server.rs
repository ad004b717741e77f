//! The servers of sprints: threads that end with the worker.

use super::{Side, stay_on};
use crate::sprint::{MESSAGE, Service};
use crate::traffic::Failure;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// What the server of a flood may have waiting, so that it counts what came through.
const QUEUE: usize = 4 << 20;
/// What one read of a stream takes at most.
const CHUNK: usize = 256 * 1024;

/// Starts every [`Service`] on its port; `id` is what they answer with.
pub(crate) fn serve(id: u16) -> Result<(), Failure> {
    for service in Service::ALL {
        let started = start(service, id.to_le_bytes());
        started.map_err(|error| {
            Failure::from_io(&format!("serve {service:?} on {}", service.port()), &error)
        })?;
    }
    Ok(())
}

fn start(service: Service, id: [u8; 2]) -> io::Result<()> {
    let addr = (Ipv4Addr::UNSPECIFIED, service.port());
    match service {
        Service::Greet => listen(addr, move |mut stream| {
            // The client sees what goes wrong.
            let _ = stream.write_all(&id);
        }),
        Service::Echo => listen(addr, move |stream| in_thread(move || drop(echo(stream, id)))),
        Service::Drain => listen(addr, move |stream| in_thread(move || drop(drain(stream, id)))),
        Service::Datagram => {
            let socket = UdpSocket::bind(addr)?;
            in_thread(move || answer(&socket, id));
            Ok(())
        }
        Service::Count => {
            let socket = UdpSocket::bind(addr)?;
            set_socket_recv_buffer_size(&socket, QUEUE)?;
            in_thread(move || count(&socket, id));
            Ok(())
        }
    }
}

fn listen(
    addr: (Ipv4Addr, u16),
    mut on_client: impl FnMut(TcpStream) + Send + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(addr)?;
    // As std, but with room for a burst.
    rustix::net::listen(&listener, 4096)?;
    in_thread(move || {
        for stream in listener.incoming().flatten() {
            on_client(stream);
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream, id: [u8; 2]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        message[..2].copy_from_slice(&id);
        stream.write_all(&message)?;
    }
}

fn drain(mut stream: TcpStream, id: [u8; 2]) -> io::Result<()> {
    stream.write_all(&id)?;
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}

fn answer(socket: &UdpSocket, id: [u8; 2]) {
    let mut message = [0; MESSAGE];
    loop {
        // An error is an ICMP message about an earlier reply: that client's affair.
        let Ok((length, client)) = socket.recv_from(&mut message) else { continue };
        message[..2].copy_from_slice(&id);
        let _ = socket.send_to(&message[..length], client);
    }
}

fn count(socket: &UdpSocket, id: [u8; 2]) {
    let mut message = [0; MESSAGE];
    let mut count = 0_u64;
    loop {
        let Ok((_, client)) = socket.recv_from(&mut message) else { continue };
        if message[0] != b'?' {
            count += 1;
            continue;
        }
        let mut reply = [0; 10];
        reply[..2].copy_from_slice(&id);
        reply[2..].copy_from_slice(&count.to_le_bytes());
        let _ = socket.send_to(&reply, client);
    }
}

fn in_thread(work: impl FnOnce() + Send + 'static) {
    drop(thread::spawn(move || {
        stay_on(Side::Server);
        work();
    }));
}
