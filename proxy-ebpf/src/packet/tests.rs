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

fn end(addr: &str, port: u16) -> End {
    End { addr: addr.parse::<IpAddr>().unwrap().into(), port: Port::new(port) }
}

fn tcp(flags: u8) -> [u8; 20] {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0x00, 0x50]);
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
    packet.extend(tcp(0x02));
    packet
}

fn ipv6(next: u8, dst: [u8; 16]) -> Vec<u8> {
    let mut packet = std::vec![0x60, 0, 0, 0, 0, 20, next, 64];
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(dst);
    packet.extend(tcp(0x11));
    packet
}

#[test]
fn ipv4_is_read_with_and_without_options() {
    for options in [0, 4, 40] {
        let headers = read(&Bytes(ipv4(options, 0x4000, 6)), ETH_P_IP, 14).unwrap();
        assert_eq!(headers.src, end("10.0.0.1", 40000));
        assert_eq!(headers.dst, end("10.96.0.1", 80));
        assert_eq!(headers.transport, 14 + 20 + options);
        assert_eq!(headers.network, 14);
        assert!(headers.tcp_flags.opens() && headers.tcp_flags.syn());
    }
}

#[test]
fn ipv6_is_read() {
    let dst = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let headers = read(&Bytes(ipv6(6, dst)), ETH_P_IPV6, 0).unwrap();
    assert_eq!(headers.src, end("fd00::1", 40000));
    assert_eq!(headers.dst, end("fd00::2", 80));
    assert_eq!((headers.network, headers.transport), (0, 40));
    assert!(headers.tcp_flags.fin() && !headers.tcp_flags.opens() && !headers.tcp_flags.rst());
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
        (ipv4(0, 0, 6)[..53].to_vec(), ETH_P_IP, 14, Unread::Malformed),
        (ipv4(0, 0, 17)[..41].to_vec(), ETH_P_IP, 14, Unread::Malformed),
        (ipv6(58, [1; 16]), ETH_P_IPV6, 0, Unread::NotOurs),
        (ipv6(6, mapped), ETH_P_IPV6, 0, Unread::Malformed),
    ];
    for (packet, ethertype, network, why) in cases {
        assert_eq!(read(&Bytes(packet), ethertype, network), Err(why));
    }
}

#[test]
fn fragments_are_told_from_packets_that_only_could_be_some() {
    let ipv4 = |flags| {
        let mut packet = ipv4(0, flags, 17);
        packet[18..20].copy_from_slice(&[0, 9]);
        let headers = read(&Bytes(packet), ETH_P_IP, 14).unwrap();
        (headers.form, headers.fragment)
    };
    let id = FragmentId(9_u16.to_be().into());
    assert_eq!(ipv4(0x4000).0, Form::Whole);
    assert_eq!(ipv4(0x2000), (Form::First, id));
    assert_eq!(ipv4(0x2001), (Form::Later, id));
    assert_eq!(ipv4(0x0001), (Form::Later, id));

    let ipv6 = |place: u8, more: u8| {
        let mut packet = ipv6(44, [1; 16]);
        drop(packet.splice(40..40, [17, 0, place, more, 0, 0, 0, 9]));
        let headers = read(&Bytes(packet), ETH_P_IPV6, 0).unwrap();
        assert_eq!(headers.fragment, FragmentId(9_u32.to_be()));
        (headers.form, headers.dst.port.number(), headers.proto)
    };
    assert_eq!(ipv6(0, 0), (Form::Whole, 80, Proto::UDP), "an atomic fragment (RFC 6946)");
    assert_eq!(ipv6(0, 1), (Form::First, 80, Proto::UDP));
    assert_eq!(ipv6(1, 0), (Form::Later, 0, Proto(0)));
    assert_eq!(ipv6(1, 1), (Form::Later, 0, Proto(0)));
}

#[test]
fn an_error_reads_as_a_reply_to_what_it_quotes() {
    let quoted = ipv4(4, 0x4000, 6).split_off(14);
    let mut packet = ipv4(0, 0, 1);
    packet.truncate(34);
    packet.extend([3, 4, 0, 0, 0, 0, 5, 0x14]);
    packet.extend(&quoted[..24 + 8]);
    packet[14 + 16..14 + 20].copy_from_slice(&[10, 0, 0, 1]);
    let headers = read(&Bytes(packet), ETH_P_IP, 14).unwrap();
    assert_eq!(headers.src, end("10.96.0.1", 80));
    assert_eq!(headers.dst, end("10.0.0.1", 40000));
    assert_eq!((headers.network, headers.transport, headers.proto), (42, 66, Proto::TCP));
    assert_eq!((headers.form, headers.outer), (Form::Error, 14));
    assert!(!headers.tcp_flags.opens(), "a quoted SYN opens nothing");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        v6 in any::<bool>(),
        network in 0_usize..20,
    ) {
        let ethertype = if v6 { ETH_P_IPV6 } else { ETH_P_IP };
        if let Ok(headers) = read(&Bytes(bytes.clone()), ethertype, network) {
            prop_assert!(headers.transport + 8 <= bytes.len());
        }
    }
}
