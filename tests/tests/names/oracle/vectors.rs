//! The oracle itself: it answers as CoreDNS does, question by question.

use super::answer::{Action, answer};
use super::zone::{PodNames, Zone, ZoneSettings};
use super::{Oracle, settings};
use crate::scene;
use crate::{Vector, vectors};
use anyhow::{Result, ensure};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use proxy_user::model::{Change, ObjectName};

fn oracle() -> Result<Oracle> {
    Oracle::new(scene::world()?)
}

fn query(name: &str, kind: RecordType) -> Result<Message> {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(message)
}

fn describe(action: Action) -> Result<String> {
    Ok(match action {
        Action::Reply(reply) => scene::describe(&reply.to_vec()?)?,
        Action::Resolve(reply, query) => {
            format!("{} then {}", scene::describe(&reply.to_vec()?)?, query.name())
        }
        Action::Forward => "forward".into(),
    })
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> Result<String> {
    describe(answer(zone, &query(name, kind)?))
}

#[test]
fn vectors_are_answered_as_coredns_does() -> Result<()> {
    let oracle = oracle()?;
    let mut wrong = String::new();
    let vectors = vectors()?;
    ensure!(vectors.len() >= 80, "{}", vectors.len());
    for Vector { name, kind, expected } in vectors {
        let found = ask(&oracle.zone, &name, kind)?;
        if found != expected {
            wrong += &format!("{name} {kind}: {found}\n    not {expected}\n");
        }
    }
    ensure!(wrong.is_empty(), "\n{wrong}");
    Ok(())
}

#[test]
fn bytes_are_those_of_the_kernel() -> Result<()> {
    let oracle = oracle()?;
    let hex = |text: &str| -> Vec<u8> {
        let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        pairs.collect::<Result<_, _>>().unwrap()
    };
    let bytes = |query: &[u8]| match oracle.answer(query).unwrap() {
        Action::Reply(reply) => reply.to_vec().unwrap(),
        other => panic!("{other:?}"),
    };
    let question = "037765620473686f700373766307636c7573746572056c6f63616c0000010001";
    let record = "c00c000100010000001e00040a600101";
    let plain = hex(&format!("123401000001000000000000{question}"));
    assert_eq!(bytes(&plain), hex(&format!("123485000001000100000000{question}{record}")));
    let edns = hex(&format!("123401000001000000000001{question}00002904d0000000000000"));
    let opt = "00002904d0000000000000";
    assert_eq!(bytes(&edns), hex(&format!("123485000001000100000001{question}{record}{opt}")));

    let missing = query("nosuch.shop.svc.cluster.local.", RecordType::A)?.to_vec()?;
    let authority = "c01c000600010000001e002a026e7303646e73c01c0a686f73746d6173746572c01c6553f100\
                     00001c2000000708000151800000001e";
    let reply = bytes(&missing);
    assert_eq!(reply[missing.len()..], hex(&authority.replace(' ', "")));
    assert_eq!(reply[..12], hex("123485030001000000010000"));
    Ok(())
}

#[test]
fn flags_of_the_query_come_back() -> Result<()> {
    let oracle = oracle()?;
    let flags = |change: &dyn Fn(&mut Message)| -> Result<String> {
        let mut query = query("web.shop.svc.cluster.local.", RecordType::A)?;
        change(&mut query);
        describe(answer(&oracle.zone, &query))
    };
    assert_eq!(flags(&|query| query.metadata.recursion_desired = false)?, "8400 1/0/0 10.96.1.1");
    assert_eq!(flags(&|query| query.metadata.checking_disabled = true)?, "8510 1/0/0 10.96.1.1");
    assert_eq!(flags(&|query| query.metadata.authentic_data = true)?, "8500 1/0/0 10.96.1.1");
    let edns = |query: &mut Message| {
        query.set_edns(Edns::new());
    };
    assert_eq!(flags(&edns)?, "8500 1/0/1 10.96.1.1");
    Ok(())
}

#[test]
fn owner_comes_back_as_it_was_written() -> Result<()> {
    let query = query("WeB.ShOp.SvC.cLuStEr.LoCaL.", RecordType::A)?;
    let Action::Reply(reply) = answer(&oracle()?.zone, &query) else { panic!("no reply") };
    assert!(reply.answers[0].name.eq_case(query.queries[0].name()));
    Ok(())
}

#[test]
fn without_leave_to_deny_another_server_is_asked() -> Result<()> {
    let mut zone = oracle()?.zone;
    let asked =
        |zone: &Zone, name: &str, kind| ask(zone, &format!("{name}.cluster.local."), kind).unwrap();
    zone.settings = ZoneSettings { deny: false, ..settings() };
    assert_eq!(asked(&zone, "nosuch.shop.svc", RecordType::A), "forward");
    assert_eq!(asked(&zone, "extmiss.shop.svc", RecordType::A), "forward");
    assert_eq!(asked(&zone, "web.shop.svc", RecordType::MX), "8500 0/1/0");
    zone.settings = ZoneSettings { pods: PodNames::Unknown, ..settings() };
    assert_eq!(asked(&zone, "1-2-3-4.shop.pod", RecordType::A), "forward");
    zone.settings.pods = PodNames::Absent;
    assert_eq!(asked(&zone, "1-2-3-4.shop.pod", RecordType::A), "8503 0/1/0");
    let unlisted = Zone::new(settings());
    assert_eq!(asked(&unlisted, "shop.svc", RecordType::A), "forward", "it may be a Namespace");
    Ok(())
}

#[test]
fn names_follow_the_world() -> Result<()> {
    let mut oracle = oracle()?;
    let name = |name: &str| ObjectName { namespace: "shop".into(), name: name.into() };
    let asked = |oracle: &Oracle, name: &str, kind| ask(&oracle.zone, name, kind).unwrap();
    oracle.change(Change::SliceGone(name("db-4")));
    assert_eq!(asked(&oracle, "db.shop.svc.cluster.local.", RecordType::A), "8500 0/1/0");
    assert_eq!(asked(&oracle, "11.1.244.10.in-addr.arpa.", RecordType::PTR), "forward");
    oracle.change(Change::ServiceGone(name("db")));
    assert_eq!(asked(&oracle, "db.shop.svc.cluster.local.", RecordType::AAAA), "8503 0/1/0");
    oracle.change(Change::NamespaceGone("emptyns".into()));
    assert_eq!(asked(&oracle, "emptyns.svc.cluster.local.", RecordType::A), "8503 0/1/0");
    Ok(())
}
