//! Network headers: who sends to whom, and where the transport header is.
//!
//! Takes bytes at an offset, never trusts a length, and reads IPv6's extension headers up to a
//! fixed number.

use super::{ETH_P_IP, ETH_P_IPV6, Packet, Unread};
use crate::addr::{Addr, Proto};

/// How many extension headers of IPv6 are read.
pub const EXTENSIONS: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A network header, and the extension headers behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The sender.
    pub src: Addr,
    /// The receiver.
    pub dst: Addr,
    /// The protocol of what follows; of a later fragment of IPv6 it is not known.
    pub proto: Proto,
    /// Where that begins, in bytes from the first byte of the packet.
    pub transport: usize,
    /// Whether the transport header is there: false for every fragment but the first.
    pub has_transport: bool,
}

/// Reads the header of type `ethertype` at `offset`.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, ethertype: u16, offset: usize) -> Result<Network, Unread> {
    match ethertype {
        ETH_P_IP => read_ipv4(packet, offset),
        ETH_P_IPV6 => read_ipv6(packet, offset),
        _ => Err(Unread::NotOurs),
    }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn read_ipv4<P: Packet>(packet: &P, offset: usize) -> Result<Network, Unread> {
    let header: [u32; 5] = packet.load(offset).ok_or(Unread::Malformed)?;
    let [version, ..] = header[0].to_ne_bytes();
    let header_len = ((version & 0x0f) as usize) * 4;
    if version >> 4 != 4 || header_len < 20 {
        return Err(Unread::Malformed);
    }
    let [_, _, place0, place1] = header[1].to_ne_bytes();
    Ok(Network {
        src: Addr::from_v4_word(header[3]),
        dst: Addr::from_v4_word(header[4]),
        proto: Proto(header[2].to_ne_bytes()[1]),
        transport: offset + header_len,
        has_transport: u16::from_be_bytes([place0, place1]) & 0x1fff == 0,
    })
}

/// RFC 8200 section 3.
#[inline(always)]
fn read_ipv6<P: Packet>(packet: &P, offset: usize) -> Result<Network, Unread> {
    let header: [u32; 10] = packet.load(offset).ok_or(Unread::Malformed)?;
    if header[0].to_ne_bytes()[0] >> 4 != 6 {
        return Err(Unread::Malformed);
    }
    let [_, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let (src, dst) = (Addr::from_words([s0, s1, s2, s3]), Addr::from_words([d0, d1, d2, d3]));
    // A mapped address on the wire would be taken for IPv4 (RFC 4942 section 2.2).
    if src.is_v4() || dst.is_v4() {
        return Err(Unread::Malformed);
    }
    let mut network = Network {
        src,
        dst,
        proto: Proto(header[1].to_ne_bytes()[2]),
        transport: offset + 40,
        has_transport: true,
    };
    for _ in 0..EXTENSIONS {
        if !is_extension(network.proto) || !network.has_transport {
            return Ok(network);
        }
        skip_extension(packet, &mut network)?;
    }
    if is_extension(network.proto) { Err(Unread::Unsupported) } else { Ok(network) }
}

#[inline(always)]
const fn is_extension(proto: Proto) -> bool {
    matches!(proto.0, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Goes on to what follows the extension header at `network.transport` (RFC 8200 section 4).
#[inline(always)]
fn skip_extension<P: Packet>(packet: &P, network: &mut Network) -> Result<(), Unread> {
    let header: [u32; 2] = packet.load(network.transport).ok_or(Unread::Malformed)?;
    let [next, len, place0, place1] = header[0].to_ne_bytes();
    let kind = network.proto.0;
    network.proto = Proto(next);
    if kind != FRAGMENT {
        // With segments left the receiver is not the last one, whom the checksum is for.
        if kind == ROUTING && place1 != 0 {
            return Err(Unread::Unsupported);
        }
        network.transport += (len as usize + 1) * 8;
        return Ok(());
    }
    network.transport += 8;
    // The offset; RFC 6946: what says that it is a fragment may be whole.
    network.has_transport = u16::from_be_bytes([place0, place1]) & 0xfff8 == 0;
    Ok(())
}
