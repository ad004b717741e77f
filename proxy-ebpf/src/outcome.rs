//! Outcomes: every exit of every program is one of these, and is counted.

/// A kernel program, or a pair that differs in the family only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Program {
    /// `connect4` and `connect6`.
    Connect,
    /// `getpeername4` and `getpeername6`.
    Getpeername,
    /// `ingress` and `ingress_bare`, at the devices.
    Ingress,
}

impl Program {
    /// All programs, in the order of their counters.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Getpeername, Self::Ingress];

    /// The name in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Getpeername => "getpeername",
            Self::Ingress => "ingress",
        }
    }
}

/// How a program ended. What is refused or dropped is so for what conntrack takes for a new
/// connection only: the program cannot tell, and netfilter does what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Outcome {
    /// The address is no service's, or the packet opens no connection: left alone.
    NotOurs,
    /// A connection or a datagram was given a backend.
    Chosen,
    /// A socket asked for its peer, and was told what it had asked for.
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
    /// Extension headers that the packet path does not read: left alone.
    Unsupported,
    /// A packet whose headers are cut off or contradict themselves: left alone.
    Malformed,
    /// A socket of a pod that the packet path serves better: it has bound its port, or its pod opts
    /// out of the socket path.
    LeftToPackets,
    /// The ring of peers has no place for the socket, which sees the backend's address.
    TableFull,
    /// A frontend named slots that are not there. Left alone; the agent's drift check heals it.
    Inconsistent,
}

impl Outcome {
    /// All outcomes, in the order of their counters.
    pub const ALL: [Self; 13] = [
        Self::NotOurs,
        Self::Chosen,
        Self::Matched,
        Self::NoEndpoint,
        Self::NoPort,
        Self::NoLocalEndpoint,
        Self::SourceNotAllowed,
        Self::Unallocated,
        Self::Unsupported,
        Self::Malformed,
        Self::LeftToPackets,
        Self::TableFull,
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
            Self::Unsupported => "unsupported",
            Self::Malformed => "malformed",
            Self::LeftToPackets => "left_to_packets",
            Self::TableFull => "table_full",
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
