//! The one system call of the lab that needs `unsafe`: leaving the network namespace.

#![expect(unsafe_code, reason = "rustix rates every unshare(2) as unsafe")]

use rustix::io;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread into a new network namespace.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: the danger of unshare(2) is `CLONE_FILES`, after which threads no longer share
    // file descriptors; `CLONE_NEWNET` alone changes nothing that Rust relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}
