//! Every Rust file is short and says what it is; nothing lies in the tree that does not belong.

use super::{Findings, files, read};
use crate::machine::root;
use anyhow::Result;

/// More lines than this are two files.
const LONGEST: usize = 500;
/// More bytes than this are no source.
const LARGEST: u64 = 512 * 1024;
/// Texts that no file may hold, and what they are. Each is in two parts, so that this file holds
/// none of them.
const FORBIDDEN: [([&str; 2], &str); 5] = [
    (["<<<<", "<<< "], "a conflict marker"),
    ([">>>>", ">>> "], "a conflict marker"),
    (["PRIVATE ", "KEY-----"], "a private key"),
    (["/home", "/"], "a path of somebody's machine"),
    (["/root", "/."], "a path of somebody's machine"),
];

pub(super) fn check() -> Result<Findings> {
    let mut findings = Findings::new();
    for path in files()?.iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let text = read(path)?;
        let lines = text.lines().count();
        if lines > LONGEST {
            findings.push(format!(
                "{} has {lines} lines, more than {LONGEST}: split it",
                path.display()
            ));
        }
        if !text.starts_with("//!") {
            findings.push(format!(
                "{} does not open with //!: say what it takes, gives and never does",
                path.display()
            ));
        }
    }
    Ok(findings)
}

pub(super) fn tracked() -> Result<Findings> {
    let mut findings = Findings::new();
    for path in files()? {
        let bytes = std::fs::metadata(root().join(&path))?.len();
        if bytes > LARGEST {
            findings.push(format!("{} has {bytes} bytes, more than {LARGEST}", path.display()));
            continue;
        }
        let Ok(text) = read(&path) else {
            findings.push(format!("{} is no text", path.display()));
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let held = FORBIDDEN.iter().filter(|(parts, _)| line.contains(&parts.concat()));
            findings.extend(
                held.map(|(_, what)| format!("{}:{} holds {what}", path.display(), number + 1)),
            );
        }
    }
    Ok(findings)
}
