//! What the configuration means for each part of the agent.

use super::report::program_log_level;
use crate::config::{AgentConfig, PortRange, SocketPath};
use crate::loader::{DnsLimit, Settings};
use crate::plan::Planner;
use crate::source::SourceConfig;
use proxy_ebpf::choose::NodePortRange;

pub(super) fn settings(config: &AgentConfig) -> Settings {
    Settings {
        bpffs_root: config.bpffs_root.clone(),
        masquerade_all: config.masquerade_all,
        node_ports: node_ports(config),
        host_sockets_only: serves_host_sockets_only(config),
        masquerade_mark: 1 << config.masquerade_bit,
        log_level: program_log_level(config.log_level),
        dns_limit: config
            .dns
            .as_ref()
            .map_or_else(DnsLimit::default, |dns| DnsLimit { rate: dns.limit, burst: dns.limit }),
    }
}

/// Whether pods' sockets are left to the packet path. A folder says nothing of pods, so which of
/// them are better left alone is not known.
fn serves_host_sockets_only(config: &AgentConfig) -> bool {
    match config.socket_path {
        SocketPath::All => false,
        SocketPath::Host | SocketPath::Off => true,
        SocketPath::Auto => matches!(config.source, SourceConfig::Files { .. }),
    }
}

pub(super) fn planner(config: &AgentConfig) -> Planner {
    let planner = Planner::new(config.node_name.as_str()).with_node_ports(node_ports(config));
    if config.external_ips { planner } else { planner.without_external_ips() }
}

pub(super) fn node_ports(config: &AgentConfig) -> NodePortRange {
    let PortRange { first, last } = config.node_port_range;
    NodePortRange { first, last }
}
