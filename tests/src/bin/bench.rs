//! `bench`: measures Shunt against the direct path and kube-proxy. `cargo xtask bench` runs it.

use anyhow::Result;
use clap::Parser;
use lab::bench::{self, Options};
use std::process::ExitCode;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    bench::run(Options::parse()).await
}
