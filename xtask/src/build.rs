//! Builds with cargo, as the user who asked, and says which executables came out.

use crate::machine::{cargo, shown};
use crate::setup;
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An executable that cargo built or found fresh.
pub(crate) struct Executable {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The folder of its package.
    pub(crate) package: PathBuf,
    /// The name of its target.
    pub(crate) target: String,
    /// Whether it is a test executable.
    pub(crate) test: bool,
    /// Whether it is one of the package's folder `tests`.
    pub(crate) integration: bool,
}

/// Every executable of the workspace but this one, which runs.
pub(crate) fn binaries(release: bool) -> Result<Vec<Executable>> {
    let mut cargo = cargo(["build", "--workspace", "--exclude", "xtask", "--bins"]);
    executables(if release { cargo.arg("--release") } else { &mut cargo })
}

/// Every test executable of the workspace, built but not run.
pub(crate) fn tests() -> Result<Vec<Executable>> {
    let all = executables(&mut cargo(["test", "--workspace", "--no-run"]))?;
    Ok(all.into_iter().filter(|executable| executable.test).collect())
}

/// Where the executable `name` is.
pub(crate) fn find<'a>(built: &'a [Executable], name: &str) -> Result<&'a Path> {
    let found = built.iter().find(|executable| executable.target == name && !executable.test);
    Ok(&found.with_context(|| format!("the workspace has no executable {name}"))?.path)
}

fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    setup::ensure_done()?;
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", shown(command)))?;
    let stdout = child.stdout.take().context("cargo has no standard output")?;
    let mut built = Vec::new();
    for line in BufReader::new(stdout).lines() {
        built.extend(executable(&line?));
    }
    let status = child.wait()?;
    ensure!(status.success(), "{} failed", shown(command));
    Ok(built)
}

/// The executable that a line of cargo's report tells of, if it does.
fn executable(line: &str) -> Option<Executable> {
    #[derive(Deserialize)]
    struct Artifact {
        executable: Option<PathBuf>,
        manifest_path: PathBuf,
        target: Target,
        profile: Profile,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let artifact: Artifact = serde_json::from_str(line).ok()?;
    Some(Executable {
        path: artifact.executable?,
        package: artifact.manifest_path.parent()?.to_owned(),
        integration: artifact.target.kind == ["test"],
        target: artifact.target.name,
        test: artifact.profile.test,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_artifact_with_an_executable_is_one() {
        let line = |executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml",
                "target":{{"name":"demo","kind":["bin"]}},"profile":{{"test":false}},"executable":{executable}}}"#
            )
        };
        let found = executable(&line(r#""/w/target/debug/demo""#)).unwrap();
        assert_eq!(found.target, "demo");
        assert!(!found.test && !found.integration);
        assert_eq!(found.package, Path::new("/w/tests"));
        assert!(executable(&line("null")).is_none());
        assert!(executable(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
