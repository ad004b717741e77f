//! The bytes of netlink messages: headers, attributes, and nests of attributes (netlink(7), the
//! kernel's `linux/netfilter/nfnetlink.h`).
//!
//! Writes into one growing buffer and reads from slices. Numbers of nf_tables and conntrack are in
//! network byte order; only the headers are in the machine's.

/// The length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// The length of `struct nfgenmsg`, with which the body of every message begins.
pub(super) const GENERIC: usize = 4;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The header of a message to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Subsystem and message, `subsystem << 8 | message`.
    pub(super) kind: u16,
    /// `NLM_F_…`.
    pub(super) flags: u16,
    /// Repeated in the answer.
    pub(super) sequence: u32,
    /// `nfgen_family`, an `NFPROTO_…`.
    pub(super) family: u8,
    /// `res_id`: the subsystem in the frame of a batch, else zero.
    pub(super) resource: u16,
}

/// Messages that are being written.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn message(&mut self, head: Head, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(head.kind.to_ne_bytes());
        self.bytes.extend(head.flags.to_ne_bytes());
        self.bytes.extend(head.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        // NFNETLINK_V0 is zero.
        self.bytes.extend([head.family, 0]);
        self.bytes.extend(head.resource.to_be_bytes());
        body(self);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// An attribute of attributes. What `body` writes must be shorter than 64 KiB.
    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
        body(self);
        let len = self.bytes.len() - start;
        debug_assert!(len <= usize::from(u16::MAX), "an attribute of {len} bytes");
        self.bytes[start..start + 2].copy_from_slice(&(len as u16).to_ne_bytes());
    }

    pub(super) fn byte(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(super) fn half(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn word(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn double(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string and the zero at its end.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes.extend(((4 + value.len() + 1) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The port of the socket whose request made the message.
    pub(super) port: u32,
    /// What is behind the header, `struct nfgenmsg` included.
    pub(super) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family of `struct nfgenmsg`.
    pub(super) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    /// The attributes behind `struct nfgenmsg`.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(GENERIC..).unwrap_or_default())
    }

    /// The error of a message of the type `NLMSG_ERROR` or `NLMSG_DONE`, zero if there is none.
    pub(super) fn errno(&self) -> i32 {
        // Of another type, the word may be any: a generation that ends with 0x80 makes it the least.
        self.body.first_chunk().map_or(0, |word| i32::from_ne_bytes(*word).wrapping_neg())
    }
}

/// The messages of one datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let len = word(0) as usize;
        let body = bytes.get(HEADER..len)?;
        let message =
            Message { kind: half(4), flags: half(6), sequence: word(8), port: word(12), body };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A row of attributes that was received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The types and values, in order.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let &[len0, len1, kind0, kind1] = rest.first_chunk()?;
            let len = usize::from(u16::from_ne_bytes([len0, len1]));
            let value = rest.get(4..len)?;
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some((u16::from_ne_bytes([kind0, kind1]) & NLA_TYPE_MASK, value))
        })
    }

    /// The value of the first attribute of type `kind`.
    pub(super) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes in the first attribute of type `kind`; none if it is not there.
    pub(super) fn nest(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }

    pub(super) fn byte(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }

    pub(super) fn half(self, kind: u16) -> Option<u16> {
        self.find(kind)?.first_chunk().map(|value| u16::from_be_bytes(*value))
    }

    pub(super) fn word(self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().map(|value| u32::from_be_bytes(*value))
    }

    pub(super) fn double(self, kind: u16) -> Option<u64> {
        self.find(kind)?.first_chunk().map(|value| u64::from_be_bytes(*value))
    }

    pub(super) fn text(self, kind: u16) -> Option<String> {
        let value = self.find(kind)?;
        Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head =
        Head { kind: 0x0a06, flags: NLM_F_REQUEST, sequence: 7, family: 2, resource: 0 };

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| {
            w.text(1, "shunt");
            w.nest(2, |w| {
                w.word(1, 80);
                w.double(2, 1 << 40);
            });
        });
        writer.message(Head { sequence: 8, ..HEAD }, |w| w.byte(3, 9));
        let found: Vec<_> = messages(writer.as_slice()).collect();
        let [first, second] = found[..] else { panic!("{found:?}") };
        assert_eq!((first.kind, first.sequence, first.family()), (0x0a06, 7, 2));
        assert_eq!(first.attributes().text(1).as_deref(), Some("shunt"));
        let nest = first.attributes().nest(2);
        assert_eq!((nest.word(1), nest.double(2), nest.word(3)), (Some(80), Some(1 << 40), None));
        assert_eq!(second.attributes().find(3), Some(&[9][..]));
    }

    #[test]
    fn half_a_message_or_attribute_is_not_read() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| w.word(1, 5));
        let bytes = writer.as_slice();
        assert_eq!(messages(&bytes[..bytes.len() - 1]).count(), 0);
        assert_eq!(Attributes(&bytes[HEADER + GENERIC..bytes.len() - 1]).word(1), None);
        // A length below that of the attribute's own header.
        assert_eq!(Attributes(&[3, 0, 1, 0, 9, 9, 9, 9]).iter().count(), 0);
        assert_eq!(messages(&[0; HEADER]).count(), 0);
    }
}
