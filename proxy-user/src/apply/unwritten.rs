//! Unwritten: the rows that a full or broken map did not take, each with its reason.
//!
//! They are not tried in every pass. A row is tried when what kept it out may be over: a frontend
//! when its service is placed or others have left the map, a service when slots or numbers are
//! free again and it is small enough for them, a removal when no frontend leads to the service any
//! more. Whoever calls [`Applier::retry`] now and then has the rest tried.

use super::{Applier, ApplyError, Step, Store};
use crate::tables::{FrontendRow, ServiceKey, ServiceRow, TableDelta};
use proxy_ebpf::frontend::FrontendKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A row, `None` to remove it, and why it was not written.
#[derive(Debug)]
struct Failed<R> {
    row: Option<R>,
    error: ApplyError,
}

/// The rows that could not be written.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    services: BTreeMap<ServiceKey, Failed<Arc<ServiceRow>>>,
    /// Invariant: the rows of `services` that are no removals, by how many slots they need at
    /// least.
    by_need: BTreeSet<(u32, ServiceKey)>,
    frontends: BTreeMap<FrontendKey, Failed<FrontendRow>>,
    /// Invariant: those of `frontends` that wait for their service to be placed; no entry empty.
    waiting: BTreeMap<ServiceKey, BTreeSet<FrontendKey>>,
    /// Invariant: the others that are no removals.
    refused: BTreeSet<FrontendKey>,
    /// How many of all lack something else than room.
    faults: usize,
    changed: bool,
}

/// How many slots `row` needs at least: each backend may be in more than one set.
fn need(row: &ServiceRow) -> u32 {
    u32::try_from(row.all.len() + 1).unwrap_or(u32::MAX)
}

impl Unwritten {
    /// How many rows wait.
    pub(super) fn len(&self) -> usize {
        self.services.len() + self.frontends.len()
    }

    /// Why they do.
    pub(super) fn errors(&self) -> impl Iterator<Item = &ApplyError> {
        let services = self.services.values().map(|failed| &failed.error);
        services.chain(self.frontends.values().map(|failed| &failed.error))
    }

    /// Whether rows came or went since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn add_service(
        &mut self,
        key: ServiceKey,
        row: Option<Arc<ServiceRow>>,
        error: ApplyError,
    ) {
        self.forget_service(&key);
        self.changed = true;
        self.faults += usize::from(!error.is_for_want_of_room());
        if let Some(row) = &row {
            self.by_need.insert((need(row), key.clone()));
        }
        self.services.insert(key, Failed { row, error });
    }

    pub(super) fn add_frontend(
        &mut self,
        key: FrontendKey,
        row: Option<FrontendRow>,
        error: ApplyError,
    ) {
        self.forget_frontend(&key);
        self.changed = true;
        self.faults += usize::from(!error.is_for_want_of_room());
        match (&row, &error) {
            (Some(row), ApplyError::FrontendWaits(..)) => {
                self.waiting.entry(row.service.clone()).or_default().insert(key);
            }
            (Some(_), _) => drop(self.refused.insert(key)),
            (None, _) => {}
        }
        self.frontends.insert(key, Failed { row, error });
    }

    /// Forgets a row: another one takes its place. Returns it.
    pub(super) fn forget_service(&mut self, key: &ServiceKey) -> Option<Option<Arc<ServiceRow>>> {
        let Failed { row, error } = self.services.remove(key)?;
        self.changed = true;
        self.faults -= usize::from(!error.is_for_want_of_room());
        if let Some(row) = &row {
            self.by_need.remove(&(need(row), key.clone()));
        }
        Some(row)
    }

    /// As [`Unwritten::forget_service`].
    pub(super) fn forget_frontend(&mut self, key: &FrontendKey) -> Option<Option<FrontendRow>> {
        let Failed { row, error } = self.frontends.remove(key)?;
        self.changed = true;
        self.faults -= usize::from(!error.is_for_want_of_room());
        self.refused.remove(key);
        if let Some(row) = &row
            && let Some(waiting) = self.waiting.get_mut(&row.service)
        {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(&row.service);
            }
        }
        Some(row)
    }

    /// Takes out everything.
    pub(super) fn take(&mut self) -> TableDelta {
        let Self { services, frontends, .. } = std::mem::take(self);
        self.changed = true;
        TableDelta {
            services: services.into_iter().map(|(key, failed)| (key, failed.row)).collect(),
            frontends: frontends.into_iter().map(|(key, failed)| (key, failed.row)).collect(),
            ..TableDelta::default()
        }
    }

    /// Takes out the service that needs the fewest slots, if it may fit into `most` of them.
    pub(super) fn take_smallest(&mut self, most: u32) -> Option<(ServiceKey, Arc<ServiceRow>)> {
        let (_, key) = self.by_need.first().filter(|(need, _)| *need <= most)?.clone();
        let row = self.forget_service(&key)??;
        Some((key, row))
    }

    /// Takes out the frontends that wait for `service`.
    pub(super) fn take_waiting(&mut self, service: &ServiceKey) -> Vec<(FrontendKey, FrontendRow)> {
        let keys = self.waiting.get(service).cloned().unwrap_or_default();
        let row = |key| Some((key, self.forget_frontend(&key)??));
        keys.into_iter().filter_map(row).collect()
    }

    /// Takes out up to `most` frontends that the map did not take.
    pub(super) fn take_refused(&mut self, most: usize) -> Vec<(FrontendKey, FrontendRow)> {
        let keys: Vec<_> = self.refused.iter().copied().take(most).collect();
        let row = |key| Some((key, self.forget_frontend(&key)??));
        keys.into_iter().filter_map(row).collect()
    }

    /// Whether the removal of the service waits.
    pub(super) fn removes(&self, service: &ServiceKey) -> bool {
        self.services.get(service).is_some_and(|failed| failed.row.is_none())
    }
}

impl<S: Store> Applier<S> {
    /// Tries again everything that failed before, as a pass does not: for reasons of failure that
    /// end unseen.
    pub fn retry(&mut self) -> Vec<ApplyError> {
        let all = self.unwritten.take();
        self.apply(all)
    }

    /// How many rows wait to be written.
    pub fn unwritten(&self) -> usize {
        self.unwritten.len() + self.names.unwritten()
    }

    /// Whether all was written in the last pass and before.
    pub fn holds_everything(&self) -> bool {
        self.unwritten() == 0 && self.passing.is_empty()
    }

    /// Whether what was not written only has no room.
    pub fn lacks_only_room(&self) -> bool {
        self.unwritten.faults == 0 && self.passing.iter().all(ApplyError::is_for_want_of_room)
    }

    /// Whether an empty step would try again some of what failed before.
    pub fn may_fit(&self) -> bool {
        self.has_room && self.unwritten.len() > 0
    }

    /// Why rows wait, if that has changed since the last call.
    pub fn changed_failures(&mut self) -> Option<impl Iterator<Item = &ApplyError>> {
        self.unwritten.take_changed().then(|| self.unwritten.errors())
    }

    /// What else went wrong in the last pass.
    pub fn passing_errors(&self) -> &[ApplyError] {
        &self.passing
    }

    /// Tries the services again that did not fit, from the smallest on, until one does not fit
    /// again: what has come back may be enough for some, and nearly never for all.
    pub(super) fn keep_smallest(&mut self, step: &mut Step, errors: &mut Vec<ApplyError>) {
        if !std::mem::take(&mut self.has_room) {
            return;
        }
        let failed_before = errors.len();
        while errors.len() == failed_before
            && let Some((key, row)) = self.unwritten.take_smallest(self.ranges.longest())
        {
            self.keep(key, row, step, errors);
        }
    }

    /// Tries as many of the frontends again that did not fit as others have left the map.
    pub(super) fn put_refused(&mut self, errors: &mut Vec<ApplyError>) {
        let room = std::mem::take(&mut self.frontends_left);
        let refused = self.unwritten.take_refused(room);
        let tried: BTreeSet<FrontendKey> = refused.iter().map(|(key, _)| *key).collect();
        errors
            .retain(|error| !matches!(error, ApplyError::Frontend(key, ..) if tried.contains(key)));
        let mut publish = BTreeMap::new();
        for (key, row) in refused {
            self.claim(key, row, &mut publish, errors);
        }
        self.put_frontends(publish, errors);
    }
}
