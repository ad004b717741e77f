//! The kernel's settings of conntrack, as kube-proxy makes them.
//!
//! Takes the wanted settings; writes those that differ, once. The greatest number of entries is
//! only ever raised. What cannot be written is a warning that names it: a container may see the
//! settings read-only.

use crate::config::ConntrackConfig;
use crate::model::Warning;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// How many buckets conntrack's table has.
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// However many CPUs there are, they ask for no more entries: as with kube-proxy since 1.36
/// (kubernetes/kubernetes#137002), since entries take some 300 bytes each.
const MOST_FOR_CPUS: u64 = 1 << 20;
/// So many entries are to share a bucket at most.
const ENTRIES_PER_BUCKET: u64 = 4;

/// Makes the kernel's settings what `config` says, where they differ.
pub fn set_conntrack(config: &ConntrackConfig) -> Vec<Warning> {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    set(config, cpus, Path::new(HASH_SIZE))
}

fn set(config: &ConntrackConfig, cpus: u64, hash_size: &Path) -> Vec<Warning> {
    let at = |name: &str| config.sysctl_root.join("net/netfilter").join(name);
    let mut warnings = Vec::new();
    if config.max_per_core > 0 {
        let for_cpus = (u64::from(config.max_per_core) * cpus).min(MOST_FOR_CPUS);
        let max = for_cpus.max(config.min.into());
        warnings.extend(raise_max(&at("nf_conntrack_max"), hash_size, max));
    }
    let timeouts = [
        ("nf_conntrack_tcp_timeout_established", config.tcp_established),
        ("nf_conntrack_tcp_timeout_close_wait", config.tcp_close_wait),
        ("nf_conntrack_udp_timeout", config.udp),
        ("nf_conntrack_udp_timeout_stream", config.udp_stream),
    ];
    for (name, timeout) in timeouts {
        if timeout > Duration::ZERO {
            // The kernel counts in seconds, and zero would forget every flow at once.
            warnings.extend(write(&at(name), timeout.as_secs().max(1)));
        }
    }
    if config.tcp_be_liberal {
        warnings.extend(write(&at("nf_conntrack_tcp_be_liberal"), 1));
    }
    warnings
}

/// Lets conntrack hold `max` entries at least, and gives its table the buckets for them.
fn raise_max(setting: &Path, hash_size: &Path, max: u64) -> Option<Warning> {
    match read(setting) {
        Ok(found) if found >= max => return None,
        Ok(_) if is_read_only(setting) => {
            tracing::info!("{} is the host's: it stays as it is", setting.display());
            return None;
        }
        Ok(_) => {}
        Err(error) => return Some(unset(setting, max, &error)),
    }
    if let Some(warning) = write(setting, max) {
        return Some(warning);
    }
    let buckets = max / ENTRIES_PER_BUCKET;
    match read(hash_size) {
        Ok(found) if found >= buckets => None,
        _ => write(hash_size, buckets),
    }
}

/// Whether nobody may write the setting: that of the whole host has this mode in network
/// namespaces other than the first.
fn is_read_only(setting: &Path) -> bool {
    fs::metadata(setting).is_ok_and(|metadata| metadata.permissions().mode() & 0o222 == 0)
}

fn read(setting: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(setting)?;
    text.trim().parse().map_err(|_| ErrorKind::InvalidData.into())
}

/// Writes `value` unless it is there.
fn write(setting: &Path, value: u64) -> Option<Warning> {
    if read(setting).is_ok_and(|found| found == value) {
        return None;
    }
    match fs::write(setting, value.to_string()) {
        Ok(()) => {
            tracing::info!(value, "set {}", setting.display());
            None
        }
        Err(error) => Some(unset(setting, value, &error)),
    }
}

fn unset(setting: &Path, value: u64, error: &io::Error) -> Warning {
    Warning {
        subject: setting.display().to_string(),
        message: format!(
            "cannot be set to {value}: {error}; set it on the node, let the agent write it \
             (--sysctl-root), or leave it alone with the value 0 for its --conntrack flag"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const SETTINGS: [(&str, u64); 6] = [
        ("nf_conntrack_max", 262_144),
        ("nf_conntrack_tcp_timeout_established", 432_000),
        ("nf_conntrack_tcp_timeout_close_wait", 60),
        ("nf_conntrack_tcp_be_liberal", 0),
        ("nf_conntrack_udp_timeout", 30),
        ("nf_conntrack_udp_timeout_stream", 120),
    ];

    /// A kernel with Linux's own settings.
    struct Kernel(tempfile::TempDir);

    impl Kernel {
        fn new() -> Self {
            let kernel = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(kernel.at("")).unwrap();
            SETTINGS.iter().for_each(|(name, value)| kernel.put(name, *value));
            kernel.put("hashsize", 65_536);
            kernel
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join("net/netfilter").join(name)
        }

        fn put(&self, name: &str, value: u64) {
            fs::write(self.at(name), format!("{value}\n")).unwrap();
        }

        fn value(&self, name: &str) -> u64 {
            read(&self.at(name)).unwrap()
        }

        /// kube-proxy's defaults.
        fn wanted(&self) -> ConntrackConfig {
            ConntrackConfig {
                max_per_core: 32_768,
                min: 131_072,
                tcp_established: Duration::from_secs(86_400),
                tcp_close_wait: Duration::from_secs(3_600),
                tcp_be_liberal: false,
                udp: Duration::ZERO,
                udp_stream: Duration::ZERO,
                sysctl_root: self.0.path().to_owned(),
            }
        }

        fn set(&self, config: &ConntrackConfig, cpus: u64) -> Vec<Warning> {
            set(config, cpus, &self.at("hashsize"))
        }
    }

    #[test]
    fn timeouts_are_set_and_zero_leaves_them() {
        let kernel = Kernel::new();
        assert_eq!(kernel.set(&kernel.wanted(), 2), []);
        assert_eq!(kernel.value("nf_conntrack_tcp_timeout_established"), 86_400);
        assert_eq!(kernel.value("nf_conntrack_tcp_timeout_close_wait"), 3_600);
        assert_eq!(kernel.value("nf_conntrack_tcp_be_liberal"), 0);
        assert_eq!(kernel.value("nf_conntrack_udp_timeout"), 30);
        assert_eq!(kernel.value("nf_conntrack_udp_timeout_stream"), 120);
        let all = ConntrackConfig {
            tcp_be_liberal: true,
            udp: Duration::from_secs(10),
            udp_stream: Duration::from_millis(10),
            ..kernel.wanted()
        };
        assert_eq!(kernel.set(&all, 2), []);
        assert_eq!(kernel.value("nf_conntrack_tcp_be_liberal"), 1);
        assert_eq!(kernel.value("nf_conntrack_udp_timeout"), 10);
        assert_eq!(kernel.value("nf_conntrack_udp_timeout_stream"), 1);
    }

    #[test]
    fn room_for_entries_is_raised_and_never_lowered() {
        let kernel = Kernel::new();
        assert_eq!(kernel.set(&kernel.wanted(), 2), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 262_144);
        assert_eq!(kernel.set(&kernel.wanted(), 16), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 16 * 32_768);
        assert_eq!(kernel.value("hashsize"), 16 * 8_192);
        assert_eq!(kernel.set(&kernel.wanted(), 512), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 1_048_576, "the most for any CPUs");
        let more = ConntrackConfig { min: 2_000_000, ..kernel.wanted() };
        assert_eq!(kernel.set(&more, 512), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 2_000_000);
        kernel.put("nf_conntrack_max", 1_000);
        assert_eq!(kernel.set(&kernel.wanted(), 1), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 131_072, "--conntrack-min");
        assert_eq!(kernel.value("hashsize"), 500_000);
        kernel.put("nf_conntrack_max", 1_000);
        let none = ConntrackConfig { max_per_core: 0, ..kernel.wanted() };
        assert_eq!(kernel.set(&none, 1), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 1_000);
    }

    #[test]
    fn what_cannot_be_written_is_a_warning_that_names_it() {
        let kernel = Kernel::new();
        for name in ["hashsize", "nf_conntrack_tcp_timeout_established"] {
            fs::remove_file(kernel.at(name)).unwrap();
            fs::create_dir(kernel.at(name)).unwrap();
        }
        let warnings = kernel.set(&kernel.wanted(), 64);
        let named: Vec<_> = warnings.iter().map(|w| w.subject.rsplit('/').next()).collect();
        assert_eq!(named, [Some("hashsize"), Some("nf_conntrack_tcp_timeout_established")]);
        assert_eq!(kernel.value("nf_conntrack_tcp_timeout_close_wait"), 3_600, "the next one");
    }

    #[test]
    fn a_maximum_that_is_the_hosts_is_left_alone() {
        let kernel = Kernel::new();
        let max = kernel.at("nf_conntrack_max");
        fs::set_permissions(&max, fs::Permissions::from_mode(0o444)).unwrap();
        assert_eq!(kernel.set(&kernel.wanted(), 64), []);
        assert_eq!(kernel.value("nf_conntrack_max"), 262_144);
    }
}
