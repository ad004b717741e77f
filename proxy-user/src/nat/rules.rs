//! The rules of the tables `shunt`, and the form of their maps' keys and values.
//!
//! | chain | sees | does |
//! |---|---|---|
//! | `prerouting` | the first packet of a connection, just before others' `dstnat` | what the program at ingress chose: `translate` |
//! | `output` | the same of the node's own packets | finds who serves them, then `translate` |
//! | `translate` | what is tagged | hides the client, gives the backend's address, or refuses |
//! | `postrouting` | the first packet of a connection, just before others' `srcnat` | hidden clients get the node's address |
//! | `forward` (IPv6) | every packet | the tag is wiped, which IPv4's forwarding does itself |

use super::{NatSettings, OutputKey, SHARES};
use crate::netfilter::{
    Batch, Chain, ChainKind, Data, Expr, Family, Field, Header, Hook, MetaKey, NatFlags, Operator,
    Policy, Register, Reject, Rule, RuleRow, Set, Table, Type, Verdict,
};
use proxy_ebpf::priority::Priority;
use proxy_ebpf::{End, Proto};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

/// The map of backends: id to address and port.
pub(super) const BACKENDS: &str = "backends";
/// The map of what the node's own packets are for.
pub(super) const OUTPUT_SERVICES: &str = "output_services";
/// The map of shares.
pub(super) const OUTPUT_SHARES: &str = "output_shares";
/// The map of source addresses, by device.
pub(super) const SOURCES: &str = "sources";
/// The set of ClusterIPs.
pub(super) const CLUSTER_IPS: &str = "cluster_ips";
/// The set of the networks that ClusterIPs are taken from.
pub(super) const SERVICE_NETWORKS: &str = "service_networks";

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const SPREAD: &str = "spread";
const TRANSLATE: &str = "translate";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";

/// Just before `dstnat` (-100), where others translate.
const BEFORE_DSTNAT: i32 = -101;
/// Just before `srcnat` (100).
const BEFORE_SRCNAT: i32 = 99;
/// The interface index of loopback, in every network namespace.
const LOOPBACK: u32 = 1;

/// All of a table but the elements of its maps.
pub(super) struct Ruleset {
    sets: Vec<Set>,
    chains: Vec<Chain>,
    rules: Vec<(&'static str, Rule)>,
}

impl Ruleset {
    /// Whether `found` are these rules: each comment holds a digest of its rule.
    pub(super) fn is_written_as(&self, found: &[RuleRow]) -> bool {
        let of = |chain: &str| -> Vec<_> {
            self.rules.iter().filter(|(name, _)| *name == chain).map(|(_, r)| &*r.comment).collect()
        };
        self.rules.len() == found.len()
            && self.chains.iter().all(|chain| {
                let there = found.iter().filter(|row| row.chain == chain.name);
                there.map(|row| &*row.comment).eq(of(&chain.name))
            })
    }

    /// Adds what is missing, and writes the rules anew.
    pub(super) fn write(&self, batch: &mut Batch, table: &Table) {
        batch.add_table(table, "Shunt serves Kubernetes Services; `shunt cleanup` removes this");
        self.sets.iter().for_each(|set| batch.add_set(table, set));
        self.chains.iter().for_each(|chain| batch.add_chain(table, chain));
        self.chains.iter().for_each(|chain| batch.flush_chain(table, &chain.name));
        self.rules.iter().for_each(|(chain, rule)| batch.add_rule(table, chain, rule));
    }
}

/// The table of `family`.
pub(super) fn ruleset(family: Family, settings: NatSettings) -> Ruleset {
    let addr = addr_type(family);
    let map = |name: &str, key: &[Type], data: &[Type]| Set {
        name: name.to_owned(),
        key: key.to_vec(),
        data: data.to_vec(),
        interval: false,
        size: None,
    };
    let sets = vec![
        map(BACKENDS, &[Type::Mark], &[addr, Type::Port]),
        map(OUTPUT_SERVICES, &[addr, Type::Protocol, Type::Port], &[Type::Mark]),
        map(OUTPUT_SHARES, &[Type::Mark, Type::Mark], &[Type::Mark]),
        map(SOURCES, &[Type::Mark], &[addr]),
        map(CLUSTER_IPS, &[addr], &[]),
        Set { interval: true, ..map(SERVICE_NETWORKS, &[addr], &[]) },
    ];
    let base = |name: &str, kind, hook, priority| Chain {
        name: name.to_owned(),
        base: Some((kind, hook, priority, Policy::Accept)),
    };
    let regular = |name: &str| Chain { name: name.to_owned(), base: None };
    let mut chains = vec![
        regular(TRANSLATE),
        regular(SPREAD),
        base(PREROUTING, ChainKind::Nat, Hook::Prerouting, BEFORE_DSTNAT),
        base(OUTPUT, ChainKind::Nat, Hook::Output, BEFORE_DSTNAT),
        base(POSTROUTING, ChainKind::Nat, Hook::Postrouting, BEFORE_SRCNAT),
    ];
    let mut rules = Rules::default();
    prerouting(&mut rules);
    output(&mut rules, family);
    translate(&mut rules, family, settings.masquerade_mark);
    postrouting(&mut rules, family, settings.masquerade_mark);
    if family == Family::Ipv6 {
        chains.push(base(FORWARD, ChainKind::Filter, Hook::Forward, BEFORE_DSTNAT));
        rules.add(FORWARD, "wipe the number", [is_tagged(), wipe()].concat());
    }
    Ruleset { sets, chains, rules: rules.0 }
}

#[derive(Default)]
struct Rules(Vec<(&'static str, Rule)>);

impl Rules {
    fn add(&mut self, chain: &'static str, purpose: &str, exprs: Vec<Expr>) {
        let mut hasher = DefaultHasher::new();
        format!("{exprs:?}").hash(&mut hasher);
        let comment = format!("{purpose} [{:08x}]", hasher.finish() as u32);
        self.0.push((chain, Rule { exprs, comment }));
    }
}

const R0: Register = Register::new(0);
const R1: Register = Register::new(1);

fn prerouting(rules: &mut Rules) {
    rules.add(
        PREROUTING,
        "what a program has chosen",
        [is_tagged(), vec![goto(TRANSLATE)]].concat(),
    );
}

/// The node's own packets that no socket hook has given a backend.
fn output(rules: &mut Rules, family: Family) {
    let words = addr_words(family);
    let destination = vec![
        load_addr(family, Addrs::Destination, R0),
        Expr::Meta { key: MetaKey::L4Proto, to: R0.plus(words) },
        Expr::Payload { header: Header::Transport, offset: 2, len: 2, to: R0.plus(words + 1) },
        Expr::Map { map: OUTPUT_SERVICES.to_owned(), from: R0, to: R0 },
        Expr::SetMeta { key: MetaKey::Priority, from: R0 },
        goto(SPREAD),
    ];
    rules.add(OUTPUT, "who serves the node itself", destination);
    let leaves_for = |set: &str| {
        vec![
            Expr::Meta { key: MetaKey::Oif, to: R0 },
            Expr::Compare { from: R0, operator: Operator::NotEqual, value: word(LOOPBACK) },
            load_addr(family, Addrs::Destination, R0),
            Expr::InSet { set: set.to_owned(), from: R0 },
        ]
    };
    let unserved = leaves_for(CLUSTER_IPS);
    rules.add(OUTPUT, "no such port", [unserved.clone(), is_tcp(), vec![reset()]].concat());
    rules.add(OUTPUT, "no such port", [unserved, vec![unreachable(family)]].concat());
    let unallocated = leaves_for(SERVICE_NETWORKS);
    let drop = vec![Expr::Verdict(Verdict::Drop)];
    rules.add(OUTPUT, "no such Service", [unallocated, drop].concat());

    rules.add(SPREAD, "one backend, or none", [is_tagged(), vec![goto(TRANSLATE)]].concat());
    let flow = R0.plus(4);
    let share = vec![
        load_addr(family, Addrs::Source, flow),
        load_addr(family, Addrs::Destination, flow.plus(words)),
        Expr::Payload { header: Header::Transport, offset: 0, len: 4, to: flow.plus(2 * words) },
        Expr::Meta { key: MetaKey::Priority, to: R0 },
        Expr::Hash {
            from: flow,
            len: u32::from(2 * words + 1) * 4,
            modulus: SHARES,
            seed: None,
            offset: 0,
            to: R1,
        },
        Expr::Map { map: OUTPUT_SHARES.to_owned(), from: R0, to: R0 },
        Expr::SetMeta { key: MetaKey::Priority, from: R0 },
        goto(TRANSLATE),
    ];
    rules.add(SPREAD, "the share of the flow", share);
    rules.add(SPREAD, "no share", vec![Expr::Verdict(Verdict::Drop)]);
}

fn translate(rules: &mut Rules, family: Family, mark: u32) {
    let hide = vec![
        Expr::Meta { key: MetaKey::Priority, to: R0 },
        and(R0, R1, Priority::HIDE),
        Expr::Compare { from: R1, operator: Operator::NotEqual, value: word(0) },
        Expr::Meta { key: MetaKey::Mark, to: R0 },
        Expr::Bitwise { from: R0, to: R0, mask: word(!mark), xor: word(mark) },
        Expr::SetMeta { key: MetaKey::Mark, from: R0 },
    ];
    rules.add(TRANSLATE, "hide the client", hide);
    let destination = vec![
        Expr::Meta { key: MetaKey::Priority, to: R0 },
        and(R0, R0, Priority::BACKEND_MASK),
        Expr::Map { map: BACKENDS.to_owned(), from: R0, to: R1 },
        Expr::DestinationNat {
            family,
            addr: R1,
            port: Some(R1.plus(addr_words(family))),
            flags: NatFlags::default(),
        },
    ];
    rules.add(TRANSLATE, "lead to the backend", destination);
    let refused = || {
        vec![
            Expr::Meta { key: MetaKey::Priority, to: R0 },
            Expr::Compare { from: R0, operator: Operator::Equal, value: word(Priority::REFUSE.0) },
        ]
    };
    rules.add(TRANSLATE, "refuse", [refused(), is_tcp(), vec![reset()]].concat());
    rules.add(TRANSLATE, "refuse", [refused(), vec![unreachable(family)]].concat());
    rules.add(TRANSLATE, "drop", vec![Expr::Verdict(Verdict::Drop)]);
}

fn postrouting(rules: &mut Rules, family: Family, mark: u32) {
    rules.add(POSTROUTING, "wipe the number", [is_tagged(), wipe()].concat());
    let visible = vec![
        Expr::Meta { key: MetaKey::Mark, to: R0 },
        and(R0, R0, mark),
        Expr::Compare { from: R0, operator: Operator::Equal, value: word(0) },
        Expr::Verdict(Verdict::Return),
    ];
    rules.add(POSTROUTING, "clients that are seen", visible);
    let unmark = vec![
        Expr::Meta { key: MetaKey::Mark, to: R0 },
        and(R0, R0, !mark),
        Expr::SetMeta { key: MetaKey::Mark, from: R0 },
    ];
    rules.add(POSTROUTING, "wipe the mark", unmark);
    let source = vec![
        Expr::Meta { key: MetaKey::Oif, to: R0 },
        Expr::Map { map: SOURCES.to_owned(), from: R0, to: R0 },
        Expr::SourceNat { family, addr: R0, flags: NatFlags::default() },
    ];
    rules.add(POSTROUTING, "hide clients behind the node's address", source);
    let masquerade = vec![Expr::Masquerade { flags: NatFlags::default() }];
    rules.add(POSTROUTING, "hide clients behind the device's address", masquerade);
}

/// Goes on if the packet's priority is one of Shunt's numbers.
fn is_tagged() -> Vec<Expr> {
    vec![
        Expr::Meta { key: MetaKey::Priority, to: R0 },
        and(R0, R0, Priority::TAG_MASK),
        Expr::Compare { from: R0, operator: Operator::Equal, value: word(Priority::TAG) },
    ]
}

fn is_tcp() -> Vec<Expr> {
    vec![
        Expr::Meta { key: MetaKey::L4Proto, to: R0 },
        Expr::Compare {
            from: R0,
            operator: Operator::Equal,
            value: Field::Protocol(Proto::TCP.0).into(),
        },
    ]
}

/// Takes the number away, before a queueing discipline takes it for a class.
fn wipe() -> Vec<Expr> {
    vec![
        Expr::Immediate { value: word(0), to: R0 },
        Expr::SetMeta { key: MetaKey::Priority, from: R0 },
    ]
}

fn and(from: Register, to: Register, mask: u32) -> Expr {
    Expr::Bitwise { from, to, mask: word(mask), xor: word(0) }
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

const fn reset() -> Expr {
    Expr::Reject(Reject::TcpReset)
}

/// "Port unreachable" (RFC 792, RFC 4443 section 3.1).
const fn unreachable(family: Family) -> Expr {
    Expr::Reject(Reject::IcmpUnreachable(match family {
        Family::Ipv4 => 3,
        Family::Ipv6 => 4,
    }))
}

/// An address in a packet's network header.
enum Addrs {
    Source,
    Destination,
}

fn load_addr(family: Family, which: Addrs, to: Register) -> Expr {
    let (offset, len) = match (family, which) {
        (Family::Ipv4, Addrs::Source) => (12, 4),
        (Family::Ipv4, Addrs::Destination) => (16, 4),
        (Family::Ipv6, Addrs::Source) => (8, 16),
        (Family::Ipv6, Addrs::Destination) => (24, 16),
    };
    Expr::Payload { header: Header::Network, offset, len, to }
}

const fn addr_type(family: Family) -> Type {
    match family {
        Family::Ipv4 => Type::Ipv4Addr,
        Family::Ipv6 => Type::Ipv6Addr,
    }
}

/// How many registers an address takes.
const fn addr_words(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 4,
    }
}

fn word(number: u32) -> Data {
    Field::Mark(number).into()
}

/// The value of a backend.
pub(super) fn end(end: End) -> Data {
    Data::concat(&[IpAddr::from(end.addr).into(), Field::Port(end.port.number())])
}

/// The key of what the node's own packets are for.
pub(super) fn output_key(key: &OutputKey) -> Data {
    Data::concat(&[
        IpAddr::from(key.end.addr).into(),
        Field::Protocol(key.proto.0),
        Field::Port(key.end.port.number()),
    ])
}
