//! The entries of conntrack: listed one by one, counted, and deleted.
//!
//! Speaks the kernel's `linux/netfilter/nfnetlink_conntrack.h`. A list is no picture of one moment:
//! entries come and go while it is read, and one may be told of twice.

use super::socket::Request;
use super::wire::{Attributes, Message, Writer};
use super::{Family, NetfilterError, Socket};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use std::{fmt, io};

/// `NFNL_SUBSYS_CTNETLINK`, in the upper byte of a message's type.
const CONNTRACK: u16 = 1 << 8;
const CT_GET: u16 = CONNTRACK | 1;
const CT_DELETE: u16 = CONNTRACK | 2;
const CT_GET_STATS: u16 = CONNTRACK | 5;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM` of the kernel's net/netfilter/nf_internals.h.
const FILTER_PROTO: u32 = 1 << 3;

/// Addresses and ports of one direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple {
    /// The number of the protocol above IP.
    pub proto: u8,
    /// Where its packets come from. The port is zero if the protocol has none.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

/// What identifies an entry.
///
/// A later entry for the same addresses and ports has another id as a rule, but the same one where
/// it got the same place in memory (`nf_ct_get_id` in the kernel).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The direction of the first packet, as it came.
    pub original: Tuple,
    /// Its zone; zero but for those who use zones.
    pub zone: u16,
    /// A number that the kernel makes of the entry's place in memory and its addresses.
    pub id: u32,
}

/// Bits of an entry's status (`IPS_…`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Status(pub u32);

/// What the first packet and its answers have come to (`TCP_CONNTRACK_…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum TcpState {
    None,
    SynSent,
    SynReceived,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    SynSent2,
}

/// What has passed in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, with IP's header.
    pub bytes: u64,
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// The direction of the answers, as they come: from where the connection was translated to.
    pub reply: Tuple,
    /// Its status.
    pub status: Status,
    /// How long it stays without another packet; none if it was taken over by a flow table.
    pub timeout: Option<Duration>,
    /// Its mark.
    pub mark: u32,
    /// Its state, if it is TCP's.
    pub tcp: Option<TcpState>,
    /// What has passed, as it was begun and in reply; only with `nf_conntrack_acct`.
    pub counters: Option<[Counters; 2]>,
}

/// Which entries are wanted: those that are all of it. The kernel hands out no others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Filter {
    /// Of this family.
    pub family: Option<Family>,
    /// Of this protocol above IP.
    pub proto: Option<u8>,
    /// With all of these bits.
    pub status: Status,
    /// With this mark (the first) in these bits (the second).
    pub mark: Option<(u32, u32)>,
}

/// How full the table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Usage {
    /// How many entries there are in this network namespace (`nf_conntrack_count`).
    pub entries: u32,
    /// How many there can be (`nf_conntrack_max`).
    pub max: u32,
}

impl Usage {
    /// How full, in percent.
    pub fn percent(&self) -> u32 {
        let percent = u64::from(self.entries) * 100 / u64::from(self.max.max(1));
        percent.try_into().unwrap_or(u32::MAX)
    }
}

impl Status {
    /// It has been answered.
    pub const SEEN_REPLY: Self = Self(1 << 1);
    /// It is not among the first to go when the table is full.
    pub const ASSURED: Self = Self(1 << 2);
    /// Its source is translated.
    pub const SOURCE_NAT: Self = Self(1 << 4);
    /// Its destination is translated.
    pub const DESTINATION_NAT: Self = Self(1 << 5);
    /// A flow table has taken it over.
    pub const OFFLOAD: Self = Self(1 << 14);

    /// Whether it has all bits of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Tuple {
    fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    fn read(tuple: Attributes<'_>) -> Option<Self> {
        let (ip, proto) = (tuple.nest(CTA_TUPLE_IP), tuple.nest(CTA_TUPLE_PROTO));
        let v4 = |kind| ip.find(kind)?.first_chunk::<4>().map(|addr| IpAddr::from(*addr));
        let v6 = |kind| ip.find(kind)?.first_chunk::<16>().map(|addr| IpAddr::from(*addr));
        let port = |kind| proto.half(kind).unwrap_or_default();
        let end = |v4_kind, v6_kind, port_kind| {
            Some(SocketAddr::new(v4(v4_kind).or_else(|| v6(v6_kind))?, port(port_kind)))
        };
        Some(Self {
            proto: proto.byte(CTA_PROTO_NUM)?,
            source: end(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
            destination: end(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
        })
    }

    fn write(&self, writer: &mut Writer) {
        let addr = |w: &mut Writer, v4, v6, addr| match addr {
            IpAddr::V4(addr) => w.bytes(v4, &addr.octets()),
            IpAddr::V6(addr) => w.bytes(v6, &addr.octets()),
        };
        writer.nest(CTA_TUPLE_IP, |w| {
            addr(w, CTA_IP_V4_SRC, CTA_IP_V6_SRC, self.source.ip());
            addr(w, CTA_IP_V4_DST, CTA_IP_V6_DST, self.destination.ip());
        });
        writer.nest(CTA_TUPLE_PROTO, |w| {
            w.byte(CTA_PROTO_NUM, self.proto);
            w.half(CTA_PROTO_SRC_PORT, self.source.port());
            w.half(CTA_PROTO_DST_PORT, self.destination.port());
        });
    }
}

impl TcpState {
    /// In the order of the kernel's numbers.
    const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];
}

impl Entry {
    fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let counters = |kind| {
            let counters = Attributes(attributes.find(kind)?);
            Some(Counters { packets: counters.double(1)?, bytes: counters.double(2)? })
        };
        let tcp = attributes.nest(CTA_PROTOINFO).nest(CTA_PROTOINFO_TCP);
        let tcp = tcp.byte(CTA_PROTOINFO_TCP_STATE);
        Some(Self {
            key: Key {
                original: Tuple::read(attributes.nest(CTA_TUPLE_ORIG))?,
                zone: attributes.half(CTA_ZONE).unwrap_or_default(),
                id: attributes.word(CTA_ID)?,
            },
            reply: Tuple::read(attributes.nest(CTA_TUPLE_REPLY))?,
            status: Status(attributes.word(CTA_STATUS).unwrap_or_default()),
            timeout: attributes.word(CTA_TIMEOUT).map(|secs| Duration::from_secs(secs.into())),
            mark: attributes.word(CTA_MARK).unwrap_or_default(),
            tcp: tcp.and_then(|state| TcpState::ALL.get(usize::from(state)).copied()),
            counters: counters(CTA_COUNTERS_ORIG).zip(counters(CTA_COUNTERS_REPLY)).map(Into::into),
        })
    }
}

impl Filter {
    /// What the kernel is to look for; it can tell protocols within one family only.
    fn write(&self, writer: &mut Writer) {
        if self.status != Status::default() {
            writer.word(CTA_STATUS, self.status.0);
            writer.word(CTA_STATUS_MASK, self.status.0);
        }
        if let Some((mark, mask)) = self.mark {
            writer.word(CTA_MARK, mark);
            writer.word(CTA_MARK_MASK, mask);
        }
        if let Some(proto) = self.proto.filter(|_| self.family.is_some()) {
            writer.nest(CTA_TUPLE_ORIG, |w| {
                w.nest(CTA_TUPLE_PROTO, |w| w.byte(CTA_PROTO_NUM, proto));
            });
            writer.nest(CTA_FILTER, |w| {
                w.bytes(CTA_FILTER_ORIG_FLAGS, &FILTER_PROTO.to_ne_bytes());
            });
        }
    }

    /// Whether `entry` is wanted: for what the kernel cannot tell.
    fn wants(&self, entry: &Entry) -> bool {
        self.family.is_none_or(|family| family == entry.key.original.family())
            && self.proto.is_none_or(|proto| proto == entry.key.original.proto)
            && entry.status.contains(self.status)
            && self.mark.is_none_or(|(mark, mask)| entry.mark & mask == mark & mask)
    }
}

impl Socket {
    /// Hands the entries that `filter` wants to `take`, as they are read.
    pub fn connections(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(Entry),
    ) -> Result<(), NetfilterError> {
        let family = filter.family.map_or(0, Family::number);
        let list = Request { kind: CT_GET, family };
        self.list(
            list,
            |w| filter.write(w),
            |message| {
                Entry::read(message)
                    .filter(|entry| filter.wants(entry))
                    .into_iter()
                    .for_each(&mut take);
            },
        )
        .map(|_| ())
        .map_err(|e| NetfilterError::Kernel("list the entries of conntrack".to_owned(), e))
    }

    /// Deletes an entry of a protocol with ports. Returns whether it was there: it may have ended,
    /// and an entry that has come in its stead stays if its id is another.
    pub fn delete_connection(&mut self, key: &Key) -> Result<bool, NetfilterError> {
        let delete = Request { kind: CT_DELETE, family: key.original.family().number() };
        let deleted = self.ask(
            delete,
            |w| {
                w.nest(CTA_TUPLE_ORIG, |w| key.original.write(w));
                w.word(CTA_ID, key.id);
                if key.zone != 0 {
                    w.half(CTA_ZONE, key.zone);
                }
            },
            |_| (),
        );
        match deleted {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => {
                let delete = format!("delete the conntrack entry of {}", key.original);
                Err(NetfilterError::Kernel(delete, e))
            }
        }
    }

    /// How full the table is.
    pub fn conntrack_usage(&mut self) -> Result<Usage, NetfilterError> {
        let mut usage = None;
        self.ask(
            Request { kind: CT_GET_STATS, family: 0 },
            |_| (),
            |message| {
                let attributes = message.attributes();
                let words = attributes.word(1).zip(attributes.word(2));
                usage = words.map(|(entries, max)| Usage { entries, max });
            },
        )
        .and_then(|()| usage.ok_or_else(|| io::ErrorKind::InvalidData.into()))
        .map_err(|e| NetfilterError::Kernel("read how full conntrack is".to_owned(), e))
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} (protocol {})", self.source, self.destination, self.proto)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Head, messages};
    use super::*;

    #[test]
    fn a_tuple_is_read_as_it_was_written() {
        for [source, destination] in
            [["10.0.0.1:1000", "10.96.0.1:53"], ["[fd00::1]:1000", "[fd00:96::1]:53"]]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let tuple = Tuple { proto: 17, source, destination };
            let mut writer = Writer::default();
            let head = Head { kind: CT_GET, flags: 0, sequence: 1, family: 2, resource: 0 };
            writer.message(head, |w| w.nest(CTA_TUPLE_ORIG, |w| tuple.write(w)));
            let message = messages(writer.as_slice()).next().unwrap();
            assert_eq!(Tuple::read(message.attributes().nest(CTA_TUPLE_ORIG)), Some(tuple));
        }
    }
}
