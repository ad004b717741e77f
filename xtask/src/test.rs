//! Runs the tests, tier by tier, and sums them up.
//!
//! cargo builds the test executables as the user who asked. Those of the tiers that need root run
//! in one child, this program again, as root; it gets a plan and gives the sums back in a file,
//! so that everything in the tree stays the user's.

use crate::machine::{as_root, cargo, root};
use crate::{build, machine, setup};
use anyhow::{Context as _, Result};
use build::Executable;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only this tier; may be given several times
    #[arg(long)]
    tier: Vec<Tier>,
    /// Flags for the test executables, such as --nocapture
    #[arg(last = true)]
    flags: Vec<String>,
}

/// How near to the real thing a test comes; the weakest one that can fail is the right one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Tier {
    /// Pure code, on the host
    Unit,
    /// Programs and maps in the kernel, without traffic; needs root
    Program,
    /// Sockets and packets between network namespaces; needs root
    Lab,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Unit, Self::Program, Self::Lab];

    /// The tier of a test executable: the crate `tests` is the lab, and integration tests of the
    /// other crates are about programs and maps in the kernel.
    fn of(executable: &Executable) -> Self {
        match executable.package.file_name() {
            Some(package) if package == "tests" => Self::Lab,
            _ if executable.integration => Self::Program,
            _ => Self::Unit,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Program => "program",
            Self::Lab => "lab",
        }
    }
}

/// What came of the tests of a tier.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// The sums in libtest's closing line, if `line` is one.
    fn parse(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |word| {
            let part = counts.split("; ").find_map(|part| part.strip_suffix(word))?;
            part.trim().parse().ok()
        };
        let (passed, failed) = (count("passed")?, count("failed")?);
        Some(Self { passed, failed, ignored: count("ignored")? })
    }
}

/// The test executables that run in one go.
#[derive(Serialize, Deserialize)]
struct Plan {
    runs: Vec<Run>,
    args: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Run {
    tier: Tier,
    executable: PathBuf,
    package: PathBuf,
}

type Tallies = BTreeMap<Tier, Tally>;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let tiers = if args.tier.is_empty() { &Tier::ALL[..] } else { &args.tier };
    let libtest_args: Vec<_> = args.filter.iter().chain(&args.flags).cloned().collect();

    if tiers.contains(&Tier::Lab) {
        setup::ensure_clients();
    }
    // The lab runs `shunt` and `lab-worker`, which lie beside the test executables.
    drop(build::binaries(false)?);
    let runs = build::tests()?.into_iter().map(|executable| Run {
        tier: Tier::of(&executable),
        executable: executable.path,
        package: executable.package,
    });
    let (host, privileged): (Vec<_>, Vec<_>) =
        runs.filter(|run| tiers.contains(&run.tier)).partition(|run| run.tier == Tier::Unit);

    let mut tallies = Tallies::new();
    if tiers.contains(&Tier::Unit) {
        tallies = run_plan(&Plan { runs: host, args: libtest_args.clone() })?;
        println!("\n== unit: examples in the documentation");
        let mut doc_tests = cargo(["test", "--workspace", "--doc", "--quiet", "--"]);
        tallies.entry(Tier::Unit).or_default().add(run_one(doc_tests.args(&libtest_args))?);
    }
    let plan = Plan { runs: privileged, args: libtest_args };
    let skipped = match run_as_root(&this, &plan)? {
        Ok(more) => {
            tallies.extend(more);
            None
        }
        Err(reason) => Some(reason),
    };
    Ok(summarize(tiers, &tallies, skipped.as_deref()))
}

/// Runs the plan as root and gives its sums, or why it did not run at all.
fn run_as_root(this: &Path, plan: &Plan) -> Result<Result<Tallies, String>> {
    if plan.runs.is_empty() {
        return Ok(Ok(Tallies::new()));
    }
    if machine::is_root() {
        return run_plan(plan).map(Ok);
    }
    let mut command = match as_root(this) {
        Ok(command) => command,
        Err(reason) => return Ok(Err(reason.to_owned())),
    };
    let folder = root().join("target/xtask");
    let (plan_file, results) = (folder.join("privileged.json"), folder.join("results.json"));
    fs::create_dir_all(&folder).context("cannot create target/xtask")?;
    fs::write(&plan_file, serde_json::to_vec(plan)?).context("cannot write the plan")?;
    // Made here, and only written by the child, it stays the user's.
    fs::write(&results, "").context("cannot write the file for the results")?;
    println!("\n== the next tests need root");
    let status = command.arg("privileged-tests").args([&plan_file, &results]).status()?;
    let text = fs::read(&results).context("cannot read the results")?;
    if text.is_empty() {
        return Ok(Err(format!("sudo did not run the tests as root ({status})")));
    }
    let tallies = serde_json::from_slice(&text);
    Ok(Ok(tallies.with_context(|| format!("the tests as root broke off ({status})"))?))
}

/// The child's side of [`run_as_root`].
pub(crate) fn run_privileged(plan: &Path, results: &Path) -> Result<()> {
    let plan = fs::read(plan).with_context(|| format!("cannot read {}", plan.display()))?;
    fs::write(results, "begun").context("cannot write the results")?;
    let tallies = run_plan(&serde_json::from_slice(&plan)?)?;
    fs::write(results, serde_json::to_vec(&tallies)?).context("cannot write the results")
}

fn run_plan(plan: &Plan) -> Result<Tallies> {
    let mut tallies = Tallies::new();
    for run in &plan.runs {
        println!("\n== {}: {}", run.tier.name(), label(run));
        let mut command = Command::new(&run.executable);
        // As `cargo test` runs them.
        command.current_dir(&run.package).env("CARGO_MANIFEST_DIR", &run.package).args(&plan.args);
        tallies.entry(run.tier).or_default().add(run_one(&mut command)?);
    }
    Ok(tallies)
}

/// The executable's name without cargo's hash, and its package.
fn label(run: &Run) -> String {
    let name = run.executable.file_name().unwrap_or_default().to_string_lossy();
    let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
    format!("{name} of {}", run.package.file_name().unwrap_or_default().to_string_lossy())
}

/// Runs a test executable, shows what it prints and sums it up.
fn run_one(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", machine::shown(command)))?;
    let stdout = child.stdout.take().context("the tests have no standard output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add(Tally::parse(&line).unwrap_or_default());
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        println!("{} ended without a result ({status})", machine::shown(command));
        tally.failed = 1;
    }
    Ok(tally)
}

fn summarize(tiers: &[Tier], tallies: &Tallies, skipped: Option<&str>) -> ExitCode {
    println!();
    let mut good = true;
    for &tier in tiers {
        let name = tier.name();
        match (tallies.get(&tier), skipped) {
            (Some(tally), _) => {
                let Tally { passed, failed, ignored } = tally;
                let ignored = if *ignored > 0 { format!(", {ignored} ignored") } else { "".into() };
                println!("{name:<8} {passed} passed, {failed} failed{ignored}");
                good &= *failed == 0;
            }
            (None, Some(reason)) if tier != Tier::Unit => {
                println!("{name:<8} skipped: it needs root, and {reason}");
                good &= !in_ci();
            }
            _ => println!("{name:<8} has no tests"),
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// CI must not take a tier that did not run for one that passed.
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_libtest_is_read() {
        let line = "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; \
                    5 filtered out; finished in 0.14s";
        assert_eq!(Tally::parse(line), Some(Tally { passed: 7, failed: 1, ignored: 2 }));
        assert_eq!(Tally::parse("test result_is_printed ... ok"), None);
    }

    #[test]
    fn tests_that_die_without_a_closing_line_have_failed() {
        let tally = run_one(Command::new("sh").args(["-c", "echo running 1 test; exit 101"]));
        assert_eq!(tally.unwrap().failed, 1);
        let tally = run_one(Command::new("sh").args(["-c", "echo running 0 tests"]));
        assert_eq!(tally.unwrap(), Tally::default());
    }

    #[test]
    fn an_executable_has_the_tier_of_its_crate_and_kind() {
        for (package, integration, tier) in [
            ("/w/proxy-user", false, Tier::Unit),
            ("/w/proxy-user", true, Tier::Program),
            ("/w/tests", false, Tier::Lab),
            ("/w/tests", true, Tier::Lab),
        ] {
            let executable = Executable {
                path: PathBuf::new(),
                package: package.into(),
                target: "x".to_owned(),
                test: true,
                integration,
            };
            assert_eq!(Tier::of(&executable), tier, "{package}, integration: {integration}");
        }
    }
}
