//! Slots: the backends of a service, side by side in one array.
//!
//! A range is a header followed by the cluster set, the local set and the draining backends, which
//! are in neither set but may keep what they have. Choosing a backend is
//! one lookup of the frontend and one load from this array (and one of the header beside it).

use crate::addr::{Addr, Port, mix};
use crate::service::ServiceId;

/// The index of a backend in the array of [`BackendState`], stable for as long as the same
/// service has the same endpoint, over updates and restarts.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BackendId(pub u32);

/// Properties of a backend.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct BackendFlags(pub u16);

impl BackendFlags {
    /// The endpoint runs on this node.
    pub const LOCAL: Self = Self(1);
    /// The endpoint is ready.
    pub const READY: Self = Self(1 << 1);
    /// The endpoint still serves: ready, or serving while it terminates. Existing UDP flows may
    /// stay with it.
    pub const SERVING: Self = Self(1 << 2);
    /// In a [`BackendState`] of a service with affinity: the backend is in the cluster set.
    pub const IN_CLUSTER_SET: Self = Self(1 << 3);
    /// In a [`BackendState`] of a service with affinity: the backend is in the local set.
    pub const IN_LOCAL_SET: Self = Self(1 << 4);
    /// Both sets; no [`Slot`] has them, whose place says it.
    pub const SETS: Self = Self::IN_CLUSTER_SET.with(Self::IN_LOCAL_SET);
    /// None.
    pub const NONE: Self = Self(0);

    /// Both sets of flags.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags but for those of `other`.
    #[must_use]
    #[inline(always)]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether every flag of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One backend of a service, as the programs choose it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Slot {
    /// The endpoint's address.
    pub addr: Addr,
    /// The endpoint's port.
    pub port: Port,
    /// What is known of the endpoint.
    pub flags: BackendFlags,
    /// The backend's identity.
    pub backend: BackendId,
}

/// The first element of a range, laid over a [`Slot`].
///
/// Invariant: a range is complete before any frontend names it, does not change while one does,
/// and is written again only after no program can still read it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangeHeader {
    /// The service that owns the range.
    pub service: ServiceId,
    /// How many slots behind the header are the cluster set.
    pub cluster: u32,
    /// How many slots behind the cluster set are the local set.
    pub local: u32,
    /// Session affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
    /// How many slots behind the local set are backends that serve but are in neither set.
    pub draining: u32,
    /// Zero.
    pub zero: u32,
}

impl RangeHeader {
    /// The header as an element of the slot array.
    #[inline(always)]
    pub const fn to_slot(self) -> Slot {
        let words = [self.service.0, self.cluster, self.local, self.affinity_seconds];
        Slot {
            addr: Addr::from_words(words),
            port: Port::from_network(self.draining as u16),
            flags: BackendFlags((self.draining >> 16) as u16),
            backend: BackendId(self.zero),
        }
    }

    /// The header that `slot` holds.
    #[inline(always)]
    pub const fn from_slot(slot: &Slot) -> Self {
        let [service, cluster, local, affinity_seconds] = slot.addr.words();
        let draining = slot.port.network() as u32 | (slot.flags.0 as u32) << 16;
        let service = ServiceId(service);
        Self { service, cluster, local, affinity_seconds, draining, zero: slot.backend.0 }
    }
}

/// Whether a backend still serves, and who it is; one word, at the index of its [`BackendId`].
///
/// Bits 0–31 are a digest of service, address and port, 32–47 the flags. Zero is no backend.
/// Entries that outlive a range (flows, sockets, affinity) compare the digest before they trust
/// the id, since an id is used again.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct BackendState(pub u64);

impl BackendState {
    /// The state of the backend at (`addr`, `port`) of `service`.
    pub const fn new(service: ServiceId, addr: Addr, port: Port, flags: BackendFlags) -> Self {
        Self(Self::digest(service, addr, port) as u64 | (flags.0 as u64) << 32)
    }

    /// Whether the backend at (`addr`, `port`) of `service` has this state and still serves.
    #[inline(always)]
    pub const fn serves(self, service: ServiceId, addr: Addr, port: Port) -> bool {
        self.flags().has(BackendFlags::SERVING)
            && self.0 as u32 == Self::digest(service, addr, port)
    }

    /// What is known of the backend.
    #[inline(always)]
    pub const fn flags(self) -> BackendFlags {
        BackendFlags((self.0 >> 32) as u16)
    }

    #[inline(always)]
    const fn digest(service: ServiceId, addr: Addr, port: Port) -> u32 {
        mix(mix(addr.digest(), port.network() as u32), service.0)
    }
}

const _: () = assert!(size_of::<Slot>() == 24 && size_of::<RangeHeader>() == 24);
const _: () = assert!(size_of::<BackendState>() == 8);
crate::plain_data!(Slot, RangeHeader, BackendState, BackendId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_the_slot_array() {
        let header = RangeHeader {
            service: ServiceId(0x0102_0304),
            cluster: 250,
            local: 3,
            affinity_seconds: 10_800,
            draining: 70_000,
            zero: 0,
        };
        assert_eq!(RangeHeader::from_slot(&header.to_slot()), header);
    }

    #[test]
    fn state_vouches_for_one_backend_of_one_service_only() {
        let (addr, port) = (Addr::from_v4_word(9), Port::new(80));
        let serving = BackendState::new(ServiceId(1), addr, port, BackendFlags::SERVING);
        assert!(serving.serves(ServiceId(1), addr, port));
        assert!(!serving.serves(ServiceId(2), addr, port));
        assert!(!serving.serves(ServiceId(1), addr, Port::new(81)));
        let gone = BackendState::new(ServiceId(1), addr, port, BackendFlags::default());
        assert!(!gone.serves(ServiceId(1), addr, port));
        assert!(!BackendState::default().serves(ServiceId(0), Addr::default(), Port::default()));
    }
}
