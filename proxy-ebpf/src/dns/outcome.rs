//! How the program ends that answers names; every exit is counted, by the type in question.

/// How a packet at the program ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Outcome {
    /// Answered with addresses (NOERROR).
    Addresses,
    /// Answered: the name exists and has no data of the type (NOERROR, no answer).
    NoData,
    /// Answered: there is no such name (NXDOMAIN).
    NoName,
    /// Passed: no query to the DNS service.
    NotQuery,
    /// Passed: answers are off, for all or for the pod, or the agent has not vouched for the
    /// names for a while.
    Off,
    /// Passed: the sender's address is not known to be the pod's.
    NotPod,
    /// Passed: the pod asks more often than it may.
    Limited,
    /// Passed: the headers or the message contradict themselves.
    Malformed,
    /// Passed: a form of query that only the DNS service answers.
    Unsupported,
    /// Passed: a name of another zone.
    OtherZone,
    /// Passed: a name or type of the zone that only the DNS service answers.
    DnsService,
    /// Passed: the name is unknown, and the kernel may not say so.
    Unknown,
    /// Passed: the name is unknown, and the kernel would say so if it were not only trying.
    Shadowed,
    /// Passed: the answer is too long for the asker.
    TooLong,
    /// Passed: the tables changed while they were read.
    Changed,
    /// Dropped: the kernel refused to make the reply of the query.
    Failed,
}

impl Outcome {
    /// All outcomes, in the order of their counters.
    pub const ALL: [Self; 16] = [
        Self::Addresses,
        Self::NoData,
        Self::NoName,
        Self::NotQuery,
        Self::Off,
        Self::NotPod,
        Self::Limited,
        Self::Malformed,
        Self::Unsupported,
        Self::OtherZone,
        Self::DnsService,
        Self::Unknown,
        Self::Shadowed,
        Self::TooLong,
        Self::Changed,
        Self::Failed,
    ];

    /// The name in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::NoData => "no_data",
            Self::NoName => "no_name",
            Self::NotQuery => "not_query",
            Self::Off => "off",
            Self::NotPod => "not_pod",
            Self::Limited => "limited",
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::OtherZone => "other_zone",
            Self::DnsService => "dns_service",
            Self::Unknown => "unknown",
            Self::Shadowed => "shadowed",
            Self::TooLong => "too_long",
            Self::Changed => "changed",
            Self::Failed => "failed",
        }
    }

    /// Whether the query is answered.
    #[inline(always)]
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Addresses | Self::NoData | Self::NoName)
    }

    /// The code of the reply (RFC 1035 section 4.1.1): NXDOMAIN or NOERROR.
    #[inline(always)]
    pub const fn code(self) -> u16 {
        if matches!(self, Self::NoName) { 3 } else { 0 }
    }
}

/// What is asked for, as far as counters tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Another type, or a packet that has none.
    Other,
}

impl Kind {
    /// All kinds, in the order of their counters.
    pub const ALL: [Self; 3] = [Self::A, Self::Aaaa, Self::Other];

    /// The kind of the type `number`.
    #[inline(always)]
    pub const fn of(number: u16) -> Self {
        match number {
            super::A => Self::A,
            super::AAAA => Self::Aaaa,
            _ => Self::Other,
        }
    }

    /// The name in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Other => "other",
        }
    }
}

/// How many counters there are: one for each kind and outcome.
pub const COUNTERS: u32 = (Kind::ALL.len() * Outcome::ALL.len()) as u32;

/// The index of the counter for `kind` and `outcome`.
#[inline(always)]
pub const fn counter_index(kind: Kind, outcome: Outcome) -> u32 {
    kind as u32 * Outcome::ALL.len() as u32 + outcome as u32
}
