//! One copy of each string that many objects repeat: node names, zones, namespaces, port names.

use std::collections::HashSet;
use std::sync::Arc;

/// The strings in use.
#[derive(Debug, Default)]
pub(super) struct Interner {
    strings: HashSet<Arc<str>>,
    sweep_at: usize,
}

/// Below this many strings a sweep is not worth its time.
const SWEEP_AT_LEAST: usize = 1024;

impl Interner {
    /// The one copy of `text`.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return known.clone();
        }
        if self.strings.len() >= self.sweep_at {
            // Strings that only this set still holds belonged to objects that are gone.
            self.strings.retain(|string| Arc::strong_count(string) > 1);
            self.sweep_at = SWEEP_AT_LEAST.max(2 * self.strings.len());
        }
        let string: Arc<str> = text.into();
        self.strings.insert(string.clone());
        string
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one_allocation() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.intern("node-a"), &interner.intern("node-a")));
        assert!(!Arc::ptr_eq(&interner.intern("node-a"), &interner.intern("node-b")));
    }

    #[test]
    fn strings_of_gone_objects_do_not_pile_up() {
        let mut interner = Interner::default();
        let kept = interner.intern("kept");
        for i in 0..20 * SWEEP_AT_LEAST {
            interner.intern(&i.to_string());
        }
        assert!(interner.strings.len() <= 2 * SWEEP_AT_LEAST, "{}", interner.strings.len());
        assert!(Arc::ptr_eq(&kept, &interner.intern("kept")));
    }
}
