//! The report as a page: the facts, the table, latencies, what was left out.

use super::table::{number, ratios, whole};
use super::{Cell, Report, Row};
use crate::bench::contender::Contender;
use crate::bench::stats::Figure;
use crate::bench::target::Target;
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
    page.push_str(&tables(report, field, Columns::All, |_| true));
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

/// What a table shows beside the figures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Columns {
    /// Shunt's shares of nftables and of the direct path.
    Ratios,
    /// The same with their targets, and the verdict.
    All,
}

/// The rows that `chosen` takes, a table for each group.
pub(in crate::bench) fn tables(
    report: &Report,
    field: &[Contender],
    columns: Columns,
    chosen: impl Fn(&Row) -> bool,
) -> String {
    let mut page = String::new();
    let rows: Vec<_> = report.rows.iter().filter(|row| chosen(row)).collect();
    for rows in rows.chunk_by(|a, b| a.group() == b.group()) {
        let mut header = vec![rows[0].group(), "unit".to_owned()];
        header.extend(field.iter().map(ToString::to_string));
        let names: &[&str] = match columns {
            Columns::Ratios => &["shunt/nftables", "shunt/direct"],
            Columns::All => &["shunt/nftables", "target", "shunt/direct", "target", "verdict"],
        };
        header.extend(names.iter().copied().map(str::to_owned));
        lines(&mut page, &header, rows.iter().map(|row| cells(row, field, columns)));
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
`shunt/direct` and `shunt/nftables` are medians of the ratios inside a round, with their \
intervals; of a real kube-proxy and the rules that the bench makes, the better one counts. Rounds \
in which others took more of the machine than the limit, or the first CPU was slow at a fixed \
work, are not counted; with fewer than five left, nothing is compared. Unsure: a target lies inside \
the interval.

The ordinary case is a node that has a CNI's rules, as flannel's: a chain at forward that lets \
through what conntrack knows (`ct state established,related accept`), and another that masquerades \
what pods send out of the cluster. So conntrack is on for the direct path too. Without a CNI's \
rules, it is on only where a proxy needs it. The kernel has one table of connections for all \
namespaces; 500,000 other flows are in it as UDP flows without replies, in namespaces that do \
nothing else, as many in each as `nf_conntrack_max` lets there be.

A client outside the cluster asks for NodePorts. Backends on the node that it asks see its address \
with Shunt, and with kube-proxy the node's. `hidden`: the backends are on another node, which is \
one of the same lab with its own routes, and every proxy hides the client behind the node that was \
asked; on the direct path that node forwards, both ways. `in order`: servers close first, and the \
pods keep TIME_WAIT; else the client ends with a reset.

Clients run on the first CPU, servers on the others. Every reply names its backend; where a proxy \
chooses anew each time, a chi-square test must find the choices uniform, and every backend must \
have been chosen for UDP, where conntrack keeps what it chose for a client's port. The measured Services \
stand in the middle of all. Times of programs are net of an empty program's; they are taken in \
the midst of connections, where other code has the caches, or in a loop of connect(2) that the \
kernel gives up right after the program. `one` packet goes through the program again and again by \
PROG_TEST_RUN. For \
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

fn cells(row: &Row, field: &[Contender], columns: Columns) -> Vec<String> {
    let mut cells = vec![row.what.clone(), row.unit.clone()];
    cells.extend(field.iter().map(|who| row.cells.get(who).map_or(String::new(), shown)));
    let [nftables, direct] = ratios(row).map(|ratio| ratio.map_or(String::new(), within));
    if columns == Columns::Ratios {
        cells.extend([nftables, direct]);
        return cells;
    }
    let target = |words: fn(Target) -> String| row.target.map_or(String::new(), words);
    let disturbed = match row.disturbed {
        0 => String::new(),
        rounds => format!(" ({rounds} rounds disturbed)"),
    };
    cells.extend([nftables, target(Target::nftables_words), direct, target(Target::direct_words)]);
    cells.push(format!("{}{disturbed}", row.verdict));
    cells
}

/// A ratio and its interval.
fn within(ratio: Figure) -> String {
    format!("{:.2} {:.2}–{:.2}", ratio.median, ratio.low, ratio.high)
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
