//! The maps of NAT in the kernel, which strangers change too.

use crate::net::Net;
use crate::plane::Plane;
use crate::writer::{CLUSTER_IP, Served};
use proxy_ebpf::Proto;
use proxy_user::nat::{NatNode, NatSettings, NatTables, table};
use proxy_user::netfilter::{Batch, Data, Family as NatFamily, Field, Socket};
use proxy_user::tables::Family;

/// The maps of IPv4 that a service fills.
const MAPS: [&str; 3] = ["backends", "output_services", "output_shares"];

/// The plane with a service of UDP in IPv4 that has two backends.
fn served() -> Plane {
    let mut plane = Plane::new();
    let net = Net::new(Proto::UDP, Family::V4);
    let frontends = &[(net.vip, CLUSTER_IP)];
    plane.serve(net, "web", Served { cluster: &net.there, frontends, ..Default::default() });
    plane
}

/// The keys and values of [`MAPS`].
fn elements() -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut socket = Socket::open().unwrap();
    let mut of = |map| {
        let elements = socket.elements(&table(NatFamily::Ipv4), map).unwrap();
        let mut rows: Vec<_> = elements.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        rows.sort();
        rows
    };
    MAPS.map(&mut of).into()
}

#[test]
fn single_elements_that_a_stranger_deletes_come_back() {
    let mut plane = served();
    let good = elements();
    assert_eq!(good.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 32]);
    let number = |bytes: &[u8]| u32::from_ne_bytes(bytes[..4].try_into().unwrap());
    let (backend, share) = (number(&good[0][0].0), number(&good[2][0].0));
    let deleted = [
        ("backends", Data::from(Field::Mark(backend))),
        ("output_shares", Data::concat(&[Field::Mark(share), Field::Mark(5)])),
    ];
    for (map, key) in deleted {
        let mut batch = Batch::new();
        batch.delete_keys(&table(NatFamily::Ipv4), map, [key]);
        Socket::open().unwrap().commit(batch).unwrap();
        assert_ne!(elements(), good, "{map}");
        plane.writer.mend_nat();
        assert_eq!(elements(), good, "{map}");
    }
}

/// `nft flush ruleset`, as a firewall does that starts again.
#[test]
fn tables_that_are_gone_come_back_with_all_that_they_had() {
    let mut plane = served();
    let good = elements();
    let mut batch = Batch::new();
    for family in [NatFamily::Ipv4, NatFamily::Ipv6] {
        batch.destroy_table(&table(family));
    }
    Socket::open().unwrap().commit(batch).unwrap();
    plane.writer.mend_nat();
    assert_eq!(elements(), good);
}

/// The network that ClusterIPs are taken from cannot be written while the table is not there.
#[test]
fn rows_of_the_node_that_fail_are_tried_again() {
    let _plane = Plane::new();
    let mut tables = NatTables::open(NatSettings { masquerade_mark: 1 << 14 }).unwrap();
    let network = "10.96.0.0/16".parse().unwrap();
    let node = NatNode { service_networks: [network].into(), ..NatNode::default() };
    NatTables::remove().unwrap();
    for _ in 0..2 {
        assert!(tables.write_node(node.clone()).is_err());
    }
    tables.refill_backends(&[]).unwrap();
    assert!(tables.write_node(node.clone()).unwrap(), "no write has succeeded yet");
    assert!(!tables.write_node(node).unwrap(), "the rows are there");
}
