//! Many datagrams for a system call: sendmmsg(2) and recvmmsg(2).

#![expect(unsafe_code, reason = "no safe wrapper receives several datagrams")]

use std::array;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::ptr;

/// The most datagrams in one call.
pub(super) const MOST: usize = 32;

/// Sends all of `datagrams`, at most [`MOST`], to the peer of `socket`.
pub(super) fn send(socket: &UdpSocket, datagrams: &mut [Vec<u8>]) -> io::Result<()> {
    let mut rest = datagrams;
    while !rest.is_empty() {
        let sent = exchange(rest.iter_mut().map(Vec::as_mut_slice), |headers, count| {
            // SAFETY: `count` headers, which point to one live slice each.
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count, 0) }
        })?;
        rest = &mut rest[sent.0..];
    }
    Ok(())
}

/// Waits for a datagram and takes what else is there, up to [`MOST`]. Gives how many came, and
/// their lengths.
pub(super) fn receive<const SIZE: usize>(
    socket: &UdpSocket,
    buffers: &mut [[u8; SIZE]],
) -> io::Result<(usize, [usize; MOST])> {
    exchange(buffers.iter_mut().map(<[u8; SIZE]>::as_mut_slice), |headers, count| {
        let flags = libc::MSG_WAITFORONE;
        // SAFETY: `count` headers, which point to one live and writable slice each.
        unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, count, flags, ptr::null_mut()) }
    })
}

/// Makes a header for each of `buffers`, and has `call` use them. Gives what it returns, and the
/// lengths that the kernel wrote.
fn exchange<'a>(
    buffers: impl Iterator<Item = &'a mut [u8]>,
    call: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
) -> io::Result<(usize, [usize; MOST])> {
    let mut slices = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MOST];
    let mut count = 0;
    for (slice, buffer) in slices.iter_mut().zip(buffers) {
        *slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        count += 1;
    }
    // SAFETY: plain numbers and pointers, for which zeroes mean that there is nothing.
    let mut headers: [libc::mmsghdr; MOST] = array::from_fn(|_| unsafe { std::mem::zeroed() });
    for (header, slice) in headers.iter_mut().zip(&mut slices) {
        header.msg_hdr.msg_iov = slice;
        header.msg_hdr.msg_iovlen = 1;
    }
    let done = call(headers.as_mut_ptr(), count);
    let lengths = headers.map(|header| header.msg_len as usize);
    usize::try_from(done).map_err(|_| io::Error::last_os_error()).map(|done| (done, lengths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_keep_their_borders() -> io::Result<()> {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind(("127.0.0.1", 0)));
        let (one, other) = (one?, other?);
        one.connect(other.local_addr()?)?;
        let mut datagrams: Vec<_> = (0..MOST).map(|length| vec![length as u8; length]).collect();
        send(&one, &mut datagrams)?;
        let mut buffers = [[0; 64]; MOST];
        let (count, lengths) = receive(&other, &mut buffers)?;
        assert_eq!(count, MOST);
        for (index, datagram) in datagrams.iter().enumerate() {
            assert_eq!(&buffers[index][..lengths[index]], datagram);
        }
        Ok(())
    }
}
