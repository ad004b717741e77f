//! Values in registers and in the elements of sets: their types, and their bytes.
//!
//! A value of several fields is a concatenation: each field but the last is padded to words, and
//! so is the last, as nft does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How long a value can be (`NFT_DATA_VALUE_MAXLEN`).
const MAX: usize = 64;
/// The length of a 32-bit register.
const WORD: usize = 4;

/// The type of a field, for which nft knows a name and a way to print it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
    /// `mark`: a number of 32 bits in the machine's byte order.
    Mark,
}

/// A value of one type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Field {
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// The number of a protocol above IP.
    Protocol(u8),
    /// The number of a port.
    Port(u16),
    /// A mark, a priority, or any other number of 32 bits that the kernel has in its own byte
    /// order.
    Mark(u32),
}

/// The bytes of a value, as registers and elements hold them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Data {
    /// Invariant: all zero from `len` on.
    bytes: [u8; MAX],
    len: u8,
}

impl Type {
    /// nft's number of the type (its `enum datatypes`): the kernel keeps it and makes nothing of it.
    const fn number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Ipv6Addr => 16,
            Self::Ipv4Addr | Self::Mark => 4,
            Self::Port => 2,
            Self::Protocol => 1,
        }
    }

    /// nft's number of a concatenation: six bits for each field.
    pub(super) fn concatenated(fields: &[Self]) -> u32 {
        fields.iter().fold(0, |number, field| number << 6 | field.number())
    }

    /// How many bytes a value of `fields` has.
    pub(super) fn total_len(fields: &[Self]) -> usize {
        match fields {
            [field] => field.len(),
            _ => fields.iter().map(|field| field.len().next_multiple_of(WORD)).sum(),
        }
    }

    /// How nft calls the byte order of `fields`: 0 of none in particular, 1 the machine's,
    /// 2 the network's.
    pub(super) fn byte_order(fields: &[Self]) -> u32 {
        match fields {
            [Self::Mark] => 1,
            [_] => 2,
            _ => 0,
        }
    }
}

impl Data {
    /// The value of several fields, such as the key of a map of `ipv4_addr . inet_service`.
    ///
    /// # Panics
    ///
    /// If they have more than 64 bytes, with the padding.
    pub fn concat(fields: &[Field]) -> Self {
        let mut data = Self { bytes: [0; MAX], len: 0 };
        for field in fields {
            data.push(*field);
            data.len = data.len.next_multiple_of(WORD as u8);
        }
        data
    }

    /// The first bytes of a value that the kernel gave; it has no longer ones.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut data = Self { bytes: [0; MAX], len: bytes.len().min(MAX) as u8 };
        let len = usize::from(data.len);
        data.bytes[..len].copy_from_slice(&bytes[..len]);
        data
    }

    fn push(&mut self, field: Field) {
        let mut put = |bytes: &[u8]| {
            let start = usize::from(self.len);
            self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
            self.len += bytes.len() as u8;
        };
        match field {
            Field::Ipv4(addr) => put(&addr.octets()),
            Field::Ipv6(addr) => put(&addr.octets()),
            Field::Protocol(number) => put(&[number]),
            Field::Port(number) => put(&number.to_be_bytes()),
            Field::Mark(number) => put(&number.to_ne_bytes()),
        }
    }
}

impl From<Field> for Data {
    fn from(field: Field) -> Self {
        let mut data = Self { bytes: [0; MAX], len: 0 };
        data.push(field);
        data
    }
}

impl From<IpAddr> for Field {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::Ipv4(addr),
            IpAddr::V6(addr) => Self::Ipv6(addr),
        }
    }
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concatenation_is_padded_and_one_field_is_not() {
        let fields =
            [Field::Ipv4(Ipv4Addr::new(10, 96, 0, 1)), Field::Protocol(6), Field::Port(443)];
        let data = Data::concat(&fields);
        assert_eq!(data.as_ref(), [10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0]);
        assert_eq!(Data::from(Field::Port(443)).as_ref(), [1, 187]);
        assert_eq!(Data::from(Field::Mark(7)).as_ref(), 7_u32.to_ne_bytes());
    }

    #[test]
    fn types_have_the_numbers_and_lengths_of_nft() {
        // Seen in what nft 1.0.6 sends for these types.
        let backend = [Type::Ipv4Addr, Type::Port];
        assert_eq!((Type::concatenated(&backend), Type::total_len(&backend)), (0x1cd, 8));
        let service = [Type::Ipv4Addr, Type::Protocol, Type::Port];
        assert_eq!((Type::concatenated(&service), Type::total_len(&service)), (0x730d, 12));
        assert_eq!((Type::concatenated(&[Type::Mark]), Type::total_len(&[Type::Mark])), (0x13, 4));
        assert_eq!(Type::total_len(&[Type::Protocol]), 1);
    }
}
