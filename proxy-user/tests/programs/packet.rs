//! Packets as the tests speak of them. Their bytes are made from scratch by `etherparse`, all
//! checksums included.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader,
};
use proxy_ebpf::Proto;
use std::net::{IpAddr, SocketAddr};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// The length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// The sender and the receiver on the link.
pub(crate) const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// The sequence number of every segment.
pub(crate) const SEQUENCE: u32 = 0x1234_5678;
/// The acknowledgement number of every segment with ACK.
pub(crate) const ACKNOWLEDGEMENT: u32 = 0x8765_4321;

/// A packet of TCP, UDP or SCTP.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) proto: Proto,
    /// TCP's flags; in SCTP a SYN is an INIT, and nothing in UDP.
    pub(crate) flags: u8,
    /// IPv4's options; nothing in IPv6.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn new(proto: Proto, src: SocketAddr, dst: SocketAddr) -> Self {
        let payload = b"odd".to_vec();
        Self { src, dst, proto, flags: SYN, options: vec![], payload }
    }

    pub(crate) fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    pub(crate) fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// The same packet, but for its source.
    pub(crate) fn from(&self, src: SocketAddr) -> Self {
        Self { src, ..self.clone() }
    }

    /// The same packet, but for its destination.
    pub(crate) fn to(&self, dst: SocketAddr) -> Self {
        Self { dst, ..self.clone() }
    }

    /// Where the transport header begins.
    pub(crate) fn transport(&self) -> usize {
        ETHERNET + if self.src.is_ipv4() { 20 + self.options.len() } else { 40 }
    }

    /// Where the transport checksum lies.
    pub(crate) fn checksum_at(&self) -> usize {
        self.transport() + if self.proto == Proto::TCP { 16 } else { 6 }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(MACS[0], MACS[1]);
        let mut bytes = Vec::new();
        let ip = link.ip(self.ip_header());
        let (src, dst) = (self.src.port(), self.dst.port());
        if self.proto == Proto::TCP {
            let mut header = TcpHeader::new(src, dst, SEQUENCE, 0xfff0);
            header.fin = self.flags & FIN != 0;
            header.syn = self.flags & SYN != 0;
            header.rst = self.flags & RST != 0;
            header.ack = self.flags & ACK != 0;
            header.acknowledgment_number = if header.ack { ACKNOWLEDGEMENT } else { 0 };
            ip.tcp_header(header).write(&mut bytes, &self.payload).unwrap();
        } else if self.proto == Proto::UDP {
            ip.udp(src, dst).write(&mut bytes, &self.payload).unwrap();
        } else {
            // Ports, verification tag (which an INIT alone lacks) and a checksum that nobody on
            // the way may touch.
            let ports = [src.to_be_bytes(), dst.to_be_bytes()].concat();
            let tag = if self.flags == SYN { [0; 4] } else { [0xa5; 4] };
            let segment = [&ports, &tag[..], &[0xa5; 4], &self.payload].concat();
            ip.write(&mut bytes, IpNumber(self.proto.0), &segment).unwrap();
        }
        bytes
    }

    fn ip_header(&self) -> IpHeaders {
        let proto = IpNumber(self.proto.0);
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = Ipv4Header::new(0, 61, proto, src.octets(), dst.octets()).unwrap();
                header.options = Ipv4Options::try_from(&self.options[..]).unwrap();
                header.identification = 0x4242;
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6Header {
                    traffic_class: 0x2e,
                    flow_label: Ipv6FlowLabel::try_new(0x5_4321).unwrap(),
                    next_header: proto,
                    hop_limit: 61,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Default::default()
                };
                IpHeaders::Ipv6(header, Default::default())
            }
            _ => panic!("{} and {} are of two families", self.src, self.dst),
        }
    }
}

/// The packet with extension headers of `kinds`, 8 or 16 bytes long, before its transport header.
pub(crate) fn extended(packet: &Packet, kinds: &[u8]) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let (mut at, mut next_at) = (ETHERNET + 40, ETHERNET + 6);
    let transport = bytes[next_at];
    for (index, kind) in kinds.iter().enumerate() {
        let mut header = vec![transport, (index % 2) as u8];
        header.resize(8 + 8 * (index % 2), 0);
        bytes[next_at] = *kind;
        next_at = at;
        drop(bytes.splice(at..at, header.iter().copied()));
        at += header.len();
    }
    let len = (bytes.len() - ETHERNET - 40) as u16;
    bytes[ETHERNET + 4..][..2].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The fragments of `packet`, with `size` bytes each behind the network header, but for the last.
pub(crate) fn fragments(packet: &Packet, size: usize, id: u16) -> Vec<Vec<u8>> {
    let bytes = packet.bytes();
    let (header, body) = bytes.split_at(packet.transport());
    let chunks = body.chunks(size);
    let last = chunks.len() - 1;
    let fragment = |(index, chunk): (usize, &[u8])| {
        let offset = (index * size) as u16;
        let more = index < last;
        let mut header = header.to_vec();
        if packet.src.is_ipv4() {
            let place = (offset / 8) | if more { 0x2000 } else { 0 };
            let len = (header.len() - ETHERNET + chunk.len()) as u16;
            header[ETHERNET + 2..][..2].copy_from_slice(&len.to_be_bytes());
            header[ETHERNET + 4..][..2].copy_from_slice(&id.to_be_bytes());
            header[ETHERNET + 6..][..2].copy_from_slice(&place.to_be_bytes());
            header[ETHERNET + 10..][..2].fill(0);
            let checksum = !sum(&header[ETHERNET..]);
            header[ETHERNET + 10..][..2].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let next = std::mem::replace(&mut header[ETHERNET + 6], 44);
            let len = (8 + chunk.len()) as u16;
            header[ETHERNET + 4..][..2].copy_from_slice(&len.to_be_bytes());
            header.extend([next, 0]);
            header.extend((offset | u16::from(more)).to_be_bytes());
            header.extend([0xab, 0xcd]);
            header.extend(id.to_be_bytes());
        }
        header.extend(chunk);
        header
    };
    chunks.enumerate().map(fragment).collect()
}

/// The beginning of an answer to `packet`, on the way back.
pub(crate) fn back(packet: &Packet, tos: u8) -> PacketBuilderStep<IpHeaders> {
    let link = PacketBuilder::ethernet2(MACS[1], MACS[0]);
    link.ip(match (packet.dst.ip(), packet.src.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header::new(0, 64, IpNumber(0), src.octets(), dst.octets());
            let header = Ipv4Header { dscp: (tos >> 2).try_into().unwrap(), ..header.unwrap() };
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (source, destination) = (src.octets(), dst.octets());
            let header = Ipv6Header { hop_limit: 64, source, destination, ..Default::default() };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("{packet:?} is of two families"),
    })
}

/// The sum of the checksummed 16-bit words of `bytes` (RFC 1071): what a translation that
/// repairs its checksum leaves as it is.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| b.into()));
    // Numbers that differ by a multiple of 0xffff are one number in ones' complement.
    (words.sum::<u64>() % 0xffff) as u16
}
