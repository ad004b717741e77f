//! What the text of a setting means.
//!
//! Each function takes the text and gives the value, or the end of the sentence that begins with
//! where the text came from: what is wrong, and what would be right. Nothing here knows flags,
//! files or defaults.

use super::{Denial, DeviceSelection, LogFormat, NodePortAddresses, PortRange, SocketPath};
use crate::model::ObjectName;
use ipnetwork::IpNetwork;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing::Level;

/// A value, or what is wrong with the text.
pub(super) type Parsed<T> = Result<T, String>;

/// The kinds of source, without what each needs.
#[derive(Clone, Copy)]
pub(super) enum SourceKind {
    Kube,
    Files,
}

/// Who answers names of the cluster.
#[derive(Clone, Copy)]
pub(super) enum DnsMode {
    Off,
    Kernel,
}

pub(super) fn source(text: &str) -> Parsed<SourceKind> {
    match text {
        "kube" => Ok(SourceKind::Kube),
        "files" => Ok(SourceKind::Files),
        _ => Err(format!("{text:?} is no source: write kube or files")),
    }
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err("the path is empty: write one, or leave the setting out".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A path that must mean the same to the agent and to the command line, wherever they run.
pub(super) fn absolute_path(text: &str) -> Parsed<PathBuf> {
    let path = path(text)?;
    if path.is_relative() {
        return Err(format!("{text:?} is a relative path: write one that begins with /"));
    }
    Ok(path)
}

/// As kube-proxy does with its host name override: trimmed, in lower case.
pub(super) fn node_name(text: &str) -> Parsed<String> {
    let name = text.trim().to_lowercase();
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if name.is_empty() || !name.chars().all(valid) {
        return Err(format!(
            "{text:?} is no node name: write the name that `kubectl get nodes` shows"
        ));
    }
    Ok(name)
}

pub(super) fn devices(text: &str) -> Parsed<DeviceSelection> {
    if text.trim() == "auto" {
        return Ok(DeviceSelection::Auto);
    }
    let patterns = patterns(text)?;
    if patterns.iter().any(|pattern| pattern == "auto") {
        return Err(format!("{text:?} mixes auto and names: write one or the other"));
    }
    Ok(DeviceSelection::Named(patterns))
}

pub(super) fn patterns(text: &str) -> Parsed<Vec<String>> {
    let patterns: Vec<_> = items(text).map(str::to_owned).collect();
    if patterns.is_empty() {
        return Err("the list is empty: write device names or patterns, such as eth0,ens*".into());
    }
    match patterns.iter().find(|pattern| pattern.contains(['/', ' '])) {
        Some(pattern) => Err(format!(
            "{pattern:?} can be no device: a name has no slash and no blank, a list has commas"
        )),
        None => Ok(patterns),
    }
}

pub(super) fn networks(text: &str) -> Parsed<Vec<IpNetwork>> {
    let network = |item: &str| {
        item.parse().map_err(|_| {
            format!("{item:?} is no network: write ADDRESS/LENGTH, such as 10.244.0.0/16")
        })
    };
    items(text).map(network).collect()
}

/// One of the modes, as kube-proxy spells them.
pub(super) fn detect_local(text: &str) -> Parsed<&'static str> {
    const MODES: [&str; 4] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
    let mode = MODES.into_iter().find(|mode| *mode == text.trim());
    mode.ok_or_else(|| format!("{text:?} is no mode: write one of {}", MODES.join(", ")))
}

/// The name of an interface, or how names begin.
pub(super) fn interface(text: &str) -> Parsed<String> {
    let name = text.trim();
    if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', '*', '?', '+']) {
        return Err(format!(
            "{text:?} is no name of an interface nor the beginning of one: write up to 15 letters \
             as `ip link` shows them, without a pattern"
        ));
    }
    Ok(name.to_owned())
}

pub(super) fn node_port_addresses(text: &str) -> Parsed<NodePortAddresses> {
    if text.trim() == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let networks = networks(text).map_err(|problem| format!("{problem}, or primary alone"))?;
    if networks.is_empty() {
        return Err("the list is empty: write primary or networks such as 10.0.0.0/8".to_owned());
    }
    Ok(NodePortAddresses::Cidrs(networks))
}

pub(super) fn port_range(text: &str) -> Parsed<PortRange> {
    text.split_once('-')
        .and_then(|(first, last)| {
            let range =
                PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
            (0 < range.first && range.first <= range.last).then_some(range)
        })
        .ok_or_else(|| {
            format!("{text:?} is no port range: write FIRST-LAST within 1-65535, lowest first")
        })
}

pub(super) fn mark_bit(text: &str) -> Parsed<u8> {
    let bit = text.parse().ok().filter(|bit| *bit < 32);
    bit.ok_or_else(|| format!("{text:?} is no bit of a packet mark: write 0 to 31"))
}

pub(super) fn socket_path(text: &str) -> Parsed<SocketPath> {
    match text {
        "auto" => Ok(SocketPath::Auto),
        "all" => Ok(SocketPath::All),
        "host" => Ok(SocketPath::Host),
        // YAML takes a bare `off` for false.
        "off" | "false" => Ok(SocketPath::Off),
        _ => Err(format!("{text:?} is no choice of sockets: write auto, all, host or off")),
    }
}

pub(super) fn dns(text: &str) -> Parsed<DnsMode> {
    match text {
        // YAML takes a bare `off` for false.
        "off" | "false" => Ok(DnsMode::Off),
        "kernel" => Ok(DnsMode::Kernel),
        "full" => {
            Err("the agent has no resolver any more: write kernel; names that the kernel does \
                       not answer pass to the cluster's DNS service as any packet"
                .to_owned())
        }
        _ => Err(format!("{text:?} is no way to answer names: write off or kernel")),
    }
}

pub(super) fn denial(text: &str) -> Parsed<Denial> {
    match text {
        "auto" => Ok(Denial::Auto),
        "on" | "true" => Ok(Denial::On),
        "off" | "false" => Ok(Denial::Off),
        "shadow" => Ok(Denial::Shadow),
        _ => Err(format!("{text:?} is no way to deny names: write auto, on, off or shadow")),
    }
}

/// A DNS zone: in lower case, without the dot at the end.
pub(super) fn zone(text: &str) -> Parsed<String> {
    let zone = text.trim().trim_end_matches('.').to_ascii_lowercase();
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| (1..64).contains(&label.len()) && label.chars().all(valid);
    if zone.len() > 63 || !zone.split('.').all(is_label) {
        return Err(format!("{text:?} is no zone of a cluster: write it like cluster.local"));
    }
    Ok(zone)
}

pub(super) fn object_name(text: &str) -> Parsed<ObjectName> {
    match text.trim().split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(ObjectName { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(format!("{text:?} names no Service: write NAMESPACE/NAME")),
    }
}

pub(super) fn ttl(text: &str) -> Parsed<u32> {
    let seconds = text.trim().parse().ok().filter(|seconds| *seconds <= 3600);
    seconds.ok_or_else(|| format!("{text:?} is no time to live: write seconds, 0 to 3600"))
}

pub(super) fn count(text: &str) -> Parsed<u32> {
    text.parse().map_err(|_| format!("{text:?} is no number of entries: write one, 0 or more"))
}

pub(super) fn rate(text: &str) -> Parsed<u32> {
    text.parse()
        .map_err(|_| format!("{text:?} is no rate: write answers a second, or 0 for no limit"))
}

/// As Go writes durations, without fractions: `90s`, `1m30s`, `50ms`, `0`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let milliseconds = if text == "0" { Some(0) } else { milliseconds(text.trim()) };
    milliseconds.map(Duration::from_millis).ok_or_else(|| {
        format!("{text:?} is no duration: write a number and ms, s, m or h, such as 50ms or 1m30s")
    })
}

fn milliseconds(text: &str) -> Option<u64> {
    let (mut rest, mut total) = (text, 0u64);
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let factor = match &tail[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = number.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(total)?;
        rest = &tail[end..];
        if rest.is_empty() {
            return Some(total);
        }
    }
}

pub(super) fn at_least_a_second(text: &str) -> Parsed<Duration> {
    let duration = duration(text)?;
    if duration < Duration::from_secs(1) {
        return Err(format!("{text:?} is too often: write 1s or more"));
    }
    Ok(duration)
}

pub(super) fn socket_addr(text: &str) -> Parsed<SocketAddr> {
    text.trim().parse().map_err(|_| {
        format!("{text:?} is no address with a port: write it like 0.0.0.0:10256 or [::]:10256")
    })
}

pub(super) fn truth(text: &str) -> Parsed<bool> {
    text.trim()
        .parse()
        .map_err(|_| format!("{text:?} is neither true nor false: write one of them"))
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is no log format: write text or json")),
    }
}

pub(super) fn log_level(text: &str) -> Parsed<Level> {
    match text {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err(format!("{text:?} is no log level: write error, warn, info, debug or trace")),
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}
