//! The `shunt` binary: reads the command line, runs the command, turns errors into exit codes.

use anyhow::bail;
use clap::Parser as _;
use proxy_user::cli::{self, Cli, Command};
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
        Command::Agent | Command::Cleanup => bail!("this build has no agent"),
        Command::Query(query) => Ok(ExitCode::from(cli::answer(query, &cli.global)? as u8)),
    }
}
