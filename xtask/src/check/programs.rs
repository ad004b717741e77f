//! What each kernel program costs the verifier: the kernel loads them all, attached to nothing, and
//! says how many instructions it walked through. It gives up at a million.

use super::Findings;
use crate::machine::{as_root, cargo, root, run, shown};
use anyhow::{Context as _, Result, anyhow, ensure};

/// How many a program may have: far from the limit, since other kernels walk more than this one.
const MOST: u32 = 250_000;

/// Prints the numbers, since they are worth knowing before they are too large.
pub(super) fn check() -> Result<Findings> {
    run(&mut cargo(["build", "--quiet", "--package", "proxy-user", "--example", "program_sizes"]))?;
    let example = root().join("target/debug/examples/program_sizes");
    let mut command =
        as_root(&example).map_err(|reason| anyhow!("to load the programs takes root: {reason}"))?;
    let output = command.output().with_context(|| format!("cannot run {}", shown(&command)))?;
    ensure!(
        output.status.success(),
        "{} failed:\n{}",
        shown(&command),
        String::from_utf8_lossy(&output.stderr)
    );
    let table = String::from_utf8(output.stdout).context("the table is no text")?;
    println!("      {}", table.trim_end().replace('\n', "\n      "));
    let rows = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?.parse::<u32>().ok()?))
    });
    let rows: Vec<_> = rows.collect();
    ensure!(!rows.is_empty(), "{} names no program", shown(&command));
    let large = rows.into_iter().filter(|(_, walked)| *walked > MOST);
    Ok(large
        .map(|(name, walked)| format!("{name}: {walked} instructions verified, more than {MOST}"))
        .collect())
}
