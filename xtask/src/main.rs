//! `cargo xtask`: set-up, build, tests, demo, benchmark, checks and image of this workspace.
//!
//! CI and the README call these and nothing else. Each task makes what it needs, so that any of
//! them works on a fresh clone. Only `test`, `demo` and `bench` run anything as root, and that is never
//! cargo: what lies in the tree stays the user's.

mod bench;
mod build;
mod check;
mod demo;
mod image;
mod machine;
mod setup;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// The tasks of the Shunt workspace
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build needs: a C compiler, Rust components, bpf-linker (the other tasks
    /// do this themselves)
    Setup,
    /// Build the agent, the command line and the kernel programs inside them
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Run the tests; asks for root once, through sudo, where a tier needs it
    Test(test::Args),
    /// Build a small cluster out of network namespaces and show what Shunt does in it
    Demo(demo::Args),
    /// Measure Shunt against the direct path and the rules of kube-proxy
    Bench(bench::Args),
    /// Check what can be checked without running Shunt: format, lints, imports, documents,
    /// manifests
    Check {
        /// Only these checks, by the names that the report shows
        names: Vec<String>,
    },
    /// Build the container image with podman, docker or buildah
    Image {
        /// The name and tag of the image
        #[arg(long, default_value = "shunt:dev")]
        tag: String,
    },
    /// Boot older kernels in virtual machines and load the kernel programs there
    Vm,
    /// The part of `test` that runs as root: what the file `plan` says
    #[command(hide = true)]
    PrivilegedTests { plan: PathBuf, results: PathBuf },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => {
            setup::report()?;
            setup::ensure_baselines();
            setup::ensure_clients();
        }
        Task::Build { release } => drop(build::binaries(release)?),
        Task::Test(args) => return test::run(&args),
        Task::Demo(args) => return demo::run(&args),
        Task::Bench(args) => return bench::run(&args),
        Task::Check { names } => return check::run(&names),
        Task::Image { tag } => image::build(&tag)?,
        Task::Vm => return vm::run_all(),
        Task::PrivilegedTests { plan, results } => test::run_privileged(&plan, &results)?,
    }
    Ok(ExitCode::SUCCESS)
}
