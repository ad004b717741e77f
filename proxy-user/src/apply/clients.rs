//! Clients: from where a service may be reached, and which of its clients are remembered.
//!
//! A source range is written before a frontend is restricted to it and removed after, so that
//! nobody is shut out by the order of writes. One that cannot be written shuts out its own
//! sources, and is tried again.

use super::{Applier, ApplyError, Store};
use crate::tables::{Prefix, ServiceKey, ServiceRow};
use std::collections::BTreeSet;
use std::sync::Arc;

impl<S: Store> Applier<S> {
    /// Opens the service to the source ranges of `row` that are new.
    pub(super) fn admit(
        &mut self,
        key: &ServiceKey,
        row: &Arc<ServiceRow>,
        errors: &mut Vec<ApplyError>,
    ) {
        let Some(placed) = self.services.get_mut(key) else { return };
        let new: Vec<_> = row.source_ranges.difference(&placed.source_ranges).copied().collect();
        for range in new {
            match self.store.put_source_range(placed.id, range) {
                Ok(()) => {
                    self.writes += 1;
                    placed.source_ranges.insert(range);
                }
                Err(error) => {
                    let error = ApplyError::SourceRanges(key.clone(), error);
                    errors.push(error.clone());
                    self.unwritten.add_service(key.clone(), Some(Arc::clone(row)), error);
                    return;
                }
            }
        }
    }

    /// Closes the service to all source ranges but `wanted`; returns why it could not.
    pub(super) fn close(
        &mut self,
        key: &ServiceKey,
        wanted: &BTreeSet<Prefix>,
        errors: &mut Vec<ApplyError>,
    ) -> Option<ApplyError> {
        let mut failed = None;
        let placed = self.services.get_mut(key)?;
        let old: Vec<_> = placed.source_ranges.difference(wanted).copied().collect();
        for range in old {
            match self.store.remove_source_range(placed.id, range) {
                Ok(()) => {
                    self.writes += 1;
                    self.has_room = true;
                    placed.source_ranges.remove(&range);
                }
                Err(error) => failed = Some(ApplyError::SourceRanges(key.clone(), error)),
            }
        }
        errors.extend(failed.clone());
        failed
    }

    /// Ends what `row` no longer has, once no frontend leads to it.
    pub(super) fn settle(
        &mut self,
        key: &ServiceKey,
        row: &Arc<ServiceRow>,
        errors: &mut Vec<ApplyError>,
    ) {
        if let Some(error) = self.close(key, &row.source_ranges, errors) {
            self.unwritten.add_service(key.clone(), Some(Arc::clone(row)), error);
        }
        let Some(placed) = self.services.get_mut(key) else { return };
        let affinity = row.affinity_seconds != 0;
        if placed.affinity && !affinity {
            self.affinity_ended.insert(placed.id, key.clone());
        }
        placed.affinity = affinity;
    }

    /// Forgets the clients of services whose affinity has ended: who comes after it begins again
    /// is a new client.
    pub(super) fn forget_clients(&mut self, errors: &mut Vec<ApplyError>) {
        let ids: BTreeSet<_> = self.affinity_ended.keys().copied().collect();
        let Some(key) = self.affinity_ended.values().next() else { return };
        match self.store.forget_clients(&ids) {
            Ok(()) => self.affinity_ended.clear(),
            Err(error) => errors.push(ApplyError::Service(key.clone(), error)),
        }
    }
}
