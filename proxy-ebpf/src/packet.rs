//! Reading the headers of a packet.

pub mod answer;

use crate::addr::{Addr, Port, Proto};
use crate::flow::End;

/// A packet that can be read at an offset from its first byte.
pub trait Packet {
    /// The `N` bytes at `offset`, or `None` if the packet is shorter.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// What the packet path needs to know of a packet of TCP, UDP or SCTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// The sender.
    pub src: End,
    /// The receiver.
    pub dst: End,
    /// The transport protocol.
    pub proto: Proto,
    /// Where the network header begins, in bytes from the first byte of the packet.
    pub network: usize,
    /// Where the transport header begins, in bytes from the first byte of the packet.
    pub transport: usize,
    /// TCP's flags, 0 for another protocol.
    pub tcp_flags: TcpFlags,
}

/// The flag byte of a TCP header (RFC 9293 section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
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
    /// A fragment, or a header that is not read.
    Unsupported,
    /// The packet ends within a header, or a header contradicts itself.
    Malformed,
}

/// The Ethernet type of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// The Ethernet type of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

/// Reads the headers of `packet`, whose network header of type `ethertype` begins at `network`.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, ethertype: u16, network: usize) -> Result<Headers, Unread> {
    match ethertype {
        ETH_P_IP => read_ipv4(packet, network),
        ETH_P_IPV6 => read_ipv6(packet, network),
        _ => Err(Unread::NotOurs),
    }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn read_ipv4<P: Packet>(packet: &P, network: usize) -> Result<Headers, Unread> {
    let header: [u8; 20] = packet.load(network).ok_or(Unread::Malformed)?;
    let header_len = ((header[0] & 0x0f) as usize) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Err(Unread::Malformed);
    }
    let proto = Proto(header[9]);
    if !has_ports(proto) {
        return Err(Unread::NotOurs);
    }
    // More fragments, or an offset: the ports are not in every fragment.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(Unread::Unsupported);
    }
    let word =
        |i: usize| u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
    let addrs = (Addr::from_v4_word(word(12)), Addr::from_v4_word(word(16)));
    read_transport(packet, addrs, proto, network, network + header_len)
}

/// RFC 8200 section 3. Extension headers are not read.
#[inline(always)]
fn read_ipv6<P: Packet>(packet: &P, network: usize) -> Result<Headers, Unread> {
    let header: [u8; 40] = packet.load(network).ok_or(Unread::Malformed)?;
    if header[0] >> 4 != 6 {
        return Err(Unread::Malformed);
    }
    let proto = Proto(header[6]);
    match proto.0 {
        // Hop-by-hop options, routing, fragment, destination options.
        0 | 43 | 44 | 60 => return Err(Unread::Unsupported),
        _ if !has_ports(proto) => return Err(Unread::NotOurs),
        _ => {}
    }
    let word =
        |i: usize| u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
    let src = Addr::from_words([word(8), word(12), word(16), word(20)]);
    let dst = Addr::from_words([word(24), word(28), word(32), word(36)]);
    // A mapped address on the wire would be taken for IPv4 (RFC 4942 section 2.2).
    if src.is_v4() || dst.is_v4() {
        return Err(Unread::Malformed);
    }
    read_transport(packet, (src, dst), proto, network, network + 40)
}

#[inline(always)]
const fn has_ports(proto: Proto) -> bool {
    matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP)
}

#[inline(always)]
fn read_transport<P: Packet>(
    packet: &P,
    (src, dst): (Addr, Addr),
    proto: Proto,
    network: usize,
    transport: usize,
) -> Result<Headers, Unread> {
    // Of a header only what is whole is taken: 8 bytes are all of UDP's, and 20 all of TCP's but
    // its options.
    let ports: [u8; 8] = packet.load(transport).ok_or(Unread::Malformed)?;
    let port = |i: usize| Port::from_network(u16::from_ne_bytes([ports[i], ports[i + 1]]));
    let tcp_flags = if proto == Proto::TCP {
        let [_, flags, ..]: [u8; 8] = packet.load(transport + 12).ok_or(Unread::Malformed)?;
        TcpFlags(flags)
    } else {
        TcpFlags::default()
    };
    let (src, dst) = (End { addr: src, port: port(0) }, End { addr: dst, port: port(2) });
    Ok(Headers { src, dst, proto, network, transport, tcp_flags })
}

#[cfg(test)]
mod tests;
