//! Builds the kernel programs, so that `cargo build` embeds them into the one binary.
//!
//! The programs have a target directory of their own, shared by all profiles: they are the same
//! in each, and cargo would otherwise wait for its own lock.

use anyhow::{Context as _, Result, ensure};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace root")?;
    let linker = root.join(".tools/bin/bpf-linker");
    println!("cargo:rerun-if-changed={}", linker.display());
    println!("cargo:rerun-if-changed={}", root.join("proxy-ebpf").display());
    println!("cargo:rerun-if-changed={}", root.join("Cargo.lock").display());
    ensure!(
        linker.exists(),
        "{} is missing: run `cargo xtask setup` once, it installs what the build needs",
        linker.display()
    );

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let target_dir = out_dir.ancestors().nth(4).context("OUT_DIR has no target directory")?;
    let target_dir = target_dir.join("bpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let flags = [&format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2", "-Clink-arg=--btf"];
    let output = Command::new(env::var_os("CARGO").context("CARGO is not set")?)
        .args(["build", "--quiet", "--release", "--package", "proxy-ebpf", "--bin", "programs"])
        .args(["--features", "programs", "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // `core` is built from source for the BPF target, which a stable compiler allows only so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .context("cannot run cargo for the kernel programs")?;
    ensure!(
        output.status.success(),
        "the kernel programs do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let built = target_dir.join(TARGET).join("release/programs");
    std::fs::copy(&built, out_dir.join("programs"))
        .with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(())
}
