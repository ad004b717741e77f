//! The guardian: removes a lab whose process died without doing so.
//!
//! It waits for the end of a pipe whose other end only the lab's process holds. When the lab
//! has removed itself it finds nothing to do.

use crate::cgroup;
use crate::program;
use anyhow::{Context, Result};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The lab's side of the guardian.
pub(crate) struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    /// Starts a guardian of the cgroup tree at `path`.
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let mut child = Command::new(program::find("lab-worker")?)
            .arg("guard")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start the lab's guardian")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Err(error) = self.child.wait() {
            eprintln!("lab: wait for the guardian: {error}");
        }
    }
}

/// What the guardian's process does.
pub fn run(path: &Path) -> Result<()> {
    // Ctrl-C and the end of the terminal end the lab, and must not end its guardian.
    let _ = rustix::process::setsid().context("leave the session")?;
    let _ = io::stdin().read_to_end(&mut Vec::new()).context("wait for the lab's end")?;
    cgroup::remove(path)
}
