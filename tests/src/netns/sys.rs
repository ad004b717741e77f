//! The system calls of the lab that need `unsafe`: leaving the network namespace, and turning
//! off what a device does for the stack.

#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use rustix::io;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::os::fd::AsRawFd;

/// Moves the calling thread into a new network namespace.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: the danger of unshare(2) is `CLONE_FILES`, after which threads no longer share
    // file descriptors; `CLONE_NEWNET` alone changes nothing that Rust relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

const ETHTOOL_STXCSUM: u32 = 0x17;

/// Has the stack fill in the checksums of what leaves by `device`, in the namespace of the
/// calling thread.
pub(super) fn turn_off_checksum_offload(device: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = EthtoolValue { command: ETHTOOL_STXCSUM, data: 0 };
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(device.bytes()).take(libc::IFNAMSIZ - 1) {
        *to = from as libc::c_char;
    }
    let data = (&raw mut value).cast();
    let union = libc::__c_anonymous_ifr_ifru { ifru_data: data };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: union };
    // SAFETY: the request is a whole `struct ifreq` whose name ends in a zero and whose data is a
    // whole `struct ethtool_value`; the kernel reads both during the call only.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(io::Errno::from_io_error(&error).unwrap_or(io::Errno::IO));
    }
    Ok(())
}
