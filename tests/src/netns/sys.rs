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

/// What a device can do for the stack; the numbers are the commands `ETHTOOL_S…` of
/// linux/ethtool.h.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offload {
    /// Filling in the checksums of what leaves.
    SendChecksum = 0x17,
    /// Cutting TCP's data into segments (TSO).
    TcpSegmentation = 0x1f,
    /// The same as late as the stack can (GSO).
    Segmentation = 0x24,
    /// Joining segments that come (GRO).
    Receive = 0x2c,
}

impl Offload {
    /// All of them, in an order that the kernel takes.
    pub(super) const ALL: [Self; 4] =
        [Self::TcpSegmentation, Self::Segmentation, Self::Receive, Self::SendChecksum];
}

/// Leaves `offload` of `device` to the stack, in the namespace of the calling thread.
pub(super) fn turn_off(offload: Offload, device: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = EthtoolValue { command: offload as u32, data: 0 };
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
