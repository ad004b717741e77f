//! The network headers of answers, byte by byte.

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

#[test]
fn headers_of_answers_have_the_sums_that_make_them_whole() {
    let (src, dst) = (addr("10.96.0.1"), addr("10.244.1.2"));
    let header = ipv4(src, dst, Proto::UDP, 28);
    assert_eq!(header.iter().fold(Sum::ZERO, |sum, word| sum.plus(*word)).checksum(), 0);
    assert_eq!(bytes(&header)[2..4], [0, 48]);

    let (src, dst) = (addr("fd00::1"), addr("fd00::2"));
    let header = bytes(&ipv6(src, dst, Proto::UDP, 20));
    assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 20, 17, 64]);
    assert_eq!(header[8..], bytes(&[src.words(), dst.words()].concat()));
}
