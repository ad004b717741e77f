//! Builds the demo and runs it as root: it makes network namespaces and loads programs.

use crate::build;
use crate::machine::as_root;
use anyhow::{Context as _, Result};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print the steps as one JSON document
    #[arg(long)]
    json: bool,
    /// Leave the cluster up at the end
    #[arg(long)]
    keep: bool,
}

/// Gives the demo's own exit code.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let built = build::binaries(false)?;
    let demo = build::find(&built, "demo")?;
    let mut command = as_root(demo).map_err(|reason| {
        anyhow::anyhow!(
            "the demo needs root to make network namespaces and load programs: {reason}"
        )
    })?;
    let flags = [("--json", args.json), ("--keep", args.keep)];
    command.args(flags.iter().filter(|(_, given)| *given).map(|(flag, _)| flag));
    let status = command.status().with_context(|| format!("cannot run {}", demo.display()))?;
    // Without a code it was ended by a signal, which is a failure too.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
