//! The closing table, for a terminal.

use super::{Cell, Report, Row};
use crate::bench::contender::Contender;
use comfy_table::{CellAlignment, Table, presets};

/// The rows as a table: what, each contender, Shunt's share of the direct path, target, verdict.
pub(in crate::bench) fn render(report: &Report, field: &[Contender]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header(field));
    for row in &report.rows {
        table.add_row(cells(row, field));
    }
    for column in table.column_iter_mut().skip(1).take(field.len() + 3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// The names of the columns.
pub(super) fn header(field: &[Contender]) -> Vec<String> {
    let mut names = vec!["what".to_owned(), "services".to_owned(), "unit".to_owned()];
    names.extend(field.iter().map(ToString::to_string));
    names.extend(["shunt/direct", "target", "verdict"].map(str::to_owned));
    names
}

/// A row of the table.
pub(super) fn cells(row: &Row, field: &[Contender]) -> Vec<String> {
    let services = row.services.map_or(String::new(), |services| services.to_string());
    let mut cells = vec![row.what.clone(), services, row.unit.clone()];
    cells.extend(field.iter().map(|who| row.cells.get(who).map_or(String::new(), shown)));
    let shunt = row.cells.get(&Contender::Shunt);
    let ratio = shunt.and_then(|cell| cell.of_direct);
    cells.push(ratio.map_or(String::new(), |ratio| {
        format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high)
    }));
    cells.push(row.target.map_or(String::new(), |target| target.to_string()));
    cells.push(row.verdict.to_string());
    cells
}

/// The median, and how far the middle half reaches around it.
fn shown(cell: &Cell) -> String {
    if cell.wrong.is_some() {
        return "wrong".to_owned();
    }
    let figure = cell.figure;
    let spread =
        if figure.rounds > 1 { 50.0 * figure.spread() } else { return number(figure.median) };
    format!("{} ±{spread:.0}%", number(figure.median))
}

/// With three digits that count, and thousands apart.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((&*text, ""), |(whole, rest)| (whole, rest));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && digit != '-' {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if rest.is_empty() { grouped } else { format!("{grouped}.{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_three_digits() {
        let shown = [0.0, 0.1234, 1.234, 12.34, 123.4, 1234.0, 1_234_567.0].map(number);
        assert_eq!(shown, ["0", "0.123", "1.23", "12.3", "123", "1,234", "1,234,567"]);
    }
}
