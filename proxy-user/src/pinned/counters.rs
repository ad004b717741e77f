//! What the maps say in numbers: how the programs ended, what each service carried, how full the
//! maps are. Read by `shunt status` and by a scrape of the metrics.

use super::{NameCount, PinnedError, PinnedMaps};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue};
use proxy_ebpf::outcome::{Outcome, Program, counter_index};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use serde::Serialize;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

/// Numbers of service ports, by family and policy.
pub type NoLocal = BTreeMap<(&'static str, &'static str), usize>;

/// All numbers, read at about the same time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Counters {
    /// One for each program and outcome.
    pub outcomes: Vec<OutcomeCount>,
    /// One for each kind of query and outcome of the program that answers names.
    pub names: Vec<NameCount>,
    /// One for each service port and family.
    pub services: Vec<ServiceCount>,
    /// One for each map that can fill up.
    pub fill: Vec<Fill>,
    /// How many service ports have endpoints, but none on this node where a policy `Local` wants
    /// one; by family (`IPv4`, `IPv6`) and policy (`internal`, `external`).
    pub no_local: NoLocal,
}

/// How often a program ended in one way, over all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutcomeCount {
    /// The program.
    pub program: Program,
    /// How it ended.
    pub outcome: Outcome,
    /// How often.
    pub count: u64,
}

/// What one service port has carried in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceCount {
    /// Its names.
    pub info: ServiceInfo,
    /// Its counters, over all CPUs.
    pub counters: ServiceCounters,
}

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Fill {
    /// The map's name.
    pub map: &'static str,
    /// Entries in use.
    pub used: u32,
    /// Entries that the map can hold.
    pub max: u32,
}

impl PinnedMaps {
    /// Reads all numbers.
    pub fn counters(&self) -> Result<Counters, PinnedError> {
        let services = self.services()?;
        let carried = self.service_counters()?;
        let frontends = self.frontends()?;
        let (slots, no_local) = self.ranges_in_use(&frontends)?;
        let fill = |map, used, max| Fill { map, used, max };
        Ok(Counters {
            outcomes: self.outcomes()?,
            names: self.name_counts()?,
            services: services
                .iter()
                .map(|(id, &info)| {
                    let counters = carried.get(id.0 as usize).copied().unwrap_or_default();
                    ServiceCount { info, counters }
                })
                .collect(),
            fill: vec![
                fill("frontends", frontends.len() as u32, self.frontends.max),
                fill("slots", slots, self.slots.max),
                fill("services", services.len() as u32, self.services.max),
                fill("dns_names", self.dns_names.len()?, self.dns_names.max),
            ],
            no_local,
        })
    }

    fn outcomes(&self) -> Result<Vec<OutcomeCount>, PinnedError> {
        let counts = self.outcomes.sums(|sum, cpu| sum + cpu)?;
        let pairs = Program::ALL.iter().flat_map(|p| Outcome::ALL.iter().map(move |o| (*p, *o)));
        let count = |(program, outcome)| {
            let index = counter_index(program, outcome as u32) as usize;
            OutcomeCount { program, outcome, count: counts.get(index).copied().unwrap_or(0) }
        };
        Ok(pairs.map(count).collect())
    }

    /// How many elements of the slot array belong to ranges that a frontend names, and
    /// [`Counters::no_local`].
    fn ranges_in_use(
        &self,
        frontends: &BTreeMap<FrontendKey, FrontendValue>,
    ) -> Result<(u32, NoLocal), PinnedError> {
        let policies = [
            ("internal", FrontendFlags::INTERNAL_LOCAL),
            ("external", FrontendFlags::EXTERNAL_LOCAL),
        ];
        let mut headers = BTreeMap::new();
        let mut missing: BTreeMap<_, BTreeSet<ServiceId>> = ["IPv4", "IPv6"]
            .into_iter()
            .flat_map(|family| policies.map(|(policy, _)| ((family, policy), BTreeSet::new())))
            .collect();
        for (key, value) in frontends {
            let header = match headers.entry(value.range()) {
                Entry::Occupied(read) => *read.get(),
                Entry::Vacant(unread) => *unread.insert(self.header(value.range())?),
            };
            let family = if key.addr.is_v4() { "IPv4" } else { "IPv6" };
            for (policy, flag) in policies {
                if value.flags().has(flag) && header.cluster > 0 && header.local == 0 {
                    missing.entry((family, policy)).or_default().insert(header.service);
                }
            }
        }
        let used = headers.values().fold(0_u32, |sum, header| {
            [1, header.cluster, header.local, header.draining]
                .into_iter()
                .fold(sum, u32::saturating_add)
        });
        Ok((used, missing.into_iter().map(|(labels, services)| (labels, services.len())).collect()))
    }
}
