//! The world of the vectors: as tables for the writer, and in memory for the contract on the host.

use proxy_ebpf::Addr;
use proxy_ebpf::dns::decide::{Lookup, Names};
use proxy_ebpf::dns::reply::Records;
use proxy_ebpf::dns::zone::ZoneFlags;
use proxy_ebpf::dns::{NameKey, NameKind, NameValue, Outcome, READ, Work, Zone};
use proxy_user::tables::{DnsName, DnsRow, NameRow, TableDelta};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub(super) const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
pub(super) const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];

/// The names and the zone.
pub(super) struct World {
    pub(super) row: DnsRow,
    pub(super) names: BTreeMap<DnsName, Arc<NameRow>>,
}

/// The lines of a section of the vectors.
pub(super) fn section(name: &str) -> impl Iterator<Item = &'static str> {
    let vectors = include_str!("../../../../proxy-ebpf/src/dns/vectors.txt");
    let begin = vectors.find(&format!("[{name}]\n")).unwrap();
    let lines = vectors[begin..].lines().skip(1).take_while(|line| !line.starts_with('['));
    lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Addresses, of which `10.0.0.1*3` is three that follow each other.
pub(super) fn addrs<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<Addr> {
    let many = words.into_iter().flat_map(|word| {
        let (first, count) = word.split_once('*').unwrap_or((word, "1"));
        let (first, count): (IpAddr, u32) = (first.parse().unwrap(), count.parse().unwrap());
        (0..count).map(move |next| match first {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) + next).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) + u128::from(next)).to_be_bytes()),
        })
    });
    many.map(Addr::from).collect()
}

impl World {
    pub(super) fn new() -> Self {
        let row = DnsRow {
            zone: "cluster.local".into(),
            ttl: 30,
            serial: 1_700_000_000,
            addrs: addrs(SERVICE),
            deny: true,
            shadow: false,
        };
        let mut world = Self { row, names: BTreeMap::new() };
        for line in section("names") {
            let mut words = line.split_whitespace();
            let name = DnsName(words.next().unwrap().into());
            let kind = match words.next().unwrap() {
                "namespace" => NameKind::Namespace,
                "service" => NameKind::Service,
                "external" => NameKind::External,
                "endpoint" => NameKind::Endpoint,
                _ => NameKind::Other,
            };
            let row = world.row(kind, &addrs(words));
            world.names.insert(name, Arc::new(row));
        }
        world
    }

    pub(super) fn row(&self, kind: NameKind, addrs: &[Addr]) -> NameRow {
        let (v4, v6) = addrs.iter().partition(|addr| addr.is_v4());
        NameRow { kind, v4, v6 }
    }

    /// All names, as a step of the tables.
    pub(super) fn tables(&self) -> TableDelta {
        let names = self.names.iter().map(|(name, row)| (name.clone(), Some(Arc::clone(row))));
        TableDelta { names: names.collect(), ..Default::default() }
    }

    /// What the contract says of `query`.
    pub(super) fn ask(&self, query: &[u8]) -> Result<Vec<u8>, Outcome> {
        let mut zone = Zone::new(&self.row.zone, &self.row.addrs).unwrap();
        zone.flags = ZoneFlags::ON.with(ZoneFlags::DENY);
        (zone.ttl, zone.serial) = (self.row.ttl, self.row.serial);
        let mut work = Box::new(Work::EMPTY);
        let bytes: Vec<u8> = query.iter().copied().take(READ).chain([0; 8]).collect();
        for (word, bytes) in work.query.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        work.read(query.len(), &zone)?;
        let found = Found { world: self, row: Cell::default() };
        let outcome = work.decide(&zone, &found);
        if !outcome.is_answer() {
            return Err(outcome);
        }
        work.write(outcome, &zone, &found, 7)?;
        let mut reply = query[..work.question.end as usize].to_vec();
        for (index, number) in work.reply.header.iter().enumerate() {
            reply[2 + index * 2..][..2].copy_from_slice(&number.to_ne_bytes());
        }
        let tail = work.reply.tail.iter().flat_map(|number| number.to_ne_bytes());
        reply.extend(tail.take(work.reply.len()));
        Ok(reply)
    }
}

/// The tables of a world, of which one row at a time has records, from 0 on.
struct Found<'a> {
    world: &'a World,
    row: Cell<Option<&'a NameRow>>,
}

impl Names for Found<'_> {
    fn name(&self, key: &NameKey) -> Lookup {
        let found = self.world.names.iter().find(|(name, _)| NameKey::new(&name.0) == Some(*key));
        let Some((_, row)) = found else { return Lookup::Absent };
        self.row.set(Some(row));
        Lookup::Found(NameValue::new(key, row.kind, 0, row.v4.len(), row.v6.len()))
    }
}

impl Records for Found<'_> {
    fn record(&self, index: u32) -> Option<Addr> {
        let row = self.row.get()?;
        row.v4.iter().chain(&row.v6).nth(index as usize).copied()
    }
}

/// A query for a name of the zone, with the number of its type or with its name.
pub(super) fn query(name: &str, kind: &str) -> Vec<u8> {
    let kind: u16 = match kind {
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
    };
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let labels = name.split('.').chain(["cluster", "local"]).filter(|label| !label.is_empty());
    for label in labels {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    query
}

/// The query, with an OPT record.
pub(super) fn edns(mut query: Vec<u8>) -> Vec<u8> {
    query[11] += 1;
    query.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    query
}

/// The reply with its answers in order; all are of one length.
pub(super) fn sorted(reply: &[u8], end: usize) -> Vec<u8> {
    let mut reply = reply.to_vec();
    let count = usize::from(reply[7]);
    if count > 0 {
        let len = 12 + usize::from(reply[end + 11]);
        let mut answers: Vec<Vec<u8>> =
            reply[end..end + count * len].chunks(len).map(<[u8]>::to_vec).collect();
        answers.sort();
        drop(reply.splice(end..end + count * len, answers.concat()));
    }
    reply
}
