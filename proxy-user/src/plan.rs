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

use crate::model::{Extent, ObjectName, Service, Slice, Touched, Warning, World};
use crate::tables::{
    DnsName, Family, HealthCheck, NameKind, NameRow, ServiceKey, ServicePortName, ServiceRow,
    TableDelta, Tables,
};
use claims::Claims;
use proxy_ebpf::Proto;
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::frontend::FrontendKey;
use remarks::Remarks;
use service::{Place, ServicePlan};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Keeps the tables that a world asks for.
#[derive(Debug)]
pub struct Planner {
    node_name: Arc<str>,
    external_ips: bool,
    /// The node's own addresses.
    own_addrs: BTreeSet<IpAddr>,
    node_ports: NodePortRange,
    tables: Tables,
    claims: Claims,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    remarks: BTreeMap<ObjectName, Remarks>,
    /// How many endpoints of these do not fit; those of which all fit are not here.
    left_out: BTreeMap<ServiceKey, usize>,
    services_planned: u64,
    rows_planned: u64,
    /// The names that each Service has rows of; `None` if names are not planned.
    names: Option<BTreeMap<ObjectName, Vec<DnsName>>>,
}

impl Planner {
    /// A planner for the node `node_name`, with nothing planned.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            external_ips: true,
            own_addrs: BTreeSet::new(),
            node_ports: NodePortRange { first: 0, last: u16::MAX },
            tables: Tables::default(),
            claims: Claims::default(),
            health_checks: BTreeMap::new(),
            remarks: BTreeMap::new(),
            left_out: BTreeMap::new(),
            services_planned: 0,
            rows_planned: 0,
            names: None,
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

    /// The same planner, which plans names too.
    #[must_use]
    pub fn with_names(mut self) -> Self {
        self.names = Some(BTreeMap::new());
        self
    }

    /// Leaves ClusterIPs that are among the node's own addresses to the node from the next update
    /// on. Returns what is to be planned again.
    pub fn set_own_addrs(&mut self, world: &World, own: &BTreeSet<IpAddr>) -> Touched {
        let mut touched = Touched::default();
        if self.own_addrs != *own {
            let changed: BTreeSet<_> = self.own_addrs.symmetric_difference(own).copied().collect();
            let has_one =
                |service: &&Service| service.cluster_ips.iter().any(|addr| changed.contains(addr));
            let services = world.services().filter(has_one);
            touched.services =
                services.map(|service| (service.name.clone(), Extent::Whole)).collect();
            self.own_addrs.clone_from(own);
        }
        touched
    }

    /// Plans again what is `touched` in `world`, and gives the rows that have changed.
    ///
    /// Takes time in proportion to the touched Services, and to the touched ports of those of which
    /// only slices are touched, whatever the size of the world. Correct
    /// only if everything that has changed since the last update is touched.
    pub fn update(&mut self, world: &World, touched: &Touched) -> TableDelta {
        let mut delta = TableDelta::default();
        let mut affected = BTreeSet::new();
        let mut services: BTreeMap<_, _> = touched.services.iter().collect();
        if touched.everything {
            let all = world.services().map(|service| &service.name).chain(touched.services.keys());
            services = all.map(|name| (name, &Extent::Whole)).collect();
        }
        for (name, extent) in services {
            self.services_planned += 1;
            match (world.service(name), extent) {
                (Some(service), Extent::Slices(slices)) => {
                    self.plan_slices(world, service, slices, &mut delta);
                }
                (service, _) => self.plan_service(world, name, service, &mut delta, &mut affected),
            }
            self.plan_health_check(world, name);
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
        let contests = self.claims.contests().map(move |(name, message)| warning(name, message));
        let left_out = self.left_out.iter().map(move |(key, count)| {
            let (port, family, most) = (&key.port, key.family, backends::MAX_BACKENDS);
            let message = format!(
                "{port} ({family}): {count} endpoints are left out, more than {most} do not fit"
            );
            warning(&object(key), message)
        });
        plans.chain(contests).chain(left_out)
    }

    /// How many Services and ports there are warnings about, at most.
    pub fn warning_count(&self) -> usize {
        self.remarks.len() + self.claims.contest_count() + self.left_out.len()
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

    /// How many times a row was planned: one port of a Service in one family.
    pub fn rows_planned(&self) -> u64 {
        self.rows_planned
    }

    fn place<'a>(&'a self, world: &'a World) -> Place<'a> {
        Place {
            node: &self.node_name,
            zone: world.node().and_then(|node| node.zone.as_deref()),
            node_ips: world.node().map_or(&[], |node| &node.internal_ips),
            external_ips: self.external_ips,
            node_ports: self.node_ports,
            own_addrs: &self.own_addrs,
        }
    }

    /// Plans the rows of `service` that the versions `touched` of its slices may have changed.
    fn plan_slices(
        &mut self,
        world: &World,
        service: &Service,
        touched: &[Arc<Slice>],
        delta: &mut TableDelta,
    ) {
        let slices = world.slices_of(&service.name);
        let rows = service::plan_touched(service, slices, touched, self.place(world));
        self.put_rows(rows, delta);
    }

    /// Adds what differs from the planned rows.
    fn put_rows(
        &mut self,
        rows: BTreeMap<ServiceKey, (ServiceRow, usize)>,
        delta: &mut TableDelta,
    ) {
        self.rows_planned += rows.len() as u64;
        for (key, (row, left_out)) in rows {
            // Of equal keys the old one goes on, which the frontends share.
            let known = self.tables.services.get_key_value(&key);
            let is_known = known.is_some_and(|(_, planned)| **planned == row);
            let key = known.map_or(key, |(known, _)| known.clone());
            match left_out {
                0 => drop(self.left_out.remove(&key)),
                _ => drop(self.left_out.insert(key.clone(), left_out)),
            }
            if !is_known {
                delta.services.insert(key, Some(Arc::new(row)));
            }
        }
    }

    /// Plans the Service `name`: its rows go to `delta`, the frontends that it claims, or claims
    /// no longer, to `affected`.
    fn plan_service(
        &mut self,
        world: &World,
        name: &ObjectName,
        service: Option<&Arc<Service>>,
        delta: &mut TableDelta,
        affected: &mut BTreeSet<FrontendKey>,
    ) {
        let plan = service.map_or_else(ServicePlan::default, |service| {
            service::plan(service, world.slices_of(name), self.place(world))
        });

        let planned = self.tables.services.range(first_key(name)..).map(|(key, _)| key);
        for key in planned.take_while(|key| is_of(key, name)) {
            if !plan.rows.contains_key(key) {
                self.left_out.remove(key);
                delta.services.insert(key.clone(), None);
            }
        }
        self.put_rows(plan.rows, delta);
        let created = service.map_or(0, |service| service.created);
        self.claims.replace(name, created, plan.frontends, affected);
        if plan.remarks.is_empty() {
            self.remarks.remove(name);
        } else {
            self.remarks.insert(name.clone(), plan.remarks);
        }
    }

    /// Plans what load balancers may ask about the Service `name`.
    fn plan_health_check(&mut self, world: &World, name: &ObjectName) {
        let check = world
            .service(name)
            .and_then(|service| health::plan(service, world.slices_of(name), &self.node_name));
        match check {
            Some(check) => drop(self.health_checks.insert(name.clone(), check)),
            None => drop(self.health_checks.remove(name)),
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
