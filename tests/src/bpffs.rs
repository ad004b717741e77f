//! A BPF file system of the lab's own, mounted nowhere.
//!
//! It is reached through a file descriptor of this process, so that other processes can pin
//! into it while this one lives, and every pin in it is gone when this one ends, however.

use anyhow::{Context, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::{fs, process};

/// A detached mount of a BPF file system.
pub(crate) struct BpfFs(OwnedFd);

impl BpfFs {
    pub(crate) fn mount() -> Result<Self> {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen bpf")?;
        fsconfig_create(&context).context("create a BPF file system")?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        Ok(Self(mount.context("mount a BPF file system")?))
    }

    /// Makes the directory `name`, and gives the path at which every process of root finds it.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path: PathBuf =
            format!("/proc/{}/fd/{}/{name}", process::id(), self.0.as_raw_fd()).into();
        fs::create_dir(&path).with_context(|| format!("make the directory {}", path.display()))?;
        Ok(path)
    }
}
