//! The programs that the lab runs: where those of this workspace lie, and how one is started on a
//! node.

use crate::lab::Node;
use anyhow::{Context, Result};
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// The path of the program `name` of this workspace, of the profile of the running program.
///
/// Cargo puts tests into `target/PROFILE/deps`, examples into `target/PROFILE/examples` and
/// programs into `target/PROFILE`. On a machine without Cargo all lie in one folder.
pub fn find(name: &str) -> Result<PathBuf> {
    let this = env::current_exe().context("find the running program")?;
    let folders = this.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("no program `{name}` beside {}; build it: `cargo build --bins`", this.display())
    })
}

/// Starts `program` in the network namespace and cgroup of `node`, with `vars` in its environment
/// beside those of this process; all that it says goes into the new file `log`. It is killed when
/// dropped.
pub(crate) fn start(
    node: &Node,
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    vars: &[(&str, &str)],
    log: &Path,
) -> Result<Child> {
    let output = File::create(log).with_context(|| format!("make {}", log.display()))?;
    Command::new(find("lab-worker")?)
        .arg("enter")
        .args([&node.netns().path(), node.cgroup(), program])
        .args(args)
        .envs(vars.iter().copied())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {} on {}", program.display(), node.name()))
}
