//! Reading the headers of a packet: which flow it belongs to.
//!
//! A packet of TCP, UDP or SCTP says so itself, and a later fragment after its first one. An ICMP
//! error belongs to the flow of the packet that it quotes: it travels like a reply to that.

pub mod answer;
pub mod ip;

use crate::addr::{Addr, Port, Proto};
use crate::flow::End;
use answer::ICMP_LEN;
use ip::{Fragment, FragmentId, Network};

/// A packet that can be read at an offset from its first byte.
pub trait Packet {
    /// The `N` words at `offset`, as they lie in the packet, or `None` if it is shorter.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
}

/// What the packet path needs to know of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// The sender; for an ICMP error, the receiver of the quoted packet.
    pub src: End,
    /// The receiver; for an ICMP error, the sender of the quoted packet.
    pub dst: End,
    /// The transport protocol; for an ICMP error, that of the quoted packet.
    pub proto: Proto,
    /// Where the network header begins that has these addresses, in bytes from the first byte of
    /// the packet.
    pub network: usize,
    /// Where the transport header begins that has these ports, in bytes from the first byte of
    /// the packet.
    pub transport: usize,
    /// TCP's flags, and those of a SYN for SCTP's INIT, which opens an association as that opens
    /// a connection; 0 for all other packets, or where they are not known.
    pub tcp_flags: TcpFlags,
    /// What kind of packet it is.
    pub form: Form,
    /// Of a fragment, the packet that it is of; means nothing for all other packets.
    pub fragment: FragmentId,
    /// Where the packet's own network header begins. An ICMP error has another one, which these
    /// headers are of, behind it and behind its ICMP header.
    pub outer: usize,
}

/// What a first look at a packet tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peek {
    /// The sender.
    pub src: End,
    /// The receiver.
    pub dst: End,
    /// TCP or UDP.
    pub proto: Proto,
}

/// How a packet belongs to its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// It is a packet of its own.
    Whole,
    /// It is the first fragment of one, with the transport header.
    First,
    /// It is another fragment. Its ports (and in IPv6 the protocol) are those of the first one,
    /// and not known from the packet: 0.
    Later,
    /// It is an ICMP error, and its headers are those of the packet that it quotes, in reverse.
    Error,
}

impl Headers {
    /// Whether a flow can begin with the packet, or change its state.
    #[inline(always)]
    pub const fn has_transport(&self) -> bool {
        matches!(self.form, Form::Whole | Form::First)
    }
}

/// The flag byte of a TCP header (RFC 9293 section 3.1), or what stands for it in SCTP.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// SYN alone.
    pub const SYN: Self = Self(0x02);

    /// Whether the segment opens a connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & 0x12 == 0x02
    }

    /// Whether ACK is set.
    #[inline(always)]
    pub const fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// Whether SYN is set.
    #[inline(always)]
    pub const fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }

    /// Whether FIN is set.
    #[inline(always)]
    pub const fn fin(self) -> bool {
        self.0 & 0x01 != 0
    }

    /// Whether RST is set.
    #[inline(always)]
    pub const fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }
}

/// Why a packet has no [`Headers`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// Neither IP nor a protocol that a service can have.
    NotOurs,
    /// Extension headers that are not read, or a fragment whose first one is not known.
    Unsupported,
    /// The packet ends within a header, or a header contradicts itself.
    Malformed,
}

/// The Ethernet type of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// The Ethernet type of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

/// A first look at a packet of TCP or UDP that is whole and has nothing between its network header
/// and its ports, as nearly all are; `None` for any other, which [`read`] has to read.
#[inline(always)]
pub fn peek<P: Packet>(packet: &P, ethertype: u16, network: usize) -> Option<Peek> {
    let (proto, src, dst, ports);
    if ethertype == ETH_P_IP {
        let header: [u32; 6] = packet.load(network)?;
        // Version 4, five words of header, and neither an offset nor more fragments.
        if header[0].to_ne_bytes()[0] != 0x45 || header[1] & FRAGMENT_BITS != 0 {
            return None;
        }
        proto = header[2].to_ne_bytes()[1];
        (src, dst) = (Addr::from_v4_word(header[3]), Addr::from_v4_word(header[4]));
        ports = header[5];
    } else if ethertype == ETH_P_IPV6 {
        let header: [u32; 11] = packet.load(network)?;
        let [_, next, s0, s1, s2, s3, d0, d1, d2, d3, both] = header;
        proto = next.to_ne_bytes()[2];
        (src, dst) = (Addr::from_words([s0, s1, s2, s3]), Addr::from_words([d0, d1, d2, d3]));
        ports = both;
    } else {
        return None;
    }
    if proto != Proto::TCP.0 && proto != Proto::UDP.0 {
        return None;
    }
    let (src_port, dst_port) = split(ports);
    let (src, dst) = (End { addr: src, port: src_port }, End { addr: dst, port: dst_port });
    Some(Peek { src, dst, proto: Proto(proto) })
}

/// The bits of the second word of an IPv4 header that only a fragment has set.
const FRAGMENT_BITS: u32 = u32::from_ne_bytes([0, 0, 0x3f, 0xff]);

/// The source and the destination port of the first word of a transport header.
#[inline(always)]
const fn split(ports: u32) -> (Port, Port) {
    let [s0, s1, d0, d1] = ports.to_ne_bytes();
    (
        Port::from_network(u16::from_ne_bytes([s0, s1])),
        Port::from_network(u16::from_ne_bytes([d0, d1])),
    )
}

/// Reads the headers of `packet`, whose network header of type `ethertype` begins at `network`.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, ethertype: u16, network: usize) -> Result<Headers, Unread> {
    let outer = ip::read(packet, ethertype, network)?;
    let form = match outer.fragment {
        Fragment::Later => return read_later(&outer, network),
        Fragment::First => Form::First,
        Fragment::None => Form::Whole,
    };
    if form == Form::Whole && is_error(packet, &outer)? {
        return read_error(packet, ethertype, network, &outer);
    }
    read_transport(packet, &outer, network, form)
}

/// A fragment without a transport header. What IPv6 says of its protocol need not be so.
#[inline(always)]
fn read_later(outer: &Network, network: usize) -> Result<Headers, Unread> {
    let Network { src, dst, transport, id: fragment, .. } = *outer;
    let proto = if src.is_v4() { outer.proto } else { Proto::default() };
    if src.is_v4() && !has_ports(proto) {
        return Err(Unread::NotOurs);
    }
    let [src, dst] = [src, dst].map(|addr| End { addr, port: Port::default() });
    let (tcp_flags, form, outer) = (TcpFlags::default(), Form::Later, network);
    Ok(Headers { src, dst, proto, network, transport, tcp_flags, form, fragment, outer })
}

/// Whether the packet is an ICMP error that a flow has to hear of: destination unreachable
/// (fragmentation needed is one in IPv4), packet too big, time exceeded, parameter problem
/// (RFC 792, RFC 4443).
#[inline(always)]
fn is_error<P: Packet>(packet: &P, outer: &Network) -> Result<bool, Unread> {
    let is_v4 = outer.src.is_v4();
    if outer.proto != if is_v4 { Proto::ICMP } else { Proto::ICMPV6 } {
        return Ok(false);
    }
    let [header]: [u32; 1] = packet.load(outer.transport).ok_or(Unread::Malformed)?;
    let kind = header.to_ne_bytes()[0];
    Ok(if is_v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) })
}

/// Reads the packet that an ICMP error quotes.
#[inline(always)]
fn read_error<P: Packet>(
    packet: &P,
    ethertype: u16,
    network: usize,
    outer: &Network,
) -> Result<Headers, Unread> {
    let quote = outer.transport + ICMP_LEN;
    let inner = ip::read(packet, ethertype, quote)?;
    // Whoever sent the packet is told; everything else is made up.
    if inner.src != outer.dst || inner.fragment == Fragment::Later {
        return Err(Unread::NotOurs);
    }
    let headers = read_transport(packet, &inner, quote, Form::Error)?;
    Ok(Headers { src: headers.dst, dst: headers.src, outer: network, ..headers })
}

#[inline(always)]
const fn has_ports(proto: Proto) -> bool {
    matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP)
}

#[inline(always)]
fn read_transport<P: Packet>(
    packet: &P,
    outer: &Network,
    network: usize,
    form: Form,
) -> Result<Headers, Unread> {
    let Network { src, dst, proto, transport, id: fragment, .. } = *outer;
    if !has_ports(proto) {
        return Err(Unread::NotOurs);
    }
    // Of a header only what is whole is taken: 8 bytes are all of UDP's, and 20 all of TCP's but
    // its options. An error may quote no more than 8.
    let [ports, tag]: [u32; 2] = packet.load(transport).ok_or(Unread::Malformed)?;
    let (src_port, dst_port) = split(ports);
    let tcp_flags = if proto == Proto::TCP && form != Form::Error {
        let [word, _]: [u32; 2] = packet.load(transport + 12).ok_or(Unread::Malformed)?;
        TcpFlags(word.to_ne_bytes()[1])
    } else if proto == Proto::SCTP && tag == 0 && form != Form::Error {
        // Only a packet with an INIT has no verification tag (RFC 9260 section 8.5.1).
        TcpFlags::SYN
    } else {
        TcpFlags::default()
    };
    let (src, dst) = (End { addr: src, port: src_port }, End { addr: dst, port: dst_port });
    let outer = network;
    Ok(Headers { src, dst, proto, network, transport, tcp_flags, form, fragment, outer })
}

#[cfg(test)]
mod tests;
