//! Addresses, ports and protocols as they lie in maps and packets.
//!
//! One width for both families: an IPv4 address is its IPv4-mapped IPv6 form
//! (RFC 4291 section 2.5.5.2), so every map and every function exists once. No IPv6 packet
//! carries a mapped address, so the two families cannot meet.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form.
///
/// The four words hold the sixteen bytes as they lie in a packet, so each word is in network
/// byte order. The type is four words and not sixteen bytes because the programs compare and
/// copy it word by word.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr([u32; 4]);

const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

impl Addr {
    /// How many bits an address has, of either family.
    pub const BITS: u32 = 128;

    /// The unspecified IPv6 address, `::`.
    pub const UNSPECIFIED_V6: Self = Self([0; 4]);

    /// The unspecified IPv4 address, `0.0.0.0` (mapped).
    pub const UNSPECIFIED_V4: Self = Self::from_v4_word(0);

    /// The address whose words are `words`, each in network byte order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The IPv4 address `word`, in network byte order, as the kernel's `user_ip4` and an IPv4
    /// header hold it.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED_PREFIX, word])
    }

    /// The four words, each in network byte order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The last word, in network byte order: the whole address, if it is IPv4.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.0[3]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED_PREFIX
    }

    /// Whether the address is the unspecified one of its family.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0[3] == 0 && self.0[0] == 0 && self.0[1] == 0 && (self.0[2] == 0 || self.is_v4())
    }

    /// Whether the address is a loopback address (127.0.0.0/8 or `::1`).
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// The unspecified address of the same family.
    #[inline(always)]
    pub const fn unspecified(self) -> Self {
        if self.is_v4() { Self::UNSPECIFIED_V4 } else { Self::UNSPECIFIED_V6 }
    }

    /// The first of the 256 addresses that differ from this one in their last eight bits alone, and
    /// these bits.
    #[inline(always)]
    pub const fn block(self) -> (Self, u8) {
        let [w0, w1, w2, w3] = self.0;
        let [a, b, c, last] = w3.to_ne_bytes();
        (Self([w0, w1, w2, u32::from_ne_bytes([a, b, c, 0])]), last)
    }

    /// A 32-bit digest: equal addresses have equal digests, others rarely do.
    #[inline(always)]
    pub const fn digest(self) -> u32 {
        finish(self.spread())
    }

    /// The address multiplied out to 64 bits, to be combined with others and [`finish`]ed.
    #[inline(always)]
    pub(crate) const fn spread(self) -> u64 {
        // The last words, which differ the most, are the low halves: a product spreads upwards.
        let low = (self.0[2] as u64) << 32 | self.0[3] as u64;
        let high = (self.0[0] as u64) << 32 | self.0[1] as u64;
        low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }
}

/// The digest of 64 bits. Few instructions, since some programs do this for each packet.
#[inline(always)]
pub(crate) const fn finish(bits: u64) -> u32 {
    ((bits ^ (bits >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32
}

/// Folds `word` into `digest`.
#[inline(always)]
pub(crate) const fn mix(digest: u32, word: u32) -> u32 {
    finish(((digest as u64) << 32 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl From<Ipv4Addr> for Addr {
    fn from(addr: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(addr.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(addr: Ipv6Addr) -> Self {
        let o = addr.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => addr.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            return Self::V4(Ipv4Addr::from(addr.0[3].to_ne_bytes()));
        }
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(addr.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// A transport port, stored in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Port(u16);

impl Port {
    /// Port `number`.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The port whose two bytes in a packet are the two bytes of `raw`.
    #[inline(always)]
    pub const fn from_network(raw: u16) -> Self {
        Self(raw)
    }

    /// The port as it lies in a packet.
    #[inline(always)]
    pub const fn network(self) -> u16 {
        self.0
    }

    /// The port's number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl PartialOrd for Port {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Port {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// An address and a transport port: one end of a connection, or where a service is reached.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct End {
    /// The address.
    pub addr: Addr,
    /// The transport port.
    pub port: Port,
}

impl End {
    /// A 32-bit digest: equal ends have equal digests, others rarely do.
    #[inline(always)]
    pub const fn digest(&self) -> u32 {
        mix(self.addr.digest(), self.port.network() as u32)
    }
}

const _: () = assert!(size_of::<End>() == 20);

/// A transport protocol, by its number in the IP header (IANA protocol numbers).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Proto(pub u8);

impl Proto {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// ICMP for IPv4, which no service has.
    pub const ICMP: Self = Self(1);
    /// ICMP for IPv6, which no service has.
    pub const ICMPV6: Self = Self(58);

    /// The name that Kubernetes uses, or `?` for a protocol that no Service can have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::SCTP => "SCTP",
            _ => "?",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

const _: () = assert!(size_of::<Addr>() == 16 && size_of::<Port>() == 2 && size_of::<Proto>() == 1);
crate::plain_data!(Addr, Port, Proto);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString as _;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.96.0.1", "0.0.0.0", "fd00:10:96::1", "::", "::1", "255.255.255.255"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
            assert_eq!(Addr::from(ip).to_string(), text);
            assert_eq!(Addr::from(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn loopback_and_unspecified_are_known_in_both_families() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert!(addr("127.9.9.9").is_loopback() && addr("::1").is_loopback());
        assert!(!addr("10.0.0.1").is_loopback() && !addr("fd00::1").is_loopback());
        assert!(addr("0.0.0.0").is_unspecified() && addr("::").is_unspecified());
        assert!(!addr("0.0.0.1").is_unspecified() && !addr("1::").is_unspecified());
        assert_eq!(addr("10.0.0.1").unspecified(), Addr::UNSPECIFIED_V4);
        assert_eq!(addr("fd00::1").unspecified(), Addr::UNSPECIFIED_V6);
    }

    #[test]
    fn port_is_stored_in_network_byte_order() {
        assert_eq!(Port::new(80).network().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::from_network(Port::new(31775).network()).number(), 31775);
        assert!(Port::new(1) < Port::new(256));
    }
}
