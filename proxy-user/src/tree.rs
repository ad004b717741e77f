//! Trees that take no more memory than they need.
//!
//! A tree that is filled in order, as lists and first passes do, has half-full nodes: a full one
//! is split in the middle, and nothing comes to its left half any more.

use std::collections::BTreeMap;
use std::mem::take;

/// Makes the nodes of `tree` full; those that change later find their own measure.
pub fn pack<K: Ord, V>(tree: &mut BTreeMap<K, V>) {
    *tree = take(tree).into_iter().collect();
}
