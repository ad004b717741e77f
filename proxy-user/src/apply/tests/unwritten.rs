//! When rows that could not be written are tried again.

use super::*;

/// A world of `count` services with one backend each, of which `room` frontends fit.
fn full(count: u8, room: usize) -> (Applier<Fake>, Tables) {
    let names: Vec<_> = (1..=count).map(|vip| (format!("s{vip}"), vip)).collect();
    let services: Vec<_> =
        names.iter().map(|(name, vip)| (name.as_str(), *vip, &[11_u8][..])).collect();
    let world = tables(&services);
    let mut applier = applier();
    applier.store.frontend_room = Some(room);
    let errors = applier.apply_all(&world);
    assert_eq!(errors.len(), usize::from(count) - room);
    (applier, world)
}

fn change(name: &str, cluster: &[u8]) -> TableDelta {
    let mut delta = TableDelta::default();
    delta.services.insert(service(name), Some(row(cluster, &[]).into()));
    delta
}

#[test]
fn rows_that_do_not_fit_cost_nothing_in_a_pass_about_others() {
    let (mut applier, _) = full(200, 2);
    assert_eq!(applier.unwritten(), 198);
    assert_eq!(applier.changed_failures().map(Iterator::count), Some(198));
    let tried = applier.store.tried;
    for last in 12..20 {
        assert_eq!(applier.apply(change("s1", &[last])), []);
        let quarantine = applier.take_quarantine();
        applier.release(quarantine);
    }
    // The one frontend of the service that moves, each time.
    assert_eq!(applier.store.tried - tried, 8);
    assert!(applier.changed_failures().is_none(), "nobody sorts them again");
    assert_eq!(applier.retry().len(), 198, "whoever asks has all of them tried");
}

#[test]
fn as_many_frontends_are_tried_again_as_have_left() {
    let (mut applier, _) = full(10, 4);
    let tried = applier.store.tried;
    let mut delta = TableDelta::default();
    delta.frontends.insert(frontend(1), None);
    delta.frontends.insert(frontend(2), None);
    delta.services.insert(service("s1"), None);
    delta.services.insert(service("s2"), None);
    assert_eq!(applier.apply(delta), []);
    assert_eq!((applier.store.tried - tried, applier.unwritten()), (2, 4));
    assert_eq!(applier.store.frontends.len(), 4);
}

#[test]
fn a_frontend_that_replaces_another_in_a_full_map_is_there_after_one_pass() {
    let mut applier = applier();
    applier.store.frontend_room = Some(1);
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11])])), []);
    let moved = tables(&[("web", 2, &[11])]);
    assert_eq!(applier.apply_all(&moved), [], "the old one goes, and so there is room");
    assert_eq!(read_back(&applier.store), wanted(&moved));
    assert_eq!(applier.unwritten(), 0);
}

#[test]
fn services_that_do_not_fit_come_smallest_first_with_their_frontends() {
    let mut applier = applier();
    applier.ranges = RangePool::new(8, &BTreeMap::new());
    let world = tables(&[
        ("a", 1, &[11, 12, 13]),
        ("b", 2, &[21, 22, 23, 24, 25, 26]),
        ("c", 3, &[31, 32]),
    ]);
    let errors = applier.apply_all(&world);
    assert_eq!(errors.len(), 2, "`b` and its frontend: {errors:?}");
    let mut delta = change("d", &[41, 42, 43, 44]);
    let row = FrontendRow { service: service("d"), flags: FrontendFlags::NONE };
    delta.frontends.insert(frontend(4), Some(row));
    assert_eq!(applier.apply(delta).len(), 2);
    let mut gone = TableDelta::default();
    gone.frontends.extend([(frontend(1), None), (frontend(3), None)]);
    gone.services.extend([(service("a"), None), (service("c"), None)]);
    assert_eq!(applier.apply(gone), []);
    let quarantine = applier.take_quarantine();
    applier.release(quarantine);
    let errors = applier.apply(TableDelta::default());
    assert!(errors.is_empty() && applier.unwritten() == 2, "{errors:?}");
    assert_eq!(read_back(&applier.store)[&frontend(4)].2.len(), 4);
}

#[test]
fn a_service_whose_frontend_stays_behind_goes_when_that_does() {
    let mut applier = applier();
    applier.ranges = RangePool::new(8, &BTreeMap::new());
    assert_eq!(applier.apply_all(&tables(&[("old", 1, &[11, 12])])), []);
    let renamed = tables(&[("new", 1, &[11, 12, 13, 14, 15])]);
    assert_eq!(
        applier.apply_all(&renamed).len(),
        3,
        "no room, a frontend, and a service that stay"
    );
    applier.release(Quarantine { ranges: vec![(8, 8)], ..Quarantine::default() });
    assert_eq!(applier.apply(TableDelta::default()), []);
    assert_eq!(read_back(&applier.store), wanted(&renamed));
    assert_eq!((applier.services.len(), applier.unwritten()), (1, 0));
}

#[test]
fn a_full_frontend_map_keeps_what_works_and_takes_the_rest_when_there_is_room() {
    let mut applier = applier();
    applier.store.frontend_room = Some(2);
    let three = tables(&[("a", 1, &[11]), ("b", 2, &[21]), ("c", 3, &[31])]);
    let errors = applier.apply_all(&three);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("the map is full"), "{}", errors[0]);
    assert_eq!(read_back(&applier.store).len(), 2);
    // An update of what is there goes through although the map is full.
    let moved = tables(&[("a", 1, &[12]), ("b", 2, &[21]), ("c", 3, &[31])]);
    let _full = applier.apply_all(&moved);
    assert_eq!(read_back(&applier.store)[&frontend(1)].2, [backend(12)]);
    applier.store.frontend_room = None;
    assert_eq!(applier.retry(), []);
    assert_eq!(read_back(&applier.store), wanted(&moved));
    assert_eq!(applier.unwritten(), 0);
}

#[test]
fn a_service_that_does_not_fit_keeps_its_last_state_and_comes_when_there_is_room() {
    let mut applier = applier();
    applier.ranges = RangePool::new(8, &BTreeMap::new());
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 12])])), []);
    let large = tables(&[("web", 1, &[11, 12, 13, 14, 15])]);
    let errors = applier.apply_all(&large);
    assert!(matches!(errors[..], [ApplyError::SlotsFull(_, 5)]), "{errors:?}");
    assert_eq!(read_back(&applier.store)[&frontend(1)].2.len(), 2);
    applier.release(Quarantine { ranges: vec![(8, 8)], ..Quarantine::default() });
    assert!(applier.may_fit());
    assert_eq!(applier.apply(TableDelta::default()), []);
    assert_eq!(read_back(&applier.store), wanted(&large));
}
