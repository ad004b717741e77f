//! Outcomes: every exit of every program is one of these, and is counted.

/// A kernel program, or a pair that differs in the family only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Program {
    /// `connect4` and `connect6`.
    Connect,
    /// `sendmsg4` and `sendmsg6`.
    Sendmsg,
    /// `recvmsg4` and `recvmsg6`.
    Recvmsg,
    /// `getpeername4` and `getpeername6`.
    Getpeername,
    /// The packet path at tcx ingress.
    Ingress,
    /// The packet path at tcx egress.
    Egress,
}

impl Program {
    /// All programs, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::Sendmsg,
        Self::Recvmsg,
        Self::Getpeername,
        Self::Ingress,
        Self::Egress,
    ];

    /// The name in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Sendmsg => "sendmsg",
            Self::Recvmsg => "recvmsg",
            Self::Getpeername => "getpeername",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Outcome {
    /// The address is no service's, or the packet belongs to no flow: left alone.
    NotOurs,
    /// A new connection or flow was given a backend.
    Chosen,
    /// A known flow, or a UDP socket's known destination, was translated.
    Matched,
    /// Refused: no endpoint of the service is usable.
    NoEndpoint,
    /// Refused: the address is a ClusterIP, but no Service has this port of it.
    NoPort,
    /// Dropped: the traffic policy wants a local endpoint and there is none.
    NoLocalEndpoint,
    /// Dropped: the source is none of those that the load balancer's address is open to.
    SourceNotAllowed,
    /// Dropped: the address lies in a ServiceCIDR, and no Service has it.
    Unallocated,
    /// Dropped: a packet was about to leave the node for a ClusterIP that nothing translated.
    Untranslated,
    /// A fragment or a header that the packet path does not read: left alone.
    Unsupported,
    /// A packet whose headers are cut off or contradict themselves: left alone.
    Malformed,
    /// A new flow was given a backend and, since its client's port was another flow's there,
    /// another port to be seen from.
    PortChanged,
    /// Dropped: as before, but with a protocol whose ports cannot be changed: SCTP.
    Collision,
    /// Dropped: every port of the SNAT range towards the backend is in use.
    SnatExhausted,
    /// Dropped: the device that the packet leaves by has no address of the family.
    NoSnatAddress,
    /// The flow table or the socket storage took no entry. The packet path drops; the socket
    /// path goes on, and the socket sees the backend's address.
    TableFull,
    /// Dropped: the kernel refused to rewrite the packet.
    RewriteFailed,
    /// A frontend named slots that are not there. Left alone; the agent's drift check heals it.
    Inconsistent,
}

impl Outcome {
    /// All outcomes, in the order of their counters.
    pub const ALL: [Self; 18] = [
        Self::NotOurs,
        Self::Chosen,
        Self::Matched,
        Self::NoEndpoint,
        Self::NoPort,
        Self::NoLocalEndpoint,
        Self::SourceNotAllowed,
        Self::Unallocated,
        Self::Untranslated,
        Self::Unsupported,
        Self::Malformed,
        Self::PortChanged,
        Self::Collision,
        Self::SnatExhausted,
        Self::NoSnatAddress,
        Self::TableFull,
        Self::RewriteFailed,
        Self::Inconsistent,
    ];

    /// The name in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::Chosen => "chosen",
            Self::Matched => "matched",
            Self::NoEndpoint => "no_endpoint",
            Self::NoPort => "no_port",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::Unallocated => "unallocated",
            Self::Untranslated => "untranslated",
            Self::Unsupported => "unsupported",
            Self::Malformed => "malformed",
            Self::PortChanged => "port_changed",
            Self::Collision => "collision",
            Self::SnatExhausted => "snat_exhausted",
            Self::NoSnatAddress => "no_snat_address",
            Self::TableFull => "table_full",
            Self::RewriteFailed => "rewrite_failed",
            Self::Inconsistent => "inconsistent",
        }
    }
}

/// How many outcome counters there are: one for each program and outcome.
pub const COUNTERS: u32 = (Program::ALL.len() * Outcome::ALL.len()) as u32;

/// The index of the counter for `program` and the outcome of number `outcome`.
#[inline(always)]
pub const fn counter_index(program: Program, outcome: u32) -> u32 {
    program as u32 * Outcome::ALL.len() as u32 + outcome
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_program_and_outcome_has_a_counter_of_its_own() {
        let indices: HashSet<u32> = Program::ALL
            .iter()
            .flat_map(|&p| Outcome::ALL.iter().map(move |&o| counter_index(p, o as u32)))
            .collect();
        assert_eq!(indices.len() as u32, COUNTERS);
        assert!(indices.iter().all(|&index| index < COUNTERS));
    }
}
