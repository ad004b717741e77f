//! Where the programs of this workspace lie: beside the running test, demo or benchmark.

use anyhow::{Context, Result};
use std::env;
use std::path::PathBuf;

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
