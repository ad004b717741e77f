//! The first and only process of the machine that `cargo xtask vm` boots: loads the kernel
//! programs as the agent does, attaches them where the kernel has tcx, and switches the machine
//! off.
//!
//! Takes nothing; says in a line of text what became of each program, or why they were refused,
//! and ends with the line `passed` or `failed`. Does nothing unless it is process 1.

use anyhow::{Context as _, Result, ensure};
use proxy_ebpf::choose::NodePortRange;
use proxy_user::loader::links::Target;
use proxy_user::loader::{Dataplane, DnsLimit, Settings};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot, uname};
use std::path::Path;

/// How much of an error is shown: the verifier says at the end why it refuses.
const TAIL: usize = 3_000;

fn main() -> Result<()> {
    ensure!(std::process::id() == 1, "this is the first process of a virtual machine only");
    // The firmware has not ended its last line.
    println!();
    match run() {
        Ok(()) => println!("passed"),
        Err(error) => {
            let text = format!("{error:#}");
            println!("{}\nfailed", &text[text.floor_char_boundary(text.len().max(TAIL) - TAIL)..]);
        }
    }
    Ok(reboot(RebootCommand::PowerOff)?)
}

fn run() -> Result<()> {
    let trees = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ];
    for (kind, path) in trees {
        mount(kind, path, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {path}"))?;
    }
    let mut dataplane = Dataplane::load(&Settings {
        bpffs_root: "/sys/fs/bpf".into(),
        node_ports: NodePortRange { first: 30_000, last: 32_767 },
        masquerade_all: false,
        host_sockets_only: false,
        masquerade_mark: 1 << 14,
        log_level: None,
        dns_limit: DnsLimit::default(),
    })?;
    let mut programs: Vec<_> = dataplane.programs().collect();
    programs.sort_by_key(|(name, _)| *name);
    for (name, program) in programs {
        let info = program.info().with_context(|| format!("cannot read {name}"))?;
        let verified = info.verified_instruction_count().unwrap_or_default();
        println!("{name:<14} loaded, {verified:>7} instructions verified");
    }
    let links = dataplane.attach_cgroup(Path::new("/sys/fs/cgroup"))?;
    println!("socket path    attached, {links} links");
    if !has_tcx()? {
        println!("packet path    not attached: that needs Linux 6.6");
        return Ok(());
    }
    let loopback = Target { name: "lo".to_owned(), index: 1, ethernet: true, names: true };
    let (links, errors) = dataplane.attach_devices(&[loopback].into());
    errors.into_iter().next().map_or(Ok(()), Err)?;
    println!("packet path    attached, {links} links");
    Ok(())
}

/// Whether this is Linux 6.6 or later.
fn has_tcx() -> Result<bool> {
    let release = uname();
    let release = release.release().to_str()?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= (6, 6)),
        _ => anyhow::bail!("what version is {release}?"),
    }
}
