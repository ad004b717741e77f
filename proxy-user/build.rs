//! Builds the kernel programs, so that `cargo build` embeds them into the one binary.
//!
//! Their debug information stays behind but for BTF: it is four fifths of the object, and the
//! agent would have to read it at every start.
//!
//! The programs have a target directory of their own, shared by all profiles: they are the same
//! in each, and cargo would otherwise wait for its own lock.

use anyhow::{Context as _, Result, ensure};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;
use std::env;
use std::fs;
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
    let object = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let out = out_dir.join("programs");
    fs::write(&out, without_dwarf(&object)?)
        .with_context(|| format!("cannot write {}", out.display()))
}

/// The object without its DWARF, which is what BTF is made of.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the kernel programs are no ELF")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections with those of symbols, which the writer does not.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the kernel programs without DWARF")?;
    Ok(stripped)
}
