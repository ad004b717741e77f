//! Source ranges and affinity, over maps in memory.

use super::*;

/// Tables with the service `web`, open to `sources`, with affinity or without.
fn restricted(sources: &[u8], affinity_seconds: u32) -> Tables {
    let mut tables = tables(&[("web", 1, &[11])]);
    let source_ranges = sources.iter().map(|&last| addr(last).into()).collect();
    let row = ServiceRow { source_ranges, affinity_seconds, ..row(&[11], &[]) };
    tables.services.insert(service("web"), row.into());
    tables
}

fn open_to(applier: &Applier<Fake>) -> Vec<Addr> {
    applier.store.source_ranges.iter().map(|(_, range)| range.addr).collect()
}

#[test]
fn source_ranges_open_and_close_with_the_row_and_go_with_the_service() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&restricted(&[1, 2], 0)), []);
    assert_eq!(open_to(&applier), [addr(1), addr(2)]);
    assert_eq!(applier.apply_all(&restricted(&[2, 3], 0)), []);
    assert_eq!(open_to(&applier), [addr(2), addr(3)]);
    let writes = applier.store.writes;
    assert_eq!(applier.apply_all(&restricted(&[2, 3], 0)), []);
    assert_eq!(applier.store.writes, writes, "nothing is written twice");
    assert_eq!(applier.apply_all(&Tables::default()), []);
    assert_eq!(open_to(&applier), []);
}

#[test]
fn source_that_finds_no_room_is_shut_out_and_comes_in_once_there_is() {
    let mut applier = applier();
    applier.store.source_room = Some(1);
    let errors = applier.apply_all(&restricted(&[1, 2], 0));
    assert!(matches!(errors[..], [ApplyError::SourceRanges(..)]), "{errors:?}");
    assert_eq!(open_to(&applier), [addr(1)]);
    assert_eq!(applier.store.frontends.len(), 1, "the service is there all the same");
    applier.store.source_room = None;
    assert_eq!(applier.retry(), []);
    assert_eq!(open_to(&applier), [addr(1), addr(2)]);
}

#[test]
fn strange_source_ranges_are_closed_and_lost_ones_opened_again() {
    let mut applier = applier();
    let tables = restricted(&[1, 2], 0);
    assert_eq!(applier.apply_all(&tables), []);
    let mut lost = applier.store.clone();
    lost.source_ranges.pop_first();
    lost.source_ranges.insert((ServiceId(77), addr(9).into()));
    applier.store = lost.clone();
    assert_eq!(applier.heal(&tables).unwrap(), (2, Vec::new()));
    assert_eq!(open_to(&applier), [addr(1), addr(2)]);

    let mut restarted = Applier::restore(lost).unwrap();
    assert_eq!(restarted.apply_all(&tables), []);
    assert_eq!(open_to(&restarted), [addr(1), addr(2)]);
}

/// Scenario 85.
#[test]
fn clients_are_forgotten_when_affinity_ends_and_kept_when_its_timeout_changes() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&restricted(&[], 0)), []);
    let id = applier.services[&service("web")].id;
    for seconds in [10, 20] {
        assert_eq!(applier.apply_all(&restricted(&[], seconds)), []);
    }
    assert_eq!(applier.store.forgotten, []);
    let mut restarted = Applier::restore(applier.store.clone()).unwrap();
    for applier in [&mut applier, &mut restarted] {
        assert_eq!(applier.apply_all(&restricted(&[], 0)), []);
        assert_eq!(applier.store.forgotten, [id]);
    }
}

#[test]
fn states_say_which_sets_a_backend_of_a_service_with_affinity_is_in() {
    use BackendFlags as F;
    let mut applier = applier();
    let flags = |applier: &Applier<Fake>, last| {
        let state = applier.store.backend(ids(applier, "web")[&backend(last)]).flags();
        (state.has(F::IN_CLUSTER_SET), state.has(F::IN_LOCAL_SET))
    };
    for (affinity_seconds, sets) in
        [(0, [(false, false); 3]), (9, [(true, false), (true, true), (false, false)])]
    {
        let mut row = ServiceRow { affinity_seconds, ..row(&[11, 12], &[13]) };
        let (_, second) = &mut Arc::make_mut(&mut row.all)[1];
        *second = second.with(F::IN_LOCAL_SET);
        let mut tables = tables(&[("web", 1, &[])]);
        tables.services.insert(service("web"), row.into());
        assert_eq!(applier.apply_all(&tables), []);
        assert_eq!([11, 12, 13].map(|last| flags(&applier, last)), sets);
        let mut slots = applier.store.slots.values();
        assert!(slots.all(|slot| slot.flags.0 & F::SETS.0 == 0), "a slot's place says its set");
    }
}
