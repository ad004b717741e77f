//! The node as the agent keeps it: its devices and addresses, and what is attached to them.

use super::opt_out::OptOut;
use super::report::chain;
use crate::config::{AgentConfig, DeviceSelection, NodePortAddresses};
use crate::loader::Dataplane;
use crate::loader::links::Target;
use crate::model::{Interface, Warning, World};
use crate::plan::node::{NodeSettings, plan_node};
use crate::status::Attachment;
use proxy_ebpf::node::Device;
use std::path::PathBuf;

/// The node's side of the dataplane.
pub(super) struct NodeState {
    dataplane: Dataplane,
    cgroup_root: PathBuf,
    settings: NodeSettings,
    /// Whether names are answered in the kernel.
    names: bool,
    /// `None` until they have been read once.
    interfaces: Option<Vec<Interface>>,
    /// Where the programs were attached at the last update.
    attachments: Vec<Attachment>,
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
            names: config.dns.is_some(),
            interfaces: None,
            attachments: Vec::new(),
        }
    }

    pub(super) fn set_interfaces(&mut self, interfaces: Vec<Interface>) {
        self.interfaces = Some(interfaces);
    }

    /// Writes the node's rows and attaches the programs where they should be. Does all that it
    /// can.
    pub(super) fn update(&mut self, world: &World) -> NodeUpdate {
        let NodeUpdate { mut repaired, mut warnings, mut failures } = NodeUpdate::default();
        match self.dataplane.attach_cgroup(&self.cgroup_root) {
            Ok(links) => repaired += links,
            Err(error) => failures.push(warning("socket path", &error)),
        }
        if let Some(interfaces) = &self.interfaces {
            let plan = plan_node(interfaces, world, &self.settings);
            warnings.extend(plan.warnings);
            match self.dataplane.write_node(&plan.rows) {
                Ok(rows) => repaired += rows,
                Err(error) => failures.push(warning("packet path", &error)),
            }
            let names =
                |index: u32| plan.rows.devices.get(&index).is_some_and(Device::answers_names);
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

    pub(super) fn attachments(&self) -> Vec<Attachment> {
        self.attachments.clone()
    }
}

fn warning(subject: &str, error: &dyn std::error::Error) -> Warning {
    Warning { subject: subject.to_owned(), message: chain(error) }
}
