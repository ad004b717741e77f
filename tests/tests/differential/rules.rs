//! What kube-proxy 1.36 writes in its mode nftables, for one node and one family: the same
//! chains, maps and verdicts (pkg/proxy/nftables/proxier.go), with pods known by the cluster's
//! CIDR. In the order in which they are decided: what leads to a Service, what a Service without
//! endpoints does, masquerading, and the choice.

use crate::population::{BACKENDS, FIRST_NODES, Frontend, Ranges, Service};
use std::fmt::Write;
use std::net::IpAddr;

/// Writing to a String.
const FITS: &str = "a String takes everything";

/// A node's view of the cluster, in one family.
pub(crate) struct View {
    /// The number of the node.
    pub(crate) node: u8,
    pub(crate) node_addr: IpAddr,
    /// The addresses of [`BACKENDS`].
    pub(crate) pods: Vec<IpAddr>,
    /// The address of the client outside.
    pub(crate) outsider: IpAddr,
}

/// The elements of kube-proxy's maps.
#[derive(Default)]
struct Maps {
    cluster_ips: Vec<String>,
    services: Vec<String>,
    node_ports: Vec<String>,
    no_endpoint_services: Vec<String>,
    no_endpoint_node_ports: Vec<String>,
    firewall: Vec<String>,
    chains: String,
}

/// The table.
pub(crate) fn table(services: &[Service], view: &View) -> String {
    let mut maps = Maps::default();
    for service in services {
        maps.cluster_ips.push(service.addr(Frontend::ClusterIp, view.is_v4()).to_string());
        for proto in ["tcp", "udp"] {
            maps.add(service, proto, view);
        }
    }
    let Maps { chains, .. } = &maps;
    let [cluster_ips, services, node_ports, no_endpoint_services, no_endpoint_node_ports, firewall] =
        [
            &maps.cluster_ips,
            &maps.services,
            &maps.node_ports,
            &maps.no_endpoint_services,
            &maps.no_endpoint_node_ports,
            &maps.firewall,
        ]
        .map(|all| elements(all));
    let (ip, addr, node) = (view.family(), view.addr_type(), view.node_addr);
    format!(
        "table {ip} kube-proxy {{
        set cluster-ips {{ type {addr}; {cluster_ips} }}
        set nodeport-ips {{ type {addr}; elements = {{ {node} }} }}
        chain reject-chain {{ reject; }}
        chain mark-for-masquerade {{ mark set mark or 0x4000; }}
        {chains}
        map no-endpoint-services {{ type {addr} . inet_proto . inet_service : verdict; {no_endpoint_services} }}
        map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; {no_endpoint_node_ports} }}
        map firewall-ips {{ type {addr} . inet_proto . inet_service : verdict; {firewall} }}
        map service-ips {{ type {addr} . inet_proto . inet_service : verdict; {services} }}
        map service-nodeports {{ type inet_proto . inet_service : verdict; {node_ports} }}
        chain masquerading {{ mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }}
        chain cluster-ips-check {{ {ip} daddr @cluster-ips reject; }}
        chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
        chain nodeport-endpoints-check {{ {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
        chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
        chain services {{
            {ip} daddr . meta l4proto . th dport vmap @service-ips;
            {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports;
        }}
        chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
        chain filter-input {{ type filter hook input priority -110; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}
        chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
        chain filter-output {{ type filter hook output priority -110; ct state new jump service-endpoints-check; ct state new jump firewall-check; }}
        chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
        chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
        chain nat-output {{ type nat hook output priority -100; jump services; }}
        chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
        }}\n"
    )
}

impl Maps {
    /// One port of a Service.
    fn add(&mut self, service: &Service, proto: &str, view: &View) {
        let Service { number, external_local, internal_local, .. } = *service;
        let ip = view.family();
        let (cluster, local) = (service.cluster(view.node), service.local(view.node));
        let chain = |kind: &str| format!("{kind}-{number}-{proto}");
        let policy = |is_local| if is_local { chain("local") } else { chain("service") };
        let has_any = !cluster.is_empty() || !local.is_empty();
        let has_for = |is_local: bool| has_any && (!is_local || !local.is_empty());
        let verdict = if has_any { "drop" } else { "goto reject-chain" };

        let key = |frontend| format!("{} . {proto} . 80", service.addr(frontend, view.is_v4()));
        let cluster_ip = key(Frontend::ClusterIp);
        if has_for(internal_local) {
            self.services.push(format!("{cluster_ip} : goto {}", policy(internal_local)));
        } else {
            self.no_endpoint_services.push(format!("{cluster_ip} : {verdict}"));
        }
        for key in service.external().into_iter().map(key) {
            if has_any {
                self.services.push(format!("{key} : goto {}", chain("external")));
            }
            if !has_for(external_local) {
                self.no_endpoint_services.push(format!("{key} : {verdict}"));
            }
        }
        if service.has_node_ports() {
            let key = format!("{proto} . {}", service.node_port());
            if has_any {
                self.node_ports.push(format!("{key} : goto {}", chain("external")));
            }
            if !has_for(external_local) {
                self.no_endpoint_node_ports.push(format!("{key} : {verdict}"));
            }
        }
        let let_in = match (service.ranges, view.is_v4()) {
            (Ranges::Everybody, _) | (Ranges::OutsiderByIpv4, false) => None,
            (Ranges::Outsider | Ranges::OutsiderByIpv4, _) => Some(view.outsider.to_string()),
            (Ranges::FirstNode, v4) => Some(FIRST_NODES[usize::from(!v4)].join(", ")),
        };
        if let Some(let_in) =
            let_in.filter(|_| service.external().contains(&Frontend::LoadBalancer))
        {
            let firewall = chain("firewall");
            self.chain(&firewall, &[format!("{ip} saddr != {{ {let_in} }} drop")]);
            self.firewall.push(format!("{} : goto {firewall}", key(Frontend::LoadBalancer)));
        }

        let pods: Vec<_> = [cluster.clone(), local.clone()].concat();
        for (pod, addr) in view.pods.iter().enumerate().filter(|(pod, _)| pods.contains(pod)) {
            // Who asks itself comes as the node.
            let hairpin = format!("{ip} saddr {addr} jump mark-for-masquerade");
            let at = if view.is_v4() { format!("{addr}:8080") } else { format!("[{addr}]:8080") };
            let dnat = format!("meta l4proto {proto} dnat to {at}");
            self.chain(&chain(&format!("endpoint-{}", BACKENDS[pod].0)), &[hairpin, dnat]);
        }
        for (is_local, pods) in [(false, &cluster), (true, &local)] {
            if pods.is_empty() {
                continue;
            }
            let mut rules = Vec::new();
            if is_local == internal_local {
                let vip = service.addr(Frontend::ClusterIp, view.is_v4());
                rules.push(format!(
                    "{ip} daddr {vip} {proto} dport 80 {ip} saddr != {} jump mark-for-masquerade",
                    view.cluster_cidr()
                ));
            }
            let endpoint = |pod: &usize| chain(&format!("endpoint-{}", BACKENDS[*pod].0));
            let choices = pods.iter().map(endpoint).enumerate();
            let choices: Vec<_> = choices.map(|(n, chain)| format!("{n} : goto {chain}")).collect();
            let count = choices.len();
            rules.push(format!("numgen random mod {count} vmap {{ {} }}", choices.join(", ")));
            self.chain(&policy(is_local), &rules);
        }
        if has_any {
            let mut rules = Vec::new();
            if external_local {
                let all = policy(false);
                rules.push(format!("{ip} saddr {} goto {all}", view.cluster_cidr()));
                rules.push("fib saddr type local jump mark-for-masquerade".to_owned());
                rules.push(format!("fib saddr type local goto {all}"));
            } else {
                rules.push("jump mark-for-masquerade".to_owned());
            }
            if has_for(external_local) {
                rules.push(format!("goto {}", policy(external_local)));
            }
            self.chain(&chain("external"), &rules);
        }
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        writeln!(self.chains, "chain {name} {{ {}; }}", rules.join("; ")).expect(FITS);
    }
}

impl View {
    const fn is_v4(&self) -> bool {
        self.node_addr.is_ipv4()
    }

    const fn family(&self) -> &'static str {
        if self.is_v4() { "ip" } else { "ip6" }
    }

    const fn addr_type(&self) -> &'static str {
        if self.is_v4() { "ipv4_addr" } else { "ipv6_addr" }
    }

    const fn cluster_cidr(&self) -> &'static str {
        if self.is_v4() { "10.244.0.0/16" } else { "fd00:244::/32" }
    }
}

/// A set may not be given no elements.
fn elements(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }};", all.join(", ")) }
}
