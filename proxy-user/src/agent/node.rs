//! The node as the agent keeps it: its devices and addresses, and what is attached to them.

use super::opt_out::OptOut;
use super::report::chain;
use crate::config::{AgentConfig, DeviceSelection, NodePortAddresses, SocketPath};
use crate::loader::Dataplane;
use crate::loader::links::Target;
use crate::model::{Interface, Warning, World};
use crate::plan::node::{NodePlan, NodeSettings, plan_node};
use crate::status::Attachment;
use proxy_ebpf::Addr;
use proxy_ebpf::node::Device;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// The node's side of the dataplane.
pub(super) struct NodeState {
    dataplane: Dataplane,
    cgroup_root: PathBuf,
    settings: NodeSettings,
    /// Whether no socket is served when it connects.
    is_socket_path_off: bool,
    /// Whether names are answered in the kernel.
    names: bool,
    /// `None` until they have been read once.
    interfaces: Option<Vec<Interface>>,
    /// Where the programs were attached at the last update.
    attachments: Vec<Attachment>,
    /// The node's addresses at the last update.
    own_addrs: BTreeSet<IpAddr>,
    /// The addresses at which NodePorts were reached at the last update.
    node_port_addrs: Vec<Addr>,
}

/// What came of bringing the node to what it should be.
#[derive(Default)]
pub(super) struct NodeUpdate {
    /// How many rows and links were not as they should be.
    pub(super) repaired: u64,
    /// What the plan warns of.
    pub(super) warnings: Vec<Warning>,
    /// What could not be written or attached.
    pub(super) failures: Vec<Warning>,
}

impl NodeState {
    pub(super) fn new(dataplane: Dataplane, cgroup_root: PathBuf, config: &AgentConfig) -> Self {
        let settings = NodeSettings {
            devices: match &config.devices {
                DeviceSelection::Auto => None,
                DeviceSelection::Named(patterns) => Some(patterns.clone()),
            },
            pod_devices: config.pod_devices.clone(),
            node_port_addresses: match &config.node_port_addresses {
                NodePortAddresses::Primary => None,
                NodePortAddresses::Cidrs(ranges) => Some(ranges.clone()),
            },
            cluster_cidrs: config.cluster_cidrs.clone(),
            detect_local: config.detect_local.clone(),
        };
        Self {
            dataplane,
            cgroup_root,
            settings,
            is_socket_path_off: config.socket_path == SocketPath::Off,
            names: config.dns.is_some(),
            interfaces: None,
            attachments: Vec::new(),
            own_addrs: BTreeSet::new(),
            node_port_addrs: Vec::new(),
        }
    }

    pub(super) fn set_interfaces(&mut self, interfaces: Vec<Interface>) {
        self.interfaces = Some(interfaces);
    }

    /// Whether the node's devices have been read.
    pub(super) fn has_interfaces(&self) -> bool {
        self.interfaces.is_some()
    }

    /// Looks at the node's addresses, and writes nothing.
    pub(super) fn look(&mut self, world: &World) {
        if let Some(interfaces) = &self.interfaces {
            let plan = plan_node(interfaces, world, &self.settings);
            self.take_addrs(&plan);
        }
    }

    fn take_addrs(&mut self, plan: &NodePlan) {
        let node_ports = plan.rows.addrs.iter().filter(|(_, addr)| addr.accepts_node_ports());
        self.node_port_addrs = node_ports.map(|(addr, _)| *addr).collect();
        self.own_addrs.clone_from(&plan.own);
    }

    /// Writes the node's rows and attaches the programs where they should be. Does all that it
    /// can.
    pub(super) fn update(&mut self, world: &World) -> NodeUpdate {
        let NodeUpdate { mut repaired, mut warnings, mut failures } = NodeUpdate::default();
        let attached = match self.is_socket_path_off {
            true => self.dataplane.detach_cgroup(),
            false => self.dataplane.attach_cgroup(&self.cgroup_root),
        };
        match attached {
            Ok(links) => repaired += links,
            Err(error) => failures.push(warning("socket path", &error)),
        }
        if let Some(interfaces) = &self.interfaces {
            let plan = plan_node(interfaces, world, &self.settings);
            warnings.extend(plan.warnings.iter().cloned());
            let (rows, errors) = self.dataplane.write_node(&plan.rows);
            repaired += rows;
            failures.extend(errors.iter().map(|error| warning("packet path", error)));
            let names =
                |index: u32| plan.rows.devices.get(&index).is_some_and(Device::answers_names);
            self.take_addrs(&plan);
            let target = |interface: Interface| Target {
                names: self.names && names(interface.index),
                name: interface.name,
                index: interface.index,
                ethernet: interface.ethernet,
            };
            let targets = plan.attach.into_iter().map(target).collect();
            let (links, errors) = self.dataplane.attach_devices(&targets);
            repaired += links;
            failures.extend(errors.iter().map(|error| warning("packet path", error)));
        }
        if self.interfaces.is_none() {
            let message = "the node's devices are not known yet".to_owned();
            failures.push(Warning { subject: "packet path".to_owned(), message });
        }
        self.attachments = self.dataplane.attachments().into_iter().collect();
        NodeUpdate { repaired, warnings, failures }
    }

    /// Tells the programs which pods opt out of the socket path.
    pub(super) fn search_opted_out(&mut self, opt_out: &mut OptOut) -> Vec<Warning> {
        opt_out.search(&mut self.dataplane, &self.cgroup_root)
    }

    /// Whether no socket is served when it connects.
    pub(super) fn is_socket_path_off(&self) -> bool {
        self.is_socket_path_off
    }

    /// Whether nobody has changed nftables since the agent did, as far as is known.
    pub(super) fn is_nat_untouched(&self) -> bool {
        self.dataplane.is_nat_untouched().unwrap_or(false)
    }

    /// The node's addresses.
    pub(super) fn own_addrs(&self) -> &BTreeSet<IpAddr> {
        &self.own_addrs
    }

    /// The addresses at which NodePorts are reached.
    pub(super) fn node_port_addrs(&self) -> &[Addr] {
        &self.node_port_addrs
    }

    pub(super) fn attachments(&self) -> Vec<Attachment> {
        self.attachments.clone()
    }
}

fn warning(subject: &str, error: &dyn std::error::Error) -> Warning {
    Warning { subject: subject.to_owned(), message: chain(error) }
}
