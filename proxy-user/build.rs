//! Builds the kernel programs, so that `cargo build` embeds them into the one binary.

use anyhow::{Context as _, Result, ensure};
use aya_build::{Package, Toolchain};
use std::path::Path;

/// The one toolchain of the workspace, as in rust-toolchain.toml.
const TOOLCHAIN: &str = "1.95.0";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace root")?;
    let linker = root.join(".tools/bin/bpf-linker");
    println!("cargo:rerun-if-changed={}", linker.display());
    println!("cargo:rerun-if-changed={}", root.join("proxy-ebpf").display());
    ensure!(
        linker.exists(),
        "{} is missing: run `cargo xtask setup` once, it installs what the build needs",
        linker.display()
    );
    // `core` is built from source for the BPF target, which a stable compiler allows only so.
    // SAFETY: the build script has one thread.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    let programs = Package {
        name: "proxy-ebpf",
        root_dir: "../proxy-ebpf",
        features: &["programs"],
        ..Package::default()
    };
    aya_build::build_ebpf([programs], Toolchain::Custom(TOOLCHAIN))
}
