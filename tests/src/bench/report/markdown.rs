//! The report as a page: the facts, the table, latencies, what was left out.

use super::table::{number, ratio, whole};
use super::{Cell, Report, Row};
use crate::bench::contender::Contender;
use std::fmt::Write;

/// Writing to a String.
const FITS: &str = "a String takes everything";

/// The page; `plots` are the names of the pictures beside it.
pub(in crate::bench) fn render(report: &Report, field: &[Contender], plots: &[String]) -> String {
    let mut page = format!("# Shunt, measured\n\n{}\n\n", origin(report));
    for (name, version) in &report.facts.versions {
        writeln!(page, "- {name}: {version}").expect(FITS);
    }
    for (name, value) in &report.settings {
        writeln!(page, "- {name}: {value}").expect(FITS);
    }
    if let Some(noise) = report.noise.words() {
        writeln!(page, "- noise: {noise}").expect(FITS);
    }
    page.push_str(METHOD);
    page.push_str(&tables(report, field, |_| true));
    for plot in plots {
        writeln!(page, "\n![{plot}]({plot}.svg)").expect(FITS);
    }
    page.push_str(LATENCY);
    let mut names = vec!["what".to_owned(), "services".to_owned()];
    names.extend(field.iter().map(ToString::to_string));
    let timed = report.rows.iter().filter(|row| row.cells.values().any(|c| c.latency.is_some()));
    lines(&mut page, &names, timed.map(|row| latencies(row, field)));
    let left: Vec<_> = report.skipped.iter().cloned().chain(report.wrong()).collect();
    if !left.is_empty() {
        page.push_str("\n## Left out, or wrong\n\n");
        left.iter().for_each(|line| writeln!(page, "- {line}").expect(FITS));
    }
    page
}

/// When, where and how the report was made.
pub(in crate::bench) fn origin(report: &Report) -> String {
    let facts = &report.facts;
    format!(
        "Made by `{}` on {}: Linux {}, {} × {}, {} MiB; load before the run {:.2}.",
        facts.command,
        facts.time,
        facts.kernel,
        facts.cpus,
        facts.cpu,
        facts.memory_mib,
        facts.load_before
    )
}

/// The rows that `chosen` takes, a table for each group.
pub(in crate::bench) fn tables(
    report: &Report,
    field: &[Contender],
    chosen: impl Fn(&Row) -> bool,
) -> String {
    let mut page = String::new();
    let rows: Vec<_> = report.rows.iter().filter(|row| chosen(row)).collect();
    for rows in rows.chunk_by(|a, b| a.group() == b.group()) {
        let mut header = vec![rows[0].group(), "unit".to_owned()];
        header.extend(field.iter().map(ToString::to_string));
        header.extend(["shunt/direct", "target", "verdict"].map(str::to_owned));
        lines(&mut page, &header, rows.iter().map(|row| cells(row, field)));
        page.push('\n');
    }
    page
}

const METHOD: &str = "
Every contender has a node of its own in one lab of network namespaces, with the same number of \
backends; only one is under load at a time, and each has its turn in every round. Between spells \
of a few rounds the direct path and Shunt change places, and Shunt begins anew: what a place is \
worth, and a start, is in the spread. A figure is the median of the rounds, ± half the width of \
the interval in which the median lies with 90 % certainty, by the order of the values alone. \
`shunt/direct` is the median of the ratios inside a round, with its interval. Rounds in which \
others took more of the machine than the limit, or the first CPU was slow at a fixed work, are not \
counted; with fewer than five left, nothing is compared. `*`: no proxy may do better. Unsure: the \
target lies inside the interval.

Clients run on the first CPU, servers on the others. Every reply names its backend; where a proxy \
chooses anew each time, a chi-square test must find the choices uniform. The measured Services \
stand in the middle of all. Times of programs are net of an empty program's, but for \
PROG_TEST_RUN; they are taken in the midst of connections, where other code has the caches, or \
\"again and again\": in a loop of connect(2) that the kernel gives up right after the program. For \
baselines, the control plane is what the tool takes (iptables-restore, nft) to load all rules, or \
the changed ones in one transaction, each Service once; their CPU is that of a transaction of 100 \
changes each second. A real kube-proxy says itself when its last sync ended; single changes come \
further apart than the second that it waits between two. Names are asked by one pod of one node, ×32 with one system call: the direct \
column is an unbound with the same zone in a pod beside it, on the CPUs of the servers; a walk \
asks 6 names that are not there and 2 outside, which a stand-in answers. `/s CPU` is queries for a \
second of CPU time of all processes of the node, the client's part too; the kernel's limit for \
each pod (`--dns-limit`, 20,000 queries a second) is off. Streams past the program are compared \
with those on a node without it. How many maps a decision reads is not here: the kernel does not \
count it.

";

const LATENCY: &str = "
## Latency

Microseconds, p50 / p99 / p99.9: connect(2) alone where it is one TCP connection at a time, else \
up to the first byte of the reply.

";

fn cells(row: &Row, field: &[Contender]) -> Vec<String> {
    let mut cells = vec![row.what.clone(), row.unit.clone()];
    cells.extend(field.iter().map(|who| row.cells.get(who).map_or(String::new(), shown)));
    let target = row.target.map_or(String::new(), |target| target.to_string().replace('*', "\\*"));
    let disturbed = match row.disturbed {
        0 => String::new(),
        rounds => format!(" ({rounds} rounds disturbed)"),
    };
    cells.extend([ratio(row), target, format!("{}{disturbed}", row.verdict)]);
    cells
}

/// The median, and how far its interval reaches around it.
fn shown(cell: &Cell) -> String {
    let figure = cell.figure;
    match (&cell.wrong, figure.rounds) {
        (Some(_), _) => "wrong".to_owned(),
        (None, 0 | 1) => number(figure.median),
        _ => format!("{} ±{:.0}%", number(figure.median), 50.0 * figure.spread()),
    }
}

fn latencies(row: &Row, field: &[Contender]) -> Vec<String> {
    let services = row.services.map_or(String::new(), whole);
    let mut cells = vec![row.what.clone(), services];
    cells.extend(field.iter().map(|who| {
        let latency = row.cells.get(who).and_then(|cell| cell.latency);
        latency.map_or(String::new(), |l| {
            format!("{} / {} / {}", number(l.p50), number(l.p99), number(l.p999))
        })
    }));
    cells
}

fn lines(page: &mut String, header: &[String], rows: impl Iterator<Item = Vec<String>>) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    page.push_str(&line(header));
    page.push_str(&line(&vec!["---".to_owned(); header.len()]));
    rows.for_each(|row| page.push_str(&line(&row)));
}
