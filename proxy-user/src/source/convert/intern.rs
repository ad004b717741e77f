//! One copy of each value that many objects repeat: node names, zones, namespaces, port names,
//! placements of endpoints.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// The values in use.
#[derive(Debug)]
pub(super) struct Interner<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), sweep_at: 0 }
    }
}

/// Below this many values a sweep is not worth its time.
const SWEEP_AT_LEAST: usize = 1024;

impl<T: Eq + Hash + ?Sized> Interner<T> {
    /// The one copy of `value`.
    pub(super) fn intern(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.values.get(value.borrow()) {
            return known.clone();
        }
        if self.values.len() >= self.sweep_at {
            // Values that only this set still holds belonged to objects that are gone.
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = SWEEP_AT_LEAST.max(2 * self.values.len());
        }
        let value = value.into();
        self.values.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_allocation() {
        let mut interner = Interner::<str>::default();
        assert!(Arc::ptr_eq(&interner.intern("node-a"), &interner.intern("node-a")));
        assert!(!Arc::ptr_eq(&interner.intern("node-a"), &interner.intern("node-b")));
    }

    #[test]
    fn values_of_gone_objects_do_not_pile_up() {
        let mut interner = Interner::<str>::default();
        let kept = interner.intern("kept");
        for i in 0..20 * SWEEP_AT_LEAST {
            interner.intern(i.to_string().as_str());
        }
        assert!(interner.values.len() <= 2 * SWEEP_AT_LEAST, "{}", interner.values.len());
        assert!(Arc::ptr_eq(&kept, &interner.intern("kept")));
    }
}
