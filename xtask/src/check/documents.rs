//! What the documents name exists: paths, tasks, sub-commands and flags.
//!
//! A path is text in back-ticks with a slash in it or a known ending; `{a,b}` stands for both. A
//! command is `cargo xtask …` or `shunt …`, in a code block or in back-ticks. What is in angle
//! brackets, begins with `/`, `./`, `~` or `$`, or holds a colon or a blank is no path of this tree.

use super::{Findings, flags, read, shunt_help};
use crate::Cli;
use crate::machine::root;
use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use std::collections::BTreeSet;
use std::path::Path;

/// The documents in which every path must exist.
const PATHS_IN: [&str; 2] = ["README.md", "docs/ARCHITECTURE.md"];
/// The document in which every command must exist.
const COMMANDS_IN: &str = "README.md";
/// What a path without a slash ends in.
const ENDINGS: [&str; 4] = [".md", ".rs", ".toml", ".yaml"];

pub(super) fn check() -> Result<Findings> {
    let mut findings = Findings::new();
    for document in PATHS_IN {
        for path in paths(&read(Path::new(document))?) {
            if !root().join(&path).exists() {
                findings.push(format!("{document} names {path}, which does not exist"));
            }
        }
    }
    let readme = read(Path::new(COMMANDS_IN))?;
    for words in commands(&readme, &["cargo", "xtask"]) {
        let command = Cli::command();
        let Some(task) = command.find_subcommand(words[0]) else {
            findings.push(format!("{COMMANDS_IN} names `cargo xtask {}`: no such task", words[0]));
            continue;
        };
        let known: BTreeSet<_> = task.get_arguments().filter_map(clap::Arg::get_long).collect();
        findings.extend(unknown_flags(&words, &known).map(|flag| {
            format!("{COMMANDS_IN} names `cargo xtask {} --{flag}`: no such flag", words[0])
        }));
    }
    for words in commands(&readme, &["shunt"]) {
        let Some(help) = shunt_help(&words[..1])? else {
            findings.push(format!("{COMMANDS_IN} names `shunt {}`: no such sub-command", words[0]));
            continue;
        };
        let known = flags(&help);
        findings.extend(unknown_flags(&words, &known).map(|flag| {
            format!("{COMMANDS_IN} names `shunt {} --{flag}`: no such flag", words[0])
        }));
    }
    findings.extend(flag_table(&readme)?);
    Ok(findings)
}

/// The table of the agent's flags has a row for each that is its own, and no other.
fn flag_table(readme: &str) -> Result<Findings> {
    let agent = shunt_help(&["agent"])?.context("`shunt agent --help` prints nothing")?;
    let everywhere = shunt_help(&[])?.context("`shunt --help` prints nothing")?;
    let (known, everywhere) = (flags(&agent), flags(&everywhere));
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `--")?.split('`').next());
    let rows: BTreeSet<_> = rows.collect();
    let missing = known.iter().filter(|flag| !rows.contains(*flag) && !everywhere.contains(*flag));
    let missing = missing.map(|flag| format!("lacks the flag --{flag}"));
    let unknown = rows.difference(&known).map(|flag| format!("has --{flag}, which is no flag"));
    Ok(missing.chain(unknown).map(|what| format!("the table in {COMMANDS_IN} {what}")).collect())
}

fn unknown_flags<'a>(words: &[&'a str], known: &BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
    let flags = words.iter().filter_map(|word| word.strip_prefix("--")?.split('=').next());
    flags.filter(|flag| !flag.is_empty() && !known.contains(flag) && *flag != "help")
}

/// The code in back-ticks outside code blocks, and the lines of code blocks.
fn code(markdown: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut spans, mut blocks, mut in_block) = (Vec::new(), Vec::new(), false);
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            blocks.push(line);
        } else {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    (spans, blocks)
}

fn paths(markdown: &str) -> BTreeSet<String> {
    let is_path = |span: &&str| {
        !span.starts_with(['/', '~', '$', '-'])
            && !span.starts_with("./")
            && !span.contains([' ', ':', '<', '*', '='])
            && (span.contains('/') || ENDINGS.iter().any(|ending| span.ends_with(ending)))
    };
    let links = markdown.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let spans = code(markdown).0.into_iter().chain(links).filter(is_path);
    spans.flat_map(expand).collect()
}

/// `a{b,c}d` stands for `abd` and `acd`.
fn expand(path: &str) -> Vec<String> {
    let parts = path.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    let Some((head, (choices, tail))) = parts else { return vec![path.to_owned()] };
    choices.split(',').map(|choice| format!("{head}{}{tail}", choice.trim())).collect()
}

/// The words after `command` wherever it is called, up to the end of the call; at least one. A
/// first word `a|b` makes two calls.
fn commands<'a>(markdown: &'a str, command: &[&'a str]) -> Vec<Vec<&'a str>> {
    let (spans, blocks) = code(markdown);
    let mut found = Vec::new();
    for line in spans.into_iter().chain(blocks) {
        let words: Vec<_> = line.split_whitespace().take_while(|word| *word != "#").collect();
        for at in 0..words.len() {
            let Some(rest) = words[at..].strip_prefix(command) else { continue };
            let end = |word: &&&str| !["|", "&&", ";", "--", ">"].contains(*word);
            let call: Vec<_> = rest.iter().take_while(end).copied().collect();
            let Some(first) = call.first().filter(|first| first.starts_with(char::is_alphabetic))
            else {
                continue;
            };
            for choice in first.split('|') {
                let mut call = call.clone();
                call[0] = choice;
                found.push(call);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Run `cargo xtask demo --json`, see `docs/{A,B}.md`, [it](LICENSE-MIT.md) \
        and `/sys/fs/bpf`.\n```sh\ncargo xtask test && ls  # cargo xtask no\n\
        kubectl exec ds/shunt -- shunt status|flows -o wide | less\n```\n";

    #[test]
    fn paths_are_found_and_expanded() {
        let expected = ["LICENSE-MIT.md", "docs/A.md", "docs/B.md"].map(str::to_owned);
        assert_eq!(paths(TEXT), expected.into());
    }

    #[test]
    fn commands_are_found_in_text_and_blocks() {
        let tasks = commands(TEXT, &["cargo", "xtask"]);
        assert_eq!(tasks, [vec!["demo", "--json"], vec!["test"]]);
        let known = BTreeSet::from(["keep"]);
        assert_eq!(unknown_flags(&tasks[0], &known).collect::<Vec<_>>(), ["json"]);
        let calls = commands(TEXT, &["shunt"]);
        assert_eq!(calls, [vec!["status", "-o", "wide"], vec!["flows", "-o", "wide"]]);
    }

    #[test]
    fn flags_are_read_from_help() {
        let help = "Usage: x [OPTIONS]\n\n      --source <kube|files>\n          --not-this one\n\
                    \n  -o, --output <FORMAT>  How\n";
        assert_eq!(flags(help), BTreeSet::from(["source", "output"]));
    }
}
