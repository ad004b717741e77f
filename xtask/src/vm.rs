//! Boots Debian's kernels in virtual machines, and shows that Shunt works on each.
//!
//! Takes the example `vm_init` of the lab, which becomes the first process of each machine, and
//! the programs that it runs; prints what that says. Emulated, so that it needs neither KVM nor
//! root; root only to install what is missing. A machine has no network and no disk.

mod modules;

use crate::machine::{cargo, output, root, run};
use crate::setup;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The oldest kernel that Shunt is for, which has no tcx, and one that has it. What lies between
/// and after differs less.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// What this needs: a program, and its package.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
    ("update-ca-certificates", "ca-certificates"),
    ("nft", "nftables"),
];
/// What runs in a machine: the first process and its helpers, by their place in `target/debug`,
/// and a program by which others write rules.
const FILES: [(&str, &str); 4] = [
    ("examples/vm_init", "init"),
    ("lab-worker", "lab-worker"),
    ("shunt", "shunt"),
    ("/usr/sbin/nft", "bin/nft"),
];
/// Some root certificates, without which the agent's client of the Kubernetes API does not start,
/// though that of the lab speaks plain HTTP.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long a machine may take, in seconds; an emulated one verifies slowly.
const PATIENCE: &str = "400";

/// Runs every kernel; a failure if one of them refuses anything.
pub(crate) fn run_all() -> Result<ExitCode> {
    setup::ensure_done()?;
    setup::ensure_programs(&PROGRAMS)?;
    run(&mut cargo(["build", "--quiet", "--package", "proxy-user", "--bin", "shunt"]))?;
    let lab = ["--package", "tests", "--bin", "lab-worker", "--example", "vm_init"];
    run(cargo(["build", "--quiet"]).args(lab))?;
    let mut code = ExitCode::SUCCESS;
    for series in SERIES {
        let kernel = kernel(series)?;
        println!("\n== {}", kernel.file_name().unwrap_or_default().display());
        if !boot(&kernel, &pack(&kernel)?)? {
            println!("Shunt does not work on Linux {series}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Makes a root file system of the programs, the libraries that they are linked with, and the
/// modules of `kernel`.
fn pack(kernel: &Path) -> Result<PathBuf> {
    let folder = root().join("target/xtask/vm");
    let files = folder.join("root");
    if files.exists() {
        fs::remove_dir_all(&files).context("cannot remove the last root file system")?;
    }
    for name in ["proc", "sys", "dev", "tmp", "modules", "bin"] {
        fs::create_dir_all(files.join(name)).context("cannot make the root file system")?;
    }
    for (from, to) in FILES {
        let from = root().join("target/debug").join(from);
        // Symbols are nine tenths of a program, and the machine keeps it all in memory.
        run(Command::new("strip").arg("-o").arg(files.join(to)).arg(&from))?;
        let libraries = output(Command::new("ldd").arg(&from))
            .with_context(|| format!("ldd does not read {}", from.display()))?;
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([CERTIFICATES]) {
            let to = files.join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
            fs::copy(file, &to).with_context(|| format!("cannot copy {file}"))?;
        }
    }
    modules::pack(kernel, &files.join("modules"))?;
    let initrd = folder.join("initrd");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet --create --format=newc"]).current_dir(&files);
    run(pack.stdout(File::create(&initrd).context("cannot make the initrd")?))?;
    Ok(initrd)
}

/// The image of a kernel of the series in `.tools/kernels`; the newest one of Debian's if there
/// is none yet.
fn kernel(series: &str) -> Result<PathBuf> {
    let kernels = root().join(".tools/kernels");
    fs::create_dir_all(&kernels).context("cannot make .tools/kernels")?;
    if let Some(image) = find_image(&kernels, series) {
        return Ok(image);
    }
    setup::update_packages()?;
    let pattern = format!(r"^linux-image-{}\..*-cloud-amd64$", series.replace('.', r"\."));
    let listed = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))
        .with_context(|| format!("apt-cache does not list kernels {series}: is this a Debian?"))?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let Some(package) = names.max_by_key(|name| numbers(name)) else {
        bail!("no package linux-image-{series}.*-cloud-amd64: are apt's packages Debian's?");
    };
    println!("downloading {package}");
    run(Command::new("apt-get").args(["--quiet=2", "download", package]).current_dir(&kernels))?;
    let unpack = format!("dpkg-deb --extract {package}_*.deb {package} && rm {package}_*.deb");
    run(Command::new("sh").args(["-c", &unpack]).current_dir(&kernels))?;
    find_image(&kernels, series).with_context(|| format!("{package} has no boot/vmlinuz-*"))
}

fn find_image(kernels: &Path, series: &str) -> Option<PathBuf> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let prefix = format!("vmlinuz-{series}.");
    entries(kernels.to_owned())
        .flat_map(|package| entries(package.path().join("boot")))
        .filter(|image| image.file_name().to_string_lossy().starts_with(&prefix))
        .map(|image| image.path())
        .max_by_key(|image| numbers(&image.to_string_lossy()))
}

/// The numbers of a name, by which versions follow each other.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Boots a kernel, prints what its process says, and tells whether that passed.
fn boot(kernel: &Path, initrd: &Path) -> Result<bool> {
    let mut machine = Command::new("timeout");
    machine
        .args([PATIENCE, "qemu-system-x86_64", "-accel", "tcg", "-m", "2048", "-nographic"])
        .args(["-no-reboot", "-nic", "none", "-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null());
    let said = machine.output().context("cannot run qemu-system-x86_64")?.stdout;
    let said = String::from_utf8_lossy(&said);
    // What the firmware says before has control characters.
    let lines = said.lines().map(str::trim_end).filter(|line| !line.contains(char::is_control));
    let lines: Vec<_> = lines.skip_while(|line| !line.contains("loaded, ")).collect();
    if !lines.contains(&"passed") {
        println!("{}", said.trim_end());
        return Ok(false);
    }
    lines.iter().take_while(|line| **line != "passed").for_each(|line| println!("{line}"));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let names =
            ["linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"];
        assert_eq!(names.into_iter().max_by_key(|name| numbers(name)), Some(names[1]));
    }
}
