//! The tables of NAT, for everyone who writes to them: `apply` the services, the loader what
//! depends on the node.

use super::LoadError;
use crate::nat::{NatSettings, NatTables};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tables of this network namespace.
#[derive(Clone)]
pub(super) struct SharedNat(Arc<Mutex<NatTables>>);

impl SharedNat {
    /// Opens the tables, and makes them if they are not there.
    pub(super) fn open(settings: NatSettings) -> Result<Self, LoadError> {
        let tables = NatTables::open(settings).map_err(LoadError::Nat)?;
        Ok(Self(Arc::new(Mutex::new(tables))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, NatTables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedNat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedNat").finish_non_exhaustive()
    }
}
