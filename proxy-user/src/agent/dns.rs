//! DNS as the agent keeps it: what the kernel may answer of the cluster's names.

use crate::config::DnsConfig;
use crate::dns::policy::{Policy, decide};
use crate::model::{Touched, World};
use crate::status::DnsStatus;
use crate::tables::DnsRow;
use jiff::Timestamp;

/// The agent's side of DNS.
pub(super) struct DnsState {
    config: DnsConfig,
    policy: Policy,
    /// The serial number in the zone's SOA record.
    serial: u32,
}

impl DnsState {
    /// Nothing is answered yet.
    pub(super) fn new(config: DnsConfig) -> Self {
        let policy = decide(&config, None, false);
        Self { config, policy, serial: serial() }
    }

    /// Takes what was `touched` in `world`, and gives the zone as the kernel should know it.
    /// With a `doubt` that the kernel has all names, it denies none.
    pub(super) fn update(
        &mut self,
        world: &World,
        touched: &Touched,
        doubt: Option<&'static str>,
    ) -> DnsRow {
        self.policy = decide(&self.config, world.corefile(), world.namespaces().is_some());
        if let Some(doubt) = doubt.filter(|_| self.policy.deny) {
            self.policy.deny = false;
            self.policy.reason = doubt.to_owned();
        }
        if !touched.is_empty() {
            self.serial = serial();
        }
        let service = world.service(&self.config.service);
        DnsRow {
            zone: self.config.zone.clone(),
            ttl: self.policy.ttl,
            serial: self.serial,
            addrs: service.map_or_else(Vec::new, |service| {
                service.cluster_ips.iter().map(|&addr| addr.into()).collect()
            }),
            deny: self.policy.deny,
            shadow: self.policy.shadow,
        }
    }

    pub(super) fn status(&self) -> DnsStatus {
        DnsStatus {
            zone: self.config.zone.clone(),
            denies: self.policy.deny && !self.policy.shadow,
            reason: self.policy.reason.clone(),
            ttl: self.policy.ttl,
        }
    }
}

/// A serial number that grows: the time in seconds.
fn serial() -> u32 {
    u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX)
}
