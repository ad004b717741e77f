//! Data in, the printed text out: each case is compared with a file beside this one. `UPDATE=1`
//! rewrites the files; the difference is reviewed.

use super::*;
use crate::model::Warning;
use crate::pinned::{Counters, Fill, OutcomeCount, Range};
use crate::status::{Attachment, DnsStatus, Drift, Objects, Status};
use jiff::Timestamp;
use proxy_ebpf::choose::Destination;
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue};
use proxy_ebpf::node::NodeAddr;
use proxy_ebpf::outcome::{Outcome, Program};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendFlags, BackendId, RangeHeader, Slot};
use proxy_ebpf::{Addr, End, Port, Proto};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

const READY: BackendFlags = BackendFlags::READY.with(BackendFlags::SERVING);
const HERE: BackendFlags = READY.with(BackendFlags::LOCAL);
const GOING: BackendFlags = BackendFlags::SERVING;

fn check(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/show/tests/{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; UPDATE=1 rewrites it", file.display());
}

fn shown(document: &impl Document, format: Format) -> String {
    render(document, Output { format, colour: false }).unwrap()
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn end(text: &str) -> End {
    let socket: SocketAddr = text.parse().unwrap();
    End { addr: socket.ip().into(), port: Port::new(socket.port()) }
}

/// Backends, as `address:port` and flags.
type Backends<'a> = &'a [(&'a str, BackendFlags)];

impl Snapshot {
    /// Adds a service port with its range; returns where the range is.
    fn service(
        &mut self,
        (namespace, name, port): (&str, &str, &str),
        proto: Proto,
        sets: [Backends<'_>; 3],
        affinity_seconds: u32,
    ) -> u32 {
        let id = ServiceId(self.services.len() as u32 + 1);
        let index = 1000 * id.0;
        let family = if name.ends_with("v6") { 6 } else { 4 };
        let info = ServiceInfo::new(namespace, name, port, proto, family).unwrap();
        let slot = |(at, flags): &(&str, BackendFlags)| {
            let End { addr, port } = end(at);
            Slot { addr, port, flags: *flags, backend: BackendId(addr.digest() % 1000) }
        };
        let [cluster, local, draining] = sets.map(|set| set.len() as u32);
        let header =
            RangeHeader { service: id, cluster, local, affinity_seconds, draining, zero: 0 };
        let slots = sets.into_iter().flatten().map(slot).collect();
        self.ranges.insert(index, Range { header, slots });
        self.services.insert(id, info);
        let counters =
            ServiceCounters { connections: 41 + u64::from(id.0), datagrams: 9, refused: 1 };
        self.counters.insert(id, counters);
        index
    }

    fn publish(&mut self, key: FrontendKey, range: u32, flags: FrontendFlags) {
        self.frontends.insert(key, FrontendValue::new(&key, range, flags));
    }

    fn at(&mut self, vip: &str, proto: Proto, range: u32, flags: FrontendFlags) {
        let End { addr, port } = end(vip);
        self.publish(FrontendKey::service(addr, port, proto), range, flags);
    }
}

/// A small cluster: DNS, a web service with a NodePort and a VIP of policy Local, one without
/// endpoints, one whose endpoints are elsewhere, and one of IPv6.
fn cluster() -> Snapshot {
    use FrontendFlags as F;
    let mut s = Snapshot::default();
    let dns = [("10.244.0.2:53", READY), ("10.244.1.3:53", HERE)];
    for (port, proto) in [("dns", Proto::UDP), ("dns-tcp", Proto::TCP)] {
        let range = s.service(("kube-system", "kube-dns", port), proto, [&dns, &[], &[]], 0);
        s.at("10.96.0.10:53", proto, range, F::NONE);
        s.publish(FrontendKey::address(addr("10.96.0.10")), range, F::REFUSED);
    }
    let all = [("10.244.0.9:8080", READY), ("10.244.1.9:8080", HERE), ("10.244.2.9:8080", READY)];
    let range = s.service(
        ("default", "web", ""),
        Proto::TCP,
        [&all, &all[1..2], &[("10.244.3.9:8080", GOING)]],
        10_800,
    );
    s.at("10.96.7.7:80", Proto::TCP, range, F::NONE);
    s.at("203.0.113.5:80", Proto::TCP, range, F::LOAD_BALANCER.with(F::EXTERNAL_LOCAL));
    let restricted = F::LOAD_BALANCER.with(F::RESTRICTED);
    s.at("203.0.113.6:80", Proto::TCP, range, restricted);
    let ranges = ["198.51.100.0/24", "10.244.0.0/16"].map(|range| range.parse().unwrap());
    s.source_ranges.insert(ServiceId(3), ranges.into());
    let node_port = FrontendKey::node_port(Addr::UNSPECIFIED_V4, Port::new(30080), Proto::TCP);
    s.publish(node_port, range, F::NODE_PORT.with(F::EXTERNAL_LOCAL));
    let range = s.service(("default", "empty", "http"), Proto::TCP, [&[], &[], &[]], 0);
    s.at("10.96.8.8:80", Proto::TCP, range, F::NONE);
    let range = s.service(("default", "far", ""), Proto::UDP, [&all[..1], &[], &[]], 0);
    s.at("10.96.9.9:8125", Proto::UDP, range, F::INTERNAL_LOCAL);
    let going = [("[fd00:244::7]:443", GOING)];
    let range = s.service(("default", "old-v6", "https"), Proto::TCP, [&going, &[], &[]], 0);
    s.at("[fd00:96::7]:443", Proto::TCP, range, F::NONE);
    s.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    s.node_addrs.insert(addr("192.168.0.1"), NodeAddr::NODE_PORT);
    s.node_addrs.insert(addr("172.17.0.1"), NodeAddr::OWN);
    s.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/56".parse().unwrap()];
    s
}

#[test]
fn services_are_listed_with_their_frontends_and_counters() {
    let all = services(&cluster(), &Filter::default());
    check("services", &shown(&all, Format::Table));
    check("services-wide", &shown(&all, Format::Wide));
    let web = Filter { namespace: Some("default".into()), name: Some("web".into()) };
    let web = services(&cluster(), &web);
    check("services-json", &shown(&web, Format::Json));
    check("services-yaml", &shown(&web, Format::Yaml));
}

#[test]
fn backends_are_listed_once_with_their_sets() {
    check("backends", &shown(&backends(&cluster(), &Filter::default()), Format::Wide));
}

#[test]
fn nothing_is_printed_as_nothing_but_in_json() {
    let none = Filter { namespace: Some("elsewhere".into()), name: None };
    assert_eq!(shown(&services(&cluster(), &none), Format::Table), "");
    assert_eq!(shown(&services(&cluster(), &none), Format::Json), "[]\n");
}

#[test]
fn colour_is_for_terminals_only() {
    let rows = services(&cluster(), &Filter::default());
    assert!(!shown(&rows, Format::Table).contains('\x1b'));
    let terminal = Output { format: Format::Table, colour: true };
    assert!(render(&rows, terminal).unwrap().contains('\x1b'));
}

#[test]
fn explanations_name_the_cause() {
    let cases: &[(&str, Proto, Option<&str>)] = &[
        ("10.96.0.10:53", Proto::UDP, None),
        ("10.96.0.10:9153", Proto::TCP, None),
        ("10.96.7.7:80", Proto::TCP, Some("10.244.2.77")),
        ("203.0.113.5:80", Proto::TCP, Some("198.51.100.7")),
        ("203.0.113.5:80", Proto::TCP, Some("10.244.0.2")),
        ("203.0.113.6:80", Proto::TCP, Some("198.51.100.7")),
        ("203.0.113.6:80", Proto::TCP, Some("198.51.101.7")),
        ("203.0.113.6:80", Proto::TCP, None),
        ("192.168.0.1:30080", Proto::TCP, Some("192.168.0.1")),
        ("127.0.0.1:30080", Proto::TCP, None),
        ("127.0.0.1:30080", Proto::TCP, Some("10.244.0.2")),
        ("172.17.0.1:30080", Proto::TCP, None),
        ("192.168.0.9:30080", Proto::TCP, None),
        ("192.168.0.1:30081", Proto::TCP, None),
        ("10.96.8.8:80", Proto::TCP, None),
        ("10.96.9.9:8125", Proto::UDP, None),
        ("[fd00:96::7]:443", Proto::TCP, None),
        ("10.244.0.9:8080", Proto::TCP, None),
        ("8.8.8.8:53", Proto::UDP, None),
        ("10.111.0.1:53", Proto::UDP, None),
    ];
    let snapshot = cluster();
    let texts = cases.iter().map(|&(to, proto, from)| {
        let End { addr, port } = end(to);
        let to = Destination { addr, port, proto };
        let question = Question { to, from: from.map(|from| from.parse().unwrap()) };
        shown(&explain(&snapshot, question), Format::Table)
    });
    check("explain", &texts.collect::<Vec<_>>().join("----\n"));
    let to = Destination { addr: addr("203.0.113.5"), port: Port::new(80), proto: Proto::TCP };
    let question = Question { to, from: Some("198.51.100.7".parse().unwrap()) };
    let snapshot = Snapshot { cluster_cidrs: Vec::new(), ..snapshot };
    check("explain-json", &shown(&explain(&snapshot, question), Format::Json));
}

#[test]
fn frontend_without_its_range_is_called_inconsistent() {
    let mut snapshot = cluster();
    snapshot.ranges.clear();
    let to = Destination { addr: addr("10.96.0.10"), port: Port::new(53), proto: Proto::UDP };
    let explanation = explain(&snapshot, Question { to, from: None });
    assert_eq!(explanation.answers[0].verdict, "inconsistent");
    assert_eq!(explanation.service, None);
}

fn agent() -> Status {
    let at = |second: i64| Timestamp::from_second(1_790_000_000 + second).unwrap();
    Status {
        version: "0.1.0".into(),
        pid: 4711,
        node: "worker-1".into(),
        source: "kube".into(),
        started: at(0),
        synced: Some(at(2)),
        last_change: Some(at(90_000)),
        objects: Objects { services: 120, slices: 131, endpoints: 842 },
        attachments: vec![attachment("connect4", "/sys/fs/cgroup"), attachment("ingress", "eth0")],
        drift: Some(Drift { checked: at(99_970), repaired: 0, repaired_total: 3 }),
        dns: Some(DnsStatus {
            zone: "cluster.local".into(),
            denies: true,
            reason: "the Corefile answers the zone from the cluster alone".into(),
            ttl: 30,
        }),
        warnings: vec![Warning {
            subject: "Service default/web".into(),
            message: "nodePort 80 is outside 30000-32767: it is not served".into(),
        }],
    }
}

fn attachment(program: &str, target: &str) -> Attachment {
    Attachment { program: program.into(), target: target.into() }
}

#[test]
fn status_tells_the_agent_and_the_maps() {
    let now = Timestamp::from_second(1_790_000_000 + 100_000).unwrap();
    let outcome = |outcome, count| OutcomeCount { program: Program::Connect, outcome, count };
    let counters = || Counters {
        names: vec![],
        outcomes: vec![
            outcome(Outcome::Chosen, 123),
            outcome(Outcome::NoEndpoint, 4),
            outcome(Outcome::TableFull, 0),
        ],
        services: Vec::new(),
        fill: vec![
            Fill { map: "frontends", used: 260, max: 65_536 },
            Fill { map: "slots", used: 500_000, max: 524_288 },
        ],
        no_local: BTreeMap::new(),
    };
    let links = || vec![attachment("ingress", "eth0")];
    let report = StatusReport::new(Some(agent()), Vec::new(), Ok(counters()), now);
    assert!(report.in_sync);
    check("status", &shown(&report, Format::Table));
    check("status-wide", &shown(&report, Format::Wide));
    check("status-json", &shown(&report, Format::Json));

    let down = StatusReport::new(None, links(), Ok(counters()), now);
    assert!(!down.in_sync);
    check("status-down", &shown(&down, Format::Table));

    let first = Status { synced: None, drift: None, ..agent() };
    let unsynced = StatusReport::new(Some(first), links(), Err("cannot read".into()), now);
    assert!(!unsynced.in_sync);
    assert!(unsynced.warnings.iter().any(|warning| warning.message == "cannot read"));

    // Whatever the agent does not do, the programs serve.
    let early = Status { last_change: None, attachments: Vec::new(), synced: None, ..agent() };
    let early = |links| StatusReport::new(Some(early.clone()), links, Ok(counters()), now);
    let says = |report: &StatusReport| shown(report, Format::Table);
    let pinned = says(&early(links()));
    assert!(pinned.contains("what is pinned goes on serving"), "{pinned}");
    assert!(pinned.contains("eth0") && !pinned.contains("no Service is reached"), "{pinned}");
    assert!(says(&early(Vec::new())).contains("nothing is served yet"));
    let failed =
        StatusReport::new(Some(Status { synced: None, ..agent() }), links(), Ok(counters()), now);
    assert!(says(&failed).contains("not all could be written"), "{}", says(&failed));
}

#[test]
fn pinned_links_are_named_program_at_target() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ingress@eth0:7", "connect4@cgroup", "stray"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let found = pinned_links(dir.path());
    assert_eq!(found, [attachment("connect4", "cgroup"), attachment("ingress", "eth0.7")]);
    assert!(pinned_links(&dir.path().join("none")).is_empty());
}

#[test]
fn spans_have_two_units() {
    let spans = [0, 59, 61, 3_600, 90_061, 8_640_000].map(span);
    assert_eq!(spans, ["0s", "59s", "1m1s", "1h0m", "1d1h", "100d0h"]);
}
