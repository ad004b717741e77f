//! `docs/scenarios.md` says of every scenario which tests show it; those tests exist, and their
//! comments name just the scenarios whose rows name them: "Scenarios 1, 5 to 7 and 9; S2."
//!
//! A row is `| NUMBER | WHAT | TESTS | REMARK |`. A test is `` `FILE::NAME` `` or a case `` `FILE` ``,
//! with the file's path below one of the folders that have tests. A row without a test has to say
//! why, as its remark.

use super::{Findings, files, read};
use crate::machine::root;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The document.
const DOCUMENT: &str = "docs/scenarios.md";
/// How many scenarios there are by number, and how many more by `S` and number.
const COUNTS: [(&str, u32); 2] = [("", 112), ("S", 15)];
/// Where the files of tests are looked for.
const ROOTS: [&str; 4] = ["tests/tests", "proxy-user/tests", "proxy-user/src", "proxy-ebpf/src"];

struct Row<'a> {
    number: &'a str,
    tests: Vec<&'a str>,
    remark: &'a str,
}

pub(super) fn check() -> Result<Findings> {
    let text = read(Path::new(DOCUMENT))?;
    let rows = rows(&text);
    let mut findings = numbers(&rows);
    for Row { number, tests, .. } in &rows {
        for test in tests {
            if !exists(test)? {
                findings.push(format!("scenario {number} names {test}, which is no test"));
            }
        }
    }
    let mut named = BTreeMap::<&str, BTreeSet<String>>::new();
    for Row { number, tests, .. } in &rows {
        for test in tests {
            let _ = named.entry(test).or_default().insert((*number).to_owned());
        }
    }
    for path in files()? {
        let Some(file) = ROOTS.iter().find_map(|folder| path.strip_prefix(folder).ok()) else {
            continue;
        };
        for (name, said) in comments(&read(&path)?) {
            let test = if name.is_empty() { String::new() } else { format!("::{name}") };
            let test = format!("{}{test}", file.display());
            let expected = named.remove(&*test).unwrap_or_default();
            if said != expected {
                findings.push(format!(
                    "the comment of {test} names the scenarios {said:?}; it is in the rows of {expected:?}"
                ));
            }
        }
    }
    Ok(findings)
}

/// The functions of a Rust source, and the scenarios that the comment above each names; for
/// another file, the scenarios of its first line under no name.
fn comments(source: &str) -> Vec<(&str, BTreeSet<String>)> {
    if let Some(comment) = source.strip_prefix("# Scenario") {
        return vec![("", scenarios(comment))];
    }
    let mut said = BTreeSet::new();
    let mut functions = Vec::new();
    for line in source.lines().map(str::trim_start) {
        if let Some(comment) = line.strip_prefix("/// Scenario") {
            said = scenarios(comment);
        } else if let Some(function) = line.trim_start_matches("async ").strip_prefix("fn ") {
            let name = function.split(['(', '<']).next().unwrap_or_default();
            functions.push((name, std::mem::take(&mut said)));
        }
    }
    functions
}

/// The numbers at the beginning of a comment, after "Scenario".
fn scenarios(comment: &str) -> BTreeSet<String> {
    let sentence = comment.split('.').next().unwrap_or_default().trim_start_matches('s');
    let words = sentence.split([' ', ',', ';']).filter(|word| !["", "and"].contains(word));
    let (mut found, mut last, mut is_range) = (BTreeSet::new(), 0, false);
    for word in words {
        let (prefix, number) = word.strip_prefix('S').map_or(("", word), |number| ("S", number));
        match number.parse::<u32>() {
            Ok(number) => {
                let first = if is_range { last + 1 } else { number };
                found.extend((first..=number).map(|number| format!("{prefix}{number}")));
                (last, is_range) = (number, false);
            }
            Err(_) if word == "to" => is_range = true,
            Err(_) => break,
        }
    }
    found
}

fn rows(document: &str) -> Vec<Row<'_>> {
    let row = |line| {
        let cells: Vec<&str> = str::split(line, '|').map(str::trim).collect();
        let [_, number, _, tests, remark, _] = cells[..] else { return None };
        let is_number = number.trim_start_matches('S').parse::<u32>().is_ok();
        let tests = tests.split('`').skip(1).step_by(2).collect();
        is_number.then_some(Row { number, tests, remark })
    };
    document.lines().filter_map(row).collect()
}

/// What is wrong with the rows by themselves: each scenario has one, with a test or a reason.
fn numbers(rows: &[Row<'_>]) -> Findings {
    let mut findings = Findings::new();
    let mut counts = BTreeMap::<&str, usize>::new();
    for Row { number, tests, remark } in rows {
        *counts.entry(number).or_default() += 1;
        if tests.is_empty() && remark.is_empty() {
            findings.push(format!("scenario {number} has no test, and no remark says why"));
        }
    }
    for (prefix, last) in COUNTS {
        for number in (1..=last).map(|number| format!("{prefix}{number}")) {
            let count = counts.remove(&*number).unwrap_or_default();
            if count != 1 {
                findings.push(format!("{DOCUMENT} has {count} rows for scenario {number}"));
            }
        }
    }
    let unknown = counts.keys().map(|number| format!("{DOCUMENT} has {number}: no such scenario"));
    findings.extend(unknown);
    findings
}

/// Whether a file of tests has this one.
fn exists(test: &str) -> Result<bool> {
    let (path, name) = test.split_once("::").unwrap_or((test, ""));
    let path = ROOTS.iter().map(|folder| Path::new(folder).join(path));
    let Some(path) = path.into_iter().find(|path| root().join(path).is_file()) else {
        return Ok(false);
    };
    Ok(name.is_empty() || has_test(&read(&path)?, name))
}

/// Whether `source` has a function `name` with an attribute that makes it a test.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim_start).collect();
    let is_it = |line: &str| {
        let rest = line.trim_start_matches("async ").strip_prefix("fn ");
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('))
    };
    let above =
        |at: usize| lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/']));
    (0..lines.len()).any(|at| {
        is_it(lines[at]) && above(at).any(|line| line.starts_with('#') && line.ends_with("test]"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "| # | Scenario | Tests | Remark |\n|---|---|---|---|\n\
        | 1 | one | `a.rs::x`, `b.yaml` | |\n| S1 | two | | no such sockets |\n\
        | 2 | three | | |\n| 2 | again | `a.rs::x` | |\n| 113 | more | `a.rs::x` | |\n";

    #[test]
    fn rows_are_read_with_their_tests() {
        let rows = rows(TABLE);
        assert_eq!(
            rows.iter().map(|row| row.number).collect::<Vec<_>>(),
            ["1", "S1", "2", "2", "113"]
        );
        assert_eq!(rows[0].tests, ["a.rs::x", "b.yaml"]);
    }

    #[test]
    fn missing_repeated_unknown_and_empty_rows_are_found() {
        let findings = numbers(&rows(TABLE)).join("\n");
        for part in [
            "scenario 2 has no test",
            "2 rows for scenario 2",
            "0 rows for scenario 3\n",
            "0 rows for scenario S2",
            "113: no such",
        ] {
            assert!(findings.contains(part), "no {part:?} in {findings}");
        }
        assert!(!findings.contains("S1 has no test"), "it says why: {findings}");
    }

    #[test]
    fn comments_name_the_scenarios_of_the_function_below() {
        let source = "/// Scenarios 1, 5 to 7 and 9; S2 and S4.\n/// More.\n#[test]\nasync fn a() {}\n\
            fn b<T>() {}\n    /// Scenario 66 (B11).\n    fn c() {}\n";
        let found = comments(source).into_iter().map(|(name, said)| (name, Vec::from_iter(said)));
        let all = ["1", "5", "6", "7", "9", "S2", "S4"].map(str::to_owned).to_vec();
        let expected = [("a", all), ("b", vec![]), ("c", vec!["66".to_owned()])];
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert_eq!(comments("# Scenario 3. So.\nkind: x\n"), [("", ["3".to_owned()].into())]);
    }

    #[test]
    fn only_functions_with_the_attribute_are_tests() {
        let source = "#[tokio::test]\nasync fn a() {}\n\n    /// Says what.\n    #[test]\n    // Why.\n    \
            fn b() {}\n\nfn c() {}\n#[test]\nfn longer() {}\n";
        let found = ["a", "b", "c", "long", "longer"].map(|name| has_test(source, name));
        assert_eq!(found, [true, true, false, false, true]);
    }
}
