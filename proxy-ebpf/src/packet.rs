//! Reading the headers of a packet: whether it may open a connection, from whom to whom.
//!
//! Only what can open a connection to a service matters here: a packet of TCP, UDP or SCTP with
//! its ports in it. Fragments behind the first one, ICMP errors and everything in the middle of a
//! connection are the kernel's, whose NAT knows the connection.

pub mod answer;
pub mod ip;

use crate::addr::{Addr, End, Port, Proto};
use ip::Network;

/// A packet that can be read at an offset from its first byte.
pub trait Packet {
    /// The `N` words at `offset`, as they lie in the packet, or `None` if it is shorter.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
}

/// From whom to whom a packet is, and by which protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// The sender.
    pub src: End,
    /// The receiver.
    pub dst: End,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// Where the transport header begins, in bytes from the first byte of the packet.
    pub transport: usize,
}

/// Why a packet has no [`Headers`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// Neither IP nor a protocol that a service can have, or a fragment without ports.
    NotOurs,
    /// More extension headers than are read, or a routing header that is not at its end.
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
pub fn peek<P: Packet>(packet: &P, ethertype: u16, network: usize) -> Option<Headers> {
    let (proto, src, dst, ports, transport);
    if ethertype == ETH_P_IP {
        let header: [u32; 6] = packet.load(network)?;
        // Version 4, five words of header, and neither an offset nor more fragments.
        if header[0].to_ne_bytes()[0] != 0x45 || header[1] & FRAGMENT_BITS != 0 {
            return None;
        }
        proto = header[2].to_ne_bytes()[1];
        (src, dst) = (Addr::from_v4_word(header[3]), Addr::from_v4_word(header[4]));
        ports = header[5];
        transport = network + 20;
    } else if ethertype == ETH_P_IPV6 {
        let header: [u32; 11] = packet.load(network)?;
        let [_, next, s0, s1, s2, s3, d0, d1, d2, d3, both] = header;
        proto = next.to_ne_bytes()[2];
        (src, dst) = (Addr::from_words([s0, s1, s2, s3]), Addr::from_words([d0, d1, d2, d3]));
        if src.is_v4() || dst.is_v4() {
            return None;
        }
        ports = both;
        transport = network + 40;
    } else {
        return None;
    }
    if proto != Proto::TCP.0 && proto != Proto::UDP.0 {
        return None;
    }
    let (src_port, dst_port) = split(ports);
    let (src, dst) = (End { addr: src, port: src_port }, End { addr: dst, port: dst_port });
    Some(Headers { src, dst, proto: Proto(proto), transport })
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
    let Network { src, dst, proto, transport, has_transport } =
        ip::read(packet, ethertype, network)?;
    if !has_transport || !matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP) {
        return Err(Unread::NotOurs);
    }
    let [ports, _]: [u32; 2] = packet.load(transport).ok_or(Unread::Malformed)?;
    let (src_port, dst_port) = split(ports);
    let (src, dst) = (End { addr: src, port: src_port }, End { addr: dst, port: dst_port });
    Ok(Headers { src, dst, proto, transport })
}

/// Whether the packet may open a connection: a SYN of TCP (RFC 9293 section 3.5), an INIT of SCTP,
/// which alone has no verification tag (RFC 9260 section 8.5.1), and any datagram of UDP.
#[inline(always)]
pub fn opens<P: Packet>(packet: &P, headers: &Headers) -> Result<bool, Unread> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    if headers.proto == Proto::UDP {
        return Ok(true);
    }
    let offset = if headers.proto == Proto::TCP { 12 } else { 4 };
    let [word]: [u32; 1] = packet.load(headers.transport + offset).ok_or(Unread::Malformed)?;
    Ok(match headers.proto {
        Proto::TCP => word.to_ne_bytes()[1] & (SYN | ACK) == SYN,
        _ => word == 0,
    })
}

#[cfg(test)]
mod tests;
