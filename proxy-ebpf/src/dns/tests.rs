//! The vectors of the specification, and what they leave out: the kernel's part of what CoreDNS
//! answers, byte by byte.

extern crate std;

use super::decide::{Lookup, Names};
use super::reply::Records;
use super::zone::ZoneFlags;
use super::*;
use crate::Addr;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::string::{String, ToString as _};
use std::vec::Vec;
use std::{format, vec};

pub(super) const VECTORS: &str = include_str!("vectors.txt");

/// Tables in memory.
pub(super) struct World {
    pub(super) zone: Zone,
    pub(super) names: BTreeMap<NameKey, NameValue>,
    records: Vec<Addr>,
    /// The names as they are written.
    pub(super) written: BTreeMap<String, (NameKind, Vec<IpAddr>)>,
}

impl Names for World {
    fn name(&self, key: &NameKey) -> Lookup {
        self.names.get(key).map_or(Lookup::Absent, |value| Lookup::Found(*value))
    }
}

impl Records for World {
    fn record(&self, index: u32) -> Option<Addr> {
        self.records.get(index as usize).copied()
    }
}

/// The lines of a section of the vectors.
pub(super) fn section(name: &str) -> impl Iterator<Item = &'static str> {
    let begin = VECTORS.find(&format!("[{name}]\n")).unwrap();
    let lines = VECTORS[begin..].lines().skip(1).take_while(|line| !line.starts_with('['));
    lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Addresses, of which `10.0.0.1*3` is three that follow each other.
pub(super) fn addrs<'a>(words: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let many = words.filter(|word| *word != "-").flat_map(|word| {
        let (first, count) = word.split_once('*').unwrap_or((word, "1"));
        let (first, count): (IpAddr, u32) = (first.parse().unwrap(), count.parse().unwrap());
        (0..count).map(move |next| match first {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) + next).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) + u128::from(next)).to_be_bytes()),
        })
    });
    many.collect()
}

impl World {
    pub(super) fn new() -> Self {
        let mut zone = Zone::new("cluster.local", &[]).unwrap();
        zone.flags = ZoneFlags::ON.with(ZoneFlags::DENY);
        (zone.ttl, zone.serial) = (30, 1_700_000_000);
        let mut world =
            Self { zone, names: BTreeMap::new(), records: vec![], written: BTreeMap::new() };
        for line in section("names") {
            let mut words = line.split_whitespace();
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            let kind = match kind {
                "namespace" => NameKind::Namespace,
                "service" => NameKind::Service,
                "external" => NameKind::External,
                "endpoint" => NameKind::Endpoint,
                _ => NameKind::Other,
            };
            world.add(name, kind, addrs(words));
        }
        world
    }

    fn add(&mut self, name: &str, kind: NameKind, addrs: Vec<IpAddr>) {
        let key = NameKey::new(name).unwrap();
        let base = self.records.len() as u32;
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addrs.iter().partition(|addr| addr.is_ipv4());
        let value = NameValue::new(&key, kind, base, v4.len(), v6.len());
        let stored = [&v4, &v6].into_iter().filter(|family| family.len() <= MOST_RECORDS);
        self.records.extend(stored.flatten().map(|addr| Addr::from(*addr)));
        self.names.insert(key, value);
        self.written.insert(name.to_string(), (kind, addrs));
    }

    /// What the program does with `query`, on its way through `work`, which may hold the traces of
    /// others.
    pub(super) fn ask_in(
        &self,
        work: &mut Work,
        query: &[u8],
        random: u32,
    ) -> Result<Vec<u8>, Outcome> {
        for (index, byte) in query.iter().take(READ).enumerate() {
            let shift = (index & 7) * 8;
            let word = &mut work.query[index / 8];
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
        work.read(query.len(), &self.zone)?;
        let outcome = work.decide(&self.zone, self);
        if !outcome.is_answer() {
            return Err(outcome);
        }
        work.write(outcome, &self.zone, self, random)?;
        let mut reply = query[..work.question.end as usize].to_vec();
        for (index, number) in work.reply.header.iter().enumerate() {
            reply[2 + index * 2..][..2].copy_from_slice(&number.to_ne_bytes());
        }
        let tail = work.reply.tail.iter().flat_map(|number| number.to_ne_bytes());
        reply.extend(tail.take(work.reply.len()));
        Ok(reply)
    }

    pub(super) fn ask(&self, query: &[u8]) -> Result<Vec<u8>, Outcome> {
        self.ask_in(&mut Box::new(Work::EMPTY), query, 7)
    }
}

pub(super) fn number(kind: &str) -> u16 {
    match kind {
        "A" => 1,
        "NS" => 2,
        "CNAME" => 5,
        "SOA" => 6,
        "PTR" => 12,
        "MX" => 15,
        "TXT" => 16,
        "AAAA" => 28,
        "SRV" => 33,
        "DS" => 43,
        "HTTPS" => 65,
        "AXFR" => 252,
        "ANY" => 255,
        _ => panic!("no type {kind}"),
    }
}

/// A name as it lies in a message.
pub(super) fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let bytes = labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    bytes.chain([0]).collect()
}

/// A query for a name of the zone.
pub(super) fn query(name: &str, kind: &str) -> Vec<u8> {
    let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let name = wire(&format!("{name}.cluster.local"));
    [&head[..], &name, &number(kind).to_be_bytes(), &[0, 1]].concat()
}

/// The query, with an OPT record that takes `size` bytes and has `flags`.
pub(super) fn edns(mut query: Vec<u8>, size: u16, flags: u16) -> Vec<u8> {
    query[11] += 1;
    let [size, flags] = [size.to_be_bytes(), flags.to_be_bytes()];
    query.extend([0, 0, 41, size[0], size[1], 0, 0, flags[0], flags[1], 0, 0]);
    query
}

/// The reply that is due to `query`, put together without the code that is tested.
fn due(query: &[u8], end: usize, found: Option<&[IpAddr]>) -> Vec<u8> {
    let has_edns = query[11] == 1;
    let count = found.map_or(0, <[IpAddr]>::len) as u8;
    let code = if found.is_none() { 3 } else { 0 };
    let counts = [0, 1, 0, count, 0, u8::from(count == 0), 0, query[11]];
    let mut reply = [&query[..2], &[0x85, code], &counts, &query[12..end]].concat();
    for addr in found.unwrap_or_default() {
        let (kind, data) = match addr {
            IpAddr::V4(addr) => (1, addr.octets().to_vec()),
            IpAddr::V6(addr) => (28, addr.octets().to_vec()),
        };
        reply.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 30, 0, data.len() as u8]);
        reply.extend(data);
    }
    if count == 0 {
        // The zone has fifteen bytes, and type and class have four.
        let zone = [0xc0, (end - 19) as u8];
        let names = [&b"\x02ns\x03dns"[..], &zone, b"\x0ahostmaster", &zone].concat();
        reply.extend([&zone[..], &[0, 6, 0, 1, 0, 0, 0, 30, 0, 42], &names].concat());
        for number in [1_700_000_000_u32, 7200, 1800, 86400, 30] {
            reply.extend(number.to_be_bytes());
        }
    }
    if has_edns {
        reply.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    }
    reply
}

/// The reply with its answers in order, as due replies have them; all are of one length.
pub(super) fn sorted(mut reply: Vec<u8>, end: usize) -> Vec<u8> {
    let count = reply[7] as usize;
    if count > 0 {
        let len = 12 + reply[end + 11] as usize;
        let mut answers: Vec<Vec<u8>> =
            reply[end..end + count * len].chunks(len).map(<[u8]>::to_vec).collect();
        answers.sort();
        reply.splice(end..end + count * len, answers.concat());
    }
    reply
}

#[test]
fn vectors_have_the_bytes_that_are_due() {
    let world = World::new();
    for line in section("queries") {
        let (question, wanted) = line.split_once('=').unwrap();
        let question: Vec<&str> = question.split_whitespace().collect();
        let mut bytes = query(question[0], question[1]);
        let end = bytes.len();
        if question.contains(&"edns") {
            bytes = edns(bytes, 1232, 0);
        }
        let (wanted, found) = wanted.trim().split_once(' ').unwrap_or((wanted.trim(), ""));
        let found = addrs(found.split_whitespace());
        let due = match wanted {
            "Y" => Ok(due(&bytes, end, Some(&found))),
            "X" => Ok(due(&bytes, end, None)),
            _ => Err(wanted),
        };
        let reply = world.ask(&bytes).map(|reply| sorted(reply, end)).map_err(Outcome::name);
        assert_eq!(reply, due, "{line}");
    }
}

#[test]
fn bytes_of_the_specification() {
    let world = World::new();
    let soa = b"\x02ns\x03dns\xc0\x1c\x0ahostmaster\xc0\x1c\x65\x53\xf1\0\0\0\x1c\x20\0\0\x07\x08\0\x01\x51\x80\0\0\0\x1e";
    let reply = world.ask(&query("nosuch.shop.svc", "A")).unwrap();
    let authority = [&b"\xc0\x1c\0\x06\0\x01\0\0\0\x1e\0\x2a"[..], soa].concat();
    assert_eq!(reply[reply.len() - authority.len()..], authority);
    let reply = world.ask(&edns(query("web.shop.svc", "A"), 4096, 0)).unwrap();
    assert!(reply.ends_with(b"\0\0\x29\x04\xd0\0\0\0\0\0\0"));
}

#[test]
fn flags_and_sizes_come_back_as_they_should() {
    let world = World::new();
    let flags = |query: &[u8]| world.ask(query).map(|reply| [reply[2], reply[3]]);
    let mut bytes = query("web.shop.svc", "A");
    bytes[2] = 0;
    assert_eq!(flags(&bytes), Ok([0x84, 0]), "RD=0");
    (bytes[2], bytes[3]) = (1, 0x10);
    assert_eq!(flags(&bytes), Ok([0x85, 0x10]), "CD=1");
    bytes[3] = 0x20;
    assert_eq!(flags(&bytes), Ok([0x85, 0]), "AD=1 is the asker's wish");
    let bytes = query("web.shop.svc", "A");
    for size in [0, 511, 512, 4096, 65535] {
        let reply = world.ask(&edns(bytes.clone(), size, 0x8000)).unwrap();
        assert!(reply.ends_with(b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"), "DO and our own size: {size}");
    }
    // 29 records are 464 bytes, behind 33 of header and question and 11 of OPT.
    let big = edns(query("big.shop.svc", "A"), 512, 0);
    assert_eq!(world.ask(&big), Err(Outcome::TooLong));
    let trailing = [query("web.shop.svc", "A"), vec![1; 300]].concat();
    assert!(world.ask(&trailing).is_ok(), "what follows the question is not asked for");
    let mut options = edns(query("web.shop.svc", "A"), 1232, 0);
    let len = options.len();
    (options[len - 2], options[len - 1]) = (1, 0x2c);
    options.extend([0; 300]);
    assert!(world.ask(&options).is_ok(), "options are ignored");
    options.pop();
    assert_eq!(world.ask(&options), Err(Outcome::Malformed), "an OPT record beyond the end");
}

#[test]
fn labels_are_bytes_and_not_text() {
    let world = World::new();
    // One label `web.shop` is not two; nor is a zone within a label the zone.
    for label in
        [&b"\x08web.shop"[..], b"\x03w\0b\x04shop", b"\x03w\\b\x04shop", b"\x03w\xe9b\x04shop"]
    {
        let name = [label, b"\x03svc\x07cluster\x05local\0\0\x01\0\x01"].concat();
        let bytes = [&query("x", "A")[..12], &name].concat();
        let reply = world.ask(&bytes).unwrap();
        assert_eq!(reply[3] & 15, 3, "{label:?}");
    }
    let name = b"\x13web\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01";
    let bytes = [&query("x", "A")[..12], name].concat();
    assert!(world.ask(&bytes).is_err());
    let inside = b"\x01a\x0fx\x07cluster\x05local\0\0\x01\0\x01";
    let bytes = [&query("x", "A")[..12], inside].concat();
    assert_eq!(world.ask(&bytes), Err(Outcome::OtherZone), "the zone within a label");
}

#[test]
fn hostile_queries_pass() {
    let world = World::new();
    let good = query("web.shop.svc", "A");
    let with = |at: usize, bytes: &[u8]| {
        let mut query = good.clone();
        query[at..at + bytes.len()].copy_from_slice(bytes);
        query
    };
    let end = good.len();
    let long = query(&["a23456789012345678901234567890"; 7].join("."), "A");
    let deep = query(&["a"; 21].join("."), "A");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("11 bytes", good[..11].to_vec()),
        ("a header only", good[..12].to_vec()),
        ("QD=0", with(4, &[0, 0])),
        ("QD=2", with(4, &[0, 2])),
        ("QR=1", with(2, &[0x81])),
        ("opcode 1", with(2, &[0x08])),
        ("opcode 2", with(2, &[0x10])),
        ("opcode 4", with(2, &[0x20])),
        ("opcode 5", with(2, &[0x28])),
        ("opcode 6", with(2, &[0x30])),
        ("opcode 15", with(2, &[0x78])),
        ("AA", with(2, &[0x05])),
        ("TC", with(2, &[0x03])),
        ("AN=1", with(6, &[0, 1])),
        ("NS=1", with(8, &[0, 1])),
        ("AR=2", with(10, &[0, 2])),
        ("AR=1 without a record", with(10, &[0, 1])),
        ("a pointer to itself", with(12, &[0xc0, 12])),
        ("a pointer forward", with(12, &[0xc0, 20])),
        ("a pointer into the header", with(12, &[0xc0, 2])),
        ("length 0x40", with(12, &[0x40])),
        ("length 0x80", with(12, &[0x80])),
        ("a name over 128 bytes", long),
        ("21 labels", deep),
        ("no root label", good[..end - 5].to_vec()),
        ("a label past the end", good[..20].to_vec()),
        ("no type", good[..end - 4].to_vec()),
        ("no class", good[..end - 2].to_vec()),
        ("half a class", good[..end - 1].to_vec()),
        ("class CH", with(end - 1, &[3])),
        ("class ANY", with(end - 1, &[255])),
        ("class NONE", with(end - 1, &[254])),
        ("class 0", with(end - 1, &[0])),
        ("type 0", with(end - 4, &[0, 0])),
        ("type OPT", with(end - 4, &[0, 41])),
        ("an OPT record with an owner", {
            let mut query = edns(good.clone(), 1232, 0);
            query.splice(end..end + 1, [1, b'a', 0]);
            query
        }),
        ("EDNS version 1", {
            let mut query = edns(good.clone(), 1232, 0);
            query[end + 6] = 1;
            query
        }),
        ("two OPT records", edns(edns(good.clone(), 1232, 0), 1232, 0)),
        ("TSIG", {
            let mut query = edns(good.clone(), 1232, 0);
            query[end + 2] = 250;
            query
        }),
        ("another zone", {
            let mut query = good.clone();
            query[end - 6] = b'x';
            query
        }),
        ("the root", [&good[..12], &[0, 0, 1, 0, 1]].concat()),
        ("a part of the zone", [&good[..12], b"\x05local\0\0\x01\0\x01"].concat()),
    ];
    for (what, query) in cases {
        assert!(world.ask(&query).is_err(), "{what}");
    }
}

#[test]
fn unknown_names_are_denied_only_where_it_is_allowed() {
    let mut world = World::new();
    let unknown = query("nosuch.shop.svc", "A");
    for (flags, outcome) in [
        (ZoneFlags::ON, Outcome::Unknown),
        (ZoneFlags::ON.with(ZoneFlags::SHADOW), Outcome::Shadowed),
        (ZoneFlags::ON.with(ZoneFlags::DENY).with(ZoneFlags::SHADOW), Outcome::Shadowed),
    ] {
        world.zone.flags = flags;
        assert_eq!(world.ask(&unknown), Err(outcome));
        assert!(world.ask(&query("web.shop.svc", "A")).is_ok(), "what is there is there");
        assert!(world.ask(&query("web6.shop.svc", "A")).is_ok());
    }
}

#[test]
fn each_order_of_the_addresses_is_as_likely() {
    let world = World::new();
    let query = query("db.shop.svc", "A");
    let mut orders: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let mut state = 1_u32;
    for _ in 0..12_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let reply = world.ask_in(&mut Box::new(Work::EMPTY), &query, state).unwrap();
        let last = reply[query.len()..].chunks(16).map(|answer| answer[15]).collect();
        *orders.entry(last).or_default() += 1;
    }
    assert_eq!(orders.len(), 6);
    assert!(orders.values().all(|count| (1_800..2_200).contains(count)), "{orders:?}");
}

#[test]
fn a_name_is_its_key_and_no_other() {
    let key = NameKey::new("Web-0.nginx.default.svc").unwrap();
    assert!(key.bytes().starts_with(b"\x05web-0\x05nginx\x07default\x03svc\0\0"));
    let label = "a".repeat(63);
    assert!(NameKey::new(&format!("{label}.{label}")).is_some(), "128 bytes");
    assert!(NameKey::new(&format!("{label}.{label}.b")).is_none());
    for bad in ["", ".", "a..b", ".a", "a.", &"a".repeat(64)] {
        assert!(NameKey::new(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_value_keeps_its_parts_apart() {
    let key = NameKey::new("web.shop.svc").unwrap();
    let value = NameValue::new(&key, NameKind::Endpoint, 0xab_cdef, 3, 76);
    assert_eq!((value.tag(), value.kind()), (key.tag(), Some(NameKind::Endpoint)));
    assert_eq!((value.records(false), value.records(true)), ((0xab_cdef, 3), (0xab_cdf2, 76)));
    let value = NameValue::new(&key, NameKind::Service, 7, 77, 2);
    assert!(value.is_too_many(false) && !value.is_too_many(true));
    assert_eq!((value.len(), value.records(true)), (2, (7, 2)));
}

#[test]
fn lower_case_is_that_of_ascii() {
    for byte in 0..=255_u8 {
        let word = u64::from_le_bytes([byte; 8]);
        assert_eq!(lower(word, 0, 8).to_le_bytes(), [byte.to_ascii_lowercase(); 8]);
    }
    assert_eq!(lower(u64::MAX, 1, 11), 0xff_ffff);
    assert_eq!(lower(u64::MAX, 1, 8), 0);
}
