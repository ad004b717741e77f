//! The benchmark: Shunt against the direct path and against kube-proxy, in one run.
//!
//! Takes [`Options`]; builds a lab in which all contenders run side by side, measures them in
//! turns, prints a table and writes `report.json`, `report.md` and plots. What it measures, it
//! also checks: an answer from the wrong backend, a failure or an unfair choice spoils a figure.

mod arena;
mod contender;
mod control;
mod facts;
mod measure;
mod options;
mod population;
mod programs;
mod proxies;
mod report;
mod rounds;
mod rules;
mod stats;
mod target;

pub use options::Options;

use anyhow::{Context, Result, ensure};
use arena::Arena;
use contender::Contender;
use facts::Facts;
use indicatif::{ProgressBar, ProgressStyle};
use proxies::Proxies;
use report::{Report, markdown, plot, table};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};
use target::Verdict;

/// Whether a contender is a text of rules that the bench makes itself.
fn is_made_of_rules(contender: Contender) -> bool {
    [Contender::Iptables, Contender::IptablesLegacy, Contender::Nftables].contains(&contender)
}

/// Runs the benchmark. The exit code is 0 if everything ran and every answer was right; a target
/// that is missed is no failure.
pub async fn run(options: Options) -> Result<ExitCode> {
    if options.list {
        measure::MEASURES
            .iter()
            .for_each(|measure| println!("{:<28}{}", measure.key, measure.what));
        options::PARTS.iter().for_each(|part| println!("{part}"));
        return Ok(ExitCode::SUCCESS);
    }
    let started = Instant::now();
    let field = options.field();
    let facts = Facts::collect(&field);
    let mut report =
        Report { facts, settings: settings(&options), rows: Vec::new(), skipped: Vec::new() };
    let bar = progress(&options, field.len());
    traffic(&options, &field, &mut report, &bar).await?;
    control_plane(&options, &mut report, &bar).await?;
    bar.finish_and_clear();

    println!("{}", table::render(&report, &field));
    let out = write(&options, &report, &field)?;
    for skipped in &report.skipped {
        println!("left out: {skipped}");
    }
    let wrong: Vec<_> = report.rows.iter().filter(|row| row.verdict == Verdict::Wrong).collect();
    for row in &wrong {
        let why = row.cells.iter().filter_map(|(who, cell)| Some((who, cell.wrong.as_ref()?)));
        why.for_each(|(who, why)| println!("wrong: {}, {who}: {why}", row.what));
    }
    println!("{} s; the report is in {}", started.elapsed().as_secs(), out.display());
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is measured without traffic.
async fn control_plane(options: &Options, report: &mut Report, bar: &ProgressBar) -> Result<()> {
    if options.wants("control") {
        for size in options.control_sizes() {
            report.rows.extend(control::run(options, size, bar, &mut report.skipped).await?);
        }
    }
    if options.wants("scale") {
        report.rows.extend(control::scale(options, bar).await?);
    }
    Ok(())
}

/// Everything that is measured on traffic, with rising numbers of Services.
async fn traffic(
    options: &Options,
    field: &[Contender],
    report: &mut Report,
    bar: &ProgressBar,
) -> Result<()> {
    let wants_programs = options.wants("programs");
    if !wants_programs && options.sizes().iter().all(|size| options.measures(*size).is_empty()) {
        return Ok(());
    }
    bar.set_message("starting the lab");
    let mut arena = Arena::start(field).await?;
    let mut proxies = Proxies::start(&mut arena, options.kube_proxy.as_deref()).await?;
    for size in options.sizes() {
        let measures = options.measures(size);
        let is_last = options.sizes().last() == Some(&size);
        if measures.is_empty() && !(wants_programs && is_last) {
            continue;
        }
        bar.set_message(format!("bringing everybody to {size} services"));
        let patience = options.patience();
        let ready = proxies.bring_to(&arena, size, patience, &mut report.skipped).await?;
        let missing = (field.len() - ready.len()) as u64;
        bar.inc(missing * rounds::turns(measures.len(), 1, options.rounds()));
        let rows = rounds::run(&arena, &measures, &ready, size, options.rounds(), bar).await?;
        report.rows.extend(rows);
        if wants_programs && is_last {
            report.rows.extend(programs::run(options, &arena, size, bar).await?);
        }
    }
    Ok(())
}

fn progress(options: &Options, contenders: usize) -> ProgressBar {
    let turns = options
        .sizes()
        .into_iter()
        .map(|size| rounds::turns(options.measures(size).len(), contenders, options.rounds()));
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {percent:>3}%\n{msg}")
        .expect("the template is right");
    let bar = ProgressBar::new(turns.sum()).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn settings(options: &Options) -> BTreeMap<&'static str, String> {
    let rounds = options.rounds();
    let sizes: Vec<_> = options.sizes().iter().map(ToString::to_string).collect();
    BTreeMap::from([
        ("mode", options.pick("smoke", "quick", "full").to_owned()),
        ("rounds", format!("{} of {} ms each", rounds.count, rounds.turn.as_millis())),
        ("services", sizes.join(", ")),
        ("endpoints of each", proxies::ENDPOINTS.to_string()),
    ])
}

/// Writes the report; it belongs to whom its folder belongs to, though root writes it.
fn write(options: &Options, report: &Report, field: &[Contender]) -> Result<PathBuf> {
    let out = match &options.out {
        Some(out) => out.clone(),
        None => default_out()?,
    };
    fs::create_dir_all(&out).with_context(|| format!("make the folder {}", out.display()))?;
    let plots = plot::draw(report, field)?;
    let names: Vec<_> = plots.iter().map(|plot| plot.name.clone()).collect();
    let page = markdown::render(report, field, &names);
    let json = serde_json::to_vec_pretty(report)?;
    let mut files = vec![("report.md".to_owned(), page.into_bytes())];
    files.push(("report.json".to_owned(), json));
    for plot in plots {
        files.push((format!("{}.svg", plot.name), plot.svg.into_bytes()));
        files.push((format!("{}.png", plot.name), plot.png));
    }
    for (name, bytes) in files {
        save(&out, &out.join(name), &bytes)?;
    }
    Ok(out)
}

fn save(folder: &Path, file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("write {}", file.display()))?;
    let owner = fs::metadata(folder)?;
    std::os::unix::fs::chown(file, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("give {} to the owner of its folder", file.display()))
}

/// `target/bench`, beside the folder that this program lies in.
fn default_out() -> Result<PathBuf> {
    let this = env::current_exe().context("find the running program")?;
    let target = this.ancestors().nth(2).context("find the folder above this program")?;
    ensure!(target.is_dir(), "{} is no folder", target.display());
    Ok(target.join("bench"))
}
