//! Sets and maps, and the intervals in them: how they are described to the kernel, and to nft.

use super::data::{Data, Field, Type};
use super::wire::Writer;
use ipnetwork::IpNetwork;
use std::net::IpAddr;

const NFT_SET_INTERVAL: u32 = 0x4;
const NFT_SET_MAP: u32 = 0x8;
pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
pub(super) const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_USERDATA: u16 = 13;

/// A set, or a map if it has data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its name, of at most 255 bytes.
    pub name: String,
    /// The fields of a key.
    pub key: Vec<Type>,
    /// The fields of a map's value; none makes it a set.
    pub data: Vec<Type>,
    /// Whether keys are intervals; then a key has one field only.
    pub interval: bool,
    /// How many elements there can be at most. Without it the table grows as it fills; with it, the
    /// kernel makes a table of that size at once.
    pub size: Option<u32>,
}

/// An interval of keys: from `first` on, and up to before `end`, if it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interval {
    /// The first key.
    pub first: Data,
    /// The first key behind the interval; none if there is no such key.
    pub end: Option<Data>,
}

impl Interval {
    /// The addresses of `network`.
    pub fn of(network: IpNetwork) -> Self {
        let end = match network.broadcast() {
            IpAddr::V4(last) => last.to_bits().checked_add(1).map(|end| IpAddr::V4(end.into())),
            IpAddr::V6(last) => last.to_bits().checked_add(1).map(|end| IpAddr::V6(end.into())),
        };
        let data = |addr| Data::from(Field::from(addr));
        Self { first: data(network.network()), end: end.map(data) }
    }
}

impl Set {
    /// Writes the attributes of the message that makes the set; `id` is its number in the
    /// transaction.
    pub(super) fn write(&self, w: &mut Writer, table: &str, id: u32) {
        let interval = if self.interval { NFT_SET_INTERVAL } else { 0 };
        let map = if self.data.is_empty() { 0 } else { NFT_SET_MAP };
        w.text(NFTA_SET_TABLE, table);
        w.text(NFTA_SET_NAME, &self.name);
        w.word(NFTA_SET_FLAGS, interval | map);
        w.word(NFTA_SET_KEY_TYPE, Type::concatenated(&self.key));
        w.word(NFTA_SET_KEY_LEN, Type::total_len(&self.key) as u32);
        if !self.data.is_empty() {
            w.word(NFTA_SET_DATA_TYPE, Type::concatenated(&self.data));
            w.word(NFTA_SET_DATA_LEN, Type::total_len(&self.data) as u32);
        }
        w.word(NFTA_SET_ID, id);
        if let Some(size) = self.size {
            w.nest(NFTA_SET_DESC, |w| w.word(NFTA_SET_DESC_SIZE, size));
        }
        w.bytes(NFTA_SET_USERDATA, &self.hints());
    }

    /// What nft wants to know to print the elements: the byte order of keys and values
    /// (`NFTNL_UDATA_SET_KEYBYTEORDER`, `_DATABYTEORDER`), each as type, length, and a word in the
    /// machine's byte order.
    fn hints(&self) -> Vec<u8> {
        let mut hints = Vec::new();
        let mut hint = |kind: u8, fields: &[Type]| {
            hints.extend([kind, 4]);
            hints.extend(Type::byte_order(fields).to_ne_bytes());
        };
        hint(0, &self.key);
        if !self.data.is_empty() {
            hint(1, &self.data);
        }
        hints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_ends_before_the_next_network_or_never() {
        let interval = Interval::of("10.96.0.0/12".parse().unwrap());
        assert_eq!(interval.first.as_ref(), [10, 96, 0, 0]);
        assert_eq!(interval.end.unwrap().as_ref(), [10, 112, 0, 0]);
        assert_eq!(Interval::of("255.0.0.0/8".parse().unwrap()).end, None);
        let v6 = Interval::of("fd00::/127".parse().unwrap()).end.unwrap();
        assert_eq!(v6.as_ref(), "fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
}
