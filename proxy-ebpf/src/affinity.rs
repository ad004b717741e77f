//! Affinity: which backend a client of a service was given last (`sessionAffinity: ClientIP`).
//!
//! A record is written and refreshed by connections, never by their packets. All frontends of a
//! service port share it, since the key has the service's number and not the frontend. It counts
//! only while its backend is in the set that the client would be given one from now.

use crate::addr::{Addr, Port};
use crate::service::ServiceId;
use crate::slot::{BackendFlags, BackendId, BackendState, Slot};

/// Who is kept with a backend, and of which service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    client: Addr,
    service: ServiceId,
}

impl AffinityKey {
    /// A client on the packet path: the address that its packets come from, before the node hides it.
    #[inline(always)]
    pub const fn address(service: ServiceId, client: Addr) -> Self {
        Self { client, service }
    }

    /// A client on the socket path, where sockets have no address yet: the network namespace of
    /// this cookie, which a pod has for itself and the node's own processes share. It stands
    /// behind a multicast prefix, so it is no source address (RFC 4291 section 2.7).
    #[inline(always)]
    pub const fn namespace(service: ServiceId, cookie: u64) -> Self {
        let client = Addr::from_words([u32::MAX, u32::MAX, (cookie >> 32) as u32, cookie as u32]);
        Self { client, service }
    }

    /// The service.
    #[inline(always)]
    pub const fn service(&self) -> ServiceId {
        self.service
    }
}

/// The backend that a client was given last, and when.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AffinityRecord {
    /// When the last connection was made, in nanoseconds of `CLOCK_MONOTONIC`.
    pub used: u64,
    /// The backend's address.
    pub addr: Addr,
    /// The backend's port.
    pub port: Port,
    zero: u16,
    /// The backend's identity.
    pub backend: BackendId,
}

impl AffinityRecord {
    /// The record of a connection to `slot` at the time `now`.
    #[inline(always)]
    pub const fn new(slot: &Slot, now: u64) -> Self {
        let Slot { addr, port, backend, .. } = *slot;
        Self { used: now, addr, port, zero: 0, backend }
    }

    /// Whether the record still counts at the time `now`, for a service with a timeout of
    /// `seconds`.
    #[inline(always)]
    pub const fn is_fresh(&self, seconds: u32, now: u64) -> bool {
        now.saturating_sub(self.used) < seconds as u64 * 1_000_000_000
    }

    /// The backend as a slot, if it is still one of `service`, and in the set whose flag is
    /// `set`; `state` is the one of [`AffinityRecord::backend`].
    #[inline(always)]
    pub const fn slot(
        &self,
        service: ServiceId,
        state: BackendState,
        set: BackendFlags,
    ) -> Option<Slot> {
        let Self { addr, port, backend, .. } = *self;
        if state.serves(service, addr, port) && state.flags().has(set) {
            Some(Slot { addr, port, flags: state.flags(), backend })
        } else {
            None
        }
    }
}

const _: () = assert!(size_of::<AffinityKey>() == 20 && size_of::<AffinityRecord>() == 32);
crate::plain_data!(AffinityKey, AffinityRecord);

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: BackendFlags = BackendFlags::SERVING.with(BackendFlags::IN_LOCAL_SET);

    #[test]
    fn record_counts_until_its_timeout_and_not_at_it() {
        let slot = Slot {
            addr: Addr::default(),
            port: Port::new(80),
            flags: BackendFlags::SERVING,
            backend: BackendId(1),
        };
        let record = AffinityRecord::new(&slot, 5_000_000_000);
        assert!(record.is_fresh(1, 5_999_999_999) && !record.is_fresh(1, 6_000_000_000));
        assert!(record.is_fresh(86_400, 86_404_999_999_999));
        assert!(record.is_fresh(1, 4_000_000_000), "another CPU's clock may be ahead");
    }

    #[test]
    fn record_counts_only_for_its_backend_and_only_in_its_set() {
        let (addr, port) = (Addr::from_v4_word(9), Port::new(80));
        let slot = Slot { addr, port, flags: HERE, backend: BackendId(3) };
        let record = AffinityRecord::new(&slot, 0);
        let state = BackendState::new(ServiceId(1), addr, port, HERE);
        let found = |service, state, set| record.slot(ServiceId(service), state, set);
        assert_eq!(found(1, state, BackendFlags::IN_LOCAL_SET), Some(slot));
        assert_eq!(found(1, state, BackendFlags::IN_CLUSTER_SET), None);
        assert_eq!(found(2, state, BackendFlags::IN_LOCAL_SET), None);
        let other = BackendState::new(ServiceId(1), addr, Port::new(81), HERE);
        assert_eq!(found(1, other, BackendFlags::IN_LOCAL_SET), None);
    }

    #[test]
    fn a_namespace_is_no_address_and_no_other_namespace() {
        let cookie = 0x0102_0304_0506_0708;
        let key = |cookie| AffinityKey::namespace(ServiceId(1), cookie);
        assert_ne!(key(cookie), key(cookie + 1));
        assert_ne!(key(cookie), key(cookie + (1 << 32)));
        assert!(!key(0).client.is_v4());
    }
}
