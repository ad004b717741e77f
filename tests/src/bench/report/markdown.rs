//! The report as a page: the facts, the table, latencies, what was left out.

use super::table::{cells, header, number};
use super::{Report, Row};
use crate::bench::contender::Contender;
use std::fmt::Write;

/// Writing to a String.
const FITS: &str = "a String takes everything";

/// The page; `plots` are the names of the pictures beside it.
pub(in crate::bench) fn render(report: &Report, field: &[Contender], plots: &[String]) -> String {
    let mut page = "# Shunt, measured\n\n".to_owned();
    let facts = &report.facts;
    writeln!(
        page,
        "{}. Linux {}, {} × {}, {} MiB; load before the run {:.2}.\n",
        facts.time, facts.kernel, facts.cpus, facts.cpu, facts.memory_mib, facts.load_before
    )
    .expect(FITS);
    for (name, version) in &facts.versions {
        writeln!(page, "- {name}: {version}").expect(FITS);
    }
    for (name, value) in &report.settings {
        writeln!(page, "- {name}: {value}").expect(FITS);
    }
    page.push_str(METHOD);
    lines(&mut page, &header(field), report.rows.iter().map(|row| cells(row, field)));
    for plot in plots {
        writeln!(page, "\n![{plot}]({plot}.svg)").expect(FITS);
    }
    page.push_str(LATENCY);
    let mut names = vec!["what".to_owned(), "services".to_owned()];
    names.extend(field.iter().map(ToString::to_string));
    let timed = report.rows.iter().filter(|row| row.cells.values().any(|c| c.latency.is_some()));
    lines(&mut page, &names, timed.map(|row| latencies(row, field)));
    let wrong = report.rows.iter().flat_map(|row| {
        row.cells.iter().filter_map(move |(who, cell)| Some((row, who, cell.wrong.as_ref()?)))
    });
    let wrong = wrong.map(|(row, who, wrong)| format!("{}, {who}: {wrong}", row.what));
    let left: Vec<_> = report.skipped.iter().cloned().chain(wrong).collect();
    if !left.is_empty() {
        page.push_str("\n## Left out, or wrong\n\n");
        left.iter().for_each(|line| writeln!(page, "- {line}").expect(FITS));
    }
    page
}

const METHOD: &str = "
Every contender has a node of its own in one lab of network namespaces, with the same number of \
backends; only one is under load at a time, and each has its turn in every round. A figure is the \
median of the rounds, with half the width of the middle half of them; `shunt/direct` is the median of the \
ratios of the same round, with the middle half. Clients run on the first CPU, servers on the \
others. Every reply names its backend; where each is a new choice, a chi-square test must find \
the choices uniform. The measured Services stand in the middle of all.

";

const LATENCY: &str = "
## Latency

Microseconds, p50 / p99 / p99.9: connect(2) alone where it is one TCP connection at a time, else \
up to the first byte of the reply.

";

fn latencies(row: &Row, field: &[Contender]) -> Vec<String> {
    let services = row.services.map_or(String::new(), |services| services.to_string());
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
