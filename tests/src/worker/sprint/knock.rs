//! The programs at connect(2) and next to nothing else: the kernel runs them, and then finds that
//! the address is of a family that TCP over IPv4 does not connect to.

#![expect(unsafe_code, reason = "no safe wrapper takes an address of the wrong family")]

use super::Tally;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;

/// Connects between two looks at the clock.
const BATCH: u64 = 256;

/// Knocks at the first target again and again with one socket, which stays unconnected.
pub(super) fn knock(tally: &mut Tally<'_>) -> io::Result<()> {
    let SocketAddr::V4(to) = tally.target() else {
        return Err(io::Error::other("only IPv4 addresses are knocked at"));
    };
    let to = libc::sockaddr_in {
        sin_family: libc::AF_APPLETALK as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    while !tally.is_over() {
        for _ in 0..BATCH {
            let error = refused(&socket, &to);
            if error.raw_os_error() != Some(libc::EAFNOSUPPORT) {
                return Err(error);
            }
        }
        tally.report.count += BATCH;
    }
    Ok(())
}

/// The error of a connect(2) of `socket` to `to`.
fn refused(socket: &OwnedFd, to: &libc::sockaddr_in) -> io::Error {
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address lives until the call has ended, and `length` is its size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), ptr::from_ref(to).cast(), length) };
    match result {
        0 => io::Error::other("a connection where none can be"),
        _ => io::Error::last_os_error(),
    }
}
