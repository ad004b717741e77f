//! What is written is what nft prints, and what the module reads back.

use crate::translation::{TAG, rule_set};
use crate::{lab, nft, open, table};
use anyhow::Result;
use lab::{Lab, LabConfig};
use proxy_user::netfilter::{
    Batch, Chain, ChainKind, ConntrackKey, Data, Expr, Fib, Field, Hook, Interval, NatFlags,
    Operator, Policy, Register, Rule, Set, Type, Verdict,
};

#[tokio::test]
async fn nft_prints_the_table_as_it_is_meant() -> Result<()> {
    let lab = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() }).await?;
    let node = lab.node(0);
    let mut socket = open(node)?;
    socket.commit(rule_set(TAG | 7, "10.244.1.3:8080".parse()?))?;
    let mut batch = Batch::new();
    let set = |name: &str, key: &[Type], data: &[Type]| Set {
        name: name.to_owned(),
        key: key.to_vec(),
        data: data.to_vec(),
        interval: false,
        size: None,
    };
    let services = [Type::Ipv4Addr, Type::Protocol, Type::Port];
    batch.add_set(&table(), &set("node_services", &services, &[Type::Mark]));
    let service = [Field::Ipv4("10.96.0.1".parse()?), Field::Protocol(6), Field::Port(443)];
    batch.add_pairs(
        &table(),
        "node_services",
        [(Data::concat(&service), Data::from(Field::Mark(5)))],
    );
    batch.add_set(&table(), &set("node_slots", &[Type::Mark, Type::Mark], &[Type::Mark]));
    let slot = Data::concat(&[Field::Mark(5), Field::Mark(31)]);
    batch.add_pairs(&table(), "node_slots", [(slot, Data::from(Field::Mark(9)))]);
    let cidrs = set("service_cidrs", &[Type::Ipv4Addr], &[]);
    batch.add_set(&table(), &Set { interval: true, ..cidrs });
    let cidrs = ["10.96.0.0/12", "192.0.2.0/24"].map(|cidr| Interval::of(cidr.parse().unwrap()));
    batch.add_intervals(&table(), "service_cidrs", cidrs);
    batch.add_set(&table(), &set("protocols", &[Type::Protocol], &[]));
    let protocols = [6, 17, 132].map(|number| Data::from(Field::Protocol(number)));
    batch.add_keys(&table(), "protocols", protocols);
    socket.commit(batch)?;

    let printed = nft(node, &["list", "table", "ip", "shunt"]).await?;
    println!("{printed}");
    for line in [
        "comment \"shunt 1\"",
        "type mark : ipv4_addr . inet_service",
        "elements = { 0x00000007 : 10.244.1.3 . 8080 }",
        "type ipv4_addr . inet_proto . inet_service : mark",
        "elements = { 10.96.0.1 . tcp . 443 : 0x00000005 }",
        "type mark . mark : mark",
        "elements = { 0x00000005 . 0x0000001f : 0x00000009 }",
        "elements = { 10.96.0.0/12, 192.0.2.0/24 }",
        "elements = { tcp, udp, sctp }",
        "type nat hook prerouting priority dstnat - 1; policy accept;",
        "type nat hook postrouting priority srcnat - 1; policy accept;",
        "meta priority & ff00:0 != 5300:0 return",
        "dnat ip to meta priority & 3f:ffff map @backends",
        "meta mark set meta mark ^ 0x00004000 masquerade",
    ] {
        assert!(printed.contains(line), "`{line}` is not in\n{printed}");
    }
    let json = nft(node, &["-j", "list", "ruleset"]).await?;
    let _: serde_json::Value = serde_json::from_str(&json)?;
    Ok(())
}

#[tokio::test]
async fn every_expression_is_taken_by_the_kernel_and_printed_by_nft() -> Result<()> {
    let lab = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() }).await?;
    let node = lab.node(0);
    let r = Register::new(0);
    let base = |kind, hook, priority| Some((kind, hook, priority, Policy::Accept));
    let mut batch = Batch::new();
    batch.add_table(&table(), "");
    for (name, base) in [
        ("raw", base(ChainKind::Filter, Hook::Prerouting, -300)),
        ("postrouting", base(ChainKind::Nat, Hook::Postrouting, 99)),
        ("others", None),
    ] {
        batch.add_chain(&table(), &Chain { name: name.to_owned(), base });
    }
    let equal = |value| Expr::Compare { from: r, operator: Operator::Equal, value };
    let mark = |number| Data::from(Field::Mark(number));
    let rules: [(&str, Vec<Expr>, &str); 8] = [
        ("raw", vec![Expr::NoTrack], "notrack"),
        ("raw", vec![Expr::Counter, Expr::Verdict(Verdict::Drop)], "counter packets 0"),
        ("raw", vec![Expr::Verdict(Verdict::Jump("others".to_owned()))], "jump others"),
        ("raw", vec![Expr::Verdict(Verdict::Goto("others".to_owned()))], "goto others"),
        (
            "others",
            vec![Expr::Limit { rate: 10, seconds: 1, burst: 5 }, Expr::Verdict(Verdict::Accept)],
            "limit rate 10/second accept",
        ),
        (
            "others",
            vec![Expr::Fib { fib: Fib::DestinationType, to: r }, equal(mark(2))],
            "fib daddr type local",
        ),
        (
            "others",
            vec![
                Expr::Conntrack { key: ConntrackKey::State, to: r },
                Expr::Bitwise { from: r, to: r, mask: mark(6), xor: mark(0) },
                Expr::Compare { from: r, operator: Operator::NotEqual, value: mark(0) },
                Expr::Random { modulus: 4, offset: 1, to: r },
                equal(mark(3)),
            ],
            "ct state established,related numgen random mod 4 offset 1 3",
        ),
        (
            "postrouting",
            vec![Expr::Masquerade { flags: NatFlags::FULLY_RANDOM }],
            "masquerade fully-random",
        ),
    ];
    for (chain, exprs, _) in &rules {
        let rule = Rule { exprs: exprs.clone(), comment: "ours".to_owned() };
        batch.add_rule(&table(), chain, &rule);
    }
    open(node)?.commit(batch)?;
    let printed = nft(node, &["list", "table", "ip", "shunt"]).await?;
    for (_, _, text) in rules {
        assert!(printed.contains(text), "`{text}` is not in\n{printed}");
    }
    assert_eq!(printed.matches("comment \"ours\"").count(), 8, "{printed}");
    Ok(())
}

#[tokio::test]
async fn rules_are_read_back_and_a_changed_one_is_seen() -> Result<()> {
    let (lab, _, b) = lab().await?;
    let node = lab.node(0);
    let mut socket = open(node)?;
    assert_eq!(socket.rules(&table())?, []);
    socket.commit(rule_set(TAG | 7, (b.ipv4(), 8080).into()))?;
    let tables = socket.tables()?;
    let ours = tables.iter().find(|row| row.table == table());
    assert_eq!(ours.map(|row| row.comment.as_str()), Some("shunt 1"));
    let mut chains = socket.chains(&table())?;
    chains.sort();
    assert_eq!(chains, ["choose", "postrouting", "prerouting"]);
    let before = (socket.generation()?, socket.rules(&table())?);
    let of = |chain| before.1.iter().filter(|rule| rule.chain == chain).count();
    assert_eq!([of("choose"), of("prerouting"), of("postrouting")], [1, 3, 1]);
    assert_eq!((socket.generation()?, socket.rules(&table())?), before);

    let handle = before.1[1].handle.to_string();
    let change = ["replace", "rule", "ip", "shunt", "prerouting", "handle", &handle, "accept"];
    let _ = nft(node, &change).await?;
    assert_ne!(socket.generation()?, before.0);
    let after = socket.rules(&table())?;
    let changed = after.iter().zip(&before.1).filter(|(a, b)| a.digest != b.digest).count();
    assert_eq!((after.len(), changed), (before.1.len(), 1));

    let mut batch = Batch::new();
    batch.destroy_table(&table());
    socket.commit(batch)?;
    assert!(!socket.tables()?.iter().any(|row| row.table == table()));
    assert_eq!(socket.rules(&table())?, []);
    Ok(())
}
