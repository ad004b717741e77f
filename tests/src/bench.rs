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
mod names;
mod noise;
mod options;
mod population;
mod programs;
mod proxies;
mod publish;
mod report;
mod rounds;
mod rules;
mod stats;
mod surroundings;
mod target;

pub use options::Options;

use anyhow::{Context, Result, bail};
use arena::Arena;
use contender::Contender;
use control::Loads;
use facts::Facts;
use indicatif::{ProgressBar, ProgressStyle};
use measure::Measure;
use noise::{Noise, Watch};
use proxies::Proxies;
use report::{Report, Row, markdown, plot, table};
use rounds::Programme;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use std::{env, fs, mem};
use surroundings::Surroundings;
use target::Verdict;

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
    if let Some(unknown) = options.unknown() {
        bail!("--only {unknown}: nothing has this in its name; --list shows the names");
    }
    let started = Instant::now();
    let report = match &options.from {
        Some(file) => read(file)?,
        None => measure(&options).await?,
    };
    let field = report.field();
    println!("{}", table::render(&report, &field));
    let out = write(&options, &report, &field)?;
    report.skipped.iter().for_each(|skipped| println!("left out: {skipped}"));
    report.wrong().iter().for_each(|wrong| println!("wrong: {wrong}"));
    noise(&report).into_iter().for_each(|line| println!("{line}"));
    println!("{} s; the report is in {}", started.elapsed().as_secs(), out.display());
    if options.publish {
        publish::publish(&report, &field)?;
    }
    Ok(if report.wrong().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The whole run.
async fn measure(options: &Options) -> Result<Report> {
    let (options, skipped) = &as_far_as_can_be(options);
    let field = options.field();
    let mut report = Report {
        facts: Facts::collect(&field, options.kube_proxy.as_deref()),
        settings: settings(options),
        rows: Vec::new(),
        noise: Noise::new(options.others),
        skipped: skipped.clone(),
    };
    let bar = progress(options, &field);
    let mut loads = traffic(options, &field, &mut report, &bar).await?;
    if options.wants("dns") {
        bar.set_message("names");
        let names = names::run(options, &mut report.skipped);
        report.rows.extend(watched(names, &mut report.noise).await?);
    }
    control_plane(options, &mut loads, &mut report, &bar).await?;
    bar.finish_and_clear();
    Ok(report)
}

/// The options without what this machine has no tool for, and what that is.
fn as_far_as_can_be(options: &Options) -> (Options, Vec<String>) {
    let has_nft = Command::new("nft").arg("--version").output().is_ok();
    let no_cni_rules = options.no_cni_rules || !has_nft;
    let no_nft = "a CNI's rules: there is no nft; `cargo xtask setup` installs it";
    let skipped = if has_nft { Vec::new() } else { vec![no_nft.to_owned()] };
    (Options { no_cni_rules, ..options.clone() }, skipped)
}

/// What is to be said of the noise: how much there was, and what is not compared for it.
fn noise(report: &Report) -> Vec<String> {
    let mut lines: Vec<_> = report.noise.words().into_iter().collect();
    let too_noisy = report.rows.iter().filter(|row| row.verdict == Verdict::TooNoisy).count();
    if too_noisy > 0 {
        lines.push(format!(
            "not compared, because the machine was too noisy: {too_noisy} of {} rows; run it again when nothing else runs",
            report.rows.len()
        ));
    }
    lines
}

fn read(file: &Path) -> Result<Report> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no report", file.display()))
}

/// What is measured without traffic.
async fn control_plane(
    options: &Options,
    loads: &mut Loads,
    report: &mut Report,
    bar: &ProgressBar,
) -> Result<()> {
    if options.wants("control") {
        for size in options.control_sizes() {
            let run = control::run(options, size, loads, bar, &mut report.skipped);
            report.rows.extend(watched(run, &mut report.noise).await?);
        }
    }
    if options.wants("scale") {
        let scale = control::scale(options, bar);
        report.rows.extend(watched(scale, &mut report.noise).await?);
    }
    Ok(())
}

/// The rows of a part of the run; its times are not judged if it was not left alone.
async fn watched(
    part: impl Future<Output = Result<Vec<Row>>>,
    noise: &mut Noise,
) -> Result<Vec<Row>> {
    let watch = Watch::new();
    let mark = watch.mark()?;
    let mut rows = part.await?;
    let block = watch.since(&mark)?;
    noise.add(&block);
    let is_time = |row: &&mut Row| row.verdict != Verdict::None && row.unit != "MiB";
    if noise.disturbed(&block) {
        rows.iter_mut().filter(is_time).for_each(|row| row.verdict = Verdict::TooNoisy);
    }
    Ok(rows)
}

/// What is measured with one number of Services in one kind of surroundings.
struct Part {
    services: usize,
    surroundings: Surroundings,
    measures: Vec<Measure>,
}

/// Everything that is measured on traffic, with rising numbers of Services.
fn parts(options: &Options) -> Vec<Part> {
    let of_size = |services| {
        options.surroundings().iter().map(move |surroundings| Part {
            services,
            surroundings: *surroundings,
            measures: options.measures(services, *surroundings),
        })
    };
    let mut parts: Vec<_> = options.sizes().into_iter().flat_map(of_size).collect();
    parts.retain(|part| !part.measures.is_empty());
    parts
}

/// Measures everything on traffic. Gives what it took to load the rules of baselines on the way.
async fn traffic(
    options: &Options,
    field: &[Contender],
    report: &mut Report,
    bar: &ProgressBar,
) -> Result<Loads> {
    let wants_programs = options.wants("programs");
    let parts = parts(options);
    if !wants_programs && parts.is_empty() {
        return Ok(Loads::default());
    }
    bar.set_message("starting the lab");
    let mut arena = Arena::start(field).await?;
    let mut proxies = Proxies::start(&mut arena, options.kube_proxy.as_deref()).await?;
    for size in options.sizes() {
        let parts: Vec<_> = parts.iter().filter(|part| part.services == size).collect();
        let is_last = options.sizes().last() == Some(&size);
        if parts.is_empty() && !(wants_programs && is_last) {
            continue;
        }
        bar.set_message(format!("bringing everybody to {size} services"));
        let ready = proxies.bring_to(&arena, options, size, &mut report.skipped).await?;
        for Part { services, surroundings, measures } in parts {
            let rounds = options.rounds(*surroundings);
            bar.inc(rounds.turns(measures, field) - rounds.turns(measures, &ready));
            let (services, surroundings) = (*services, *surroundings);
            let programme = Programme { measures, ready: &ready, surroundings, services, rounds };
            let noise = &mut report.noise;
            let rows = rounds::run(&mut arena, &proxies, programme, noise, bar).await?;
            report.rows.extend(rows);
        }
        if wants_programs && is_last {
            let programs = programs::run(options, &arena, size, bar);
            report.rows.extend(watched(programs, &mut report.noise).await?);
        }
    }
    Ok(mem::take(&mut proxies.loads))
}

fn progress(options: &Options, field: &[Contender]) -> ProgressBar {
    let parts = parts(options);
    let turns = |part: &Part| options.rounds(part.surroundings).turns(&part.measures, field);
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {percent:>3}%\n{msg}")
        .expect("the template is right");
    let bar = ProgressBar::new(parts.iter().map(turns).sum()).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn settings(options: &Options) -> BTreeMap<String, String> {
    let rounds = options.rounds(options.surroundings()[0]);
    let sizes: Vec<_> = options.sizes().iter().map(ToString::to_string).collect();
    let settings = [
        ("mode", options.pick("smoke", "quick", "full").to_owned()),
        ("rounds", rounds.to_string()),
        ("services", sizes.join(", ")),
        ("endpoints of each", proxies::ENDPOINTS.to_string()),
    ];
    settings.map(|(name, value)| (name.to_owned(), value)).into()
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
    Ok(above(2)?.join("bench"))
}

/// The folder so many steps above this program, which lies in `target/release`.
fn above(steps: usize) -> Result<PathBuf> {
    let this = env::current_exe().context("find the running program")?;
    let above = this.ancestors().nth(steps).context("find the folder above this program")?;
    Ok(above.to_owned())
}
