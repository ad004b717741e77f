//! Prints what each kernel program costs: how many instructions the verifier walked through (its
//! limit is a million), and how large the program is after translation and as machine code.
//!
//! Takes nothing; loads the programs into a BPF file system that is mounted nowhere, attaches
//! none, and leaves nothing behind. Needs root.

use anyhow::{Context as _, Result};
use proxy_user::loader::{Dataplane, Settings};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::os::fd::{AsRawFd as _, OwnedFd};

fn main() -> Result<()> {
    // Loading makes tables of nftables, which are not to be the machine's own.
    // SAFETY: the danger of unshare(2) is `CLONE_FILES`, after which threads no longer share
    // descriptors; a network namespace of its own leaves them alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("needs root")?;
    let bpffs = bpffs().context("cannot make a BPF file system; run as root")?;
    let dataplane =
        Dataplane::load(&Settings::new(format!("/proc/self/fd/{}", bpffs.as_raw_fd())))?;
    let mut rows = dataplane
        .programs()
        .map(|(name, program)| {
            let info = program.info().with_context(|| format!("cannot read {name}"))?;
            let verified = info.verified_instruction_count().unwrap_or_default();
            let translated = info.size_translated().unwrap_or_default();
            Ok((name, verified, translated, info.size_jitted()))
        })
        .collect::<Result<Vec<_>>>()?;
    rows.sort();
    println!(
        "{:<14} {:>14} {:>16} {:>12}",
        "program", "verified insns", "translated bytes", "jited bytes"
    );
    for (name, verified, translated, jited) in rows {
        println!("{name:<14} {verified:>14} {translated:>16} {jited:>12}");
    }
    Ok(())
}

fn bpffs() -> Result<OwnedFd> {
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
