//! The `shunt` binary: reads the command line, runs the command, turns errors into exit codes.

use anyhow::{Context as _, bail};
use clap::Parser as _;
use proxy_user::cli::{self, Cli, Command};
use proxy_user::loader;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shunt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Agent => bail!("this build has no agent"),
        Command::Cleanup => {
            let root = &cli.global.bpffs_root;
            loader::cleanup(root).with_context(|| {
                format!("cannot remove {}: run as root", root.join("shunt").display())
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Query(query) => Ok(ExitCode::from(cli::answer(query, &cli.global)? as u8)),
    }
}
