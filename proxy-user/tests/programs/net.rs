//! The addresses of the tests: one set for each protocol in each family, so that a test's body is
//! written once for all of them.

use crate::packet::{ACK, Packet, SYN};
use proxy_ebpf::Proto;
use proxy_user::tables::Family;
use std::net::{IpAddr, SocketAddr};

/// A protocol in a family, and addresses of all kinds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Net {
    pub(crate) proto: Proto,
    pub(crate) family: Family,
    /// Two services' own addresses.
    pub(crate) vip: SocketAddr,
    pub(crate) other_vip: SocketAddr,
    /// A NodePort at this node's address.
    pub(crate) node_port: SocketAddr,
    /// A pod of this node, as a client.
    pub(crate) pod: SocketAddr,
    /// A client that is neither pod nor node.
    pub(crate) outsider: SocketAddr,
    /// Backends on this node.
    pub(crate) here: [SocketAddr; 2],
    /// Backends on other nodes.
    pub(crate) there: [SocketAddr; 2],
}

impl Net {
    pub(crate) const fn new(proto: Proto, family: Family) -> Self {
        Self {
            proto,
            family,
            vip: at(family, [10, 96], 1, 80),
            other_vip: at(family, [10, 96], 2, 81),
            node_port: at(family, [192, 168], 1, 30_080),
            pod: at(family, [10, 244], 9, 40_000),
            outsider: at(family, [203, 7], 7, 40_000),
            here: [at(family, [10, 244], 1, 8080), at(family, [10, 244], 2, 8081)],
            there: [at(family, [10, 245], 1, 8080), at(family, [10, 245], 2, 8081)],
        }
    }

    /// TCP and UDP in both families.
    pub(crate) const ALL: [Self; 4] = [
        Self::new(Proto::TCP, Family::V4),
        Self::new(Proto::TCP, Family::V6),
        Self::new(Proto::UDP, Family::V4),
        Self::new(Proto::UDP, Family::V6),
    ];

    /// A packet that begins a flow.
    pub(crate) fn opening(self, src: SocketAddr, dst: SocketAddr) -> Packet {
        Packet::new(self.proto, src, dst).flags(SYN)
    }

    /// A packet in the middle of a flow.
    pub(crate) fn data(self, src: SocketAddr, dst: SocketAddr) -> Packet {
        Packet::new(self.proto, src, dst).flags(ACK).payload(b"some even data")
    }

    /// The address of one of many clients outside.
    pub(crate) fn nth(self, host: u16) -> IpAddr {
        let [high, low] = host.to_be_bytes();
        match self.family {
            Family::V4 => [198, 18, high, low].into(),
            Family::V6 => [0xfd00, 198, 18, 0, 0, 0, 1, host].into(),
        }
    }

    pub(crate) fn has_tcp(self) -> bool {
        self.proto == Proto::TCP
    }
}

const fn at(family: Family, net: [u8; 2], host: u8, port: u16) -> SocketAddr {
    let ip = match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::new(net[0], net[1], 0, host)),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::new(
            0xfd00,
            net[0] as u16,
            net[1] as u16,
            0,
            0x1234,
            0xabcd,
            0xffff,
            host as u16,
        )),
    };
    SocketAddr::new(ip, port)
}
