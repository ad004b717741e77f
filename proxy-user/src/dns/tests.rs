//! What CoreDNS answers, question by question.

use super::answer::{Action, Transport, answer};
use super::zone::{PodNames, Zone, ZoneSettings};
use crate::model::{Change, ObjectName, Touched, World, examples};
use crate::source::convert::Converter;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use serde::Deserialize as _;
use serde_yaml_ng::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const TTL: u32 = 30;
const SERIAL: u32 = 1_700_000_000;

/// The world of the vectors.
pub(super) fn world() -> (World, Touched) {
    let (mut world, mut touched) = (World::default(), Touched::default());
    let mut converter = Converter::new(true);
    let mut changes = vec![Change::AllServices(vec![]), Change::AllSlices(vec![])];
    for document in serde_yaml_ng::Deserializer::from_str(include_str!("tests/world.yaml")) {
        let value = Value::deserialize(document).unwrap();
        let object = || value.clone();
        changes.push(match value["kind"].as_str().unwrap() {
            "Namespace" => {
                let object = serde_yaml_ng::from_value(object()).unwrap();
                Change::Namespace(converter.namespace(&object))
            }
            "Service" => {
                let service = converter.service(&serde_yaml_ng::from_value(object()).unwrap());
                Change::Service(Box::new(service.unwrap()))
            }
            _ => {
                let slice = converter.slice(&serde_yaml_ng::from_value(object()).unwrap());
                Change::Slice(Box::new(slice.unwrap()))
            }
        });
    }
    let mut big = examples::slice("big-1", "big", (0..60).map(|n| Ipv4Addr::new(10, 244, 9, n)));
    big.name.namespace = "shop".into();
    big.service.namespace = "shop".into();
    changes.push(Change::Slice(Box::new(big)));
    changes.into_iter().for_each(|change| touched.merge(world.apply(change)));
    (world, touched)
}

fn settings() -> ZoneSettings {
    ZoneSettings {
        zone: "cluster.local".into(),
        ttl: TTL,
        serial: SERIAL,
        deny: true,
        pods: PodNames::Insecure,
        service: ObjectName { namespace: "kube-system".into(), name: "kube-dns".into() },
    }
}

fn zone() -> Zone {
    let (world, touched) = world();
    let mut zone = Zone::new(settings());
    zone.update(&world, &touched);
    zone
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

fn ask(zone: &Zone, query: &Message, transport: Transport) -> Action {
    answer(zone, &query.to_vec().unwrap(), transport)
}

/// The flags, the counts, and the answers' data, sorted.
fn describe(action: Action) -> String {
    let reply = match action {
        Action::Reply(reply) => reply,
        Action::Resolve(reply, query) => {
            return format!("{} then {}", describe(Action::Reply(reply)), query.name());
        }
        Action::Forward => return "forward".into(),
        Action::Ignore => return "ignore".into(),
    };
    let bytes = reply.encode().unwrap();
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let message = Message::from_vec(&bytes).unwrap();
    let data: BTreeSet<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    let data = data.into_iter().collect::<Vec<_>>().join(", ").replace(".cluster.local.", "…");
    let text = format!("{:04x} {}/{}/{} {data}", count(2), count(6), count(8), count(10));
    text.trim_end().to_owned()
}

const VECTORS: &str = include_str!("tests/vectors.txt");

#[test]
fn vectors_are_answered_as_coredns_does() {
    let zone = zone();
    let mut wrong = String::new();
    let mut asked = 0;
    for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
        let [name, kinds, expected] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let full = match name {
            "@" => "cluster.local.".to_owned(),
            name if name.ends_with('.') => name.to_owned(),
            name => format!("{name}.cluster.local."),
        };
        for kind in kinds.split(' ') {
            asked += 1;
            for transport in [Transport::Udp, Transport::Tcp] {
                let found = describe(ask(&zone, &query(&full, kind.parse().unwrap()), transport));
                if found != expected {
                    wrong += &format!("{full} {kind}: {found}\n    not {expected}\n");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(asked >= 80, "{asked}");
}

#[test]
fn bytes_are_those_of_the_kernel() {
    let hex = |text: &str| -> Vec<u8> {
        let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        pairs.collect::<Result<_, _>>().unwrap()
    };
    let bytes = |query: &[u8]| match answer(&zone(), query, Transport::Udp) {
        Action::Reply(reply) => reply.encode().unwrap(),
        other => panic!("{other:?}"),
    };
    let question = "037765620473686f700373766307636c7573746572056c6f63616c0000010001";
    let record = "c00c000100010000001e00040a600101";
    let plain = hex(&format!("123401000001000000000000{question}"));
    assert_eq!(bytes(&plain), hex(&format!("123485000001000100000000{question}{record}")));
    let edns = hex(&format!("123401000001000000000001{question}00002904d0000000000000"));
    let opt = "00002904d0000000000000";
    assert_eq!(bytes(&edns), hex(&format!("123485000001000100000001{question}{record}{opt}")));

    let missing = query("nosuch.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let authority = "c01c000600010000001e002a026e7303646e73c01c0a686f73746d6173746572c01c6553f100\
                     00001c2000000708000151800000001e";
    let reply = bytes(&missing);
    assert_eq!(reply[missing.len()..], hex(&authority.replace(' ', "")));
    assert_eq!(reply[..12], hex("123485030001000000010000"));
}

#[test]
fn flags_of_the_query_come_back() {
    let zone = zone();
    let flags = |change: &dyn Fn(&mut Message)| {
        let mut query = query("web.shop.svc.cluster.local.", RecordType::A);
        change(&mut query);
        describe(ask(&zone, &query, Transport::Udp))
    };
    assert_eq!(flags(&|query| query.metadata.recursion_desired = false), "8400 1/0/0 10.96.1.1");
    assert_eq!(flags(&|query| query.metadata.checking_disabled = true), "8510 1/0/0 10.96.1.1");
    assert_eq!(flags(&|query| query.metadata.authentic_data = true), "8500 1/0/0 10.96.1.1");
    let version_1 = |query: &mut Message| {
        let mut edns = Edns::new();
        edns.set_version(1);
        query.set_edns(edns);
    };
    assert_eq!(flags(&version_1), "8100 0/0/1");
    let Action::Reply(reply) = ask(
        &zone,
        &{
            let mut query = query("web.shop.svc.cluster.local.", RecordType::A);
            version_1(&mut query);
            query
        },
        Transport::Udp,
    ) else {
        panic!("no reply")
    };
    assert_eq!(reply.code(), ResponseCode::BADVERS);
}

#[test]
fn owner_comes_back_as_it_was_written() {
    let query = query("WeB.ShOp.SvC.cLuStEr.LoCaL.", RecordType::A);
    let Action::Reply(reply) = ask(&zone(), &query, Transport::Udp) else { panic!("no reply") };
    let reply = Message::from_vec(&reply.encode().unwrap()).unwrap();
    assert!(reply.answers[0].name.eq_case(query.queries[0].name()));
}

#[test]
fn what_does_not_fit_is_left_out_and_the_reply_says_so() {
    let zone = zone();
    let ask = |edns: Option<u16>, transport| {
        let mut query = query("big.shop.svc.cluster.local.", RecordType::A);
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            query.set_edns(edns);
        }
        let Action::Reply(reply) = ask(&zone, &query, transport) else { panic!("no reply") };
        let bytes = reply.encode().unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        (bytes.len(), reply.metadata.truncation, reply.answers.len())
    };
    let (len, truncated, answers) = ask(None, Transport::Udp);
    assert!(len <= 512 && truncated && (20..60).contains(&answers), "{len} {answers}");
    assert!(!ask(Some(1232), Transport::Udp).1);
    assert_eq!(ask(Some(65_535), Transport::Udp).2, 60);
    assert_eq!(ask(None, Transport::Tcp).2, 60);
    assert!(ask(Some(600), Transport::Udp).0 <= 600);
}

#[test]
fn without_leave_to_deny_the_upstream_is_asked() {
    let (world, touched) = world();
    let mut zone = Zone::new(ZoneSettings { deny: false, ..settings() });
    zone.update(&world, &touched);
    let asked = |zone: &Zone, name: &str, kind| {
        describe(ask(zone, &query(&format!("{name}.cluster.local."), kind), Transport::Udp))
    };
    assert_eq!(asked(&zone, "nosuch.shop.svc", RecordType::A), "forward");
    assert_eq!(asked(&zone, "extmiss.shop.svc", RecordType::A), "forward");
    assert_eq!(asked(&zone, "web.shop.svc", RecordType::MX), "8500 0/1/0");
    zone.settings = ZoneSettings { pods: PodNames::Unknown, ..settings() };
    assert_eq!(asked(&zone, "1-2-3-4.shop.pod", RecordType::A), "forward");
    zone.settings.pods = PodNames::Absent;
    assert_eq!(asked(&zone, "1-2-3-4.shop.pod", RecordType::A), "8503 0/1/0");
    let unlisted = Zone::new(settings());
    assert_eq!(asked(&unlisted, "shop.svc", RecordType::A), "forward", "it may be a Namespace");
}

#[test]
fn names_follow_the_world() {
    let (mut world, _) = world();
    let mut zone = zone();
    let name = ObjectName { namespace: "shop".into(), name: "db-4".into() };
    let touched = world.apply(Change::SliceGone(name));
    zone.update(&world, &touched);
    let asked =
        |zone: &Zone, name: &str, kind| describe(ask(zone, &query(name, kind), Transport::Udp));
    assert_eq!(asked(&zone, "db.shop.svc.cluster.local.", RecordType::A), "8500 0/1/0");
    assert_eq!(asked(&zone, "11.1.244.10.in-addr.arpa.", RecordType::PTR), "forward");
    let name = ObjectName { namespace: "shop".into(), name: "db".into() };
    let touched = world.apply(Change::ServiceGone(name));
    zone.update(&world, &touched);
    assert_eq!(asked(&zone, "db.shop.svc.cluster.local.", RecordType::AAAA), "8503 0/1/0");
    let touched = world.apply(Change::NamespaceGone("emptyns".into()));
    zone.update(&world, &touched);
    assert_eq!(asked(&zone, "emptyns.svc.cluster.local.", RecordType::A), "8503 0/1/0");
}

#[test]
fn what_is_no_query_gets_no_reply_and_what_is_broken_a_refusal() {
    let zone = zone();
    let whole = query("web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let ask = |bytes: &[u8]| describe(answer(&zone, bytes, Transport::Udp));
    assert_eq!(ask(&[]), "ignore");
    assert_eq!(ask(&whole[..11]), "ignore");
    let changed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(ask(&changed(2, 0x81)), "ignore", "a reply");
    assert_eq!(ask(&whole[..20]), "8101 0/0/0");
    assert_eq!(ask(&changed(2, 0x29)), "a904 0/0/0", "an update");
    let mut none = changed(5, 0);
    none.truncate(12);
    assert_eq!(ask(&none), "8101 0/0/0");
    let mut chaos = query("web.shop.svc.cluster.local.", RecordType::A);
    let mut question = chaos.queries[0].clone();
    question.set_query_class(DNSClass::CH);
    chaos.queries = vec![question];
    assert_eq!(ask(&chaos.to_vec().unwrap()), "forward");
    // A dot inside a label separates nothing.
    let mut dotted = whole.clone();
    dotted[12 + 4] = b'.';
    assert!(ask(&dotted).starts_with("8503") || ask(&dotted).starts_with("8101"));
}
