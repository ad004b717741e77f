//! The expressions of rules: what they are made of, and how the kernel is told.
//!
//! Each reads or writes registers, or ends the rule. Only those that Shunt's rules need are here.

use super::Family;
use super::data::Data;
use super::wire::Writer;

const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// One of the sixteen registers of 32 bits (`NFT_REG32_00` and so on). A longer value begins in
/// the named one and goes on in the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register(u8);

/// What is told of a packet beside its bytes (`NFT_META_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are those of nft's `meta` keys")]
pub enum MetaKey {
    Protocol = 1,
    Priority = 2,
    Mark = 3,
    Iif = 4,
    Oif = 5,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// What is told of a packet's connection (`NFT_CT_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConntrackKey {
    /// Its state: invalid 1, established 2, related 4, new 8, untracked 64, in the machine's byte
    /// order.
    State = 0,
    /// Which way the packet goes: 0 as the first one went, else 1; one byte.
    Direction = 1,
    /// The bits of [`super::conntrack::Status`], in the machine's byte order.
    Status = 2,
}

/// Where the offset of bytes of a packet begins (`NFT_PAYLOAD_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// At the header of IP.
    Network = 1,
    /// At that of TCP, UDP or SCTP.
    Transport = 2,
}

/// How a register is compared (`NFT_CMP_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operator {
    /// The rule goes on if the values are equal.
    Equal = 0,
    /// The rule goes on if they differ.
    NotEqual = 1,
}

/// How a rule ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The packet has passed the base chain.
    Accept,
    /// The packet is gone.
    Drop,
    /// Back to the chain that jumped here; at a base chain, its policy.
    Return,
    /// On in another chain, and back behind this rule.
    Jump(String),
    /// On in another chain, for good.
    Goto(String),
}

/// How a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// With a TCP RST; only for packets of TCP.
    TcpReset,
    /// With ICMP or ICMPv6 "destination unreachable" of a code: `3` says "port unreachable" in
    /// ICMP (RFC 792), `4` in ICMPv6 (RFC 4443, 3.1).
    IcmpUnreachable(u8),
}

/// How NAT looks for a port (`NF_NAT_RANGE_…`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NatFlags(pub u32);

impl NatFlags {
    /// `NF_NAT_RANGE_PROTO_RANDOM`.
    pub const RANDOM: Self = Self(1 << 2);
    /// `NF_NAT_RANGE_PERSISTENT`.
    pub const PERSISTENT: Self = Self(1 << 3);
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    pub const FULLY_RANDOM: Self = Self(1 << 4);
    /// `NF_NAT_RANGE_PROTO_SPECIFIED`: the ports of a range.
    const PORTS: u32 = 1 << 1;
    /// `NF_NAT_RANGE_MAP_IPS`: the addresses of a range.
    const ADDRS: u32 = 1;
}

/// What is asked of the kernel's routes (`NFTA_FIB_F_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fib {
    /// The type of the source address, `RTN_…`: 2 is one of this machine's.
    SourceType = 1,
    /// The type of the destination address.
    DestinationType = 2,
}

/// A step of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "`from` and `to` are registers read and written")]
pub enum Expr {
    /// Loads what is told of a packet.
    Meta { key: MetaKey, to: Register },
    /// Sets what is told of a packet: priority or mark.
    SetMeta { key: MetaKey, from: Register },
    /// Loads what is told of the packet's connection.
    Conntrack { key: ConntrackKey, to: Register },
    /// Loads bytes of the packet. The rule ends if the packet is shorter.
    Payload { header: Header, offset: u32, len: u32, to: Register },
    /// Loads what the routes say of an address of the packet.
    Fib { fib: Fib, to: Register },
    /// `to = from & mask ^ xor`; both have the length of the value.
    Bitwise { from: Register, to: Register, mask: Data, xor: Data },
    /// Goes on if the value in `from` is, or is not, `value`.
    Compare { from: Register, operator: Operator, value: Data },
    /// Loads a constant.
    Immediate { value: Data, to: Register },
    /// Ends the rule.
    Verdict(Verdict),
    /// Goes on if the key in `from` is in a set.
    InSet { set: String, from: Register },
    /// Goes on if the key in `from` is not in a set.
    NotInSet { set: String, from: Register },
    /// Loads what a map has for the key in `from`. The rule ends if it has nothing.
    Map { map: String, from: Register, to: Register },
    /// Jenkins' hash of `len` bytes, modulo `modulus`, plus `offset`, in the machine's byte order.
    /// Without a seed the kernel takes one that nobody knows.
    Hash { from: Register, len: u32, modulus: u32, seed: Option<u32>, offset: u32, to: Register },
    /// A random number below `modulus`, plus `offset`.
    Random { modulus: u32, offset: u32, to: Register },
    /// Gives the connection another destination: only in chains of the type `nat` at `prerouting`
    /// and `output`. Ends the rule.
    DestinationNat { family: Family, addr: Register, port: Option<Register>, flags: NatFlags },
    /// Gives the connection another source: only in chains of the type `nat` at `postrouting` and
    /// `input`. Ends the rule.
    SourceNat { family: Family, addr: Register, flags: NatFlags },
    /// Gives the connection the address of the device that it leaves by as its source: only in
    /// chains of the type `nat` at `postrouting`. Ends the rule.
    Masquerade { flags: NatFlags },
    /// Refuses the packet. Ends the rule.
    Reject(Reject),
    /// Has conntrack leave the packet alone: only before it has seen it.
    NoTrack,
    /// Counts packets and bytes.
    Counter,
    /// Goes on as long as there are at most `rate` packets in `seconds` seconds, after the first
    /// `burst`.
    Limit { rate: u64, seconds: u64, burst: u32 },
}

impl Register {
    /// The register of the number `number`, of 0 to 15.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub const fn new(number: u8) -> Self {
        assert!(number < 16, "there are sixteen registers");
        Self(number)
    }

    /// The register `words` further on.
    pub const fn plus(self, words: u8) -> Self {
        Self::new(self.0 + words)
    }

    const fn number(self) -> u32 {
        8 + self.0 as u32
    }
}

impl Verdict {
    fn write(&self, writer: &mut Writer) {
        let (code, chain) = match self {
            Self::Accept => (1, None),
            Self::Drop => (0, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        writer.nest(NFTA_DATA_VERDICT, |w| {
            w.word(1, i32::cast_unsigned(code));
            if let Some(chain) = chain {
                w.text(2, chain);
            }
        });
    }
}

impl Expr {
    /// Writes the expression as an element of a list.
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.nest(NFTA_LIST_ELEM, |w| {
            w.text(NFTA_EXPR_NAME, self.name());
            w.nest(NFTA_EXPR_DATA, |w| self.write_data(w));
        });
    }

    /// What the kernel calls it.
    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Conntrack { .. } => "ct",
            Self::Payload { .. } => "payload",
            Self::Fib { .. } => "fib",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::InSet { .. } | Self::NotInSet { .. } | Self::Map { .. } => "lookup",
            Self::Hash { .. } => "hash",
            Self::Random { .. } => "numgen",
            Self::DestinationNat { .. } | Self::SourceNat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Reject(_) => "reject",
            Self::NoTrack => "notrack",
            Self::Counter => "counter",
            Self::Limit { .. } => "limit",
        }
    }

    /// Writes the attributes, each expression's own: the comment names their enum.
    fn write_data(&self, w: &mut Writer) {
        match self {
            // NFTA_META_DREG, _KEY, _SREG.
            Self::Meta { key, to } => {
                w.word(1, to.number());
                w.word(2, *key as u32);
            }
            Self::SetMeta { key, from } => {
                w.word(2, *key as u32);
                w.word(3, from.number());
            }
            // NFTA_CT_DREG, _KEY.
            Self::Conntrack { key, to } => {
                w.word(1, to.number());
                w.word(2, *key as u32);
            }
            // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN.
            Self::Payload { header, offset, len, to } => {
                w.word(1, to.number());
                w.word(2, *header as u32);
                w.word(3, *offset);
                w.word(4, *len);
            }
            // NFTA_FIB_DREG, _RESULT, _FLAGS.
            Self::Fib { fib, to } => {
                const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
                w.word(1, to.number());
                w.word(2, NFT_FIB_RESULT_ADDRTYPE);
                w.word(3, *fib as u32);
            }
            // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR, _OP: mask and xor.
            Self::Bitwise { from, to, mask, xor } => {
                w.word(1, from.number());
                w.word(2, to.number());
                w.word(3, mask.as_ref().len() as u32);
                value(w, 4, mask);
                value(w, 5, xor);
                w.word(6, 0);
            }
            // NFTA_CMP_SREG, _OP, _DATA.
            Self::Compare { from, operator, value: data } => {
                w.word(1, from.number());
                w.word(2, *operator as u32);
                value(w, 3, data);
            }
            // NFTA_IMMEDIATE_DREG, _DATA.
            Self::Immediate { value: data, to } => {
                w.word(1, to.number());
                value(w, 2, data);
            }
            Self::Verdict(verdict) => {
                const NFT_REG_VERDICT: u32 = 0;
                w.word(1, NFT_REG_VERDICT);
                w.nest(2, |w| verdict.write(w));
            }
            // NFTA_LOOKUP_SET, _SREG, _DREG, _FLAGS.
            Self::InSet { set, from } => {
                w.text(1, set);
                w.word(2, from.number());
            }
            Self::NotInSet { set, from } => {
                const NFT_LOOKUP_F_INV: u32 = 1;
                w.text(1, set);
                w.word(2, from.number());
                w.word(5, NFT_LOOKUP_F_INV);
            }
            Self::Map { map, from, to } => {
                w.text(1, map);
                w.word(2, from.number());
                w.word(3, to.number());
            }
            // NFTA_HASH_SREG, _DREG, _LEN, _MODULUS, _SEED, _OFFSET, _TYPE: Jenkins'.
            Self::Hash { from, len, modulus, seed, offset, to } => {
                w.word(1, from.number());
                w.word(2, to.number());
                w.word(3, *len);
                w.word(4, *modulus);
                if let Some(seed) = seed {
                    w.word(5, *seed);
                }
                w.word(6, *offset);
                w.word(7, 0);
            }
            // NFTA_NG_DREG, _MODULUS, _TYPE, _OFFSET.
            Self::Random { modulus, offset, to } => {
                const NFT_NG_RANDOM: u32 = 1;
                w.word(1, to.number());
                w.word(2, *modulus);
                w.word(3, NFT_NG_RANDOM);
                w.word(4, *offset);
            }
            // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN (5), _FLAGS (7).
            Self::DestinationNat { family, addr, port, flags } => {
                const NFT_NAT_DNAT: u32 = 1;
                w.word(1, NFT_NAT_DNAT);
                w.word(2, u32::from(family.number()));
                w.word(3, addr.number());
                let mut flags = flags.0 | NatFlags::ADDRS;
                if let Some(port) = port {
                    w.word(5, port.number());
                    flags |= NatFlags::PORTS;
                }
                w.word(7, flags);
            }
            Self::SourceNat { family, addr, flags } => {
                const NFT_NAT_SNAT: u32 = 0;
                w.word(1, NFT_NAT_SNAT);
                w.word(2, u32::from(family.number()));
                w.word(3, addr.number());
                w.word(7, flags.0 | NatFlags::ADDRS);
            }
            // NFTA_MASQ_FLAGS.
            Self::Masquerade { flags } => {
                if flags.0 != 0 {
                    w.word(1, flags.0);
                }
            }
            // NFTA_REJECT_TYPE, _ICMP_CODE.
            Self::Reject(Reject::IcmpUnreachable(code)) => {
                w.word(1, 0);
                w.byte(2, *code);
            }
            Self::Reject(Reject::TcpReset) => {
                w.word(1, 1);
                w.byte(2, 0);
            }
            Self::NoTrack | Self::Counter => {}
            // NFTA_LIMIT_RATE, _UNIT, _BURST, _TYPE: packets.
            Self::Limit { rate, seconds, burst } => {
                w.double(1, *rate);
                w.double(2, *seconds);
                w.word(3, *burst);
                w.word(4, 0);
            }
        }
    }
}

/// Writes an attribute of the kind `struct nft_data`, with a plain value.
fn value(writer: &mut Writer, kind: u16, data: &Data) {
    writer.nest(kind, |w| w.bytes(NFTA_DATA_VALUE, data.as_ref()));
}

#[cfg(test)]
mod tests {
    use super::super::data::Field;
    use super::*;

    fn bytes(expr: &Expr) -> Vec<u8> {
        let mut writer = Writer::default();
        expr.write(&mut writer);
        writer.as_slice().to_vec()
    }

    // What nft 1.0.6 sends for the same, but for its register 1, which here is register 8.

    #[test]
    fn a_meta_key_is_loaded_as_nft_does() {
        let load = Expr::Meta { key: MetaKey::Priority, to: Register::new(0) };
        let expected = b"\x24\x00\x01\x80\x09\x00\x01\x00meta\x00\x00\x00\x00\x14\x00\x02\x80\
            \x08\x00\x01\x00\x00\x00\x00\x08\x08\x00\x02\x00\x00\x00\x00\x02";
        assert_eq!(bytes(&load), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_value_is_compared_as_nft_does() {
        let compare = Expr::Compare {
            from: Register::new(0),
            operator: Operator::NotEqual,
            value: Field::Mark(0x5300_0000).into(),
        };
        let expected = b"\x2c\x00\x01\x80\x08\x00\x01\x00cmp\x00\x20\x00\x02\x80\
            \x08\x00\x01\x00\x00\x00\x00\x08\x08\x00\x02\x00\x00\x00\x00\x01\
            \x0c\x00\x03\x80\x08\x00\x01\x00\x00\x00\x00\x53";
        assert_eq!(bytes(&compare), expected);
    }

    #[test]
    fn a_rule_returns_as_nft_does() {
        let expected = b"\x30\x00\x01\x80\x0e\x00\x01\x00immediate\x00\x00\x00\x1c\x00\x02\x80\
            \x08\x00\x01\x00\x00\x00\x00\x00\x10\x00\x02\x80\x0c\x00\x02\x80\
            \x08\x00\x01\x00\xff\xff\xff\xfb";
        assert_eq!(bytes(&Expr::Verdict(Verdict::Return)), expected);
    }
}
