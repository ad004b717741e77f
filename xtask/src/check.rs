//! `cargo xtask check`: everything that can be checked without running Shunt, a line for each. Only
//! one needs root: the kernel has to load the programs to say how large they are to it.
//!
//! A check gives its findings, each a sentence that names the place; none is a pass. What a check
//! looks for stands as data at the top of its file.

mod arrow;
mod documents;
mod manifests;
mod programs;
mod scenarios;
mod sources;

use crate::machine::{cargo, root, shown};
use crate::{build, setup};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

/// What a check has to say; nothing means that all is well.
type Findings = Vec<String>;

struct Check {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<Findings>,
}

const CHECKS: [Check; 10] = [
    Check { name: "sources", what: "files are short and open with //!", run: sources::check },
    Check { name: "tracked", what: "nothing is here that does not belong", run: sources::tracked },
    Check { name: "arrow", what: "imports follow the arrow", run: arrow::check },
    Check { name: "fmt", what: "the code is formatted", run: || passes(cargo(["fmt", "--check"])) },
    Check { name: "clippy", what: "clippy is content with user space", run: clippy },
    Check { name: "clippy-bpf", what: "clippy is content with the programs", run: clippy_bpf },
    Check { name: "documents", what: "documents name what exists", run: documents::check },
    Check { name: "scenarios", what: "every scenario has its tests", run: scenarios::check },
    Check { name: "manifests", what: "manifests parse and fit the agent", run: manifests::check },
    Check {
        name: "programs",
        what: "programs are far from the verifier's limit",
        run: programs::check,
    },
];

/// Runs the checks `names`, or all if there are none.
pub(crate) fn run(names: &[String]) -> Result<ExitCode> {
    for name in names {
        let known = CHECKS.map(|check| check.name);
        ensure!(known.contains(&&**name), "there is no check {name}, only {}", known.join(", "));
    }
    setup::ensure_done()?;
    let mut failed = 0;
    for check in CHECKS.iter().filter(|c| names.is_empty() || names.iter().any(|n| n == c.name)) {
        let findings = (check.run)().unwrap_or_else(|error| vec![format!("{error:#}")]);
        let verdict = if findings.is_empty() { "ok  " } else { "FAIL" };
        println!("{verdict}  {:<10}  {}", check.name, check.what);
        for finding in &findings {
            println!("      {}", finding.trim_end().replace('\n', "\n      "));
        }
        failed += usize::from(!findings.is_empty());
    }
    if failed > 0 {
        println!("{failed} failed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn clippy() -> Result<Findings> {
    passes(cargo(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings"]))
}

/// As the build script of `proxy-user` builds the programs, in the same target directory.
fn clippy_bpf() -> Result<Findings> {
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ];
    let mut command = cargo(["clippy", "--quiet", "--package", "proxy-ebpf", "--bin", "programs"]);
    command
        .args(["--features", "programs", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .args(["--release", "--target-dir", "target/bpf", "--", "-Dwarnings"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC_BOOTSTRAP", "1");
    passes(command)
}

/// A command that finds nothing wrong if it succeeds, and else says what it finds.
fn passes(mut command: Command) -> Result<Findings> {
    let output = command.output().with_context(|| format!("cannot run {}", shown(&command)))?;
    if output.status.success() {
        return Ok(vec![]);
    }
    let text = [output.stdout, output.stderr].concat();
    Ok(vec![format!("{}:\n{}", shown(&command), String::from_utf8_lossy(&text))])
}

/// All files of the workspace that people wrote, relative to its root and in order.
fn files() -> Result<BTreeSet<PathBuf>> {
    const NOT_OURS: [&str; 3] = ["target", ".tools", ".git"];
    let mut files = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = root().join(&folder).read_dir();
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if !entry.file_type()?.is_dir() {
                files.insert(path);
            } else if !NOT_OURS.iter().any(|name| path == Path::new(name)) {
                folders.push(path);
            }
        }
    }
    // In a work tree `.git` is a file.
    files.remove(Path::new(".git"));
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(root().join(path))
        .with_context(|| format!("cannot read {}", path.display()))
}

/// What `shunt` prints with `args` and `--help`, if it knows them.
fn shunt_help(args: &[&str]) -> Result<Option<String>> {
    static SHUNT: OnceLock<PathBuf> = OnceLock::new();
    let shunt = match SHUNT.get() {
        Some(shunt) => shunt,
        None => {
            let built = build::binaries(false)?;
            let shunt = build::find(&built, "shunt")?.to_owned();
            SHUNT.get_or_init(|| shunt)
        }
    };
    let output = Command::new(shunt).args(args).arg("--help").output()?;
    let help = String::from_utf8(output.stdout).context("the help is no text")?;
    Ok((output.status.success() && !help.is_empty()).then_some(help))
}

/// The flags in a help text of clap, without their dashes: `-c, --long` or `--long`, at most six
/// blanks in; what is further in is description.
fn flags(help: &str) -> BTreeSet<&str> {
    help.lines()
        .filter(|line| !line.starts_with("       "))
        .flat_map(|line| line.split_whitespace().take(2))
        .filter_map(|word| word.strip_prefix("--"))
        .collect()
}
