//! The same code under bytes that no resolver would send. Deterministic; what is due is worked out
//! by a second reading of the message, over strings.

extern crate std;

use super::tests::{World, edns, query, section, wire};
use super::*;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::string::String;
use std::vec;
use std::vec::Vec;

const PACKETS: usize = 200_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() % limit.max(1)
    }
}

/// Queries to begin with: all vectors, with and without EDNS.
fn seeds() -> Vec<Vec<u8>> {
    let all = section("queries").flat_map(|line| {
        let mut words = line.split_whitespace();
        let query = query(words.next().unwrap(), words.next().unwrap());
        [query.clone(), edns(query, 1232, 0x8000)]
    });
    all.collect()
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] ^= 0x20,
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.next() as u8),
            5 => drop(bytes.remove(at)),
            6 => bytes[at] = [0, 1, 0x3f, 0x40, 0xc0, 0xff][random.below(6)],
            7 => bytes.extend(vec![random.next() as u8; random.below(400)]),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend(&other[at.min(other.len())..]);
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// A name at `at` without pointers, as lower-case labels; and where it ends.
fn labels(bytes: &[u8], mut at: usize) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut labels = vec![];
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            return Some((labels, at));
        }
        if len > 63 {
            return None;
        }
        labels.push(bytes.get(at..at + len)?.to_ascii_lowercase());
        at += len;
    }
}

/// What is due.
#[derive(PartialEq, Eq, Debug)]
enum Due {
    Pass,
    Found(BTreeSet<IpAddr>),
    NoData,
    NoName,
}

struct Asked {
    end: usize,
    kind: u16,
    edns: Option<(u16, u16)>,
    due: Due,
}

/// Reads the query once more; `None` if it is none that may be answered.
fn asked(world: &World, bytes: &[u8]) -> Option<Asked> {
    let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if number(2)? & 0xfe00 != 0 || number(4)? != 1 || number(6)? != 0 || number(8)? != 0 {
        return None;
    }
    let (name, end) = labels(bytes, 12)?;
    let (kind, class) = (number(end)?, number(end + 2)?);
    let end = end + 4;
    let is_meta = kind == 0 || kind == 41 || (128..=255).contains(&kind);
    if class != 1 || is_meta || name.len() > 20 {
        return None;
    }
    let edns = match number(10)? {
        0 => None,
        1 => {
            let opt = bytes.get(end..end + 11)?;
            let len = usize::from(number(end + 9)?);
            if opt[..3] != [0, 0, 41] || opt[5..7] != [0, 0] || end + 11 + len > bytes.len() {
                return None;
            }
            Some((number(end + 3)?, number(end + 7)?))
        }
        _ => return None,
    };
    let zone: Vec<Vec<u8>> = vec![b"cluster".to_vec(), b"local".to_vec()];
    let name = name.strip_suffix(&zone[..])?;
    if name.iter().map(|label| label.len() + 1).sum::<usize>() > 128 {
        return None;
    }
    let due = match due(world, name, kind) {
        // Of a name without SOA record, CoreDNS does not say that it does not exist.
        Due::NoName if kind == 6 => Due::Pass,
        due => due,
    };
    Some(Asked { end, kind, edns, due })
}

/// The tree of the specification.
fn due(world: &World, name: &[Vec<u8>], kind: u16) -> Due {
    let known = |labels: &[Vec<u8>]| {
        let is_text = labels.iter().all(|label| !label.contains(&b'.') && !label.contains(&0));
        let name = String::from_utf8(labels.join(&b'.')).ok().filter(|_| is_text)?;
        world.written.get(&name)
    };
    let is_address = kind == 1 || kind == 28;
    let nothing = if is_address { Due::NoData } else { Due::Pass };
    let Some(last) = name.last() else { return Due::Pass };
    match (&last[..], name) {
        (b"pod", _) => Due::Pass,
        (b"svc", [_]) => nothing,
        (b"svc", [.., service, namespace, svc]) => {
            let service = [service, namespace, svc].map(Clone::clone);
            let Some((found, _)) = known(&service) else { return Due::NoName };
            let row = match (found, name.len()) {
                (NameKind::Service, 3 | 4) => known(name),
                (NameKind::Service, 5) => return Due::Pass,
                (NameKind::Service, _) => return Due::NoName,
                _ => return Due::Pass,
            };
            let Some((_, addrs)) = row else { return Due::NoName };
            match kind {
                1 | 28 => {
                    let of = |addr: &&IpAddr| addr.is_ipv4() == (kind == 1);
                    let found: BTreeSet<_> = addrs.iter().filter(of).copied().collect();
                    if found.is_empty() { Due::NoData } else { Due::Found(found) }
                }
                2 | 5 | 6 | 12 | 15 | 16 | 43 | 64 | 65 => Due::NoData,
                _ => Due::Pass,
            }
        }
        (b"svc", _) => {
            if known(name).is_some() {
                nothing
            } else {
                Due::NoName
            }
        }
        _ => {
            if known(name).is_some() {
                Due::Pass
            } else {
                Due::NoName
            }
        }
    }
}

/// Reads a reply, every byte of it.
fn check(query: &[u8], asked: &Asked, reply: &[u8]) {
    let number = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    assert_eq!(reply[..2], query[..2]);
    let code = if asked.due == Due::NoName { 3 } else { 0 };
    assert_eq!(reply[2..4], [0x84 | query[2] & 1, query[3] & 0x10 | code]);
    assert_eq!(reply[12..asked.end], query[12..asked.end], "the question as it was asked");
    let edns = u16::from(asked.edns.is_some());
    let answers = match &asked.due {
        Due::Found(addrs) => addrs.len() as u16,
        _ => 0,
    };
    let authority = u16::from(answers == 0);
    assert_eq!([number(4), number(6), number(8), number(10)], [1, answers, authority, edns]);
    let room = asked.edns.map_or(512, |(size, _)| size.clamp(512, 1232));
    assert!(reply.len() <= room.into());
    let mut at = asked.end;
    let mut found = BTreeSet::new();
    for _ in 0..answers {
        assert_eq!([number(at), number(at + 2), number(at + 4)], [0xc00c, asked.kind, 1]);
        assert_eq!(reply[at + 6..at + 10], 30_u32.to_be_bytes());
        let len = usize::from(number(at + 10));
        let data = &reply[at + 12..at + 12 + len];
        found.insert(match asked.kind {
            1 => IpAddr::from(<[u8; 4]>::try_from(data).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(data).unwrap()),
        });
        at += 12 + len;
    }
    if let Due::Found(due) = &asked.due {
        assert_eq!(&found, due);
    }
    if answers == 0 {
        let origin = number(at);
        assert_eq!(origin >> 14, 3);
        let (zone, end) = labels(reply, usize::from(origin & 0x3fff)).unwrap();
        assert_eq!((zone.join(&b'.'), end), (b"cluster.local".to_vec(), asked.end - 4));
        assert_eq!(number(at + 10), 42);
        at += 12 + 42;
    }
    if let Some((_, flags)) = asked.edns {
        let [high, low] = (flags & 0x8000).to_be_bytes();
        assert_eq!(reply[at..at + 11], [0, 0, 41, 4, 0xd0, 0, 0, high, low, 0, 0]);
        at += 11;
    }
    assert_eq!(at, reply.len(), "nothing behind");
}

#[test]
fn mutated_queries_get_what_is_due_or_nothing() {
    let (world, seeds) = (World::new(), seeds());
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut work = Box::new(Work::EMPTY);
    let (mut answered, mut denied) = (0, 0);
    for _ in 0..PACKETS {
        let query = mutate(&mut random, &seeds);
        let asked = asked(&world, &query);
        let reply = world.ask_in(&mut work, &query, random.next() as u32);
        let Some(asked) = asked.filter(|asked| asked.due != Due::Pass) else {
            assert!(reply.is_err(), "{query:x?} is answered with {reply:x?}");
            continue;
        };
        match reply {
            Ok(reply) => {
                check(&query, &asked, &reply);
                answered += 1;
                denied += usize::from(asked.due == Due::NoName);
            }
            Err(outcome) => {
                assert_eq!(outcome, Outcome::TooLong, "{query:x?} passes, {:?} is due", asked.due);
            }
        }
    }
    assert!(
        answered > PACKETS / 4 && denied > PACKETS / 20,
        "{answered} answered, {denied} denied"
    );
}

#[test]
fn random_names_of_the_zone_get_what_is_due() {
    let world = World::new();
    let words =
        ["web", "shop", "svc", "db", "db-0", "ext", "pod", "ns", "dns", "nosuch", "WEB", "emptyns"];
    let mut random = Random(99);
    let mut work = Box::new(Work::EMPTY);
    for _ in 0..PACKETS / 4 {
        let labels: Vec<&str> = (0..random.below(7)).map(|_| words[random.below(12)]).collect();
        let kind = ["A", "AAAA", "SRV", "TXT"][random.below(4)];
        let query = query(&labels.join("."), kind);
        assert_eq!(
            query[12..query.len() - 4],
            wire(&[&labels[..], &["cluster", "local"]].concat().join("."))
        );
        let asked = asked(&world, &query).unwrap();
        match world.ask_in(&mut work, &query, 0) {
            Ok(reply) => check(&query, &asked, &reply),
            Err(_) => assert_eq!(asked.due, Due::Pass, "{labels:?} {kind}"),
        }
    }
}
