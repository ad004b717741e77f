//! Imports follow the arrow: `source → model → plan → tables → apply → kernel programs`.
//!
//! Reads the sources of `proxy-user` as text: every `crate::…` path names a module, every
//! `name::…` may name a crate that only some modules may use. Comments and tests are free.

use super::{Findings, files, read};
use anyhow::Result;
use std::path::Path;

/// Which modules a module may name, itself apart. Those of the arrow come first; the others read
/// from the side. A module that is not here may name none; `agent` may name all.
const MODULES: [(&str, &[&str]); 24] = [
    ("model", &["tree"]),
    ("tables", &[]),
    ("source", &["model"]),
    ("plan", &["glob", "model", "tables", "tree"]),
    ("apply", &["nat", "netfilter", "tables", "tree"]),
    // What it does to the kernel is what `apply` asks of its `Store`.
    ("loader", &["apply", "model", "nat", "netfilter", "status", "tables"]),
    ("netfilter", &[]),
    ("glob", &[]),
    ("tree", &[]),
    ("nat", &["netfilter"]),
    ("pinned", &["loader", "tables"]),
    ("sockets", &["loader", "model", "pinned"]),
    ("stale", &["netfilter", "pinned"]),
    ("status", &["model"]),
    ("sysctls", &["config", "model"]),
    ("dns", &["config", "model"]),
    ("config", &["model", "source"]),
    ("preflight", &["config", "loader", "model"]),
    ("http", &["model"]),
    ("health", &["http", "metrics", "model", "tables"]),
    ("metrics", &["http", "model", "netfilter", "pinned"]),
    ("control", &["http", "status"]),
    ("show", &["model", "nat", "netfilter", "pinned", "status"]),
    ("cli", &["config", "control", "loader", "nat", "netfilter", "pinned", "show"]),
];
const SEES_ALL: &str = "agent";

/// The modules in which the types of a crate stay.
const CRATES: [(&str, &[&str]); 4] = [
    ("k8s_openapi", &["source"]),
    ("kube", &["source"]),
    ("aya", &["apply", "loader", "pinned"]),
    // The agent says how much the programs log.
    ("aya_log", &["agent", "loader"]),
];

pub(super) fn check() -> Result<Findings> {
    let mut findings = Findings::new();
    let sources = Path::new("proxy-user/src");
    for path in files()? {
        let Ok(inner) = path.strip_prefix(sources) else { continue };
        let inner = inner.with_extension("");
        let Some(module) = inner.iter().next().and_then(|name| name.to_str()) else { continue };
        let is_tests = inner.iter().any(|part| part == "tests");
        if ["lib", "main"].contains(&module) || is_tests {
            continue;
        }
        for (line, problem) in problems(module, &read(&path)?) {
            findings.push(format!("{}:{line} {problem}", path.display()));
        }
    }
    Ok(findings)
}

/// What the text of a file of `module` names and must not, with the lines.
fn problems(module: &str, text: &str) -> Vec<(usize, String)> {
    let allowed = MODULES.iter().find(|(name, _)| *name == module).map_or(&[][..], |entry| entry.1);
    let mut problems = Vec::new();
    for (line, named) in paths(&code(text)) {
        if let Some(other) = named.strip_prefix("crate::") {
            if other != module && module != SEES_ALL && !allowed.contains(&other) {
                let allowed =
                    if allowed.is_empty() { "no module".to_owned() } else { allowed.join(", ") };
                problems.push((line, format!("names {named}; {module} may name {allowed}")));
            }
        } else if let Some((name, homes)) = CRATES.iter().find(|(name, _)| *name == named)
            && !homes.contains(&module)
        {
            problems.push((line, format!("names {name}, which stays in {}", homes.join(", "))));
        }
    }
    problems
}

/// The text without comments, and without the tests at its end; lines stay where they are.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines();
    lines.map(|line| line.split_once("//").map_or(line, |(code, _)| code)).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

/// What the paths in `code` begin with, and their lines: `crate::module` for each module that a
/// path or a group of paths names, or the first name of any other path.
fn paths(code: &str) -> Vec<(usize, String)> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name_at = |at: usize| code[at..].split(|c| !is_name(c)).next().unwrap_or_default();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let line = code[..at].lines().count();
        let start = code[..at].rfind(|c| !is_name(c)).map_or(0, |before| before + 1);
        let first = &code[start..at];
        if first.is_empty() || code[..start].ends_with("::") {
            continue;
        }
        if first != "crate" {
            found.push((line, first.to_owned()));
        } else if code[at + 2..].starts_with('{') {
            let members = group(code, at + 3);
            found.extend(
                members
                    .map(|(at, name)| (code[..at + 1].lines().count(), format!("crate::{name}"))),
            );
        } else {
            found.push((line, format!("crate::{}", name_at(at + 2))));
        }
    }
    found
}

/// The first names of the paths in the group that opens before `start`.
fn group(code: &str, start: usize) -> impl Iterator<Item = (usize, &str)> {
    let mut depth = 1;
    let mut member = start;
    let mut members = Vec::new();
    for (at, c) in code[start..].char_indices().map(|(at, c)| (start + at, c)) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            let path = &code[member..at];
            let name = path.trim_start();
            let name_at = at - name.len();
            let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next();
            members.extend(name.filter(|name| !name.is_empty()).map(|name| (name_at, name)));
            member = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    members.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cases: &[(&str, &str, &[usize])]) {
        for (module, text, expected) in cases {
            let lines: Vec<_> = problems(module, text).into_iter().map(|(line, _)| line).collect();
            assert_eq!(lines, *expected, "{module}: {text}");
        }
    }

    #[test]
    fn an_import_against_the_arrow_is_found() {
        check(&[
            ("plan", "use crate::model::World;\nuse crate::apply::Applied;\n", &[2]),
            ("plan", "use crate::{\n    model::{A, B},\n    tables,\n    source::C,\n};", &[4]),
            ("model", "fn f() -> crate::tables::Tables {}", &[1]),
            ("model", "use self::world::World;\nuse super::model::X;", &[]),
            ("source", "use crate::source::kube::Kube;", &[]),
            ("unknown", "use crate::model::X;", &[1]),
        ]);
    }

    #[test]
    fn a_crate_outside_its_modules_is_found() {
        check(&[
            ("plan", "use aya::maps::HashMap;", &[1]),
            ("apply", "use aya::maps::HashMap;", &[]),
            ("model", "let x: kube::Error;\nlet y: crate::model::kube::X;", &[1]),
            ("agent", "use crate::apply::X;\nuse k8s_openapi::api::core::v1::Service;", &[2]),
        ]);
    }

    #[test]
    fn comments_and_tests_are_free() {
        check(&[
            (
                "plan",
                "//! crate::apply\n#[cfg(test)]\nmod tests {\n    use crate::source::X;\n}",
                &[],
            ),
            ("plan", "#[cfg(test)]\nmod tests;\nuse crate::source::X;", &[3]),
        ]);
    }
}
