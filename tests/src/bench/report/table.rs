//! The closing table, for a terminal of 120 columns.

use super::{Report, Row};
use crate::bench::contender::Contender;
use crate::bench::stats::Figure;

/// How wide the columns are: what, unit, both ratios, targets, verdict.
const WIDTHS: [usize; 6] = [33, 6, 9, 9, 9, 9];
/// And that of a contender.
const FIGURE: usize = 7;

/// The rows as a table: what, each contender, Shunt's share of nftables and of the direct path,
/// targets, verdict.
pub(in crate::bench) fn render(report: &Report, field: &[Contender]) -> String {
    let names = field.iter().map(|who| who.short().to_owned());
    let mut text = line(["", "", "× nft", "× direct", "target", ""].map(str::to_owned), names);
    let mut group = String::new();
    for row in &report.rows {
        if row.group() != group {
            group = row.group();
            text.push_str(&format!("\n{group}\n"));
        }
        let figures = field.iter().map(|who| figure(row, *who));
        let target = row.target.map_or(String::new(), |target| target.to_string());
        let verdict = row.verdict.to_string();
        let [nftables, direct] = ratios(row).map(|ratio| ratio.map_or(String::new(), around));
        let what = format!("  {}", row.what);
        let cells = [what, row.unit.clone(), nftables, direct, target, verdict];
        text.push_str(&line(cells, figures));
    }
    text.push_str(LEGEND);
    text
}

const LEGEND: &str = "
Medians; × is Shunt's share, the median of the ratios inside a round ± half the width of the interval
in which it lies with 90 % certainty. Targets: that share of nftables/of the direct path at least,
or of the direct path alone. unsure: the target lies inside the interval.
";

fn line(cells: [String; 6], figures: impl Iterator<Item = String>) -> String {
    let [what, unit, nftables, direct, target, verdict] = WIDTHS;
    let figures: String = figures.map(|figure| format!("{figure:>FIGURE$} ")).collect();
    let [a, b, c, d, e, f] = cells;
    let line = format!(
        "{a:<what$} {b:<unit$} {figures}{c:>nftables$} {d:>direct$} {e:>target$} {f:<verdict$}"
    );
    format!("{}\n", line.trim_end())
}

fn figure(row: &Row, who: Contender) -> String {
    match row.cells.get(&who) {
        Some(cell) if cell.wrong.is_some() => "wrong".to_owned(),
        Some(cell) => compact(cell.figure.median),
        None => String::new(),
    }
}

/// Shunt's shares: of kube-proxy's nftables, and of the direct path.
pub(super) fn ratios(row: &Row) -> [Option<Figure>; 2] {
    [row.of_nftables, row.cells.get(&Contender::Shunt).and_then(|cell| cell.of_direct)]
}

fn around(ratio: Figure) -> String {
    format!("{:.2}±{:.2}", ratio.median, ratio.spread() * ratio.median / 2.0)
}

/// With three digits that count, in thousands from ten thousand on.
pub(super) fn compact(value: f64) -> String {
    match value {
        large if large >= 1e7 => format!("{}M", number(large / 1e6)),
        large if large >= 1e4 => format!("{}k", number(large / 1e3)),
        small => number(small),
    }
}

/// A whole number, thousands apart.
pub(in crate::bench) fn whole(value: usize) -> String {
    grouped(&value.to_string())
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
    grouped(&format!("{value:.digits$}"))
}

fn grouped(text: &str) -> String {
    let (whole, rest) = text.split_once('.').map_or((text, ""), |(whole, rest)| (whole, rest));
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
    use crate::bench::measure::MEASURES;

    #[test]
    fn numbers_show_three_digits() {
        let shown = [0.0, 0.1234, 1.234, 12.34, 123.4, 1234.0, 1_234_567.0].map(number);
        assert_eq!(shown, ["0", "0.123", "1.23", "12.3", "123", "1,234", "1,234,567"]);
        assert_eq!([10, 1_000].map(whole), ["10", "1,000"]);
        let short = [1234.0, 14_732.0, 496_325.0, 1.234e7].map(compact);
        assert_eq!(short, ["1,234", "14.7k", "496k", "12.3M"]);
    }

    #[test]
    fn a_row_fits_into_120_columns() {
        let full = || "x".repeat(FIGURE);
        let cells = WIDTHS.map(|width| "x".repeat(width));
        let line = line(cells, [full(), full(), full(), full(), full()].into_iter());
        assert!(line.trim_end().chars().count() <= 120, "{}", line.chars().count());
        let too_long = |name: &&str| name.chars().count() + 2 > WIDTHS[0];
        let long: Vec<_> = MEASURES.iter().map(|measure| measure.what).filter(too_long).collect();
        assert_eq!(long, [""; 0]);
    }
}
