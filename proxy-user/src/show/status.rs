//! `shunt status`: is this node in sync, what is attached, how full are the maps, what was
//! refused.
//!
//! The agent's part comes from its control socket, the rest from the pinned maps and links and from
//! netfilter, so the report is made with the agent down too.

use super::{Column, Document, Output, Row, column, judged, span, table};
use crate::model::Warning;
use crate::nat::{TableCheck, TableState};
use crate::netfilter::conntrack::Usage;
use crate::pinned::{Counters, Fill};
use crate::status::{Attachment, Status};
use comfy_table::Cell;
use jiff::Timestamp;
use proxy_ebpf::outcome::Outcome;
use serde::Serialize;
use std::path::Path;

/// A map that is fuller than this share, in percent, is a warning.
const FULL_PERCENT: u32 = 80;

/// The state of the node.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StatusReport {
    /// The version of this command.
    pub version: &'static str,
    /// Whether an agent runs and the maps hold what its source says.
    pub in_sync: bool,
    /// What the agent says of itself; absent if none runs.
    pub agent: Option<Status>,
    /// The programs and where they are attached: the agent's word, or else the pinned links.
    pub attachments: Vec<Attachment>,
    /// How full the maps are.
    pub maps: Vec<Fill>,
    /// The tables of nftables that translate what the programs have chosen.
    pub nftables: Vec<TableCheck>,
    /// How full conntrack is; absent if the kernel does not say.
    pub conntrack: Option<Usage>,
    /// How often programs ended in which way; those that never happened are left out.
    pub outcomes: Vec<OutcomeRow>,
    /// What an operator should look at.
    pub warnings: Vec<Warning>,
    #[serde(skip)]
    now: Timestamp,
}

/// What netfilter says, or why it does not.
#[derive(Debug)]
pub struct Netfilter {
    /// The tables.
    pub tables: Result<Vec<TableCheck>, String>,
    /// How full conntrack is.
    pub conntrack: Result<Usage, String>,
}

/// How often a program ended in one way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OutcomeRow {
    /// The program.
    pub program: &'static str,
    /// How it ended.
    pub outcome: &'static str,
    /// How often.
    pub count: u64,
    #[serde(skip)]
    normal: bool,
}

impl StatusReport {
    /// The report at `now`. `links` are the attachments found pinned, `counters` what the maps
    /// say, or why they could not be read.
    pub fn new(
        agent: Option<Status>,
        links: Vec<Attachment>,
        counters: Result<Counters, String>,
        now: Timestamp,
    ) -> Self {
        let mut warnings = agent.as_ref().map(|agent| agent.warnings.clone()).unwrap_or_default();
        let mut warn = |subject: &str, message: String| {
            warnings.push(Warning { subject: subject.to_owned(), message });
        };
        let counters = counters.unwrap_or_else(|message| {
            warn("maps", message);
            Counters::default()
        });
        for fill in &counters.fill {
            if percent(fill) >= FULL_PERCENT {
                let message = format!("{} % of its {} entries are in use", percent(fill), fill.max);
                warn(&format!("map {}", fill.map), message);
            }
        }
        // An agent that has not synced has attached nothing itself.
        let attachments = match &agent {
            Some(agent) if !agent.attachments.is_empty() => agent.attachments.clone(),
            _ => links,
        };
        if attachments.is_empty() {
            warn("programs", "none is attached: no Service is reached through Shunt".to_owned());
        }
        let outcomes = counters.outcomes.iter().filter(|counter| counter.count > 0);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            in_sync: agent.as_ref().is_some_and(|agent| agent.synced.is_some()),
            agent,
            attachments,
            maps: counters.fill,
            nftables: Vec::new(),
            conntrack: None,
            outcomes: outcomes
                .map(|counter| OutcomeRow {
                    program: counter.program.name(),
                    outcome: counter.outcome.name(),
                    count: counter.count,
                    normal: matches!(
                        counter.outcome,
                        Outcome::NotOurs
                            | Outcome::Chosen
                            | Outcome::Matched
                            | Outcome::LeftToPackets
                    ),
                })
                .collect(),
            warnings,
            now,
        }
    }

    /// The same, with what netfilter says.
    #[must_use]
    pub fn with_netfilter(mut self, found: Netfilter) -> Self {
        let mut warn = |subject: &str, message: String| {
            self.warnings.push(Warning { subject: subject.to_owned(), message });
        };
        let healer = match &self.agent {
            Some(_) => "the agent writes it again at once",
            None => "an agent writes it when it starts",
        };
        for TableCheck { table, state } in found.tables.iter().flatten() {
            let what = match state {
                TableState::Complete => continue,
                TableState::Missing => "is missing".to_owned(),
                TableState::Changed => {
                    let version = self.version;
                    format!(
                        "has other rules than those of version {version}, which this command is"
                    )
                }
            };
            let subject = format!("nftables table {table}");
            warn(&subject, format!("{what}: connections by packets are not translated; {healer}"));
        }
        match &found.conntrack {
            Ok(usage) if usage.percent() >= 100 => warn(
                "conntrack",
                format!(
                    "all of its {} entries are in use: new connections are dropped; raise \
                     net.netfilter.nf_conntrack_max (--conntrack-max-per-core)",
                    usage.max
                ),
            ),
            Ok(usage) if usage.percent() >= FULL_PERCENT => warn(
                "conntrack",
                format!(
                    "{} % of its {} entries are in use, and when it is full, new connections are \
                     dropped: raise net.netfilter.nf_conntrack_max (--conntrack-max-per-core)",
                    usage.percent(),
                    usage.max
                ),
            ),
            Ok(_) => {}
            Err(message) => warn("conntrack", message.clone()),
        }
        match found.tables {
            Ok(tables) => self.nftables = tables,
            Err(message) => warn("nftables", message),
        }
        self.conntrack = found.conntrack.ok();
        self
    }

    /// What netfilter says, as far as it is known.
    fn netfilter_lines(&self) -> Vec<(&'static str, String)> {
        let state = |TableCheck { table, state }: &TableCheck| {
            let state = match state {
                TableState::Complete => "as it should be",
                TableState::Changed => "changed",
                TableState::Missing => "missing",
            };
            format!("table {table} {state}")
        };
        let tables: Vec<_> = self.nftables.iter().map(state).collect();
        let usage = |usage: Usage| {
            format!("{} of {} entries ({} %)", usage.entries, usage.max, usage.percent())
        };
        let mut lines = Vec::new();
        if !tables.is_empty() {
            lines.push(("NAT", tables.join(", ")));
        }
        lines.extend(self.conntrack.map(|used| ("Conntrack", usage(used))));
        lines
    }

    fn ago(&self, then: Timestamp) -> String {
        let seconds = self.now.duration_since(then).as_secs();
        format!("{then:.0} ({} ago)", span(seconds.try_into().unwrap_or(0)))
    }

    fn out_of_sync(&self, agent: &Status) -> &'static str {
        if agent.last_change.is_some() {
            "no: not all could be written (see the warnings); the rest goes on serving"
        } else if self.attachments.is_empty() {
            "no: nothing is served yet"
        } else {
            "no, not yet: what is pinned goes on serving, as an earlier agent left it"
        }
    }

    fn agent_lines(&self) -> Vec<(&'static str, String)> {
        let Some(agent) = &self.agent else {
            let forwarding = if self.attachments.is_empty() {
                "not running"
            } else {
                "not running; the programs forward by the maps as it left them"
            };
            return vec![("Agent", forwarding.to_owned())];
        };
        let objects = agent.objects;
        vec![
            ("Agent", format!("{}, pid {}", agent.version, agent.pid)),
            ("Started", self.ago(agent.started)),
            ("Node", agent.node.clone()),
            ("Source", agent.source.clone()),
            (
                "In sync",
                agent.synced.map_or_else(
                    || self.out_of_sync(agent).to_owned(),
                    |synced| format!("since {}", self.ago(synced)),
                ),
            ),
            ("Changed", agent.last_change.map_or_else(|| "never".to_owned(), |at| self.ago(at))),
            (
                "Objects",
                format!(
                    "{} Services, {} EndpointSlices, {} endpoints",
                    objects.services, objects.slices, objects.endpoints
                ),
            ),
            (
                "Names",
                agent.dns.as_ref().map_or_else(
                    || "answered by the DNS service (--dns=off)".to_owned(),
                    |dns| {
                        let denies = if dns.denies { "denied" } else { "passed on" };
                        format!("of {}; unknown ones are {denies}: {}", dns.zone, dns.reason)
                    },
                ),
            ),
            (
                "Drift",
                agent.drift.as_ref().map_or_else(
                    || "not checked yet".to_owned(),
                    |drift| {
                        format!(
                            "{} repaired at {}, {} since the start",
                            drift.repaired,
                            self.ago(drift.checked),
                            drift.repaired_total
                        )
                    },
                ),
            ),
        ]
    }
}

fn percent(fill: &Fill) -> u32 {
    (u64::from(fill.used) * 100 / u64::from(fill.max.max(1))) as u32
}

/// The attachments whose links are pinned in `links`, as files named `PROGRAM@TARGET`; none if
/// the directory cannot be read.
pub fn pinned_links(links: &Path) -> Vec<Attachment> {
    let Ok(entries) = std::fs::read_dir(links) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let (program, target) = name.split_once('@')?;
            // The loader writes `:` for the dots of a device's name.
            Some(Attachment { program: program.to_owned(), target: target.replace(':', ".") })
        })
        .collect();
    found.sort();
    found
}

impl Document for StatusReport {
    fn text(&self, output: Output) -> String {
        let mut text = format!("{:<10}{}\n", "Shunt", self.version);
        for (name, value) in self.agent_lines().into_iter().chain(self.netfilter_lines()) {
            text += &format!("{name:<10}{value}\n");
        }
        let wide = output.format == super::Format::Wide;
        let outcomes: Vec<_> =
            self.outcomes.iter().filter(|row| wide || !row.normal).cloned().collect();
        let tables = [
            table(&self.attachments, output),
            table(&self.maps, output),
            table(&outcomes, output),
            table(&self.warnings, output),
        ];
        for table in tables.iter().filter(|table| !table.is_empty()) {
            text += "\n";
            text += table;
        }
        text
    }
}

impl Row for Attachment {
    const COLUMNS: &'static [Column] = &[column("PROGRAM"), column("ATTACHED TO")];

    fn cells(&self) -> Vec<Cell> {
        vec![Cell::new(&self.program), Cell::new(&self.target)]
    }
}

impl Row for Fill {
    const COLUMNS: &'static [Column] =
        &[column("MAP"), column("USED"), column("MAX"), column("FULL")];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(self.map),
            Cell::new(self.used),
            Cell::new(self.max),
            judged(format!("{}%", percent(self)), percent(self) < FULL_PERCENT),
        ]
    }
}

impl Row for OutcomeRow {
    const COLUMNS: &'static [Column] = &[column("OUTCOME"), column("PROGRAM"), column("COUNT")];

    fn cells(&self) -> Vec<Cell> {
        vec![judged(self.outcome, self.normal), Cell::new(self.program), Cell::new(self.count)]
    }
}

impl Row for Warning {
    const COLUMNS: &'static [Column] = &[column("WARNING"), column("MESSAGE")];

    fn cells(&self) -> Vec<Cell> {
        vec![judged(&self.subject, false), Cell::new(&self.message)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: TableState, conntrack: Result<Usage, String>) -> StatusReport {
        let tables = Ok(vec![TableCheck { table: "ip shunt".to_owned(), state }]);
        let links = vec![Attachment { program: "ingress".into(), target: "eth0".into() }];
        StatusReport::new(None, links, Ok(Counters::default()), Timestamp::UNIX_EPOCH)
            .with_netfilter(Netfilter { tables, conntrack })
    }

    fn warnings(state: TableState, entries: u32) -> Vec<String> {
        let report = report(state, Ok(Usage { entries, max: 1_000 }));
        report.warnings.iter().map(|w| format!("{}: {}", w.subject, w.message)).collect()
    }

    #[test]
    fn a_table_that_is_not_as_it_should_be_is_a_warning() {
        assert_eq!(warnings(TableState::Complete, 0), [""; 0]);
        for (state, what) in
            [(TableState::Missing, "is missing"), (TableState::Changed, "other rules")]
        {
            let [warning] = &warnings(state, 0)[..] else { panic!("{what}") };
            assert!(warning.starts_with("nftables table ip shunt: ") && warning.contains(what));
        }
    }

    #[test]
    fn a_full_conntrack_is_a_warning() {
        for (entries, what) in [(799, None), (800, Some("80 % of")), (1_000, Some("are dropped"))] {
            let warnings = warnings(TableState::Complete, entries);
            assert_eq!(warnings.len(), usize::from(what.is_some()), "{warnings:?}");
            assert!(what.is_none_or(|what| warnings[0].contains(what)), "{warnings:?}");
        }
        let unknown = report(TableState::Complete, Err("not permitted".to_owned()));
        assert_eq!(unknown.warnings[0].message, "not permitted");
    }

    #[test]
    fn lines_tell_of_netfilter() {
        let report = report(TableState::Missing, Ok(Usage { entries: 10, max: 1_000 }));
        let output = Output { format: super::super::Format::Table, colour: false };
        let text = report.text(output);
        assert!(text.contains("\nNAT       table ip shunt missing\n"), "{text}");
        assert!(text.contains("\nConntrack 10 of 1000 entries (1 %)\n"), "{text}");
    }
}
