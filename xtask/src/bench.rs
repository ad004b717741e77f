//! Builds the benchmark and runs it as root: it makes network namespaces and loads programs.

use crate::machine::{as_root, root};
use crate::{build, setup};
use anyhow::{Context as _, Result};
use std::fs;
use std::process::ExitCode;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// What the benchmark itself takes; see `cargo xtask bench --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Gives the benchmark's own exit code.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let has = |flags: &[&str]| args.args.iter().any(|arg| flags.contains(&arg.as_str()));
    let talks_only = has(&["--help", "-h", "--list", "--from"]);
    if !talks_only {
        setup::ensure_baselines();
    }
    // Numbers need optimisations; whether it runs and is right at all does not.
    let built = build::binaries(!talks_only && !has(&["--smoke"]))?;
    let bench = build::find(&built, "bench")?;
    // Made here, it stays the user's, and the files in it become so.
    fs::create_dir_all(root().join("target/bench")).context("cannot create target/bench")?;
    let mut command = as_root(bench).map_err(|reason| {
        anyhow::anyhow!(
            "the benchmark needs root to make network namespaces and load programs: {reason}"
        )
    })?;
    command.args(&args.args);
    let status = command.status().with_context(|| format!("cannot run {}", bench.display()))?;
    // Without a code it was ended by a signal, which is a failure too.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
