//! Netfilter over netlink: tables, chains, rules and sets of nftables, the events of their changes,
//! and the entries of conntrack.
//!
//! Takes typed rules and elements, and gives typed lists, without the program `nft` and without
//! the libraries that it stands on (the kernel's `linux/netfilter/nf_tables.h` and
//! `linux/netfilter/nfnetlink_conntrack.h`). Knows nothing of Services: which rules there are, and
//! when they are written, is decided by its callers.

mod batch;
pub mod conntrack;
mod data;
mod dump;
mod events;
mod expr;
mod set;
mod socket;
mod wire;

pub use batch::{Batch, Chain, ChainKind, Hook, Policy, Rule, Table};
pub use data::{Data, Field, Type};
pub use dump::{Elements, RuleRow, TableRow};
pub use events::{Change, Event, Events, Object, Transaction};
pub use expr::{
    ConntrackKey, Expr, Fib, Header, MetaKey, NatFlags, Operator, Register, Reject, Verdict,
};
pub use set::{Interval, Set};
pub use socket::{Generation, NetlinkPort, Socket};

use std::{fmt, io};
use thiserror::Error;

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type.
const NFTABLES: u16 = 10 << 8;

/// The family of a table, or of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// `NFPROTO_IPV4`; nft calls it `ip`.
    Ipv4,
    /// `NFPROTO_IPV6`; nft calls it `ip6`.
    Ipv6,
}

impl Family {
    /// `NFPROTO_…`, which is the `AF_…` too.
    const fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Ipv4, Self::Ipv6].into_iter().find(|family| family.number() == number)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        })
    }
}

/// Why something could not be done in netfilter.
#[derive(Debug, Error)]
pub enum NetfilterError {
    /// A call of the kernel failed.
    #[error("cannot {0}")]
    Kernel(String, #[source] io::Error),
    /// The kernel refused an object of a transaction, and so the whole transaction.
    #[error(
        "nftables refuses to {object}{}{}",
        .reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
        if *.more > 0 { format!(", and {more} more in the same transaction") } else { String::new() }
    )]
    Refused {
        /// What was to be done, such as `add rule 3 of chain output of table ip shunt`.
        object: String,
        /// What the kernel says of it beside the number of the error.
        reason: Option<String>,
        /// How many more messages of the transaction it refused.
        more: usize,
        /// The kernel's error. `ENOENT`: something that is named is not there, such as an element
        /// that was to be deleted; `EBUSY`: an element is there with another value.
        #[source]
        source: io::Error,
    },
}

impl NetfilterError {
    /// Whether the kernel said `errno`, such as `libc::ENOENT`.
    pub fn is(&self, errno: i32) -> bool {
        let (Self::Kernel(_, source) | Self::Refused { source, .. }) = self;
        source.raw_os_error() == Some(errno)
    }
}
