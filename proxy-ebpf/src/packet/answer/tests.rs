//! The headers of answers, byte by byte.

extern crate std;
use super::*;
use std::net::IpAddr;
use std::vec::Vec;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn segment(flags: u8) -> [u32; 5] {
    let word = u32::from_ne_bytes;
    let [ports, sequence] = [word([0x9c, 0x40, 0, 80]), word([0xff, 0xff, 0xff, 0xf0])];
    [ports, sequence, word([1, 2, 3, 4]), word([0x80, flags, 0xfa, 0xf0]), word([9; 4])]
}

#[test]
fn a_reset_acknowledges_what_was_not_acknowledging_and_else_takes_the_place_it_was_given() {
    let ports = [0, 80, 0x9c, 0x40];
    let cases = [
        (0x02_u8, 0, [0; 4], [0xff, 0xff, 0xff, 0xf1], 0x14_u8),
        (0x02, 20, [0; 4], [0, 0, 0, 5], 0x14),
        (0x01, 3, [0; 4], [0xff, 0xff, 0xff, 0xf4], 0x14),
        (0x10, 1000, [1, 2, 3, 4], [0; 4], 0x04),
        (0x12, 0, [1, 2, 3, 4], [0; 4], 0x04),
    ];
    for (flags, payload, sequence, acknowledgement, control) in cases {
        let rest = [0x50, control, 0, 0, 0, 0, 0, 0];
        let expected = [&ports[..], &sequence, &acknowledgement, &rest].concat();
        assert_eq!(bytes(&reset(segment(flags), payload)), expected, "{flags:x}, {payload}");
    }
}

#[test]
fn an_answer_to_many_to_nobody_or_to_oneself_is_none() {
    for text in ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "127.0.0.1"] {
        assert!(!is_answerable(addr(text)), "{text}");
    }
    for text in ["ff02::1", "::", "::1"] {
        assert!(!is_answerable(addr(text)), "{text}");
    }
    for text in ["10.0.0.1", "223.255.255.255", "128.0.0.1", "fd00::1", "fe80::1", "2001:db8::1"] {
        assert!(is_answerable(addr(text)), "{text}");
    }
}

#[test]
fn headers_of_answers_have_the_sums_that_make_them_whole() {
    let sum = |words: &[u32]| words.iter().fold(Sum::ZERO, |sum, word| sum.plus(*word));
    let (src, dst) = (addr("10.96.0.1"), addr("10.244.1.2"));
    for proto in [Proto::TCP, Proto::ICMP] {
        let header = ipv4(src, dst, proto, 28);
        assert_eq!(sum(&header).checksum(), 0);
        assert_eq!(bytes(&header)[2..4], [0, 48]);
    }
    let quote = [7, 8, 9];
    let icmp = unreachable(src, dst, 12, sum(&quote));
    assert_eq!(sum(&[&icmp[..], &quote].concat()).checksum(), 0);
    assert_eq!(bytes(&icmp)[..2], [3, 3]);

    let (src, dst) = (addr("fd00::1"), addr("fd00::2"));
    let header = bytes(&ipv6(src, dst, Proto::ICMPV6, 20));
    assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 20, 58, 64]);
    assert_eq!(header[8..], bytes(&[src.words(), dst.words()].concat()));
    let icmp = unreachable(src, dst, 12, sum(&quote));
    let pseudo = pseudo_header(src, dst, Proto::ICMPV6, 20).word();
    assert_eq!(sum(&[&icmp[..], &quote, &[pseudo]].concat()).checksum(), 0);
    assert_eq!(bytes(&icmp)[..2], [1, 4]);
}

#[test]
fn an_answer_fits_into_what_every_link_carries() {
    for (text, most) in [("10.0.0.1", 576), ("fd00::1", 1280)] {
        let addr = addr(text);
        assert_eq!(ip_len(addr) + ICMP_LEN + quote_len(addr), most);
    }
}
