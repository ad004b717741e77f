//! The datagram of a query: UDP over IPv4 or IPv6 without anything in between, all of whose
//! lengths agree. Everything else is left to those who read it.

use super::PORT;
use crate::addr::{Addr, Port, Proto};
use crate::packet::{ETH_P_IP, ETH_P_IPV6, Packet};

/// The length of a UDP header.
pub const UDP_LEN: usize = 8;
/// Where a UDP header has its checksum.
pub const UDP_CHECKSUM: usize = 6;

/// Who asks whom, and where the query is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The asker.
    pub src: Addr,
    /// The DNS service.
    pub dst: Addr,
    /// The asker's port.
    pub port: Port,
    zero: u16,
    /// Where the UDP header begins, in bytes from the first byte of the packet.
    pub udp: u32,
    /// How many bytes the query has.
    pub len: u32,
}

/// Why a packet is no [`Datagram`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// It is not UDP, or not to the port of DNS.
    NotQuery,
    /// It has what a plain datagram has not, or its lengths disagree.
    Odd,
}

impl Datagram {
    pub(super) const EMPTY: Self = Self {
        src: Addr::UNSPECIFIED_V6,
        dst: Addr::UNSPECIFIED_V6,
        port: Port::new(0),
        zero: 0,
        udp: 0,
        len: 0,
    };

    /// Reads the headers of a packet of `len` bytes, whose network header of type `ethertype`
    /// begins at `network`.
    #[inline(always)]
    pub fn read<P: Packet>(
        packet: &P,
        ethertype: u16,
        network: usize,
        len: usize,
    ) -> Result<Self, Unread> {
        match ethertype {
            ETH_P_IP => Self::read_v4(packet, network, len),
            ETH_P_IPV6 => Self::read_v6(packet, network, len),
            _ => Err(Unread::NotQuery),
        }
    }

    #[inline(always)]
    fn read_v4<P: Packet>(packet: &P, network: usize, len: usize) -> Result<Self, Unread> {
        let header: [u32; 7] = packet.load(network).ok_or(Unread::NotQuery)?;
        let [ip0, ip1, ip2, src, dst, udp0, udp1] = header;
        if Proto(ip2.to_ne_bytes()[1]) != Proto::UDP {
            return Err(Unread::NotQuery);
        }
        if port(udp0) != PORT {
            return Err(Unread::NotQuery);
        }
        let [version, _, ip_len, ip_low] = ip0.to_ne_bytes();
        let [_, _, place, place_low] = ip1.to_ne_bytes();
        // No options (of which the port above would be one), no fragment; DF may be set.
        let is_plain = version == 0x45 && place & 0x3f == 0 && place_low == 0;
        let ip_len = u16::from_be_bytes([ip_len, ip_low]) as usize;
        let udp = network + 20;
        if !is_plain || network + ip_len != len {
            return Err(Unread::Odd);
        }
        let [src, dst] = [src, dst].map(Addr::from_v4_word);
        Self::of(src, dst, udp, len, [udp0, udp1])
    }

    #[inline(always)]
    fn read_v6<P: Packet>(packet: &P, network: usize, len: usize) -> Result<Self, Unread> {
        let header: [u32; 12] = packet.load(network).ok_or(Unread::NotQuery)?;
        let [ip0, ip1, s0, s1, s2, s3, d0, d1, d2, d3, udp0, udp1] = header;
        let [ip_len, ip_low, next, _] = ip1.to_ne_bytes();
        if Proto(next) != Proto::UDP {
            return Err(Unread::NotQuery);
        }
        if port(udp0) != PORT {
            return Err(Unread::NotQuery);
        }
        let ip_len = u16::from_be_bytes([ip_len, ip_low]) as usize;
        let udp = network + 40;
        // The checksum must not be absent (RFC 8200 section 8.1).
        let has_checksum = halves(udp1)[1] != 0;
        if ip0.to_ne_bytes()[0] >> 4 != 6 || udp + ip_len != len || !has_checksum {
            return Err(Unread::Odd);
        }
        let (src, dst) = (Addr::from_words([s0, s1, s2, s3]), Addr::from_words([d0, d1, d2, d3]));
        // A mapped address on the wire would be taken for IPv4.
        if src.is_v4() || dst.is_v4() {
            return Err(Unread::Odd);
        }
        Self::of(src, dst, udp, len, [udp0, udp1])
    }

    #[inline(always)]
    fn of(src: Addr, dst: Addr, udp: usize, end: usize, header: [u32; 2]) -> Result<Self, Unread> {
        let [port, _] = halves(header[0]);
        let [len, _] = halves(header[1]);
        let len = u16::from_be(len) as usize;
        if udp + len != end || len < UDP_LEN {
            return Err(Unread::Odd);
        }
        let len = (len - UDP_LEN) as u32;
        Ok(Self { src, dst, port: Port::from_network(port), zero: 0, udp: udp as u32, len })
    }
}

/// The port that the first word of a UDP header is for.
#[inline(always)]
const fn port(word: u32) -> u16 {
    u16::from_be(halves(word)[1])
}

/// The two halves of a word, in the order of their bytes.
#[inline(always)]
const fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
