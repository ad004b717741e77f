//! Builds the benchmark with optimisations and runs it as root: it makes network namespaces, and
//! loads programs and rules inside them.

use crate::build;
use crate::machine::as_root;
use anyhow::{Context as _, Result};
use std::process::ExitCode;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Flags of the benchmark itself; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Gives the benchmark's own exit code.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let built = build::binaries(true)?;
    let bench = build::find(&built, "bench")?;
    let mut command = as_root(bench).map_err(|reason| {
        anyhow::anyhow!("the benchmark needs root to make network namespaces: {reason}")
    })?;
    let status = command.args(&args.flags).status();
    let status = status.with_context(|| format!("cannot run {}", bench.display()))?;
    // Without a code it was ended by a signal, which is a failure too.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
