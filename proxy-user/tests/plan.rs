//! Kubernetes objects in, tables out.
//!
//! A case is `cases/NAME.yaml`: documents as `kubectl apply` takes them, for the node `node-a`. A
//! line that begins with `# then` starts another step, in which objects replace those of the same
//! name, and `gone: KIND NAMESPACE/NAME` deletes one. `cases/NAME.out` holds what each step
//! changes in the tables: `+` a new row, `~` another one in its place, `-` a row that goes; and
//! the warnings that stand after it, behind `!`. `UPDATE=1` writes it.
//!
//! A case whose name begins with `names` shows the names of the cluster zone and nothing else.
//!
//! Each case is also run with the documents of each step the other way round, which must change
//! nothing.

use anyhow::{Context as _, bail, ensure};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, Scope};
use proxy_ebpf::slot::BackendFlags;
use proxy_user::model::{Change, ObjectName, Touched, World};
use proxy_user::plan::Planner;
use proxy_user::source::convert::Converter;
use proxy_user::tables::{Family, FrontendRow, ServiceRow, TableDelta, Tables};
use serde::Deserialize as _;
use serde_yaml_ng::Value;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{env, fs};

const OWN_NODE: &str = "node-a";

#[test]
fn every_case_gives_its_tables() {
    let mut failures = String::new();
    let cases = files("yaml").unwrap();
    assert!(cases.len() >= 35, "only {} cases were found", cases.len());
    for case in cases {
        if let Err(error) = check(&case) {
            let name = case.file_stem().unwrap().to_string_lossy();
            writeln!(failures, "{name}: {error:#}\n").unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}UPDATE=1 writes the tables as they are now");
}

#[test]
fn every_expected_output_has_its_case() {
    for output in files("out").unwrap() {
        assert!(output.with_extension("yaml").exists(), "{} has no case", output.display());
    }
}

/// The files beside the cases that have the extension, by name.
fn files(extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

fn check(case: &Path) -> anyhow::Result<()> {
    let steps = steps(&fs::read_to_string(case)?)?;
    let names = case.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("names"));
    let output = run(&steps, names)?;
    let mut reversed = steps;
    reversed.iter_mut().for_each(|step| step.documents.reverse());
    let other = run(&reversed, names)?;
    ensure!(output == other, "the order of documents matters\n{}", difference(&output, &other));

    let expected_path = case.with_extension("out");
    if env::var_os("UPDATE").is_some() {
        return Ok(fs::write(expected_path, output)?);
    }
    let expected = fs::read_to_string(expected_path).context("no expected output")?;
    ensure!(output == expected, "other tables\n{}", difference(&expected, &output));
    Ok(())
}

/// The lines that only one of two texts has.
fn difference(expected: &str, found: &str) -> String {
    let only = |sign: char, these: &str, those: &str| -> String {
        let lines = these.lines().filter(|line| !those.lines().any(|other| other == *line));
        lines.map(|line| format!("  {sign}| {line}\n")).collect()
    };
    format!("{}{}", only('-', expected, found), only('+', found, expected))
}

struct Step {
    /// The line that begins it; empty for the first one.
    title: String,
    documents: Vec<Value>,
}

fn steps(text: &str) -> anyhow::Result<Vec<Step>> {
    let mut texts = vec![(String::new(), String::new())];
    for line in text.lines() {
        match (line.strip_prefix("# "), texts.last_mut()) {
            (Some(title), _) if title.starts_with("then") => {
                texts.push((title.to_owned(), String::new()));
            }
            (_, Some((_, text))) => text.extend([line, "\n"]),
            (_, None) => unreachable!("there is always a step"),
        }
    }
    let step = |(title, text): (String, String)| {
        let values = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
        let mut documents = values.collect::<Result<Vec<_>, _>>()?;
        documents.retain(|document| !document.is_null());
        Ok(Step { title, documents })
    };
    texts.into_iter().map(step).collect()
}

/// What each step changes, as text.
fn run(steps: &[Step], names: bool) -> anyhow::Result<String> {
    let (mut converter, mut world) = (Converter::new(names), World::default());
    let mut planner = Planner::new(OWN_NODE);
    if names {
        planner = planner.with_names();
    }
    let mut output = String::new();
    for step in steps {
        let mut touched = Touched::default();
        for document in &step.documents {
            touched.merge(world.apply(change(&mut converter, document)?));
        }
        let before = planner.tables().clone();
        let delta = planner.update(&world, &touched);
        if !step.title.is_empty() {
            writeln!(output, "\n{}", step.title)?;
        }
        if delta.is_empty() {
            output.push_str("= nothing changes\n");
        }
        if names {
            describe_names(&mut output, &before, &delta)?;
        } else {
            describe(&mut output, &before, &delta)?;
        }
        let mut warnings: Vec<_> = world.warnings().chain(planner.warnings()).collect();
        warnings.sort();
        for warning in warnings {
            writeln!(output, "! {}: {}", warning.subject, warning.message)?;
        }
    }
    Ok(output)
}

fn change(converter: &mut Converter, document: &Value) -> anyhow::Result<Change> {
    if let Some(gone) = document.get("gone").and_then(Value::as_str) {
        let (kind, name) = gone.split_once(' ').context("`gone: KIND NAMESPACE/NAME`")?;
        let (namespace, name) = name.split_once('/').context("`gone: KIND NAMESPACE/NAME`")?;
        return removal(kind, namespace, name);
    }
    let metadata = |field| document.get("metadata").and_then(|m| m.get(field)?.as_str());
    let (namespace, name) = (metadata("namespace").unwrap_or("default"), metadata("name"));
    let kind = document.get("kind").and_then(Value::as_str).context("a document without a kind")?;
    let converted = match kind {
        "Service" => converter
            .service(&serde_yaml_ng::from_value(document.clone())?)
            .map(|service| Change::Service(Box::new(service))),
        "EndpointSlice" => converter
            .slice(&serde_yaml_ng::from_value(document.clone())?)
            .map(|slice| Change::Slice(Box::new(slice))),
        "Namespace" => {
            let object = serde_yaml_ng::from_value(document.clone())?;
            Some(Change::Namespace(converter.namespace(&object)))
        }
        "Node" => {
            Some(Change::Node(Some(converter.node(&serde_yaml_ng::from_value(document.clone())?))))
        }
        kind => bail!("{kind} is no kind that the source reads"),
    };
    // An object that is not ours, or no longer, is as good as deleted.
    converted.map_or_else(|| removal(kind, namespace, name.unwrap_or_default()), Ok)
}

fn removal(kind: &str, namespace: &str, name: &str) -> anyhow::Result<Change> {
    let name = ObjectName { namespace: namespace.into(), name: name.into() };
    match kind {
        "Service" => Ok(Change::ServiceGone(name)),
        "EndpointSlice" => Ok(Change::SliceGone(name)),
        "Namespace" => Ok(Change::NamespaceGone(name.name)),
        kind => bail!("a {kind} cannot go"),
    }
}

fn describe_names(output: &mut String, before: &Tables, delta: &TableDelta) -> anyhow::Result<()> {
    for (name, row) in &delta.names {
        write!(output, "{} {name}", sign(before.names.contains_key(name), row.is_some()))?;
        if let Some(row) = row {
            write!(output, " {:?}", row.kind)?;
            let addrs = row.v4.iter().chain(&row.v6);
            addrs.for_each(|&addr| *output += &format!(" {}", IpAddr::from(addr)));
        }
        output.push('\n');
    }
    Ok(())
}

fn describe(output: &mut String, before: &Tables, delta: &TableDelta) -> anyhow::Result<()> {
    for (key, row) in &delta.services {
        let sign = sign(before.services.contains_key(key), row.is_some());
        writeln!(output, "{sign} service {}/{} {}", key.port, key.port.proto, key.family)?;
        if let Some(row) = row {
            describe_backends(output, row)?;
        }
    }
    let mut frontends: Vec<_> = delta.frontends.iter().collect();
    frontends.sort_by_key(|(key, _)| (key.scope(), socket_addr(key), key.proto));
    for (key, row) in frontends {
        let sign = sign(before.frontends.contains_key(key), row.is_some());
        write!(output, "{sign} frontend {}", frontend(key))?;
        if let Some(FrontendRow { service, flags }) = row {
            write!(output, " {} -> {}/{}", flags.kind(), service.port, service.port.proto)?;
            if flags.has(FrontendFlags::INTERNAL_LOCAL) {
                output.push_str(", every caller gets the local set");
            }
            if flags.has(FrontendFlags::EXTERNAL_LOCAL) {
                output.push_str(", outsiders get the local set");
            }
            if flags.has(FrontendFlags::RESTRICTED) {
                output.push_str(", its sources only");
            }
            if flags.has(FrontendFlags::ADMITS_NODE) {
                output.push_str(" and this node");
            }
        }
        output.push('\n');
    }
    Ok(())
}

fn describe_backends(output: &mut String, row: &ServiceRow) -> anyhow::Result<()> {
    if row.affinity_seconds > 0 {
        writeln!(output, "    affinity {} s", row.affinity_seconds)?;
    }
    for range in &row.source_ranges {
        let network = range.network().context("a prefix of its family")?;
        writeln!(output, "    open to {network}")?;
    }
    if row.all.is_empty() {
        writeln!(output, "    no endpoint")?;
    }
    let mut all: Vec<_> = row.all.iter().collect();
    all.sort_by_key(|(backend, _)| (IpAddr::from(backend.addr), backend.port));
    for (backend, flags) in all {
        ensure!(flags.has(BackendFlags::SERVING), "{backend} is listed and does not serve");
        let state = if flags.has(BackendFlags::READY) { "ready" } else { "draining" };
        let place = if flags.has(BackendFlags::LOCAL) { "here" } else { "elsewhere" };
        let sets =
            [("cluster", BackendFlags::IN_CLUSTER_SET), ("local", BackendFlags::IN_LOCAL_SET)];
        let sets = sets.iter().filter(|(_, set)| flags.has(*set)).map(|(name, _)| *name);
        let sets = sets.collect::<Vec<_>>().join("+");
        let sets = if sets.is_empty() { "-" } else { &sets };
        writeln!(output, "    {:<16} {state:<8} {place:<9} {sets}", backend.to_string())?;
    }
    Ok(())
}

fn sign(was: bool, is: bool) -> char {
    match (was, is) {
        (false, _) => '+',
        (true, true) => '~',
        (true, false) => '-',
    }
}

fn frontend(key: &FrontendKey) -> String {
    match key.scope() {
        Scope::Service => format!("{}/{}", socket_addr(key), key.proto),
        Scope::Address => format!("{}/*", key.addr),
        Scope::Node => format!("node:{}/{} {}", key.port, key.proto, Family::of(key.addr)),
    }
}

fn socket_addr(key: &FrontendKey) -> SocketAddr {
    SocketAddr::new(key.addr.into(), key.port.number())
}
