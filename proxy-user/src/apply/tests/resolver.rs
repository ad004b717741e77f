//! The node's resolver among the backends of the DNS service.

use super::*;

#[test]
fn resolver_is_the_last_one_of_its_range() {
    let mut applier = applier();
    let mut tables = tables(&[("dns", 1, &[])]);
    let mut row = row(&[11, 12], &[13]);
    let serving = BackendFlags::SERVING.with(BackendFlags::RESOLVER);
    row.all = [&[(backend(2), serving)], &row.all[..]].concat().into();
    tables.services.insert(service("dns"), row.into());
    assert_eq!(applier.apply_all(&tables), []);
    let range = applier.store.frontends[&frontend(1)].range();
    let last = applier.store.slot(range + 4);
    assert_eq!((last.addr, last.flags), (addr(2), serving));
    let state = applier.store.backend(last.backend);
    assert!(state.flags().has(BackendFlags::RESOLVER));
}
