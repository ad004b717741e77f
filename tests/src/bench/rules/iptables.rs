//! The rules of the mode iptables, for `iptables-restore`.

use super::{CLUSTER_CIDR, MARK, digest, endpoint_digest};
use crate::bench::population::{Entry, NAMESPACE, Port};
use std::fmt::Write;

/// Writing to a String.
const FITS: &str = "a String takes everything";

/// Every rule.
pub(super) fn whole(entries: &[Entry]) -> String {
    let (mut chains, mut services, mut rules, mut node_ports) = Default::default();
    for (entry, port) in ports(entries) {
        dispatch(entry, port, &mut services, &mut node_ports);
        service(entry, port, &mut chains, &mut rules);
    }
    format!(
        "*filter\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK}/{MARK} -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n{chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n\
         {services}\
         -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         {node_ports}{rules}\
         COMMIT\n"
    )
}

/// What is written with `--noflush` when the endpoints of Services have changed, each from what
/// it was to what it is: their chains anew, and those of endpoints that are gone deleted.
pub(super) fn changed(changes: &[(Entry, Entry)]) -> String {
    let (mut chains, mut rules, mut gone) = (String::new(), String::new(), String::new());
    let ports = changes
        .iter()
        .flat_map(|(before, entry)| entry.ports.iter().map(move |port| (before, entry, port)));
    for (before, entry, port) in ports {
        service(entry, port, &mut chains, &mut rules);
        let now = endpoint_chains(entry, port);
        for chain in endpoint_chains(before, port).iter().filter(|chain| !now.contains(chain)) {
            writeln!(chains, ":{chain} - [0:0]").expect(FITS);
            writeln!(gone, "-X {chain}").expect(FITS);
        }
    }
    format!("*nat\n{chains}{rules}{gone}COMMIT\n")
}

fn ports(entries: &[Entry]) -> impl Iterator<Item = (&Entry, &Port)> {
    entries.iter().flat_map(|entry| entry.ports.iter().map(move |port| (entry, port)))
}

/// The rules that lead to the chain of a service port.
fn dispatch(entry: &Entry, port: &Port, services: &mut String, node_ports: &mut String) {
    let (name, vip, proto) = (port_name(entry, port), entry.vip, port.protocol.to_lowercase());
    let chain = digest(&name);
    writeln!(
        services,
        "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -m {proto} -p {proto} \
         -d {vip}/32 --dport {} -j KUBE-SVC-{chain}",
        port.port
    )
    .expect(FITS);
    if let Some(number) = port.node_port {
        writeln!(
            node_ports,
            "-A KUBE-NODEPORTS -m comment --comment \"{name}\" -m {proto} -p {proto} \
             --dport {number} -j KUBE-EXT-{chain}"
        )
        .expect(FITS);
    }
}

/// The chains of a service port and of its endpoints.
fn service(entry: &Entry, port: &Port, chains: &mut String, rules: &mut String) {
    let (name, vip, proto) = (port_name(entry, port), entry.vip, port.protocol.to_lowercase());
    let chain = digest(&name);
    writeln!(chains, ":KUBE-SVC-{chain} - [0:0]").expect(FITS);
    if port.node_port.is_some() {
        writeln!(chains, ":KUBE-EXT-{chain} - [0:0]").expect(FITS);
        write!(
            rules,
            "-A KUBE-EXT-{chain} -m comment --comment \"masquerade traffic for {name} external \
             destinations\" -j KUBE-MARK-MASQ\n-A KUBE-EXT-{chain} -j KUBE-SVC-{chain}\n"
        )
        .expect(FITS);
    }
    writeln!(
        rules,
        "-A KUBE-SVC-{chain} -m comment --comment \"{name} cluster IP\" -m {proto} -p {proto} \
         -d {vip}/32 --dport {} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ",
        port.port
    )
    .expect(FITS);
    let count = entry.endpoints.len();
    let endpoints = entry.endpoints.iter().zip(endpoint_chains(entry, port));
    for (index, (endpoint, endpoint_chain)) in endpoints.enumerate() {
        let (addr, target) = (endpoint.addr, port.target);
        writeln!(chains, ":{endpoint_chain} - [0:0]").expect(FITS);
        let left = count - index;
        let probability = if left > 1 {
            format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64)
        } else {
            String::new()
        };
        write!(
            rules,
            "-A KUBE-SVC-{chain} -m comment --comment \"{name} -> {addr}:{target}\"{probability} \
             -j {endpoint_chain}\n\
             -A {endpoint_chain} -m comment --comment \"{name}\" -s {addr}/32 -j KUBE-MARK-MASQ\n\
             -A {endpoint_chain} -m comment --comment \"{name}\" -m {proto} -p {proto} -j DNAT \
             --to-destination {addr}:{target}\n"
        )
        .expect(FITS);
    }
}

fn port_name(entry: &Entry, port: &Port) -> String {
    format!("{NAMESPACE}/{}:{}", entry.name, port.name)
}

fn endpoint_chains(entry: &Entry, port: &Port) -> Vec<String> {
    let name = port_name(entry, port);
    let digest = |addr| endpoint_digest(&name, addr, port.target);
    entry.endpoints.iter().map(|endpoint| format!("KUBE-SEP-{}", digest(endpoint.addr))).collect()
}
