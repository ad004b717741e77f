//! DNS as the agent keeps it: what the kernel may answer, and the resolver on this node.

use super::node::NodeState;
use crate::config::{AgentConfig, DnsConfig};
use crate::dns::policy::{Policy, decide};
use crate::dns::server::{Knowledge, Server};
use crate::dns::zone::{PodNames, Zone, ZoneSettings};
use crate::metrics::Metrics;
use crate::model::{Touched, Warning, World};
use crate::plan::{Resolver, dns};
use crate::status::DnsStatus;
use crate::tables::{BackendRow, DnsRow};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use proxy_ebpf::{Addr, Port};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

/// The agent's side of DNS.
pub(super) struct DnsState {
    config: DnsConfig,
    cluster_cidrs: Vec<IpNetwork>,
    knowledge: Arc<RwLock<Knowledge>>,
    policy: Policy,
    server: Option<Server>,
}

impl DnsState {
    /// Nothing is answered yet, and nowhere listened.
    pub(super) fn new(
        config: DnsConfig,
        agent: &AgentConfig,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let settings = ZoneSettings {
            zone: config.zone.clone(),
            ttl: 0,
            serial: serial(),
            deny: false,
            pods: PodNames::Unknown,
            service: config.service.clone(),
        };
        let zone = Zone::new(settings);
        let knowledge = Knowledge { zone, upstreams: Vec::new(), clients: Vec::new() };
        let knowledge = Arc::new(RwLock::new(knowledge));
        let server =
            config.full.then(|| Server::start(knowledge.clone(), metrics.clone())).transpose()?;
        let policy = decide(&config, None, false);
        Ok(Self { config, cluster_cidrs: agent.cluster_cidrs.clone(), knowledge, policy, server })
    }

    /// Takes what was `touched` in `world`, and gives the zone as the kernel should know it.
    /// `vouched` says that the kernel has all names; without, nobody denies any.
    pub(super) fn update(&mut self, world: &World, touched: &Touched, vouched: bool) -> DnsRow {
        self.policy = decide(&self.config, world.corefile(), world.namespaces().is_some());
        if !vouched && self.policy.deny {
            self.policy.deny = false;
            self.policy.reason = "not all names could be written to the kernel".to_owned();
        }
        let policy = self.policy.clone();
        let service = world.service(&self.config.service);
        let mut knowledge = self.write();
        if !touched.is_empty() {
            knowledge.zone.settings.serial = serial();
        }
        if self.server.is_some() {
            knowledge.zone.update(world, touched);
        }
        let settings = &mut knowledge.zone.settings;
        settings.ttl = policy.ttl;
        settings.pods = policy.pods;
        settings.deny = policy.deny && !policy.shadow;
        let serial = settings.serial;
        let own: Vec<_> = self.server.iter().flat_map(Server::addrs).collect();
        knowledge.upstreams = self.config.upstreams.clone().unwrap_or_else(|| {
            let slices = world.slices_of(&self.config.service);
            service.map_or_else(Vec::new, |service| dns::upstreams(service, slices))
        });
        // Never itself: the query would come back for ever.
        knowledge.upstreams.retain(|server| !own.contains(server));
        drop(knowledge);
        DnsRow {
            zone: self.config.zone.clone(),
            ttl: policy.ttl,
            serial,
            addrs: service.map_or_else(Vec::new, |service| {
                service.cluster_ips.iter().map(|&addr| addr.into()).collect()
            }),
            deny: policy.deny,
            shadow: policy.shadow,
        }
    }

    /// Listens at the node's primary addresses, for the pods and the node's own addresses. Gives
    /// where the DNS service may lead, and what is in the way.
    pub(super) fn listen(
        &mut self,
        world: &World,
        node: &mut NodeState,
    ) -> (Option<Resolver>, Vec<Warning>) {
        let port = self.config.port;
        let Some(server) = &mut self.server else { return (None, Vec::new()) };
        let (primary, own) = node.addrs();
        let own = own.to_vec();
        let addrs: Vec<_> = primary.iter().map(|&addr| SocketAddr::new(addr, port)).collect();
        let errors = server.listen(&addrs, |addr, socket| node.put_resolver(addr.ip(), socket));
        let listening = server.addrs();
        let mut warnings: Vec<_> = errors
            .iter()
            .map(|(addr, error)| {
                warning(format!(
                    "the resolver cannot listen at {addr}, so the DNS service leads to its own \
                     endpoints there: {error}; free the port, or choose another --dns-port"
                ))
            })
            .collect();
        let pods = world.node().map_or(&[][..], |node| &node.pod_cidrs);
        let pods: Vec<_> = self.cluster_cidrs.iter().chain(pods).copied().collect();
        let mut backends = Vec::new();
        for addr in listening {
            if pods.iter().any(|pods| pods.is_ipv4() == addr.is_ipv4()) {
                backends.push(BackendRow { addr: Addr::from(addr.ip()), port: Port::new(port) });
            } else {
                warnings.push(warning(format!(
                    "the pods that may ask the resolver at {addr} are not known: give their \
                     networks with --cluster-cidr"
                )));
            }
        }
        self.write().clients = pods.into_iter().chain(own.iter().map(|&own| own.into())).collect();
        let service = self.config.service.clone();
        ((!backends.is_empty()).then_some(Resolver { service, backends }), warnings)
    }

    pub(super) fn status(&self) -> DnsStatus {
        let knowledge = self.knowledge.read().unwrap_or_else(PoisonError::into_inner);
        DnsStatus {
            zone: self.config.zone.clone(),
            denies: self.policy.deny && !self.policy.shadow,
            reason: self.policy.reason.clone(),
            ttl: self.policy.ttl,
            resolver: self.server.iter().flat_map(Server::addrs).collect(),
            upstreams: knowledge.upstreams.clone(),
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Knowledge> {
        self.knowledge.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warning(message: String) -> Warning {
    Warning { subject: "--dns=full".to_owned(), message }
}

/// A serial number that grows: the time in seconds.
fn serial() -> u32 {
    u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX)
}
