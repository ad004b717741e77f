//! `shunt dns`: what a query of a name gets, who answers it, and why.
//!
//! The kernel's part is decided by the same code that runs in the kernel, over the same maps. It
//! asks nobody: what the DNS service says is not known here.

use super::{Document, Output};
use crate::pinned::{PinnedError, PinnedMaps};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use proxy_ebpf::Addr;
use proxy_ebpf::dns::zone::ZoneFlags;
use proxy_ebpf::dns::{Outcome, READ, Work, Zone};
use proxy_ebpf::node::Device;
use serde::Serialize;
use std::net::IpAddr;

/// A question, as a pod would send it.
#[derive(Clone, Debug)]
pub struct NameQuestion {
    /// The name, complete.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// The pod that asks; without, any.
    pub from: Option<IpAddr>,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NameAnswer {
    /// The name that is asked for.
    pub name: String,
    /// The type that is asked for.
    pub r#type: String,
    /// Who answers: `kernel` or `DNS service`.
    pub answered_by: &'static str,
    /// How the program in the kernel ends.
    pub outcome: &'static str,
    /// The code of the reply; absent if it is not known here.
    pub code: Option<String>,
    /// The records of the answer.
    pub records: Vec<String>,
    /// Why, one reason after the other.
    pub reasons: Vec<String>,
}

impl NameQuestion {
    /// The query's bytes.
    fn query(&self) -> Option<Vec<u8>> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.kind));
        message.to_vec().ok()
    }
}

/// What the kernel makes of `question` at `now`, in nanoseconds of the monotonic clock.
///
/// # Errors
///
/// If a map cannot be read.
pub fn name_answer(
    maps: &PinnedMaps,
    question: &NameQuestion,
    now: u64,
) -> Result<NameAnswer, PinnedError> {
    let zone = maps.zone()?;
    let mut work = Box::new(Work::EMPTY);
    let outcome = pod_outcome(maps, question, &zone, now)?
        .map_or_else(|| decide(maps, question, &zone, &mut work), Ok)
        .unwrap_or_else(|outcome| outcome);
    let v6 = question.kind == RecordType::AAAA;
    let records = match outcome {
        Outcome::Addresses => maps.records(work.value, v6)?,
        _ => Vec::new(),
    };
    let code = outcome.is_answer().then(|| match outcome.code() {
        0 => "NOERROR".to_owned(),
        _ => "NXDOMAIN".to_owned(),
    });
    let mut reasons = vec![reason(outcome, &zone).to_owned()];
    if !outcome.is_answer() {
        reasons.push("so it goes on to the endpoints of the DNS service".to_owned());
    }
    Ok(NameAnswer {
        name: question.name.to_string(),
        r#type: question.kind.to_string(),
        answered_by: if outcome.is_answer() { "kernel" } else { "DNS service" },
        outcome: outcome.name(),
        code,
        records: records.into_iter().map(|addr| IpAddr::from(addr).to_string()).collect(),
        reasons,
    })
}

/// How the program ends before it reads the query, if it does.
fn pod_outcome(
    maps: &PinnedMaps,
    question: &NameQuestion,
    zone: &Zone,
    now: u64,
) -> Result<Option<Outcome>, PinnedError> {
    if !zone.answers(now) {
        return Ok(Some(Outcome::Off));
    }
    let Some(from) = question.from.map(Addr::from) else { return Ok(None) };
    let Some(index) = maps.pod_device(from) else { return Ok(Some(Outcome::NotPod)) };
    let answers = maps.devices()?.get(&index).is_some_and(Device::answers_names);
    Ok((!answers).then_some(Outcome::Off))
}

fn decide(
    maps: &PinnedMaps,
    question: &NameQuestion,
    zone: &Zone,
    work: &mut Work,
) -> Result<Outcome, Outcome> {
    let query = question.query().ok_or(Outcome::Malformed)?;
    let mut bytes = [0; READ];
    let len = query.len().min(READ);
    bytes[..len].copy_from_slice(&query[..len]);
    let (words, _) = bytes.as_chunks();
    for (word, bytes) in work.query.iter_mut().zip(words) {
        *word = u64::from_le_bytes(*bytes);
    }
    work.read(query.len(), zone)?;
    Ok(work.decide(zone, maps))
}

const fn reason(outcome: Outcome, zone: &Zone) -> &'static str {
    match outcome {
        Outcome::Addresses => "the kernel knows the name and its addresses",
        Outcome::NoData => "the kernel knows that the name exists, and has nothing of the type",
        Outcome::NoName => "the kernel knows all names of this form, and this is none of them",
        Outcome::Off if !zone.flags.has(ZoneFlags::ON) => "no names are answered here (--dns=off)",
        Outcome::Off => {
            "the kernel does not answer: no agent has said of late that its names are good, or the \
             pod opted out"
        }
        Outcome::NotPod => "the sender is not known to be a pod of this node",
        Outcome::OtherZone => "the name is not one of the cluster's zone",
        Outcome::DnsService => "the kernel leaves names and types of this kind to the DNS service",
        Outcome::Unknown => "the kernel does not know the name, and may not say that it is none",
        Outcome::Shadowed => {
            "the kernel would deny the name, and only counts it (--dns-deny=shadow)"
        }
        Outcome::TooLong => "the answer does not fit into the reply that the asker takes",
        Outcome::Changed => "the names changed while they were read",
        Outcome::Unsupported | Outcome::Malformed => {
            "the kernel does not take queries of this form"
        }
        Outcome::NotQuery => "it is no query to the DNS service",
        Outcome::Limited => "the pod asks more often than it may",
        Outcome::Failed => "the kernel could not make the reply",
    }
}

impl NameAnswer {
    /// Whether a name was found, with data or without; `None` if it is not known here.
    pub fn exists(&self) -> Option<bool> {
        self.code.as_ref().map(|code| code == "NOERROR")
    }
}

impl Document for NameAnswer {
    fn text(&self, _: Output) -> String {
        let mut text = format!("{:<10}{} {}\n", "Question", self.name, self.r#type);
        text += &format!("{:<10}{}\n", "From", self.answered_by);
        if let Some(code) = &self.code {
            text += &format!("{:<10}{code}\n", "Code");
        }
        for record in &self.records {
            text += &format!("{:<10}{record}\n", "Answer");
        }
        for reason in &self.reasons {
            text += &format!("{:<10}{reason}\n", "Because");
        }
        text
    }
}
