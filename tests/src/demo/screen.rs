//! How the demo looks: a check mark, a name, what was done, what came of it.
//!
//! Prints nothing but the final document in JSON mode; colours only a terminal.

use super::outcome::{Report, StepReport};
use anyhow::{Context, Result};
use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

/// Where the columns begin.
const NAME: usize = 4;
const DID: usize = 20;
const CAME: usize = 69;

const ABOUT: &str = "real sockets, real packets, in network namespaces of its own";

/// Where the demo is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    json: bool,
    terminal: bool,
    colour: bool,
}

/// SGR codes (ECMA-48, 8.3.117).
#[derive(Clone, Copy)]
enum Style {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        let terminal = !json && io::stdout().is_terminal();
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, terminal, colour: terminal && !plain }
    }

    /// Says what is about to be shown.
    pub(super) fn heading(self) {
        if !self.json {
            let name = self.paint(Style::Bold, "Shunt");
            self.print(format_args!("  {name} on two nodes in this machine: {ABOUT}.\n\n"));
        }
    }

    /// Says what is under way, on a terminal, until the step's own lines replace it.
    pub(super) fn begin(self, name: &str) {
        if self.terminal {
            self.print(format_args!("  {} {name}", self.paint(Style::Dim, "…")));
        }
    }

    pub(super) fn step(self, step: &StepReport) {
        if self.json {
            return;
        }
        if self.terminal {
            self.print("\r\x1b[2K");
        }
        let (style, mark) = if step.ok { (Style::Green, "✔") } else { (Style::Red, "✘") };
        let mark = self.paint(style, mark);
        let name = format!("{:width$}", step.name, width = DID - NAME);
        let mut head = format!("  {mark} {}", self.paint(Style::Bold, &name));
        for line in lines(step) {
            self.print(format_args!("{head}{line}\n"));
            head = " ".repeat(DID);
        }
        for transcript in &step.outcome.transcripts {
            let prompt = self.paint(Style::Bold, &format!("$ {}", transcript.command));
            self.print(format_args!("\n      {prompt}\n"));
            for line in transcript.output.trim_end().lines() {
                self.print(format_args!("      {line}\n"));
            }
        }
    }

    /// The end: one line, or the document.
    pub(super) fn report(self, report: &Report) -> Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(report).context("write the report")?;
            self.print(format_args!("{text}\n"));
            return Ok(());
        }
        let seconds = report.elapsed_ms / 1000.0;
        let failed: Vec<_> = report.steps.iter().filter(|step| !step.ok).collect();
        let verdict = match failed[..] {
            [] => self.paint(Style::Green, &format!("All of it held, in {seconds:.1} s.")),
            _ => {
                let names: Vec<_> = failed.iter().map(|step| step.name.as_str()).collect();
                let text = format!("Not all of it held: {} failed.", names.join(", "));
                self.paint(Style::Red, &text)
            }
        };
        self.print(format_args!("\n  {verdict}\n"));
        Ok(())
    }

    pub(super) fn interrupted(self) {
        if self.terminal {
            self.print("\r\x1b[2K");
        }
        eprintln!("Interrupted; the cluster is being removed.");
    }

    /// Tells the user something that is no part of the report.
    pub(super) fn tell(self, text: &str) {
        if self.json { eprintln!("{text}") } else { self.print(format_args!("{text}\n")) }
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", style as u8) } else { text.to_owned() }
    }

    fn print(self, text: impl Display) {
        let mut out = io::stdout().lock();
        // Nobody reads any more: the demo goes on, since its exit code tells as well.
        let _ = write!(out, "{text}").and_then(|()| out.flush());
    }
}

/// The lines of a step, from the column of what was done.
fn lines(step: &StepReport) -> Vec<String> {
    if let Some(failure) = &step.failure {
        return failure.lines().map(str::to_owned).collect();
    }
    let width = CAME - DID - 2;
    let rows = step.outcome.detail.iter();
    rows.map(|row| format!("{:width$}  {}", row.did, row.came)).collect()
}
