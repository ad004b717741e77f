//! The rules of the mode nftables, for `nft -f`.

use super::{CLUSTER_CIDR, MARK, digest, endpoint_digest};
use crate::bench::population::{Entry, NAMESPACE, Port};
use std::fmt::Write;
use std::net::Ipv4Addr;

/// Writing to a String.
const FITS: &str = "a String takes everything";

/// Every rule, in place of the table that may be there.
pub(super) fn whole(entries: &[Entry], node: Ipv4Addr) -> String {
    let (mut chains, mut cluster_ips, mut services, mut node_ports) =
        (String::new(), Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        cluster_ips.push(entry.vip.to_string());
        for port in &entry.ports {
            let proto = port.protocol.to_lowercase();
            let chain = service_chain(entry, port);
            services.push(format!("{} . {proto} . {} : goto {chain}", entry.vip, port.port));
            if let Some(number) = port.node_port {
                node_ports
                    .push(format!("{proto} . {number} : goto {}", external_chain(entry, port)));
            }
            service(entry, port, &mut chains);
        }
    }
    let (cluster_ips, services, node_ports) =
        (elements(&cluster_ips), elements(&services), elements(&node_ports));
    format!(
        "add table ip kube-proxy\n\
         delete table ip kube-proxy\n\
         table ip kube-proxy {{\n\
         comment \"rules for kube-proxy\"\n\
         set cluster-ips {{ type ipv4_addr; comment \"Active ClusterIPs\"; {cluster_ips} }}\n\
         set nodeport-ips {{ type ipv4_addr; comment \"IPs that accept NodePort traffic\"; elements = {{ {node} }} }}\n\
         map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         chain mark-for-masquerade {{ mark set mark or {MARK}; }}\n\
         {chains}\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {services} }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; {node_ports} }}\n\
         chain masquerading {{ mark and {MARK} == 0 return; mark set mark xor {MARK}; masquerade fully-random; }}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"; }}\n\
         chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
         chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}\n\
         chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
         chain services {{\n\
         ip daddr . meta l4proto . th dport vmap @service-ips;\n\
         ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports;\n\
         }}\n\
         chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}\n\
         chain filter-input {{ type filter hook input priority -110; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}\n\
         chain filter-output {{ type filter hook output priority -110; ct state new jump service-endpoints-check; ct state new jump firewall-check; }}\n\
         chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
         }}\n"
    )
}

/// The transaction after the endpoints of Services have changed, each from what it was to what it
/// is.
pub(super) fn changed(changes: &[(Entry, Entry)]) -> String {
    let mut text = String::new();
    let ports = changes
        .iter()
        .flat_map(|(before, entry)| entry.ports.iter().map(move |port| (before, entry, port)));
    for (before, entry, port) in ports {
        let new = |endpoint: &Ipv4Addr| !before.endpoints.iter().any(|e| e.addr == *endpoint);
        let added = entry.endpoints.iter().map(|e| e.addr).filter(new);
        for addr in added {
            let (chain, rules) = endpoint(entry, port, addr);
            writeln!(text, "add chain ip kube-proxy {chain}").expect(FITS);
            for rule in rules {
                writeln!(text, "add rule ip kube-proxy {chain} {rule}").expect(FITS);
            }
        }
        let chain = service_chain(entry, port);
        writeln!(text, "flush chain ip kube-proxy {chain}").expect(FITS);
        for rule in service_rules(entry, port) {
            writeln!(text, "add rule ip kube-proxy {chain} {rule}").expect(FITS);
        }
        let gone = |addr: &Ipv4Addr| !entry.endpoints.iter().any(|e| e.addr == *addr);
        for addr in before.endpoints.iter().map(|e| e.addr).filter(gone) {
            let (chain, _) = endpoint(entry, port, addr);
            writeln!(text, "flush chain ip kube-proxy {chain}\ndelete chain ip kube-proxy {chain}")
                .expect(FITS);
        }
    }
    text
}

/// The chains of a service port and of its endpoints.
fn service(entry: &Entry, port: &Port, chains: &mut String) {
    for addr in entry.endpoints.iter().map(|endpoint| endpoint.addr) {
        let (chain, rules) = endpoint(entry, port, addr);
        writeln!(chains, "chain {chain} {{ {}; }}", rules.join("; ")).expect(FITS);
    }
    let (chain, rules) = (service_chain(entry, port), service_rules(entry, port).join("; "));
    writeln!(chains, "chain {chain} {{ {rules}; }}").expect(FITS);
    if port.node_port.is_some() {
        let external = external_chain(entry, port);
        writeln!(chains, "chain {external} {{ jump mark-for-masquerade; goto {chain}; }}")
            .expect(FITS);
    }
}

fn service_rules(entry: &Entry, port: &Port) -> [String; 2] {
    let (vip, proto) = (entry.vip, port.protocol.to_lowercase());
    let goto = |(index, addr)| format!("{index} : goto {}", endpoint(entry, port, addr).0);
    let choices: Vec<_> = entry.endpoints.iter().map(|e| e.addr).enumerate().map(goto).collect();
    [
        format!(
            "ip daddr {vip} {proto} dport {} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade",
            port.port
        ),
        format!("numgen random mod {} vmap {{ {} }}", choices.len(), choices.join(", ")),
    ]
}

/// The chain of an endpoint, and its rules.
fn endpoint(entry: &Entry, port: &Port, addr: Ipv4Addr) -> (String, [String; 2]) {
    let (proto, target) = (port.protocol.to_lowercase(), port.target);
    let digest = endpoint_digest(&format!("{}:{}", entry.name, port.name), addr, target);
    let name = format!("endpoint-{digest}-{}__{addr}/{target}", tail(entry, port));
    let rules = [
        format!("ip saddr {addr} jump mark-for-masquerade"),
        format!("meta l4proto {proto} dnat to {addr}:{target}"),
    ];
    (name, rules)
}

fn service_chain(entry: &Entry, port: &Port) -> String {
    format!("service-{}-{}", digest((&entry.name, port.name)), tail(entry, port))
}

fn external_chain(entry: &Entry, port: &Port) -> String {
    format!("external-{}-{}", digest((&entry.name, port.name)), tail(entry, port))
}

fn tail(entry: &Entry, port: &Port) -> String {
    format!("{NAMESPACE}/{}/{}/{}", entry.name, port.protocol.to_lowercase(), port.name)
}

/// A set may not be given no elements.
fn elements(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}
