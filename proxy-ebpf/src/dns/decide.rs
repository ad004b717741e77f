//! The decision: what a name has, or that there is none.
//!
//! A name does not exist if no name of its form could be one (docs/decisions/0009 has the whole tree):
//! Kubernetes' names have a fixed number of labels, and the tables have all of them.

use super::name::{NameKey, NameKind, NameValue};
use super::outcome::Outcome;
use super::zone::ZoneFlags;
use super::{A, AAAA, HEADER, Work, Zone, lower};

/// The names that are known.
pub trait Names {
    /// What is known of `key`, if anything is.
    fn name(&self, key: &NameKey) -> Lookup;
}

/// What a lookup finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The name, and its value.
    Found(NameValue),
    /// Nothing: there is no such name.
    Absent,
    /// Something of another name: the tables are changing.
    Unsure,
}

/// The type SOA (RFC 1035 section 3.2.2).
const SOA: u16 = 6;
/// How many words most names have at most.
const SHORT: usize = 6;
/// `\x03svc` and `\x03pod`, as the low half of a word.
const SVC: u32 = u32::from_le_bytes(*b"\x03svc");
const POD: u32 = u32::from_le_bytes(*b"\x03pod");

impl Work {
    /// Finds what is known of the name in question; what there are addresses of is in
    /// [`Work::value`].
    #[inline(always)]
    pub fn decide(&mut self, zone: &Zone, names: &impl Names) -> Outcome {
        let labels = self.question.labels;
        if labels == 0 {
            return Outcome::DnsService;
        }
        let last = lower(self.word(self.question.start(labels - 1)), 0, 8) as u32;
        if last == POD {
            return Outcome::DnsService;
        }
        let is_service = last == SVC;
        if is_service && labels == 1 {
            return self.no_data();
        }
        match self.look_up(HEADER, names) {
            Lookup::Unsure => Outcome::Changed,
            Lookup::Found(value) => self.found(value),
            Lookup::Absent if !is_service || labels <= 3 => self.deny(zone),
            Lookup::Absent => match self.look_up(self.question.start(labels - 3), names) {
                Lookup::Unsure => Outcome::Changed,
                Lookup::Absent => self.deny(zone),
                // Five labels are those of a port.
                Lookup::Found(value) if value.is(NameKind::Service) && labels != 5 => {
                    self.deny(zone)
                }
                Lookup::Found(_) => Outcome::DnsService,
            },
        }
    }

    /// Looks up what begins at `begin` and ends where the zone begins.
    #[inline(always)]
    fn look_up(&mut self, begin: usize, names: &impl Names) -> Lookup {
        let len = self.question.zone as usize - begin;
        for index in 0..SHORT {
            self.key.0[index] = lower(self.word(begin + index * 8), index, len);
        }
        if len > SHORT * 8 {
            for index in SHORT..self.key.0.len() {
                self.key.0[index] = lower(self.word(begin + index * 8), index, len);
            }
        } else {
            self.key.0[SHORT..].fill(0);
        }
        names.name(&self.key)
    }

    /// The outcome for a name that exists.
    #[inline(always)]
    fn found(&mut self, value: NameValue) -> Outcome {
        if value.is(NameKind::Namespace) {
            return self.no_data();
        }
        if !value.is(NameKind::Service) && !value.is(NameKind::Endpoint) {
            return Outcome::DnsService;
        }
        match self.question.kind {
            A | AAAA => {
                let v6 = self.question.kind == AAAA;
                self.value = value;
                if value.is_too_many(v6) {
                    Outcome::TooLong
                } else if value.records(v6).1 > 0 {
                    Outcome::Addresses
                } else {
                    Outcome::NoData
                }
            }
            // NS, CNAME, SOA, PTR, MX, TXT, DS, SVCB, HTTPS: what a service never has, and CoreDNS
            // says so too.
            2 | 5 | 6 | 12 | 15 | 16 | 43 | 64 | 65 => Outcome::NoData,
            _ => Outcome::DnsService,
        }
    }

    /// The outcome for a name that exists, but only above others.
    #[inline(always)]
    fn no_data(&self) -> Outcome {
        match self.question.kind {
            A | AAAA => Outcome::NoData,
            _ => Outcome::DnsService,
        }
    }

    /// The outcome for a name that does not exist. CoreDNS does not look whether it does if it is
    /// asked for an SOA record, and says that there is none.
    #[inline(always)]
    fn deny(&self, zone: &Zone) -> Outcome {
        if self.question.kind == SOA {
            Outcome::DnsService
        } else if zone.flags.has(ZoneFlags::SHADOW) {
            Outcome::Shadowed
        } else if zone.flags.has(ZoneFlags::DENY) {
            Outcome::NoName
        } else {
            Outcome::Unknown
        }
    }
}
