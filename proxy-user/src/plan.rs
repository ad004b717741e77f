//! The plan: from what is known of the cluster to what the maps ought to hold.
//!
//! Takes the [`World`] and what was touched in it, gives the rows that differ from the plan
//! before. What one Service needs is a pure function of it, its slices and the node's name and
//! zone; only frontends that several Services claim are decided between them. No I/O, no clock,
//! no randomness, and it cannot fail: what it cannot serve becomes a warning.
//!
//! The rules are those of kube-proxy 1.36 in nftables mode; the tests cite them case by case.

mod backends;
mod claims;
mod dns;
mod health;
pub mod node;
mod remarks;
mod service;
mod sources;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use crate::model::{ObjectName, Touched, Warning, World};
use crate::tables::{
    DnsName, Family, HealthCheck, NameKind, NameRow, ServiceKey, ServicePortName, TableDelta,
    Tables,
};
use claims::Claims;
use proxy_ebpf::Proto;
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::frontend::FrontendKey;
use remarks::Remarks;
use service::{Place, ServicePlan};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Keeps the tables that a world asks for.
#[derive(Debug)]
pub struct Planner {
    node_name: Arc<str>,
    external_ips: bool,
    node_ports: NodePortRange,
    tables: Tables,
    claims: Claims,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    remarks: BTreeMap<ObjectName, Remarks>,
    services_planned: u64,
    /// The names that each Service has rows of; `None` if names are not planned.
    names: Option<BTreeMap<ObjectName, Vec<DnsName>>>,
    /// The DNS service, if names are planned.
    dns_service: Option<ObjectName>,
}

impl Planner {
    /// A planner for the node `node_name`, with nothing planned.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            external_ips: true,
            node_ports: NodePortRange { first: 0, last: u16::MAX },
            tables: Tables::default(),
            claims: Claims::default(),
            health_checks: BTreeMap::new(),
            remarks: BTreeMap::new(),
            services_planned: 0,
            names: None,
            dns_service: None,
        }
    }

    /// The same planner, which gives no frontends to `spec.externalIPs`: whoever may write a
    /// Service can claim any address with them (CVE-2020-8554).
    #[must_use]
    pub fn without_external_ips(mut self) -> Self {
        self.external_ips = false;
        self
    }

    /// The same planner, which gives no frontends to NodePorts outside `range`: the programs look
    /// for none there.
    #[must_use]
    pub fn with_node_ports(mut self, range: NodePortRange) -> Self {
        self.node_ports = range;
        self
    }

    /// The same planner, which plans names too; queries to `dns_service` may be answered on their
    /// way.
    #[must_use]
    pub fn with_names(mut self, dns_service: ObjectName) -> Self {
        self.names = Some(BTreeMap::new());
        self.dns_service = Some(dns_service);
        self
    }

    /// Plans again what is `touched` in `world`, and gives the rows that have changed.
    ///
    /// Takes time in proportion to the touched Services, whatever the size of the world. Correct
    /// only if everything that has changed since the last update is touched.
    pub fn update(&mut self, world: &World, touched: &Touched) -> TableDelta {
        let mut delta = TableDelta::default();
        let mut affected = BTreeSet::new();
        let all = touched.everything.then(|| world.services().map(|service| &service.name));
        let names: BTreeSet<_> = all.into_iter().flatten().chain(&touched.services).collect();
        for name in names {
            self.plan_service(world, name, &mut delta, &mut affected);
            self.plan_names(world, name, &mut delta);
        }
        self.plan_namespaces(world, touched, &mut delta);
        for key in affected {
            let owner = self.claims.owner(&key);
            if owner != self.tables.frontends.get(&key) {
                delta.frontends.insert(key, owner.cloned());
            }
        }
        if touched.everything {
            self.claims.pack();
        }
        self.tables.apply(&delta);
        delta
    }

    /// What the maps ought to hold after the last update.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What load balancers may ask this node about Services.
    pub fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    /// What cannot be served as it was asked for: a few sentences for each Service that it is
    /// about, however many of its ports and addresses. Made as they are taken, so that whoever
    /// wants some pays for some.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let warning =
            |name: &ObjectName, message| Warning { subject: format!("Service {name}"), message };
        let plans = self.remarks.iter().flat_map(move |(name, remarks)| {
            remarks.sentences().map(move |message| warning(name, message))
        });
        let contests = self.claims.contests();
        plans.chain(contests.map(move |(name, message)| warning(name, message)))
    }

    /// How many Services there are warnings about, at most.
    pub fn warning_count(&self) -> usize {
        self.remarks.len() + self.claims.contest_count()
    }

    /// Why the Service `name` does not get every address and port that it claims; `None` if it
    /// does.
    pub fn contest(&self, name: &ObjectName) -> Option<String> {
        self.claims.contest(name)
    }

    /// The Services of which [`Planner::contest`] may say something new: those that have begun or
    /// ceased to lose addresses since the last call.
    pub fn take_contest_changes(&mut self) -> BTreeSet<ObjectName> {
        self.claims.take_changes()
    }

    /// How many times a Service was planned; shows that a change costs no more than it touches.
    pub fn services_planned(&self) -> u64 {
        self.services_planned
    }

    /// Plans the Service `name`: its rows go to `delta`, the frontends that it claims, or claims
    /// no longer, to `affected`.
    fn plan_service(
        &mut self,
        world: &World,
        name: &ObjectName,
        delta: &mut TableDelta,
        affected: &mut BTreeSet<FrontendKey>,
    ) {
        self.services_planned += 1;
        let place = Place {
            node: &self.node_name,
            zone: world.node().and_then(|node| node.zone.as_deref()),
            node_ips: world.node().map_or(&[], |node| &node.internal_ips),
            external_ips: self.external_ips,
            node_ports: self.node_ports,
            dns_service: self.dns_service.as_ref(),
        };
        let service = world.service(name);
        let plan = service.map_or_else(ServicePlan::default, |service| {
            service::plan(service, world.slices_of(name), place)
        });

        let planned = self.tables.services.range(first_key(name)..).map(|(key, _)| key);
        for key in planned.take_while(|key| is_of(key, name)) {
            if !plan.rows.contains_key(key) {
                delta.services.insert(key.clone(), None);
            }
        }
        for (key, row) in plan.rows {
            // Of equal keys the old one goes on, which the frontends share.
            let key = match self.tables.services.get_key_value(&key) {
                Some((_, planned)) if **planned == row => continue,
                Some((known, _)) => known.clone(),
                None => key,
            };
            delta.services.insert(key, Some(Arc::new(row)));
        }
        let created = service.map_or(0, |service| service.created);
        self.claims.replace(name, created, plan.frontends, affected);
        let check = service
            .and_then(|service| health::plan(service, world.slices_of(name), &self.node_name));
        match check {
            Some(check) => drop(self.health_checks.insert(name.clone(), check)),
            None => drop(self.health_checks.remove(name)),
        }
        if plan.remarks.is_empty() {
            self.remarks.remove(name);
        } else {
            self.remarks.insert(name.clone(), plan.remarks);
        }
    }

    /// Plans the names of the Service `name` and its endpoints.
    fn plan_names(&mut self, world: &World, name: &ObjectName, delta: &mut TableDelta) {
        let Some(planned) = &mut self.names else { return };
        let rows = world
            .service(name)
            .map_or_else(BTreeMap::new, |service| dns::rows(service, world.slices_of(name)));
        let gone = planned.remove(name).unwrap_or_default();
        for name in gone.into_iter().filter(|name| !rows.contains_key(name)) {
            delta.names.insert(name, None);
        }
        if !rows.is_empty() {
            planned.insert(name.clone(), rows.keys().cloned().collect());
        }
        for (name, row) in rows {
            self.plan_name(name, Some(row), delta);
        }
    }

    /// Plans the names of the Namespaces, and those that always are.
    fn plan_namespaces(&mut self, world: &World, touched: &Touched, delta: &mut TableDelta) {
        if self.names.is_none() {
            return;
        }
        let known = world.namespaces();
        let all = known.into_iter().flatten().filter(|_| touched.everything);
        for namespace in all.chain(&touched.namespaces) {
            let exists = known.is_some_and(|known| known.contains(namespace));
            let row = exists.then(|| dns::bare(NameKind::Namespace));
            self.plan_name(dns::namespace_name(namespace), row, delta);
        }
        for name in dns::OTHER_NAMES {
            self.plan_name(DnsName(name.into()), Some(dns::bare(NameKind::Other)), delta);
        }
    }

    /// Adds what differs from the planned row of `name`.
    fn plan_name(&self, name: DnsName, row: Option<NameRow>, delta: &mut TableDelta) {
        if self.tables.names.get(&name).map(Arc::as_ref) != row.as_ref() {
            delta.names.insert(name, row.map(Arc::new));
        }
    }
}

/// The Service that a service port belongs to.
fn object(key: &ServiceKey) -> ObjectName {
    ObjectName { namespace: key.port.namespace.clone(), name: key.port.name.clone() }
}

/// Whether a service port belongs to the Service `name`.
fn is_of(key: &ServiceKey, name: &ObjectName) -> bool {
    key.port.namespace == name.namespace && key.port.name == name.name
}

/// A key that is not behind any key of the Service `name`, and behind all of those before it.
fn first_key(name: &ObjectName) -> ServiceKey {
    let ObjectName { namespace, name } = name.clone();
    let port = ServicePortName { namespace, name, port: "".into(), proto: Proto(0) };
    ServiceKey { port: port.into(), family: Family::V4 }
}
