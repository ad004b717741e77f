//! What the agent is told: flags, environment variables and a file in, one [`AgentConfig`] out.
//!
//! For each setting a flag counts more than its environment variable, that more than the file,
//! that more than the default. A value that is wrong is refused, in one sentence that says where
//! it stands, what is wrong with it and what would be right. Nothing here touches the kernel or
//! the network; whether the machine fits is for `preflight` to say.

mod conntrack;
mod detect;
mod settings;
#[cfg(test)]
mod tests;
mod value;

pub use conntrack::ConntrackConfig;
pub use settings::{BPFFS_ROOT, CONTROL_SOCKET};

use crate::model::{DetectLocal, ObjectName, Warning};
use crate::source::SourceConfig;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use ipnetwork::IpNetwork;
use serde_yaml_ng::{Mapping, Value};
use settings::{CONFIG, SETTINGS, WITHOUT_EFFECT, file_keys};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use value::{DnsMode, Parsed, SourceKind};

/// The agent's configuration, complete and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentConfig {
    /// Where the cluster's objects come from.
    pub source: SourceConfig,
    /// The name of this node's Node object.
    pub node_name: String,
    /// The cgroup v2 directory whose sockets are served; `None` means where cgroup2 is mounted.
    pub cgroup_root: Option<PathBuf>,
    /// The BPF file system; maps and links are pinned in `shunt/` below it.
    pub bpffs_root: PathBuf,
    /// Whose TCP sockets are given a backend when they connect.
    pub socket_path: SocketPath,
    /// The node's own devices on which the packet path runs.
    pub devices: DeviceSelection,
    /// Patterns for the names of the node's side of the pods' devices; see [`glob`](crate::glob).
    pub pod_devices: Vec<String>,
    /// The addresses of the cluster's pods.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// How pods are told from outsiders, where a traffic policy cares.
    pub detect_local: DetectLocal,
    /// Where NodePorts are reached.
    pub node_port_addresses: NodePortAddresses,
    /// The ports that the API server gives to NodePorts.
    pub node_port_range: PortRange,
    /// The bit of the packet mark by which netfilter is told to hide a client.
    pub masquerade_bit: u8,
    /// Whether backends of ClusterIPs see the node's address instead of the client's.
    pub masquerade_all: bool,
    /// Whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// The kernel's settings of conntrack.
    pub conntrack: ConntrackConfig,
    /// How names of the cluster are answered; `None` leaves them to the cluster's DNS service.
    pub dns: Option<DnsConfig>,
    /// The least time between two writes to the kernel while changes keep coming; may be zero.
    pub min_sync_period: Duration,
    /// How often maps and links are compared with what they should be; a second or more.
    pub drift_check_period: Duration,
    /// Where `/healthz` and `/livez` are served.
    pub healthz_bind_address: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics_bind_address: SocketAddr,
    /// The socket on which the agent answers the command line.
    pub control_socket: PathBuf,
    /// How a log line is written.
    pub log_format: LogFormat,
    /// The least important line that is logged.
    pub log_level: tracing::Level,
    /// What was given and has no effect.
    pub warnings: Vec<Warning>,
}

/// How names of the cluster are answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsConfig {
    /// When it is said of a name that it does not exist.
    pub deny: Denial,
    /// The cluster's zone, in lower case and without a dot at the end.
    pub zone: String,
    /// The cluster's DNS service.
    pub service: ObjectName,
    /// The time to live of answers in seconds; `None` means that of the Corefile.
    pub ttl: Option<u32>,
    /// Answers of the kernel to a pod in a second; 0 means no limit.
    pub limit: u32,
}

/// When it is said of a name that it does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denial {
    /// If the Corefile shows that nobody else knows names of the zone.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
    /// Never, but it is counted when it would be.
    Shadow,
}

/// Whose TCP sockets are given a backend when they connect. All others are served as their packets
/// come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketPath {
    /// Those of the node, and of pods but for those whose connections somebody redirects or
    /// emulates. A pod that nothing is known of may be one of them.
    Auto,
    /// Those of the node and of all pods.
    All,
    /// Those of the node alone.
    Host,
    /// None.
    Off,
}

/// Which devices of the node the packet path runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceSelection {
    /// Those with a default route or a node address.
    Auto,
    /// Those whose name fits one of these patterns; see [`glob`](crate::glob).
    Named(Vec<String>),
}

/// Which of the node's addresses accept NodePorts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The node's InternalIP of each family.
    Primary,
    /// The node's addresses inside these networks.
    Cidrs(Vec<IpNetwork>),
}

/// Ports from `first` to `last`, both included.
///
/// Invariant: `0 < first <= last`, where it comes from a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How a log line is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there is no configuration.
#[derive(thiserror::Error, Debug)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("the configuration file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The configuration file is not YAML, or not a mapping.
    #[error("the configuration file {} is no YAML mapping of settings", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_yaml_ng::Error,
    },
    /// The configuration file holds a key that is no setting.
    #[error("{key:?} in {} is no setting: did you mean {nearest}?", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The setting whose name is most like it.
        nearest: &'static str,
    },
    /// A value is wrong.
    #[error("{origin}: {problem}")]
    Value {
        /// Where the value stands.
        origin: Origin,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// A setting is missing that another one needs.
    #[error("--source files needs a folder: add --manifests DIR")]
    NoManifests,
    /// A setting is of no use with the chosen source.
    #[error("{unused} is not for --source {source_kind}: leave it out, or choose the other source")]
    UnusedSetting {
        /// Where the setting stands.
        unused: Origin,
        /// The chosen source.
        source_kind: &'static str,
    },
    /// A mode needs a setting that is missing.
    #[error("--detect-local-mode {mode} needs an interface: add --{missing}")]
    NoInterface {
        /// The mode.
        mode: &'static str,
        /// The setting, with what stands for its value.
        missing: &'static str,
    },
    /// A setting is of no use in the chosen mode.
    #[error("{unused} is for --detect-local-mode {mode} alone: leave it out, or choose that mode")]
    OtherMode {
        /// Where the setting stands.
        unused: Origin,
        /// The mode that it is for.
        mode: &'static str,
    },
}

/// Where a value stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// On the command line, as this flag.
    Flag(&'static str),
    /// In this environment variable.
    Env(String),
    /// In a file, under this key.
    File(&'static str, PathBuf),
    /// Nowhere: it is the default of this flag.
    Default(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Env(name) => write!(f, "${name}"),
            Self::File(name, path) => write!(f, "{name} in {}", path.display()),
            Self::Default(name) => write!(f, "the default of --{name}"),
        }
    }
}

/// What the command line and the environment say; the flags of `shunt agent`.
#[derive(Clone, Debug, Default)]
pub struct AgentArgs {
    given: BTreeMap<&'static str, (Origin, String)>,
}

impl AgentArgs {
    /// Adds what the configuration file and the defaults say, and checks everything.
    pub fn resolve(self) -> Result<AgentConfig, ConfigError> {
        let mut values = Values(self.given);
        if let Some(path) = values.optional(CONFIG, value::path)? {
            values.add_file(&path)?;
        }
        values.add_defaults();
        Ok(AgentConfig {
            source: values.source()?,
            node_name: values.read("node-name", value::node_name)?,
            cgroup_root: values.optional("cgroup-root", value::absolute_path)?,
            bpffs_root: values.read("bpffs-root", value::absolute_path)?,
            socket_path: values.read("socket-path", value::socket_path)?,
            devices: values.read("devices", value::devices)?,
            pod_devices: values.read("pod-devices", value::patterns)?,
            cluster_cidrs: values.optional("cluster-cidr", value::networks)?.unwrap_or_default(),
            detect_local: values.detect_local()?,
            node_port_addresses: values.read("node-port-addresses", value::node_port_addresses)?,
            node_port_range: values.read("node-port-range", value::port_range)?,
            masquerade_bit: values.read("masquerade-bit", value::mark_bit)?,
            masquerade_all: values.read("masquerade-all", value::truth)?,
            external_ips: values.read("external-ips", value::truth)?,
            conntrack: ConntrackConfig::read(&values)?,
            dns: values.dns()?,
            min_sync_period: values.read("min-sync-period", value::duration)?,
            drift_check_period: values.read("drift-check-period", value::at_least_a_second)?,
            healthz_bind_address: values.read("healthz-bind-address", value::socket_addr)?,
            metrics_bind_address: values.read("metrics-bind-address", value::socket_addr)?,
            control_socket: values.read("control-socket", value::absolute_path)?,
            log_format: values.read("log-format", value::log_format)?,
            log_level: values.read("log-level", value::log_level)?,
            warnings: values.warnings(),
        })
    }
}

/// The text of every setting that has one, and where it stands.
struct Values(BTreeMap<&'static str, (Origin, String)>);

impl Values {
    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file: Option<Mapping> = serde_yaml_ng::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        for (key, value) in file.unwrap_or_default() {
            let key = scalar(&key).unwrap_or_else(|| format!("{key:?}"));
            let Some(name) = file_keys().find(|&name| name == key) else {
                let nearest = nearest_key(&key);
                return Err(ConfigError::UnknownKey { path: path.to_owned(), key, nearest });
            };
            let origin = Origin::File(name, path.to_owned());
            let text = match &value {
                Value::Null => continue,
                Value::Sequence(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>(),
                single => scalar(single).map(|text| vec![text]),
            };
            let Some(text) = text else {
                let problem = "the value has parts of its own: write one value, or a list".into();
                return Err(ConfigError::Value { origin, problem });
            };
            self.0.entry(name).or_insert((origin, text.join(",")));
        }
        Ok(())
    }

    fn add_defaults(&mut self) {
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let defaults = SETTINGS.iter().filter_map(|setting| Some((setting.name, setting.default?)));
        for (name, default) in defaults.chain([("node-name", host_name.as_str())]) {
            self.0.entry(name).or_insert_with(|| (Origin::Default(name), default.to_owned()));
        }
    }

    /// The value of a setting that may be left out.
    fn optional<T>(
        &self,
        name: &'static str,
        parse: fn(&str) -> Parsed<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.0.contains_key(name).then(|| self.read(name, parse)).transpose()
    }

    /// The value of a setting that has a default. Without any text the value is wrong.
    fn read<T>(&self, name: &'static str, parse: fn(&str) -> Parsed<T>) -> Result<T, ConfigError> {
        let (origin, text) =
            self.0.get(name).cloned().unwrap_or((Origin::Default(name), String::new()));
        parse(&text).map_err(|problem| ConfigError::Value { origin, problem })
    }

    /// Where the value of a setting stands.
    fn origin(&self, name: &'static str) -> Origin {
        self.0.get(name).map_or(Origin::Flag(name), |(origin, _)| origin.clone())
    }

    /// A warning for each setting that is given and has no effect.
    fn warnings(&self) -> Vec<Warning> {
        let given = WITHOUT_EFFECT.iter().filter_map(|name| self.0.get(name));
        let warning = |(origin, _): &(Origin, _)| Warning {
            subject: origin.to_string(),
            message: "has no effect any more, and the next version refuses it: leave it out"
                .to_owned(),
        };
        given.map(warning).collect()
    }

    fn dns(&self) -> Result<Option<DnsConfig>, ConfigError> {
        if let DnsMode::Off = self.read("dns", value::dns)? {
            return Ok(None);
        }
        Ok(Some(DnsConfig {
            deny: self.read("dns-deny", value::denial)?,
            zone: self.read("dns-zone", value::zone)?,
            service: self.read("dns-service", value::object_name)?,
            ttl: self.optional("dns-ttl", value::ttl)?,
            limit: self.read("dns-limit", value::rate)?,
        }))
    }

    fn source(&self) -> Result<SourceConfig, ConfigError> {
        let kubeconfig = self.optional("kubeconfig", value::path)?;
        let manifests = self.optional("manifests", value::path)?;
        let unused = |name, source_kind| {
            Err(ConfigError::UnusedSetting { unused: self.origin(name), source_kind })
        };
        match (self.read("source", value::source)?, manifests) {
            (SourceKind::Kube, Some(_)) => unused("manifests", "kube"),
            (SourceKind::Kube, None) => Ok(SourceConfig::Kube { kubeconfig }),
            (SourceKind::Files, _) if kubeconfig.is_some() => unused("kubeconfig", "files"),
            (SourceKind::Files, Some(manifests)) => Ok(SourceConfig::Files { manifests }),
            (SourceKind::Files, None) => Err(ConfigError::NoManifests),
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The setting whose name is most like `key`; kube-proxy's own spelling finds its namesake.
fn nearest_key(key: &str) -> &'static str {
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    let key = plain(key);
    file_keys().min_by_key(|name| edit_distance(&plain(name), &key)).unwrap_or_default()
}

/// How many bytes must be inserted, removed or replaced to make one text the other
/// (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Args for AgentArgs {
    fn augment_args(command: Command) -> Command {
        command.args(SETTINGS.iter().map(|setting| {
            let arg = Arg::new(setting.id())
                .long(setting.name)
                .env(setting.env())
                .value_name(setting.value)
                .value_parser(setting.parser())
                .help(setting.help);
            match setting.default {
                Some(default) => arg.default_value(default),
                None => arg,
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for AgentArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in &SETTINGS {
            let id = setting.id();
            let origin = match matches.value_source(&id) {
                Some(ValueSource::CommandLine) => Origin::Flag(setting.name),
                Some(ValueSource::EnvVariable) => Origin::Env(setting.env()),
                _ => continue,
            };
            let text = matches.get_raw(&id).into_iter().flatten().next().unwrap_or_default();
            self.given.insert(setting.name, (origin, text.to_string_lossy().into_owned()));
        }
        Ok(())
    }
}
