//! The cluster zone as a whole: its name, the settings of its answers, and whether the kernel
//! gives any.

use super::name::write;
use crate::addr::Addr;

/// How long the name of a zone may be in a message, with the root, in bytes.
pub const ZONE_LEN: usize = 64;
/// How many addresses a DNS service may have.
pub const ADDRS: usize = 4;

/// The zone, and the settings of answers.
///
/// Invariant: the name and the addresses change only while [`ZoneFlags::ON`] is not set and no
/// program still runs that has seen it set. The other words change at any time, each at once.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zone {
    /// What the kernel may do.
    pub flags: ZoneFlags,
    /// The time to live of answers, in seconds.
    pub ttl: u32,
    /// The serial number of the zone's SOA record.
    pub serial: u32,
    /// How many labels the name has, without the root.
    labels: u32,
    /// How many bytes the name has, with the root.
    len: u64,
    /// Until when the agent vouches for the names, in nanoseconds of the monotonic clock: an agent
    /// that is gone must not deny what has come since.
    pub fresh_until: u64,
    /// The name in lower case, as it lies in a message, in words as in [`super::Work`].
    name: [u64; ZONE_LEN / 8],
    /// The addresses of the DNS service; unspecified ones are none.
    addrs: [Addr; ADDRS],
}

/// What the kernel may do about the zone.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct ZoneFlags(pub u32);

impl ZoneFlags {
    /// Nothing: every query passes.
    pub const OFF: Self = Self(0);
    /// Answer.
    pub const ON: Self = Self(1);
    /// Say of names that they do not exist.
    pub const DENY: Self = Self(1 << 1);
    /// Count what would have been denied, and let it pass.
    pub const SHADOW: Self = Self(1 << 2);

    /// Both sets of flags.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Zone {
    /// No zone: every query passes.
    pub const NONE: Self = Self {
        flags: ZoneFlags::OFF,
        ttl: 0,
        serial: 0,
        labels: 0,
        len: 0,
        fresh_until: 0,
        name: [0; ZONE_LEN / 8],
        addrs: [Addr::UNSPECIFIED_V6; ADDRS],
    };

    /// The zone `name`, whose DNS service has `addrs`; nothing is answered yet. `None` if the
    /// name is no name, or too long, or there are too many addresses.
    pub fn new(name: &str, addrs: &[Addr]) -> Option<Self> {
        let mut bytes = [0; ZONE_LEN];
        // The last byte is the root's.
        let (len, labels) = write(name, &mut bytes[..ZONE_LEN - 1])?;
        let mut zone = Self { labels: labels as u32, len: len as u64 + 1, ..Self::NONE };
        let (words, _) = bytes.as_chunks();
        for (word, bytes) in zone.name.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        zone.addrs.get_mut(..addrs.len())?.copy_from_slice(addrs);
        Some(zone)
    }

    /// The same zone, without answers.
    #[must_use]
    pub const fn off(self) -> Self {
        Self { flags: ZoneFlags::OFF, ..self }
    }

    /// Whether the other is the same zone with the same service, whatever the settings.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.name, self.addrs) == (other.name, other.addrs)
    }

    /// Whether there are answers at the time `now`, in nanoseconds of the monotonic clock.
    #[inline(always)]
    pub const fn answers(&self, now: u64) -> bool {
        self.flags.has(ZoneFlags::ON) && now < self.fresh_until
    }

    /// Whether `addr` is one of the DNS service's.
    #[inline(always)]
    pub fn serves(&self, addr: Addr) -> bool {
        !addr.is_unspecified() && self.addrs.contains(&addr)
    }

    /// The name, its length with the root, and how many labels it has without.
    #[inline(always)]
    pub(super) const fn name(&self) -> (&[u64; ZONE_LEN / 8], usize, usize) {
        (&self.name, self.len as usize, self.labels as usize)
    }
}

const _: () =
    assert!(size_of::<Zone>() == 32 + ZONE_LEN + 16 * ADDRS && size_of::<ZoneFlags>() == 4);
crate::plain_data!(Zone, ZoneFlags);
