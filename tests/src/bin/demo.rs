//! `demo`: shows what Shunt does, on two nodes in this machine. `cargo xtask demo` runs it.

use anyhow::{Result, bail};
use lab::demo::{self, Options};
use std::env;
use std::process::ExitCode;

const HELP: &str = "\
Shows what Shunt does, with real traffic between two nodes made of network namespaces.
Needs root; touches nothing outside its own namespaces, and removes them at the end.

Usage: demo [--json] [--keep]

  --json  Print one JSON document instead
  --keep  Leave the cluster up until Ctrl-C, and say how to look around";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut options = Options::default();
    for arg in env::args().skip(1) {
        match arg.as_str() {
            "--json" => options.json = true,
            "--keep" => options.keep = true,
            "-h" | "--help" => {
                println!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => bail!("`{arg}` is no flag of the demo; see --help"),
        }
    }
    demo::run(options).await
}
