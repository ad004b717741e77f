//! Rules that translate: a number on a packet becomes a destination, in both nat chains; refusals;
//! masquerading by a mark.

use crate::{backends_map, lab, open, table};
use anyhow::Result;
use lab::{Ask, FailureKind, Machine, Serve};
use proxy_user::netfilter::{
    Batch, Chain, ChainKind, Data, Expr, Family, Field, Header, Hook, MetaKey, NatFlags, Operator,
    Policy, Register, Reject, Rule, Set, Type, Verdict,
};
use std::net::{Ipv4Addr, SocketAddr};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const AT: &str = "10.96.0.1:80";
pub(crate) const TAG: u32 = 0x5300_0000;
const HIDE: u32 = 0x0080_0000;
const MARK: u32 = 0x4000;
const R: [Register; 8] = [
    Register::new(0),
    Register::new(1),
    Register::new(2),
    Register::new(3),
    Register::new(4),
    Register::new(5),
    Register::new(6),
    Register::new(7),
];

fn chain(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
    Chain { name: name.to_owned(), base: Some((kind, hook, priority, Policy::Accept)) }
}

fn rule(exprs: impl Into<Vec<Expr>>) -> Rule {
    Rule { exprs: exprs.into(), comment: String::new() }
}

pub(crate) fn mark(number: u32) -> Data {
    Field::Mark(number).into()
}

fn and(mask: u32) -> Expr {
    Expr::Bitwise { from: R[0], to: R[0], mask: mark(mask), xor: mark(0) }
}

fn is(operator: Operator, number: u32) -> Expr {
    Expr::Compare { from: R[0], operator, value: mark(number) }
}

/// The map of backends by their numbers, with the destination `to` at 7.
fn backends(batch: &mut Batch, to: SocketAddr) {
    batch.add_set(&table(), &backends_map());
    let backend = Data::concat(&[to.ip().into(), Field::Port(to.port())]);
    batch.add_pairs(&table(), "backends", [(mark(7), backend)]);
}

/// Translates what has a number in its priority.
fn translate() -> [Expr; 4] {
    [
        Expr::Meta { key: MetaKey::Priority, to: R[0] },
        and(0x003f_ffff),
        Expr::Map { map: "backends".to_owned(), from: R[0], to: R[0] },
        Expr::DestinationNat {
            family: Family::Ipv4,
            addr: R[0],
            port: Some(R[1]),
            flags: NatFlags::default(),
        },
    ]
}

/// The chain that stands for the kernel program: it gives what is sent to the service the priority
/// `number`.
fn choose(batch: &mut Batch, number: u32) {
    batch.add_chain(&table(), &chain("choose", ChainKind::Filter, Hook::Prerouting, -300));
    let steps = [
        Expr::Payload { header: Header::Network, offset: 16, len: 4, to: R[0] },
        Expr::Compare { from: R[0], operator: Operator::Equal, value: Field::Ipv4(SERVICE).into() },
        Expr::Immediate { value: mark(number), to: R[0] },
        Expr::SetMeta { key: MetaKey::Priority, from: R[0] },
    ];
    batch.add_rule(&table(), "choose", &rule(steps));
}

/// The whole rule set: what is sent to the service gets the priority `number`, and what has it goes
/// to `to`.
pub(crate) fn rule_set(number: u32, to: SocketAddr) -> Batch {
    let mut batch = Batch::new();
    batch.destroy_table(&table());
    batch.add_table(&table(), "shunt 1");
    backends(&mut batch, to);
    choose(&mut batch, number);
    prerouting(&mut batch);
    batch
}

/// Has the node translate what has the priority `number`, and hide the client if it says so.
fn prerouting(batch: &mut Batch) {
    let chains = [
        chain("prerouting", ChainKind::Nat, Hook::Prerouting, -101),
        chain("postrouting", ChainKind::Nat, Hook::Postrouting, 99),
    ];
    chains.iter().for_each(|chain| batch.add_chain(&table(), chain));
    let load = Expr::Meta { key: MetaKey::Priority, to: R[0] };
    let load_mark = Expr::Meta { key: MetaKey::Mark, to: R[0] };
    let set_mark = Expr::SetMeta { key: MetaKey::Mark, from: R[0] };
    let change =
        |mask, xor| Expr::Bitwise { from: R[0], to: R[0], mask: mark(mask), xor: mark(xor) };
    let rules = [
        rule([
            load.clone(),
            and(0xff00_0000),
            is(Operator::NotEqual, TAG),
            Expr::Verdict(Verdict::Return),
        ]),
        rule([
            load,
            and(HIDE),
            is(Operator::NotEqual, 0),
            load_mark.clone(),
            change(!MARK, MARK),
            set_mark.clone(),
        ]),
        rule(translate()),
    ];
    rules.iter().for_each(|rule| batch.add_rule(&table(), "prerouting", rule));
    let masquerade = rule([
        load_mark.clone(),
        and(MARK),
        is(Operator::Equal, MARK),
        load_mark,
        change(!0, MARK),
        set_mark,
        Expr::Masquerade { flags: NatFlags::default() },
    ]);
    batch.add_rule(&table(), "postrouting", &masquerade);
}

async fn asks(from: &Machine, to: &Machine) -> Result<[std::net::IpAddr; 2]> {
    let tcp = from.tcp(AT).await?;
    let udp = from.udp(AT).await?;
    for reply in [&tcp, &udp] {
        assert_eq!((reply.name.as_str(), reply.peer), (to.name(), AT.parse()?));
    }
    Ok([tcp.client.ip(), udp.client.ip()])
}

#[tokio::test]
async fn a_number_in_the_priority_becomes_a_destination() -> Result<()> {
    let (lab, a, b) = lab().await?;
    futures::try_join!(b.serve(Serve::tcp(8080)), b.serve(Serve::udp(8080)))?;
    let mut socket = open(lab.node(0))?;
    for (number, client) in [(TAG | 7, a.ipv4()), (TAG | HIDE | 7, lab.node(0).ipv4())] {
        socket.commit(rule_set(number, (b.ipv4(), 8080).into()))?;
        let seen = asks(&a, &b).await?;
        if number & HIDE == 0 {
            assert_eq!(seen, [std::net::IpAddr::from(client); 2]);
        } else {
            assert!(!seen.contains(&std::net::IpAddr::from(a.ipv4())), "hidden: {seen:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_nodes_own_socket_is_translated_by_a_digest_of_its_addresses() -> Result<()> {
    let (lab, a, b) = lab().await?;
    for pod in [&a, &b] {
        futures::try_join!(pod.serve(Serve::tcp(8080)), pod.serve(Serve::udp(8080)))?;
    }
    let node = lab.node(0);
    node.route("10.96.0.0/16", a.ipv4()).await?;
    let mut batch = Batch::new();
    let table = table();
    batch.add_table(&table, "");
    backends(&mut batch, (a.ipv4(), 8080).into());
    let other = Data::concat(&[Field::Ipv4(b.ipv4()), Field::Port(8080)]);
    batch.add_pairs(&table, "backends", [(mark(8), other)]);
    let map = |name: &str, key: &[Type]| Set {
        name: name.to_owned(),
        key: key.to_vec(),
        data: vec![Type::Mark],
        interval: false,
        size: None,
    };
    batch.add_set(&table, &map("services", &[Type::Ipv4Addr, Type::Protocol, Type::Port]));
    batch.add_set(&table, &map("slots", &[Type::Mark, Type::Mark]));
    let services = [6, 17].map(|proto| {
        let fields = [Field::Ipv4(SERVICE), Field::Protocol(proto), Field::Port(80)];
        (Data::concat(&fields), mark(5))
    });
    batch.add_pairs(&table, "services", services);
    let slots = (0..32).map(|slot| {
        (Data::concat(&[Field::Mark(5), Field::Mark(slot)]), mark(TAG | (7 + slot % 2)))
    });
    batch.add_pairs(&table, "slots", slots);
    batch.add_chain(&table, &chain("output", ChainKind::Nat, Hook::Output, -101));
    let choose = [
        // The service: address, protocol, port.
        Expr::Payload { header: Header::Network, offset: 16, len: 4, to: R[0] },
        Expr::Meta { key: MetaKey::L4Proto, to: R[1] },
        Expr::Payload { header: Header::Transport, offset: 2, len: 2, to: R[2] },
        Expr::Map { map: "services".to_owned(), from: R[0], to: R[4] },
        // The slot: a digest of both addresses and both ports.
        Expr::Payload { header: Header::Network, offset: 12, len: 8, to: R[0] },
        Expr::Payload { header: Header::Transport, offset: 0, len: 4, to: R[2] },
        Expr::Hash { from: R[0], len: 12, modulus: 32, seed: Some(77), offset: 0, to: R[5] },
        Expr::Map { map: "slots".to_owned(), from: R[4], to: R[0] },
        Expr::SetMeta { key: MetaKey::Priority, from: R[0] },
    ];
    batch.add_rule(&table, "output", &rule(choose));
    batch.add_rule(&table, "output", &rule(translate()));
    open(node)?.commit(batch)?;

    let mut names = std::collections::BTreeSet::new();
    for _ in 0..40 {
        for ask in [Ask::tcp(AT), Ask::udp(AT)] {
            let reply = node.ask(ask).await?;
            assert_eq!(reply.peer, AT.parse()?);
            let _ = names.insert(reply.name);
        }
    }
    assert_eq!(names.len(), 2, "both backends are chosen: {names:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_refused_in_a_nat_chain_fails_at_once() -> Result<()> {
    let (lab, a, _b) = lab().await?;
    let node = lab.node(0);
    node.route("10.96.0.0/16", a.ipv4()).await?;
    let table = table();
    let mut batch = Batch::new();
    batch.add_table(&table, "");
    // Chains of the type nat see packets that conntrack knows only, and NAT turns it on.
    backends(&mut batch, (a.ipv4(), 8080).into());
    batch.add_chain(&table, &Chain { name: "nat".to_owned(), base: None });
    batch.add_rule(&table, "nat", &rule(translate()));
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        batch.add_chain(&table, &chain(name, ChainKind::Nat, hook, -101));
        for (proto, reject) in [(6, Reject::TcpReset), (17, Reject::IcmpUnreachable(3))] {
            let steps = [
                Expr::Payload { header: Header::Network, offset: 16, len: 4, to: R[0] },
                Expr::Compare {
                    from: R[0],
                    operator: Operator::Equal,
                    value: Field::Ipv4(SERVICE).into(),
                },
                Expr::Meta { key: MetaKey::L4Proto, to: R[0] },
                Expr::Compare {
                    from: R[0],
                    operator: Operator::Equal,
                    value: Field::Protocol(proto).into(),
                },
                Expr::Reject(reject),
            ];
            batch.add_rule(&table, name, &rule(steps));
        }
    }
    open(node)?.commit(batch)?;
    for from in [&*a, &**node] {
        for ask in [Ask::tcp(AT), Ask::udp(AT)] {
            let what = format!("{}: {ask:?}", from.name());
            let failure = from.ask(ask).await.unwrap_err();
            assert!(failure.elapsed < std::time::Duration::from_millis(500), "{what}: {failure}");
            // What a node's own process sends is dropped in the same call, which says EPERM.
            if from.name() == a.name() || failure.kind == FailureKind::Refused {
                assert_eq!(failure.kind, FailureKind::Refused, "{what}: {failure}");
            } else {
                assert!(failure.message.contains("not permitted"), "{what}: {failure}");
            }
        }
    }
    Ok(())
}
