//! What the command line shows: documents made from the pinned maps and the agent's status.
//!
//! Each document is a pure function of a [`Snapshot`] (or of the flows, the status); it is
//! printed as a table for people, or as JSON or YAML with the field names of its struct, which
//! do not change within a major version.

mod backends;
mod dns;
mod explain;
mod flows;
mod services;
mod snapshot;
mod status;

pub use backends::{BackendRow, backends};
pub use dns::{NameAnswer, NameQuestion, name_answer};
pub use explain::{Answer, Candidate, Explanation, Question, Step, explain};
pub use flows::{FlowRow, Flows};
pub use services::{FrontendRef, ServiceRow, services};
pub use snapshot::{Filter, Selected, Snapshot};
pub use status::{Netfilter, OutcomeRow, StatusReport, pinned_links};

use comfy_table::{Attribute, Cell, Color, Table, presets};
use serde::Serialize;

/// How a document is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// A table of what matters most.
    #[default]
    Table,
    /// A table of everything.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// How a document is printed, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Output {
    /// The format.
    pub format: Format,
    /// Whether the reader is a terminal that shows colours.
    pub colour: bool,
}

/// A document could not be encoded.
#[derive(thiserror::Error, Debug)]
pub enum ShowError {
    /// As JSON.
    #[error("cannot encode the answer as JSON")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("cannot encode the answer as YAML")]
    Yaml(#[from] serde_yaml_ng::Error),
}

/// Something that a command prints.
pub trait Document: Serialize {
    /// The text for people.
    fn text(&self, output: Output) -> String;
}

/// The text of `document`, ending with a line feed unless it is empty.
pub fn render(document: &impl Document, output: Output) -> Result<String, ShowError> {
    Ok(match output.format {
        Format::Table | Format::Wide => document.text(output),
        Format::Json => serde_json::to_string_pretty(document)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(document)?,
    })
}

/// A line of a table.
pub trait Row: Serialize {
    /// The columns.
    const COLUMNS: &'static [Column];
    /// One cell for each column.
    fn cells(&self) -> Vec<Cell>;
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    wide: bool,
}

const fn column(name: &'static str) -> Column {
    Column { name, wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, wide: true }
}

/// A list of rows is a document: an array, or a table.
impl<R: Row> Document for Vec<R> {
    fn text(&self, output: Output) -> String {
        table(self, output)
    }
}

/// `rows` as a table without borders; empty without rows.
fn table<R: Row>(rows: &[R], output: Output) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let shown = |index: usize| !R::COLUMNS[index].wide || output.format == Format::Wide;
    let visible = |cells: Vec<Cell>| -> Vec<Cell> {
        cells.into_iter().enumerate().filter(|(i, _)| shown(*i)).map(|(_, cell)| cell).collect()
    };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty();
    if output.colour {
        table.enforce_styling();
    }
    let header = R::COLUMNS.iter().map(|c| Cell::new(c.name).add_attribute(Attribute::Bold));
    table.set_header(visible(header.collect()));
    table.add_rows(rows.iter().map(|row| visible(row.cells())));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `text` in the colour for what is as it should be, or for what an operator should look at.
fn judged(text: impl ToString, good: bool) -> Cell {
    Cell::new(text).fg(if good { Color::Green } else { Color::Yellow })
}

/// `address:port`, the address in brackets where it is IPv6.
fn socket(addr: proxy_ebpf::Addr, port: proxy_ebpf::Port) -> String {
    std::net::SocketAddr::new(addr.into(), port.number()).to_string()
}

/// A time span in its two largest units, such as `3d4h`.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests;
