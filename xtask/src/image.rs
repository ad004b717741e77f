//! Builds the container image with whatever builds images on this machine.

use crate::machine::{output, root, run};
use anyhow::{Context as _, Result};
use std::process::Command;

/// What can build an image, the ones without a daemon first.
const ENGINES: [&str; 3] = ["podman", "buildah", "docker"];

/// Builds the image and names it `tag`.
pub(crate) fn build(tag: &str) -> Result<()> {
    // `version` fails where the program is missing, and where its daemon does not answer.
    let engine = ENGINES
        .iter()
        .find(|engine| output(Command::new(engine).arg("version")).is_some())
        .context("nothing here builds images: install podman, or start the docker daemon")?;
    let mut command = Command::new(engine);
    // docker before 23 builds with the old builder, which knows no cache mounts.
    command.env("DOCKER_BUILDKIT", "1").current_dir(root());
    run(command.args(["build", "--file", "Containerfile", "--tag", tag, "."]))
}
