//! Names of the cluster zone as keys, and what the tables say of them.
//!
//! A name is looked up in three steps: `dns_names` gives its number, `dns_values` under that
//! number one word, and the word a range of `dns_records`. A name keeps its number for as long as
//! it exists, and the word changes at once; a range is complete before a word names it, and is
//! written again only when no program can still read it. So a reader never sees half a name, nor
//! two states of it, and never misses a name whose addresses change.

/// How many bytes a name may have, relative to the zone: with length octets, without the root.
pub const NAME_LEN: usize = 128;

/// A name relative to the zone, in lower case, as it lies in a message and without the root:
/// `\x03web\x07default\x03svc`, with zeroes behind. Words as in [`super::Work`].
///
/// Invariant: different names are different keys, whatever bytes their labels have.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NameKey(pub(super) [u64; NAME_LEN / 8]);

impl NameKey {
    /// The zone itself.
    pub const EMPTY: Self = Self([0; NAME_LEN / 8]);

    /// The key of `name`, whose labels have dots between and not inside. `None` if it is too
    /// long, or no name.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; NAME_LEN];
        write(name, &mut bytes)?;
        let (words, _) = bytes.as_chunks();
        let mut key = Self::EMPTY;
        for (word, bytes) in key.0.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        Some(key)
    }

    /// The bytes of the name, and zeroes.
    pub fn bytes(&self) -> [u8; NAME_LEN] {
        let mut bytes = [0; NAME_LEN];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A digest of the name that its value repeats: the kernel may give an element of
    /// `dns_names` to another name while a program still reads its number.
    #[inline(always)]
    pub fn tag(&self) -> u16 {
        let mut digest = 0_u64;
        for word in self.0 {
            digest = (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            digest ^= digest >> 29;
        }
        (digest >> 48) as u16
    }
}

/// Writes `name` as it lies in a message, in lower case and without the root. Returns its length
/// and how many labels it has.
pub(super) fn write(name: &str, to: &mut [u8]) -> Option<(usize, usize)> {
    let (mut len, mut labels) = (0, 0);
    for label in name.split('.').map(str::as_bytes) {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        *to.get_mut(len)? = label.len() as u8;
        let place = to.get_mut(len + 1..len + 1 + label.len())?;
        place.copy_from_slice(label);
        place.make_ascii_lowercase();
        len += 1 + label.len();
        labels += 1;
    }
    Some((len, labels))
}

/// The kinds of names in the cluster zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum NameKind {
    /// `<namespace>.svc`: it exists, and has no data.
    Namespace = 1,
    /// `<service>.<namespace>.svc` of a ClusterIP or headless service. All names of its endpoints
    /// are in the tables too.
    Service,
    /// A service that the kernel does not answer for, such as an ExternalName.
    External,
    /// `<endpoint>.<service>.<namespace>.svc`.
    Endpoint,
    /// A name outside `svc` and `pod` that exists, such as `ns.dns`; the kernel does not answer.
    Other,
}

impl NameKind {
    const ALL: [Self; 5] =
        [Self::Namespace, Self::Service, Self::External, Self::Endpoint, Self::Other];
}

/// What is known of a name: one word, so that a reader never sees half of it.
///
/// From the lowest bit: where its records begin (24 bits), how many there are of IPv4 and of IPv6
/// behind (8 bits each), the kind (8 bits), the tag of the key (16 bits).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct NameValue(u64);

/// A count that says "more than [`super::MOST_RECORDS`]"; such a family has no records.
const TOO_MANY: usize = 0xff;

impl NameValue {
    /// No name's value.
    pub const NONE: Self = Self(0);

    /// The value of `key` with `v4` addresses and then `v6` ones from record `base` on. Of a
    /// family with more addresses than an answer can have, there are no records.
    pub fn new(key: &NameKey, kind: NameKind, base: u32, v4: usize, v6: usize) -> Self {
        let count = |n: usize| if n > super::MOST_RECORDS { TOO_MANY } else { n } as u64;
        let base = u64::from(base & 0xff_ffff);
        let (tag, kind) = (u64::from(key.tag()), kind as u64);
        Self(base | count(v4) << 24 | count(v6) << 32 | kind << 40 | tag << 48)
    }

    /// The tag of the key that this value was written for.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// What kind of name it is.
    #[inline(always)]
    pub const fn kind(self) -> Option<NameKind> {
        let number = (self.0 >> 40) as usize & 0xff;
        if number == 0 || number > NameKind::ALL.len() {
            return None;
        }
        Some(NameKind::ALL[number - 1])
    }

    /// Whether it is of `kind`.
    #[inline(always)]
    pub const fn is(self, kind: NameKind) -> bool {
        (self.0 >> 40) as u8 == kind as u8
    }

    /// Whether there are more addresses of a family than any answer can have.
    #[inline(always)]
    pub const fn is_too_many(self, v6: bool) -> bool {
        self.count(v6) == TOO_MANY
    }

    /// Where the records of a family begin, and how many there are.
    #[inline(always)]
    pub const fn records(self, v6: bool) -> (u32, usize) {
        let (v4, count) = (self.stored(false), self.stored(v6));
        ((self.0 & 0xff_ffff) as u32 + if v6 { v4 as u32 } else { 0 }, count)
    }

    /// How many records of both families there are.
    pub const fn len(self) -> usize {
        self.stored(false) + self.stored(true)
    }

    /// Whether there are no records.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    #[inline(always)]
    const fn count(self, v6: bool) -> usize {
        (self.0 >> if v6 { 32 } else { 24 }) as usize & 0xff
    }

    #[inline(always)]
    const fn stored(self, v6: bool) -> usize {
        if self.is_too_many(v6) { 0 } else { self.count(v6) }
    }
}

const _: () = assert!(size_of::<NameKey>() == NAME_LEN && size_of::<NameValue>() == 8);
crate::plain_data!(NameKey, NameValue);
