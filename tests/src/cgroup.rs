//! The lab's sub-tree of the cgroup2 hierarchy.
//!
//! A tree is made below the root of the hierarchy, locked by the process that made it, and
//! removed with every process in it. It never enables a controller and never touches a cgroup
//! that is not its own.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

/// How the name of every tree begins; what follows is the id of the process that made it.
pub const PREFIX: &str = "shunt-lab-";

/// How long the kernel may take to let go of the processes that were killed.
const REMOVAL: Duration = Duration::from_secs(10);

/// A sub-tree of the cgroup2 hierarchy, and a scratch directory of the same name.
///
/// Both are removed on drop, with every process in the tree. While a process holds the lock on
/// the tree, no other lab sweeps it; the kernel drops the lock with the process.
pub struct CgroupTree {
    path: PathBuf,
    scratch: PathBuf,
    _lock: File,
}

impl CgroupTree {
    /// Makes a tree, and removes those whose owners have died.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = mount_point()?;
        sweep(&root).context("sweep what dead labs left")?;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("{PREFIX}{}-{number}", process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.with_context(|| format!("make the cgroup {}", path.display()))?,
            }
            // Another lab that starts now may sweep the tree before it is locked: then try anew.
            if let Some(lock) = lock(&path)? {
                let scratch = scratch_of(&path);
                let _ = fs::remove_dir_all(&scratch);
                fs::create_dir(&scratch)
                    .with_context(|| format!("make the directory {}", scratch.display()))?;
                return Ok(Self { path, scratch, _lock: lock });
            }
        }
    }

    /// The cgroup at the root of the tree.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory for files, such as logs and sockets.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Makes the cgroup `name` (`node-1/pod-web-0`, say) and those above it.
    pub fn child(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for CgroupTree {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Kills every process in the tree at `path`, and removes the tree and its scratch directory.
///
/// It does not matter whether someone else removes them at the same time.
pub fn remove(path: &Path) -> Result<()> {
    let deadline = Instant::now() + REMOVAL;
    kill(path)?;
    while let Err(error) = remove_dirs(path) {
        ensure!(
            error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && Instant::now() < deadline,
            "remove the cgroup {}: {error}",
            path.display()
        );
        // A killed process leaves its cgroup a moment later, and one may have forked meanwhile.
        thread::sleep(Duration::from_millis(1));
        kill(path)?;
    }
    let scratch = scratch_of(path);
    absent_is_fine(fs::remove_dir_all(&scratch))
        .with_context(|| format!("remove the directory {}", scratch.display()))
}

/// Kills every process in the cgroup at `path` and below.
pub fn kill(path: &Path) -> Result<()> {
    absent_is_fine(fs::write(path.join("cgroup.kill"), "1"))
        .with_context(|| format!("kill the processes of {}", path.display()))
}

/// Moves the calling process into the cgroup at `path`.
pub fn join(path: &Path) -> Result<()> {
    let procs = path.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("join the cgroup: write to {}", procs.display()))
}

fn scratch_of(path: &Path) -> PathBuf {
    env::temp_dir().join(path.file_name().expect("a tree lies below the root of the hierarchy"))
}

fn remove_dirs(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dirs(&entry.path())?;
        }
    }
    absent_is_fine(fs::remove_dir(path))
}

fn sweep(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let is_tree = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_tree && let Some(_lock) = lock(&entry.path())? {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Locks the tree at `path`; `None` if it is gone, or its owner lives.
///
/// A lock says more than the process id in the name: it holds across pid namespaces, and a
/// process id is given out again.
fn lock(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("open {}", path.display()))?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if path.exists() => Ok(Some(file)),
        Ok(()) | Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or beside the older hierarchies.
fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    // proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS … - TYPE SOURCE …
    let found = mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
    });
    match found {
        Some(path) => Ok(path.into()),
        None => bail!("no cgroup2 file system is mounted; mount one: `mount -t cgroup2 none DIR`"),
    }
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        // ENODEV: the cgroup was removed after its file was opened.
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
        {
            Ok(())
        }
        done => done,
    }
}
