//! Headers of made packets, whole, cut and random.

extern crate std;
use super::*;
use proptest::prelude::*;
use std::net::IpAddr;
use std::vec::Vec;

struct Bytes(Vec<u8>);

impl Packet for Bytes {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let bytes = self.0.get(offset..)?.get(..4 * N)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().unwrap());
        }
        Some(words)
    }
}

const SYN: u8 = 0x02;
const FIN_ACK: u8 = 0x11;

fn end(addr: &str, port: u16) -> End {
    End { addr: addr.parse::<IpAddr>().unwrap().into(), port: Port::new(port) }
}

fn tcp(flags: u8) -> [u8; 20] {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0x00, 0x50]);
    header[4] = 1;
    header[12] = 5 << 4;
    header[13] = flags;
    header
}

fn ipv4(options: usize, fragment: u16, proto: u8) -> Vec<u8> {
    let mut packet = std::vec![0; 14];
    let mut header = std::vec![0; 20 + options];
    header[0] = 0x40 | (5 + options as u8 / 4);
    header[2..4].copy_from_slice(&(40 + options as u16).to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[9] = proto;
    header[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 96, 0, 1]);
    packet.extend(header);
    packet.extend(tcp(SYN));
    packet
}

fn ipv6(next: u8, dst: [u8; 16]) -> Vec<u8> {
    let mut packet = std::vec![0x60, 0, 0, 0, 0, 20, next, 64];
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(dst);
    packet.extend(tcp(FIN_ACK));
    packet
}

#[test]
fn ipv4_is_read_with_and_without_options() {
    for options in [0, 4, 40] {
        let packet = Bytes(ipv4(options, 0x4000, 6));
        let headers = read(&packet, ETH_P_IP, 14).unwrap();
        assert_eq!(headers.src, end("10.0.0.1", 40000));
        assert_eq!(headers.dst, end("10.96.0.1", 80));
        assert_eq!(headers.transport, 14 + 20 + options);
        assert_eq!(opens(&packet, &headers), Ok(true));
        assert_eq!(peek(&packet, ETH_P_IP, 14), (options == 0).then_some(headers));
    }
}

#[test]
fn ipv6_is_read() {
    let dst = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let packet = Bytes(ipv6(6, dst));
    let headers = read(&packet, ETH_P_IPV6, 0).unwrap();
    assert_eq!(headers.src, end("fd00::1", 40000));
    assert_eq!(headers.dst, end("fd00::2", 80));
    assert_eq!(headers.transport, 40);
    assert_eq!(opens(&packet, &headers), Ok(false));
    assert_eq!(peek(&packet, ETH_P_IPV6, 0), Some(headers));
}

#[test]
fn what_is_not_read_says_why() {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    let cases = [
        (ipv4(0, 0, 1), ETH_P_IP, 14, Unread::NotOurs),
        (ipv4(0, 0, 6), 0x0806, 14, Unread::NotOurs),
        (ipv4(0, 0x0001, 1), ETH_P_IP, 14, Unread::NotOurs),
        (ipv4(0, 0, 6), ETH_P_IPV6, 14, Unread::Malformed),
        (ipv4(0, 0, 6)[..33].to_vec(), ETH_P_IP, 14, Unread::Malformed),
        (ipv4(0, 0, 17)[..41].to_vec(), ETH_P_IP, 14, Unread::Malformed),
        (ipv6(58, [1; 16]), ETH_P_IPV6, 0, Unread::NotOurs),
        (ipv6(6, mapped), ETH_P_IPV6, 0, Unread::Malformed),
    ];
    for (packet, ethertype, network, why) in cases {
        assert_eq!(read(&Bytes(packet), ethertype, network), Err(why));
    }
    assert_eq!(peek(&Bytes(ipv6(6, mapped)), ETH_P_IPV6, 0), None);
    let mut from_mapped = ipv6(6, [0xfd; 16]);
    from_mapped[8..24].copy_from_slice(&mapped);
    assert_eq!(peek(&Bytes(from_mapped.clone()), ETH_P_IPV6, 0), None);
    assert_eq!(read(&Bytes(from_mapped), ETH_P_IPV6, 0), Err(Unread::Malformed));
}

#[test]
fn only_a_first_fragment_has_ports() {
    let ipv4 = |flags| read(&Bytes(ipv4(0, flags, 17)), ETH_P_IP, 14).map(|h| h.dst.port.number());
    assert_eq!([ipv4(0x4000), ipv4(0x2000)], [Ok(80); 2]);
    assert_eq!([ipv4(0x2001), ipv4(0x0001)], [Err(Unread::NotOurs); 2]);

    let ipv6 = |place: u8, more: u8| {
        let mut packet = ipv6(44, [1; 16]);
        drop(packet.splice(40..40, [17, 0, place, more, 0, 0, 0, 9]));
        read(&Bytes(packet), ETH_P_IPV6, 0).map(|headers| headers.dst.port.number())
    };
    assert_eq!(ipv6(0, 0), Ok(80), "an atomic fragment (RFC 6946)");
    assert_eq!(ipv6(0, 1), Ok(80));
    assert_eq!([ipv6(1, 0), ipv6(1, 1)], [Err(Unread::NotOurs); 2]);
}

#[test]
fn what_opens_a_connection_is_told_by_protocol() {
    let opens = |proto: u8, change: &dyn Fn(&mut [u8])| {
        let mut bytes = ipv4(0, 0, proto);
        change(&mut bytes[34..]);
        let packet = Bytes(bytes);
        let headers = read(&packet, ETH_P_IP, 14).unwrap();
        opens(&packet, &headers).unwrap()
    };
    assert!(opens(6, &|_| {}) && opens(6, &|tcp| tcp[13] = 0xc2), "a SYN, also with ECN");
    for flags in [0x12, 0x10, 0x04, 0x01, 0x00] {
        assert!(!opens(6, &|tcp| tcp[13] = flags), "flags {flags:#x}");
    }
    assert!(opens(17, &|_| {}), "any datagram");
    assert!(opens(132, &|sctp| sctp[4] = 0), "an INIT");
    assert!(!opens(132, &|_| {}), "a verification tag");
    let cut = Bytes(ipv4(0, 0, 6)[..45].to_vec());
    let headers = read(&cut, ETH_P_IP, 14).unwrap();
    assert_eq!(super::opens(&cut, &headers), Err(Unread::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        v6 in any::<bool>(),
        network in 0_usize..20,
    ) {
        let ethertype = if v6 { ETH_P_IPV6 } else { ETH_P_IP };
        let packet = Bytes(bytes);
        if let Ok(headers) = read(&packet, ethertype, network) {
            prop_assert!(headers.transport + 8 <= packet.0.len());
            let _either = opens(&packet, &headers);
        }
        if let Some(peeked) = peek(&packet, ethertype, network)
            && let Ok(headers) = read(&packet, ethertype, network)
        {
            prop_assert_eq!(peeked, headers);
        }
    }
}
