//! Choosing a backend for a client that may have one already.
//!
//! See [`proxy_ebpf::affinity`] for what is remembered. Only services with affinity pay.

use crate::maps::{AFFINITY, KernelTables, backend_state, nanoseconds};
use aya_ebpf::bindings::BPF_ANY;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::choose::{self, Caller, Choice};
use proxy_ebpf::frontend::FrontendValue;
use proxy_ebpf::service::ServiceId;
use proxy_ebpf::slot::{BackendFlags, Slot};

/// The choice for a new connection to a frontend with `value`; `client` says who makes it.
#[inline(always)]
pub(crate) fn choose(
    value: FrontendValue,
    caller: Caller,
    random: u32,
    client: impl FnOnce(ServiceId) -> AffinityKey,
) -> Option<Choice> {
    let mut new = None;
    let choice = choose::choose(&KernelTables, value, caller, random, |header, set| {
        let key = client(header.service);
        let mut slot = Slot::default();
        if recall(&key, header.affinity_seconds, set, &mut slot) {
            return Some(slot);
        }
        new = Some(key);
        None
    });
    if let (Some(Choice::Backend(_, slot)), Some(key)) = (&choice, new) {
        keep(&key, slot);
    }
    choice
}

/// Writes the backend of the client `key` to `slot`, if it has one in the set whose flag is `set`,
/// and notes that the client has come again. Returns whether it has.
#[inline(never)]
fn recall(key: &AffinityKey, seconds: u32, set: BackendFlags, slot: &mut Slot) -> bool {
    let Some(place) = AFFINITY.get_ptr_mut(key) else { return false };
    // SAFETY: the kernel keeps the element's memory until this program returns. It may give it to
    // another client meanwhile; then the backend is checked like any other, and a client that
    // has just come is noted to have come.
    let record = unsafe { place.read() };
    let now = nanoseconds();
    if !record.is_fresh(seconds, now) {
        return false;
    }
    let Some(known) = record.slot(key.service(), backend_state(record.backend), set) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { (*place).used = now };
    *slot = known;
    true
}

/// Remembers the backend of the client `key`. A table without room leaves the client without
/// affinity, not without its connection.
#[inline(never)]
fn keep(key: &AffinityKey, slot: &Slot) {
    let record = AffinityRecord::new(slot, nanoseconds());
    let _full = AFFINITY.insert(key, &record, BPF_ANY.into());
}
