//! A query in, CoreDNS's reply out, or that CoreDNS would ask another server.
//!
//! The rules are those of CoreDNS's plugin `kubernetes` and its helpers (plugin/backend_lookup.go),
//! with its quirks: clients were built against them. It takes only queries that are well formed,
//! and its replies are as long as they get. No I/O.

use super::zone::{Found, Target, Zone};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The size of messages that a server accepts over UDP (DNS Flag Day 2020).
const UDP_SIZE: u16 = 1232;
/// The longest time to live of the SOA in a negative answer.
const SOA_TTL: u32 = 300;
/// The version of the Kubernetes DNS specification, and how long it may be kept.
const DNS_VERSION: (&str, u32) = ("1.1.0", 28_800);
/// How many aliases in a row are followed.
const ALIASES: usize = 8;

/// What CoreDNS does for a query.
#[derive(Debug)]
pub(crate) enum Action {
    /// It sends this.
    Reply(Message),
    /// It asks another server the same.
    Forward,
    /// It asks another server for what the alias stands for, and adds that to the reply.
    Resolve(Message, Query),
}

/// What CoreDNS does for `query`, which has one question.
pub(crate) fn answer(zone: &Zone, query: &Message) -> Action {
    let [question] = query.queries.as_slice() else { return Action::Forward };
    if question.query_class() != DNSClass::IN {
        return Action::Forward;
    }
    match question.query_type() {
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR => return Action::Forward,
        _ => {}
    }
    let Ok(apex) = Name::from_ascii(format!("{}.", zone.settings.zone)) else {
        return Action::Forward;
    };
    let mut reply = reply_to(query, question);
    match (Lookup { zone, apex: &apex, question }).run() {
        Answer::Records(answers, extra) => {
            reply.answers = answers;
            reply.additionals = extra;
            Action::Reply(reply)
        }
        Answer::Alias(answers, target) => {
            reply.answers = answers;
            Action::Resolve(reply, Query::query(target, question.query_type()))
        }
        Answer::NoData => Action::Reply(negative(reply, zone, &apex)),
        Answer::NoName if zone.settings.deny => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            Action::Reply(negative(reply, zone, &apex))
        }
        Answer::NoName | Answer::NotOurs => Action::Forward,
    }
}

/// What is found for a question.
enum Answer {
    /// Records of the answer, and additional ones.
    Records(Vec<Record>, Vec<Record>),
    /// An alias that leads out of the zone.
    Alias(Vec<Record>, Name),
    NoData,
    NoName,
    NotOurs,
}

struct Lookup<'a> {
    zone: &'a Zone,
    apex: &'a Name,
    question: &'a Query,
}

impl Lookup<'_> {
    fn run(&self) -> Answer {
        let name = self.question.name();
        if !self.apex.zone_of(name) {
            return self.reverse();
        }
        let labels = self.labels(name);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let is_apex = labels.is_empty();
        match self.question.query_type() {
            RecordType::SOA if is_apex => {
                Answer::Records(vec![soa(self.zone, self.apex)], Vec::new())
            }
            // CoreDNS does not even look whether the name exists.
            RecordType::SOA => Answer::NoData,
            RecordType::NS if is_apex => self.name_servers(),
            RecordType::TXT => self.text(&labels),
            RecordType::A | RecordType::AAAA => self.addresses(&labels, Vec::new()),
            RecordType::SRV => self.services(&labels),
            RecordType::CNAME => match self.zone.find(&labels) {
                Found::Alias(target) => match absolute(target) {
                    Some(target) => Answer::Records(vec![self.alias(name, target)], Vec::new()),
                    None => Answer::NoName,
                },
                found => existence(&found),
            },
            _ => existence(&self.zone.find(&labels)),
        }
    }

    /// The labels of `name` in lower case, without those of the zone. One that is no text can be
    /// no name here, and is made one that is none.
    fn labels(&self, name: &Name) -> Vec<String> {
        let own = usize::from(name.num_labels() - self.apex.num_labels());
        let labels = name.iter().take(own);
        labels.map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.zone.settings.ttl, data)
    }

    fn alias(&self, name: &Name, target: Name) -> Record {
        self.record(name, RData::CNAME(CNAME(target)))
    }

    fn address(&self, name: &Name, addr: IpAddr) -> Record {
        self.record(
            name,
            match addr {
                IpAddr::V4(addr) => RData::A(A(addr)),
                IpAddr::V6(addr) => RData::AAAA(AAAA(addr)),
            },
        )
    }

    /// The addresses that the labels lead to, behind the aliases that were followed so far.
    fn addresses(&self, labels: &[&str], mut answers: Vec<Record>) -> Answer {
        let name = answers.last().and_then(alias_target).unwrap_or(self.question.name()).clone();
        match self.zone.find(labels) {
            Found::Alias(target) => {
                let Some(target) = absolute(target) else { return Answer::NoName };
                let known = |record: &Record| alias_target(record) == Some(&target);
                if name == target || answers.len() >= ALIASES || answers.iter().any(known) {
                    return Answer::NoData;
                }
                answers.push(self.alias(&name, target.clone()));
                if !self.apex.zone_of(&target) {
                    return Answer::Alias(answers, target);
                }
                let labels = self.labels(&target);
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                match self.addresses(&labels, answers) {
                    // Nothing behind the alias: CoreDNS keeps it to itself.
                    Answer::NoName if self.zone.settings.deny => Answer::NoData,
                    Answer::NoName => Answer::NotOurs,
                    other => other,
                }
            }
            Found::Records(targets) => {
                let v4 = self.question.query_type() == RecordType::A;
                let addrs = targets.iter().map(|target| target.addr);
                let addrs: BTreeSet<_> = addrs.filter(|addr| addr.is_ipv4() == v4).collect();
                if addrs.is_empty() {
                    return Answer::NoData;
                }
                let found: Vec<_> =
                    addrs.into_iter().map(|addr| self.address(&name, addr)).collect();
                answers.extend(found);
                Answer::Records(answers, Vec::new())
            }
            found => existence(&found),
        }
    }

    fn services(&self, labels: &[&str]) -> Answer {
        let targets = match self.zone.find(labels) {
            Found::Records(targets) => targets,
            found => return existence(&found),
        };
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(0).max(1);
        let (mut answers, mut extra) = (Vec::new(), Vec::new());
        let (mut known, mut known_extra) = (BTreeSet::new(), BTreeSet::new());
        for (target, port) in targets.iter().filter_map(|target| Some((target, target.port?))) {
            let Some(name) = self.name_of(target) else { continue };
            if known.insert((name.clone(), port)) {
                let data = SRV::new(0, weight, port, name.clone());
                answers.push(self.record(self.question.name(), RData::SRV(data)));
            }
            if known_extra.insert((name.clone(), target.addr)) {
                extra.push(self.address(&name, target.addr));
            }
        }
        if answers.is_empty() { Answer::NoData } else { Answer::Records(answers, extra) }
    }

    fn name_servers(&self) -> Answer {
        let (mut answers, mut extra) = (Vec::new(), Vec::new());
        let mut known = BTreeSet::new();
        let mut known_extra = BTreeSet::new();
        for target in self.zone.name_servers() {
            let Some(name) = self.name_of(&target) else { continue };
            if known.insert(name.clone()) {
                let data = RData::NS(NS(name.clone()));
                answers.push(self.record(self.question.name(), data));
            }
            if known_extra.insert(target.addr) {
                extra.push(self.address(&name, target.addr));
            }
        }
        if answers.is_empty() { Answer::NotOurs } else { Answer::Records(answers, extra) }
    }

    /// The own name of an address, in the zone.
    fn name_of(&self, target: &Target<'_>) -> Option<Name> {
        Name::from_ascii(format!("{}.{}.", target.name(), self.zone.settings.zone)).ok()
    }

    /// A name without records does not exist, to who asks for text.
    fn text(&self, labels: &[&str]) -> Answer {
        let (version, ttl) = DNS_VERSION;
        match (labels, self.zone.find(labels)) {
            (["dns-version"], _) => {
                let data = RData::TXT(TXT::new(vec![version.to_owned()]));
                let record = Record::from_rdata(self.question.name().clone(), ttl, data);
                Answer::Records(vec![record], Vec::new())
            }
            (["ns", "dns"], _) => Answer::NoName,
            (_, Found::Records(targets)) if targets.is_empty() => Answer::NoName,
            (_, found) => existence(&found),
        }
    }

    fn reverse(&self) -> Answer {
        let name = self.question.name();
        let addr = match self.question.query_type() {
            RecordType::PTR => reversed_addr(name),
            _ => None,
        };
        let names = addr.map(|addr| self.zone.names_of(addr)).unwrap_or_default();
        let record = |text: String| {
            let target = Name::from_ascii(format!("{text}.{}.", self.zone.settings.zone)).ok()?;
            Some(self.record(name, RData::PTR(PTR(target))))
        };
        let answers: Vec<_> = names.into_iter().filter_map(record).collect();
        if answers.is_empty() { Answer::NotOurs } else { Answer::Records(answers, Vec::new()) }
    }
}

/// For a type that has no records here: whether the name exists.
fn existence(found: &Found<'_>) -> Answer {
    match found {
        Found::Records(_) | Found::Alias(_) => Answer::NoData,
        Found::Nothing => Answer::NoName,
        Found::Unknown => Answer::NotOurs,
    }
}

fn alias_target(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::CNAME(CNAME(target)) => Some(target),
        _ => None,
    }
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for, if it is a whole one.
fn reversed_addr(name: &Name) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

fn soa(zone: &Zone, apex: &Name) -> Record {
    let settings = &zone.settings;
    let within = |label: &str| apex.prepend_label(label).unwrap_or_else(|_| apex.clone());
    let server = within("dns").prepend_label("ns").unwrap_or_else(|_| apex.clone());
    let data =
        SOA::new(server, within("hostmaster"), settings.serial, 7200, 1800, 86400, settings.ttl);
    Record::from_rdata(apex.clone(), settings.ttl.min(SOA_TTL), RData::SOA(data))
}

fn negative(mut reply: Message, zone: &Zone, apex: &Name) -> Message {
    reply.answers.clear();
    let name = reply.queries.first().map(Query::name);
    // Written as the client wrote it, so that it need not be written twice.
    let owner =
        name.map_or_else(|| apex.clone(), |name| name.trim_to(usize::from(apex.num_labels())));
    reply.add_authority(soa(zone, &owner));
    reply
}

fn reply_to(query: &Message, question: &Query) -> Message {
    let asked = &query.metadata;
    let mut reply = Message::new(asked.id, MessageType::Response, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = asked.recursion_desired;
    reply.metadata.checking_disabled = asked.checking_disabled;
    reply.add_query(question.clone());
    if let Some(edns) = &query.edns {
        let mut own = Edns::new();
        own.set_max_payload(UDP_SIZE);
        own.set_dnssec_ok(edns.flags().dnssec_ok);
        reply.set_edns(own);
    }
    reply
}
