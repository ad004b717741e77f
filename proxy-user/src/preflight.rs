//! Preflight: whether this machine can run the agent, and what in it will surprise.
//!
//! Reads the machine, changes nothing. What cannot work is an error that says what to do; what
//! works only in part is a warning.

use crate::config::AgentConfig;
use crate::loader::nft::{Chain, find_chain};
use crate::model::Warning;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The oldest kernel on which `cargo xtask vm` shows that Shunt works.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// `BPF_FS_MAGIC` of the kernel's `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// `CGROUP2_SUPER_MAGIC` of the same.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

const KUBE_PROXY: &str = "kube-proxy";

/// Why the agent cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The kernel is too old.
    #[error("Linux {found} is too old: Shunt needs {}.{} or later", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    Kernel {
        /// The release that runs.
        found: String,
    },
    /// The process may not use BPF.
    #[error(
        "this process lacks {0}: run as root, in a pod as a privileged container or with these \
         capabilities"
    )]
    Capabilities(String),
    /// A directory cannot be looked at.
    #[error("cannot tell what file system {0} is of")]
    Look(PathBuf, #[source] io::Error),
    /// There is no BPF file system.
    #[error(
        "{0} is no BPF file system: mount one (`mount -t bpf bpf {0}`) or name another place with \
         --bpffs-root"
    )]
    Bpffs(PathBuf),
    /// There is no cgroup v2 tree.
    #[error(
        "no cgroup v2 tree is mounted: mount one (`mount -t cgroup2 none DIR`) and name it with \
         --cgroup-root"
    )]
    NoCgroup,
    /// The given directory is not in a cgroup v2 tree.
    #[error("{0} is no cgroup v2 directory: name one with --cgroup-root")]
    Cgroup(PathBuf),
}

/// What the machine has.
#[derive(Debug)]
pub struct Machine {
    /// The cgroup to which the socket path is attached.
    pub cgroup_root: PathBuf,
    /// What will surprise.
    pub warnings: Vec<Warning>,
}

/// Looks at the machine.
pub fn check(config: &AgentConfig) -> Result<Machine, PreflightError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if kernel_version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(PreflightError::Kernel { found: release });
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_capabilities(&status);
    if !missing.is_empty() {
        return Err(PreflightError::Capabilities(missing.join(", ")));
    }
    if !is_file_system(&config.bpffs_root, BPF_FS_MAGIC)? {
        return Err(PreflightError::Bpffs(config.bpffs_root.clone()));
    }
    let cgroup_root = match &config.cgroup_root {
        Some(root) => root.clone(),
        None => fs::read_to_string("/proc/self/mountinfo")
            .ok()
            .and_then(|mounts| cgroup2_mount(&mounts))
            .ok_or(PreflightError::NoCgroup)?,
    };
    if !is_file_system(&cgroup_root, CGROUP2_MAGIC)? {
        return Err(PreflightError::Cgroup(cgroup_root));
    }
    Ok(Machine { cgroup_root, warnings: forwarding_warnings(|path| fs::read_to_string(path)) })
}

/// Whether kube-proxy's rules are on this node. Takes some 10 ms where they are many.
///
/// `None` also where the kernel has no nftables; rules of `iptables-legacy` are not seen.
pub fn kube_proxy() -> Option<Warning> {
    let is_its = |chain: &Chain| chain.table == KUBE_PROXY || chain.name == "KUBE-SERVICES";
    let rules = match find_chain(is_its) {
        Ok(Some(chain)) => format!("chain {} of table {}", chain.name, chain.table),
        _ if Path::new("/sys/class/net/kube-ipvs0").exists() => "device kube-ipvs0".to_owned(),
        _ => return None,
    };
    let message = format!(
        "its rules are on this node ({rules}) and go on translating what Shunt leaves alone, \
         also when they are out of date: delete the DaemonSet kube-proxy, then run `kube-proxy \
         --cleanup` on the node, or boot it anew"
    );
    Some(Warning { subject: KUBE_PROXY.to_owned(), message })
}

/// Major and minor number of a kernel release such as `6.18.1-cloud`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The capabilities that are needed and not effective, by a `/proc/PID/status`
/// (proc_pid_status(5), capabilities(7)). None if it does not say.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    // CAP_SYS_ADMIN stands for the two that were taken out of it in Linux 5.8.
    let is_given = |bit: u32| has(bit) || bit > SYS_ADMIN && has(SYS_ADMIN);
    NEEDED.iter().filter(|(bit, _)| !is_given(*bit)).map(|(_, name)| *name).collect()
}

fn is_file_system(path: &Path, magic: u64) -> Result<bool, PreflightError> {
    match rustix::fs::statfs(path) {
        Ok(stat) => Ok(stat.f_type as u64 & 0xffff_ffff == magic),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(PreflightError::Look(path.to_owned(), error.into())),
    }
}

/// The mount point of the first cgroup v2 tree in a `mountinfo` (proc_pid_mountinfo(5)).
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_cgroup2 = file_system.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

/// NodePorts with a backend on another node need forwarding, as every CNI does.
fn forwarding_warnings(read: impl Fn(&str) -> io::Result<String>) -> Vec<Warning> {
    let sysctls = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    let off = |sysctl: &&&str| {
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        read(&path).is_ok_and(|value| value.trim() == "0")
    };
    let warning = |sysctl: &str| Warning {
        subject: format!("sysctl {sysctl}"),
        message: format!(
            "packets are not forwarded, so NodePorts reach no pods: run `sysctl -w {sysctl}=1`"
        ),
    };
    sysctls.iter().filter(off).map(|sysctl| warning(sysctl)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_by_number() {
        assert_eq!(kernel_version("6.18.1-cloud-amd64"), Some((6, 18)));
        assert!(kernel_version("5.15.0-17-amd64").unwrap() < OLDEST_KERNEL);
        assert!(kernel_version("6.10.2").unwrap() > OLDEST_KERNEL);
        assert_eq!(kernel_version("rolling"), None);
    }

    #[test]
    fn cgroup2_is_found_in_pure_and_hybrid_hierarchies() {
        let pure = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(pure), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 22 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("30 22 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"), None);
    }

    #[test]
    fn forwarding_that_is_off_is_named_and_an_unknown_sysctl_is_not() {
        let read = |path: &str| match path {
            "/proc/sys/net/ipv4/ip_forward" => Ok("0\n".to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let warnings = forwarding_warnings(read);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].message.contains("sysctl -w net.ipv4.ip_forward=1"));
    }

    #[test]
    fn missing_capabilities_are_named() {
        let missing = |hex: &str| missing_capabilities(&format!("Name:\tshunt\nCapEff:\t{hex}\n"));
        assert_eq!(missing("000001ffffffffff"), [""; 0], "root");
        assert_eq!(missing("0000000000000000"), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(missing("0000000000201000"), [""; 0], "CAP_SYS_ADMIN and CAP_NET_ADMIN");
        assert_eq!(missing("0000008000001000"), ["CAP_PERFMON"]);
        assert_eq!(missing_capabilities(""), [""; 0], "unknown is not missing");
    }
}
