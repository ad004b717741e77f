//! What the build needs of the machine: found, or installed, or named with the command that
//! installs it.
//!
//! Nothing is installed twice. System packages need root; everything else goes into the user's
//! rustup and into `.tools` in the workspace.

use crate::machine::{as_root, cargo, find_program, output, root, run};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const BPF_LINKER: &str = "0.10.4";
const PACKAGES: [&str; 2] = ["gcc", "libc6-dev"];
/// Clients that the tests of names run in pods: a program, and its package.
const CLIENTS: [(&str, &str); 2] = [("dig", "bind9-dnsutils"), ("musl-gcc", "musl-tools")];
/// What the benchmark compares with: a program, and its package.
const BASELINES: [(&str, &str); 3] =
    [("iptables-nft-restore", "iptables"), ("nft", "nftables"), ("unbound", "unbound")];

struct Step {
    name: &'static str,
    /// What is there, if it is there and right.
    find: fn() -> Option<String>,
    install: fn() -> Result<()>,
    /// The command for a person to run where `install` cannot.
    by_hand: fn() -> String,
}

const STEPS: [Step; 3] = [
    Step {
        name: "C compiler",
        find: || Some(output(Command::new("cc").arg("--version"))?.lines().next()?.to_owned()),
        install: install_packages,
        by_hand: || format!("sudo apt-get install --no-install-recommends {}", PACKAGES.join(" ")),
    },
    Step {
        name: "Rust components",
        find: find_components,
        install: install_components,
        by_hand: || format!("rustup component add {}", COMPONENTS.map(|(name, _)| name).join(" ")),
    },
    Step {
        name: "bpf-linker",
        find: find_linker,
        install: || run(cargo(LINKER_ARGS).arg("--force")),
        by_hand: || format!("cargo {}", LINKER_ARGS.join(" ")),
    },
];

/// The `--root` is where `.cargo/config.toml` and the build script expect the linker.
const LINKER_ARGS: [&str; 7] =
    ["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--root", ".tools"];

/// What the toolchain must have beyond rustc and cargo, and a file that shows that it does.
const COMPONENTS: [(&str, &str); 3] = [
    ("rust-src", "lib/rustlib/src/rust/library/core/Cargo.toml"),
    ("rustfmt", "bin/cargo-fmt"),
    ("clippy", "bin/cargo-clippy"),
];

/// Does every step that is not done yet, and says of each whether it was.
pub(crate) fn report() -> Result<()> {
    walk(|step, found| println!("found      {}: {found}", step.name))
}

/// Does every step that is not done yet; silent if there is none.
pub(crate) fn ensure_done() -> Result<()> {
    walk(|_, _| {})
}

fn walk(on_found: impl Fn(&Step, &str)) -> Result<()> {
    let mut missing = 0;
    for step in &STEPS {
        if let Some(found) = (step.find)() {
            on_found(step, &found);
            continue;
        }
        println!("installing {}", step.name);
        let installed = (step.install)().and_then(|()| {
            (step.find)().context("it was installed, and still cannot be found or is not right")
        });
        match installed {
            Ok(found) => println!("installed  {}: {found}", step.name),
            Err(error) => {
                missing += 1;
                println!("missing    {}: {error:#}", step.name);
                println!("           run in {}: {}", root().display(), (step.by_hand)());
            }
        }
    }
    ensure!(missing == 0, "{missing} of {} things that the build needs are missing", STEPS.len());
    Ok(())
}

/// Installs what the benchmark compares with, where that can be done. Without it those are left
/// out, and the benchmark says so.
pub(crate) fn ensure_baselines() {
    try_programs(&BASELINES, "the baselines of the benchmark");
}

/// Installs the clients that tests run in pods, where that can be done. Without them those tests
/// fail, and say so.
pub(crate) fn ensure_clients() {
    try_programs(&CLIENTS, "the tests of names");
}

fn try_programs(programs: &[(&str, &str)], what: &str) {
    if let Err(error) = ensure_programs(programs) {
        println!("missing    what {what} need: {error:#}");
    }
}

/// Installs those of `programs` that are missing, each of which comes with its package.
pub(crate) fn ensure_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| !in_sbin(program) && find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" and "));
    apt_install(&missing)
}

/// Whether root would find `program`, who may have a longer PATH than this user.
fn in_sbin(program: &str) -> bool {
    Path::new("/usr/sbin").join(program).is_file()
}

fn install_packages() -> Result<()> {
    apt_install(&PACKAGES)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let install = [&["install", "--yes", "--no-install-recommends"][..], packages].concat();
    // A fresh machine has no package lists, and any other need not fetch them again.
    apt(&install).or_else(|_| update_packages().and_then(|()| apt(&install)))
}

/// Fetches the lists of packages.
pub(crate) fn update_packages() -> Result<()> {
    apt(&["--quiet=2", "update"])
}

fn apt(args: &[&str]) -> Result<()> {
    let apt = find_program("apt-get").context("this is no Debian: there is no apt-get")?;
    let mut command = as_root(Path::new("/usr/bin/env")).map_err(anyhow::Error::msg)?;
    run(command.arg("DEBIAN_FRONTEND=noninteractive").arg(apt).args(args))
}

fn find_components() -> Option<String> {
    let sysroot = sysroot()?;
    let complete = COMPONENTS.iter().all(|(_, file)| sysroot.join(file).exists());
    let version = output(Command::new("rustc").arg("--version").current_dir(root()))?;
    complete.then(|| format!("rust-src, rustfmt and clippy of {}", version.trim_end()))
}

fn install_components() -> Result<()> {
    if find_program("rustup").is_none() {
        bail!("there is no rustup to add rust-src, rustfmt and clippy with; see https://rustup.rs");
    }
    let names = COMPONENTS.map(|(name, _)| name);
    run(Command::new("rustup").args(["component", "add"]).args(names).current_dir(root()))
}

fn sysroot() -> Option<PathBuf> {
    let path = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?;
    Some(PathBuf::from(path.trim_end()))
}

fn find_linker() -> Option<String> {
    let linker = root().join(".tools/bin/bpf-linker");
    let version = output(Command::new(linker).arg("--version"))?;
    (version.trim_end() == format!("bpf-linker {BPF_LINKER}"))
        .then(|| format!("{BPF_LINKER} in .tools/bin"))
}
