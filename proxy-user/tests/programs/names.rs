//! Queries of names: what the kernel answers, byte by byte, and what it leaves alone.

use crate::packet::Packet;
use crate::plane::{Fate, Plane};
use proxy_ebpf::dns::{Kind, Outcome};
use proxy_ebpf::node::Device;
use proxy_ebpf::{Addr, Proto};
use proxy_user::tables::{DnsName, DnsRow, NameKind, NameRow, TableDelta};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The zone of the vectors.
pub(crate) fn zone() -> DnsRow {
    DnsRow {
        zone: "cluster.local".into(),
        ttl: 30,
        serial: 1_700_000_000,
        addrs: SERVICE.map(|end| addr(end)).to_vec(),
        deny: true,
        shadow: false,
    }
}

const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn stage() -> Plane {
    let mut plane = Plane::new();
    let mut delta = TableDelta::default();
    let v4 = vec![addr("10.96.1.1")];
    let v6 = vec![addr("fd00:10:96::101")];
    let row = NameRow { kind: NameKind::Service, v4, v6 };
    delta.names.insert(DnsName("web.shop.svc".into()), Some(Arc::new(row)));
    plane.writer.apply(delta);
    plane.writer.write_zone(Some(&zone()));
    plane.be_pod(Device::POD, &POD.map(|pod| pod.parse().unwrap()));
    plane
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn datagram(family: usize, query: &[u8]) -> Packet {
    let src = SocketAddr::new(POD[family].parse().unwrap(), 40_000);
    let dst = SocketAddr::new(SERVICE[family].parse().unwrap(), 53);
    Packet::new(Proto::UDP, src, dst).payload(query)
}

#[test]
fn the_bytes_of_the_specification_are_answered_with_its_bytes() {
    let mut plane = stage();
    let question = "037765620473686f700373766307636c7573746572056c6f63616c0000010001";
    let query = hex(&format!("123401000001000000000000{question}"));
    let answer = "c00c000100010000001e00040a600101";
    let reply = hex(&format!("123485000001000100000000{question}{answer}"));
    for family in [0, 1] {
        let query = datagram(family, &query);
        let (fate, packet, kind, outcome) = plane.ask(&query.bytes());
        assert_eq!((kind, outcome), (Kind::A, Outcome::Addresses));
        assert_eq!(fate, Fate::Returned);
        let wanted = query.reply().payload(&reply);
        assert_eq!(packet[wanted.transport() + 8..], wanted.bytes()[wanted.transport() + 8..]);
    }
}
