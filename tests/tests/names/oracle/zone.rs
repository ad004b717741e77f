//! The cluster zone in memory: what a name stands for, to CoreDNS.
//!
//! Takes the world after each pass, gives what CoreDNS's plugin `kubernetes` would find for a
//! name (plugin/kubernetes/kubernetes.go: `parseRequest`, `findServices`, `findPods`,
//! `serviceRecordForIP`). It knows no packets and no record types but those of its own names.

use proxy_ebpf::Proto;
use proxy_user::model::{Endpoint, ObjectName, Service, ServiceType, Slice, Touched, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The settings of the zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ZoneSettings {
    /// Its name in lower case, without a dot at the end, such as `cluster.local`.
    pub(crate) zone: String,
    /// The time to live of answers, in seconds.
    pub(crate) ttl: u32,
    /// The serial number in the SOA record.
    pub(crate) serial: u32,
    /// Whether it may be said of a name that it does not exist.
    pub(crate) deny: bool,
    /// How names of pods are answered.
    pub(crate) pods: PodNames,
    /// The DNS service, which is the name server of the zone.
    pub(crate) service: ObjectName,
}

/// How names below `pod` are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PodNames {
    /// Every address in a Namespace that exists is a name (`pods insecure`).
    Insecure,
    /// There are none (`pods disabled`).
    Absent,
    /// It takes a list of the pods (`pods verified`).
    Unknown,
}

/// All names of the cluster.
#[derive(Debug)]
pub(crate) struct Zone {
    /// What does not come from the world.
    pub(crate) settings: ZoneSettings,
    /// By namespace and name.
    services: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Entry>>,
    namespaces: Option<BTreeSet<Arc<str>>>,
    /// The Services whose ClusterIP or ready endpoint an address is.
    owners: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
}

#[derive(Debug)]
struct Entry {
    service: Arc<Service>,
    slices: Vec<Arc<Slice>>,
}

/// What a name leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found<'a> {
    /// The name exists, with these records or none.
    Records(Vec<Target<'a>>),
    /// The name is another one for this.
    Alias(&'a str),
    /// There is no such name.
    Nothing,
    /// Someone else has to say.
    Unknown,
}

/// An address that a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target<'a> {
    pub(super) addr: IpAddr,
    /// `None` where no port is declared.
    pub(super) port: Option<u16>,
    owner: Owner<'a>,
}

/// Whose address it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner<'a> {
    /// A pod's: nothing refers to its name.
    Nobody,
    Service(&'a ObjectName),
    Endpoint(&'a ObjectName, &'a Endpoint),
}

impl Target<'_> {
    /// The name of the address itself, relative to the zone.
    pub(super) fn name(&self) -> String {
        match self.owner {
            Owner::Nobody => String::new(),
            Owner::Service(of) => service_name(of),
            Owner::Endpoint(of, endpoint) => {
                format!("{}.{}", endpoint_label(endpoint), service_name(of))
            }
        }
    }
}

fn service_name(name: &ObjectName) -> String {
    format!("{}.{}.svc", name.name, name.namespace)
}

/// Which endpoint or port of a Service is asked for.
#[derive(Clone, Copy, Default)]
struct Part<'a> {
    endpoint: Option<&'a str>,
    /// Empty means any.
    port: &'a str,
    /// Empty means any.
    proto: &'a str,
}

impl Part<'_> {
    fn has_port(&self, name: &str, proto: Proto) -> bool {
        (self.port.is_empty() || self.port.eq_ignore_ascii_case(name))
            && (self.proto.is_empty() || self.proto.eq_ignore_ascii_case(&proto.to_string()))
    }
}

impl Zone {
    /// A zone without names.
    pub(crate) fn new(settings: ZoneSettings) -> Self {
        Self { settings, services: BTreeMap::new(), namespaces: None, owners: BTreeMap::new() }
    }

    /// Takes what was `touched` in `world`.
    pub(crate) fn update(&mut self, world: &World, touched: &Touched) {
        for name in touched.services.keys() {
            self.remove(name);
            if let Some(service) = world.service(name) {
                let entry =
                    Entry { service: service.clone(), slices: world.slices_of(name).to_vec() };
                for addr in entry.addrs() {
                    self.owners.entry(addr).or_default().insert(name.clone());
                }
                let of_namespace = self.services.entry(name.namespace.clone()).or_default();
                of_namespace.insert(name.name.clone(), entry);
            }
        }
        if self.namespaces.is_none() || !touched.namespaces.is_empty() {
            self.namespaces = world.namespaces().cloned();
        }
    }

    fn remove(&mut self, name: &ObjectName) {
        let Some(of_namespace) = self.services.get_mut(&name.namespace) else { return };
        let Some(entry) = of_namespace.remove(&name.name) else { return };
        if of_namespace.is_empty() {
            self.services.remove(&name.namespace);
        }
        for addr in entry.addrs() {
            if let Some(owners) = self.owners.get_mut(&addr) {
                owners.remove(name);
                if owners.is_empty() {
                    self.owners.remove(&addr);
                }
            }
        }
    }

    /// What the name with these labels, in lower case and relative to the zone, leads to.
    pub(super) fn find(&self, labels: &[&str]) -> Found<'_> {
        let rest = match labels {
            [] | ["svc" | "pod"] => return Found::Records(Vec::new()),
            ["ns", "dns"] => return Found::Records(self.name_servers()),
            [rest @ .., "svc" | "pod"] if rest.len() <= 4 => rest,
            _ => return Found::Nothing,
        };
        let [parts @ .., namespace] = rest else { return Found::Nothing };
        let [parts @ .., name] = parts else { return self.find_namespace(namespace) };
        if labels.last() == Some(&"pod") {
            return self.find_pod(name, namespace);
        }
        let part = match *parts {
            [] => Part::default(),
            [endpoint] => Part { endpoint: Some(endpoint), ..Part::default() },
            [port, proto, ..] => {
                let bare = |label: &'_ str| label.strip_prefix('_').map_or(label.len(), str::len);
                let (p, q) = (bare(port), bare(proto));
                Part {
                    endpoint: None,
                    port: &port[port.len() - p..],
                    proto: &proto[proto.len() - q..],
                }
            }
        };
        let entry = self.services.get(*namespace).and_then(|services| services.get(*name));
        entry.map_or(Found::Nothing, |entry| entry.find(part))
    }

    fn find_namespace(&self, namespace: &str) -> Found<'_> {
        match &self.namespaces {
            None => Found::Unknown,
            Some(known) if known.contains(namespace) => Found::Records(Vec::new()),
            Some(_) => Found::Nothing,
        }
    }

    fn find_pod(&self, name: &str, namespace: &str) -> Found<'_> {
        match (self.settings.pods, self.find_namespace(namespace)) {
            (PodNames::Unknown, _) | (_, Found::Unknown) => return Found::Unknown,
            (PodNames::Absent, _) | (_, Found::Nothing) => return Found::Nothing,
            _ => {}
        }
        let is_v4 = name.matches('-').count() == 3 && !name.contains("--");
        match name.replace('-', if is_v4 { "." } else { ":" }).parse() {
            Ok(addr) => Found::Records(vec![Target { addr, port: None, owner: Owner::Nobody }]),
            Err(_) => Found::Nothing,
        }
    }

    /// The addresses of the DNS service.
    pub(super) fn name_servers(&self) -> Vec<Target<'_>> {
        let ObjectName { namespace, name } = &self.settings.service;
        let entry = self.services.get(namespace).and_then(|services| services.get(name));
        match entry.map(|entry| entry.find(Part::default())) {
            Some(Found::Records(targets)) => targets,
            _ => Vec::new(),
        }
    }

    /// The names of an address, relative to the zone: that of the Service whose ClusterIP it is,
    /// or else one for each Service that has it as an endpoint.
    pub(super) fn names_of(&self, addr: IpAddr) -> Vec<String> {
        let owners = || {
            self.owners
                .get(&addr)
                .into_iter()
                .flatten()
                .filter_map(|name| self.services.get(&name.namespace)?.get(&name.name))
        };
        if let Some(entry) = owners().find(|entry| entry.service.cluster_ips.contains(&addr)) {
            return vec![service_name(&entry.service.name)];
        }
        let endpoints = owners().flat_map(|entry| {
            let ready = ready_endpoints(&entry.slices).filter(|(_, e)| e.addr == addr);
            ready.map(|(_, e)| {
                format!("{}.{}", endpoint_label(e), service_name(&entry.service.name))
            })
        });
        endpoints.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Entry {
    fn addrs(&self) -> impl Iterator<Item = IpAddr> {
        let ready = ready_endpoints(&self.slices).map(|(_, endpoint)| endpoint.addr);
        self.service.cluster_ips.iter().copied().chain(ready)
    }

    fn find<'a>(&'a self, part: Part<'_>) -> Found<'a> {
        let service = &self.service;
        if service.kind == ServiceType::ExternalName {
            let whole = part.endpoint.is_none() && part.port.is_empty() && part.proto.is_empty();
            let target = service.external_name.as_deref();
            return match target.filter(|target| whole && target.parse::<IpAddr>().is_err()) {
                Some(target) => Found::Alias(target),
                None => Found::Nothing,
            };
        }
        let targets = if service.headless || part.endpoint.is_some() {
            self.endpoints(part)
        } else if service.cluster_ips.is_empty() {
            return Found::Unknown;
        } else {
            self.cluster_ips(part)
        };
        if targets.is_empty() { Found::Nothing } else { Found::Records(targets) }
    }

    fn cluster_ips(&self, part: Part<'_>) -> Vec<Target<'_>> {
        let Service { name, ports, cluster_ips, .. } = &*self.service;
        let ports = ports.iter().map(|port| (&*port.name, port.proto, port.port.number()));
        let ports = matching(ports, part);
        let owner = Owner::Service(name);
        let target = |port| cluster_ips.iter().map(move |&addr| Target { addr, port, owner });
        ports.into_iter().flat_map(target).collect()
    }

    fn endpoints(&self, part: Part<'_>) -> Vec<Target<'_>> {
        let mut targets = Vec::new();
        for (slice, endpoint) in ready_endpoints(&self.slices) {
            if part.endpoint.is_some_and(|label| label != endpoint_label(endpoint)) {
                continue;
            }
            let owner = Owner::Endpoint(&self.service.name, endpoint);
            let ports =
                slice.ports.iter().map(|port| (&*port.name, port.proto, port.port.number()));
            let target = |port| Target { addr: endpoint.addr, port, owner };
            targets.extend(matching(ports, part).into_iter().map(target));
        }
        targets
    }
}

/// The endpoints that have names, each with its slice: all that are ready.
fn ready_endpoints(slices: &[Arc<Slice>]) -> impl Iterator<Item = (&Slice, &Endpoint)> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().map(|e| (&**slice, e)));
    endpoints.filter(|(_, endpoint)| endpoint.conditions.ready)
}

/// The first label of an endpoint's own name (plugin/kubernetes, `endpointHostname`).
fn endpoint_label(endpoint: &Endpoint) -> String {
    match (&endpoint.hostname, endpoint.addr) {
        (Some(hostname), _) => hostname.to_ascii_lowercase(),
        (None, IpAddr::V4(addr)) => addr.to_string().replace('.', "-"),
        (None, IpAddr::V6(addr)) => {
            let label = addr.to_string().replace(':', "-");
            // No label ends in a dash.
            if label.ends_with('-') { label + "0" } else { label }
        }
    }
}

/// The ports among `ports` that are asked for; where none is declared, one without a number, so
/// that the addresses are found all the same.
fn matching<'a>(
    ports: impl ExactSizeIterator<Item = (&'a str, Proto, u16)>,
    part: Part<'_>,
) -> Vec<Option<u16>> {
    if ports.len() == 0 {
        let any = part.port.is_empty() && part.proto.is_empty();
        return if any { vec![None] } else { Vec::new() };
    }
    let asked = ports.filter(|(name, proto, _)| part.has_port(name, *proto));
    asked.map(|(_, _, number)| Some(number)).collect()
}
