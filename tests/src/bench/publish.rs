//! Puts a report into the documents: the page `docs/benchmark.md`, the plots that it shows, and
//! the table between two marks in README.md. Refuses what is not whole.

use super::contender::Contender;
use super::report::markdown::{self, Columns};
use super::report::{Report, Row, plot};
use super::target::Verdict;
use super::{above, save};
use anyhow::{Context, Result, ensure};
use std::fs;

/// Between these two lines, README.md is made by the bench.
const MARKS: [&str; 2] = ["<!-- bench: begin -->\n", "<!-- bench: end -->\n"];
/// The plot that README.md shows.
const PLOT: &str = "clusterip-connect-32";

/// Writes the documents.
pub(super) fn publish(report: &Report, field: &[Contender]) -> Result<()> {
    let root = above(3)?;
    let readme = root.join("README.md");
    let text = fs::read_to_string(&readme)
        .with_context(|| format!("read {}, which should lie beside target", readme.display()))?;
    let wrong = report.wrong();
    ensure!(wrong.is_empty(), "not published, because answers were wrong: {}", wrong.join("; "));
    // A row that says it is too noisy is honest; a report in which many do says nothing.
    let judged = report.rows.iter().filter(|row| row.verdict != Verdict::None).count();
    let noisy = report.rows.iter().filter(|row| row.verdict == Verdict::TooNoisy).count();
    ensure!(
        4 * noisy <= judged,
        "not published: {noisy} of {judged} rows are too noisy to compare"
    );
    let plots = plot::draw(report, field)?;
    let page = markdown::render(report, field, &[]);
    let page = plots
        .iter()
        .fold(page, |page, plot| page + &format!("\n![{}](images/{}.svg)\n", plot.name, plot.name));
    let images = root.join("docs/images");
    fs::create_dir_all(&images).with_context(|| format!("make {}", images.display()))?;
    for plot in &plots {
        save(&images, &images.join(format!("{}.svg", plot.name)), plot.svg.as_bytes())?;
    }
    save(&root, &root.join("docs/benchmark.md"), page.as_bytes())?;
    save(&root, &readme, within_marks(&text, &section(report, field))?.as_bytes())?;
    println!("published in {} and docs/benchmark.md", readme.display());
    Ok(())
}

/// What README.md shows: how Shunt compares, in the ordinary case, and a plot. Targets and verdicts
/// are for those who work on it, and stay on the page.
fn section(report: &Report, field: &[Contender]) -> String {
    let judged = |row: &Row| row.target.is_some() && report.is_ordinary(row);
    format!(
        "{} All of it, and how it is measured: [docs/benchmark.md](docs/benchmark.md).\n\n{}\
         ![New TCP connections per second through a ClusterIP, 32 at once, by the number of Services](docs/images/{PLOT}.svg)\n",
        markdown::origin(report),
        markdown::tables(report, field, Columns::Ratios, judged)
    )
}

/// `text` with `section` in place of what is between the marks.
fn within_marks(text: &str, section: &str) -> Result<String> {
    let [begin, end] = MARKS;
    let parts = text.split_once(begin).and_then(|(head, rest)| Some((head, rest.split_once(end)?)));
    let (head, (_, tail)) =
        parts.with_context(|| format!("README.md has no {} and {}", begin.trim(), end.trim()))?;
    Ok(format!("{head}{begin}{section}{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let [begin, end] = MARKS;
        let before = format!("a\n{begin}old\n{end}z\n");
        let after = within_marks(&before, "new\n").unwrap();
        assert_eq!(after, format!("a\n{begin}new\n{end}z\n"));
        assert_eq!(within_marks(&after, "new\n").unwrap(), after);
        assert!(within_marks("no marks", "new").is_err());
    }
}
