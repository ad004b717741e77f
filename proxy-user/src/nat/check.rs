//! Whether the tables are there with their rules, for whoever only reads.

use super::{NatSettings, rules, table};
use crate::netfilter::{Family, NetfilterError, Socket, TableRow};
use serde::Serialize;

/// A table, and what is there of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TableCheck {
    /// Its name, such as `ip shunt`.
    pub table: String,
    /// What is there of it.
    pub state: TableState,
}

/// What is there of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableState {
    /// All chains and rules, as this version writes them.
    Complete,
    /// Chains or rules are missing, or others are there.
    Changed,
    /// Nothing.
    Missing,
}

/// Looks at the tables of this network namespace; writes nothing.
///
/// The bit of the masquerade mark is the agent's affair: any will do.
pub fn check() -> Result<Vec<TableCheck>, NetfilterError> {
    let mut socket = Socket::open()?;
    let there = socket.tables()?;
    super::families().map(|family| check_table(&mut socket, family, &there)).collect()
}

fn check_table(
    socket: &mut Socket,
    family: Family,
    there: &[TableRow],
) -> Result<TableCheck, NetfilterError> {
    let table = table(family);
    let name = format!("{family} {}", table.name);
    if !there.iter().any(|row| row.table == table) {
        return Ok(TableCheck { table: name, state: TableState::Missing });
    }
    let found = socket.rules(&table)?;
    let is_complete = (0..u32::BITS).any(|bit| {
        let settings = NatSettings { masquerade_mark: 1 << bit };
        rules::ruleset(family, settings).is_written_as(&found)
    });
    let state = if is_complete { TableState::Complete } else { TableState::Changed };
    Ok(TableCheck { table: name, state })
}
