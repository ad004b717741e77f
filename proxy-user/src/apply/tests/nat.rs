//! The maps of NAT, in memory, over all that can befall them.

use super::*;
use crate::nat::{OutputKey, OutputRows, OutputTarget, SHARES};
use proxy_ebpf::priority::Priority;

/// What the maps of NAT hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct NatRows {
    backends: BTreeMap<BackendId, End>,
    output: OutputRows,
}

impl Fake {
    /// Whether every backend that the frontend of `value` leads to has its address in NAT.
    pub(super) fn assert_translated(&self, value: FrontendValue) {
        let header = RangeHeader::from_slot(&self.slot(value.range()));
        for slot in (1..=header.cluster + header.local).map(|at| self.slot(value.range() + at)) {
            let end = End { addr: slot.addr, port: slot.port };
            assert_eq!(
                self.nat.backends.get(&slot.backend),
                Some(&end),
                "no program may choose it"
            );
        }
    }

    /// As the kernel does it: what is there with another value is not replaced.
    fn take_room(&mut self) -> Result<(), StoreError> {
        self.nat_writes += 1;
        let Some(room) = &mut self.nat_room else { return Ok(()) };
        let left = room.checked_sub(1);
        *room = left.unwrap_or(0);
        let reason = "it is broken".to_owned();
        left.map(drop).ok_or(StoreError { map: "nftables", action: "write", reason })
    }

    /// Whether what the node's own packets find leads to backends, and nothing else is there.
    fn assert_output_leads_on(&self) {
        let output = &self.nat.output;
        let is_known = |number: &u32| {
            let refusals = [Priority::REFUSE.0, Priority::DROP.0];
            refusals.contains(number) || self.nat.backends.contains_key(&backend_of(*number))
        };
        let mut named = BTreeSet::new();
        for target in output.targets.values() {
            match target {
                OutputTarget::Direct(number) => assert!(is_known(number), "{number:x}"),
                OutputTarget::Shared(number) => drop(named.insert(*number)),
            }
        }
        assert!(output.shares.keys().eq(&named), "{:?}, but {named:?}", output.shares.keys());
        assert!(output.shares.values().flatten().all(is_known));
        assert!(output.shares.values().all(|shares| shares.len() == SHARES as usize));
    }
}

impl NatStore for Fake {
    fn refill_backends(&mut self, backends: &[(BackendId, End)]) -> Result<(), StoreError> {
        self.take_room()?;
        self.nat.backends = backends.iter().copied().collect();
        assert_eq!(self.nat.backends.len(), backends.len(), "the kernel refuses a key twice");
        Ok(())
    }

    fn refill_output(&mut self, rows: &OutputRows) -> Result<(), StoreError> {
        self.take_room()?;
        self.nat.output = rows.clone();
        Ok(())
    }

    fn write_nat(&mut self, step: &NatStep) -> Result<(), StoreError> {
        for (id, end) in &step.backends {
            self.take_room()?;
            let old = self.nat.backends.insert(*id, *end);
            assert!(old.is_none_or(|old| old == *end), "{id:?} is still {old:?}'s");
        }
        for (id, _) in &step.gone {
            self.take_room()?;
            self.nat.backends.remove(id);
        }
        if step.output == OutputRows::default() && step.output_gone == OutputRows::default() {
            return Ok(());
        }
        self.take_room()?;
        let output = &mut self.nat.output;
        output.targets.retain(|key, _| !step.output_gone.targets.contains_key(key));
        output.shares.retain(|key, _| !step.output_gone.shares.contains_key(key));
        for (key, target) in &step.output.targets {
            let old = output.targets.insert(*key, *target);
            assert!(old.is_none_or(|old| old == *target), "{key:?} still leads to {old:?}");
        }
        for (key, shares) in &step.output.shares {
            let old = output.shares.insert(*key, shares.clone());
            assert!(old.is_none_or(|old| old == *shares), "{key} still has its shares");
        }
        Ok(())
    }
}

fn backend_of(number: u32) -> BackendId {
    BackendId(number & (Priority::BACKENDS - 1))
}

fn last_byte(addr: Addr) -> u8 {
    addr.v4_word().to_ne_bytes()[3]
}

/// The backends that NAT knows, by the last bytes of their addresses.
fn known(applier: &Applier<Fake>) -> Vec<u8> {
    let mut known: Vec<_> =
        applier.store.nat.backends.values().map(|end| last_byte(end.addr)).collect();
    known.sort_unstable();
    known
}

fn release(applier: &mut Applier<Fake>) {
    let quarantine = applier.take_quarantine();
    applier.release(quarantine);
}

#[test]
fn backend_is_in_nat_before_a_frontend_leads_to_it_and_goes_when_no_program_can_choose_it() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 12])])), []);
    assert_eq!(known(&applier), [11, 12]);
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[12, 13])])), []);
    assert_eq!(known(&applier), [11, 12, 13], "a program may still choose the old one");
    let quarantine = applier.take_quarantine();
    // Whatever is compared meanwhile.
    applier.doubt_nat();
    assert_eq!(applier.apply(TableDelta::default()), []);
    assert_eq!(known(&applier), [11, 12, 13], "somebody waits for the programs");
    applier.release(quarantine);
    assert_eq!(known(&applier), [12, 13]);
    assert_eq!(applier.apply_all(&Tables::default()), []);
    assert_eq!(known(&applier), [12, 13]);
    release(&mut applier);
    assert!(known(&applier).is_empty());
}

#[test]
fn broken_nat_publishes_nothing_loses_nothing_and_is_made_good_by_the_next_pass() {
    let old = tables(&[("web", 1, &[11, 12]), ("gone", 2, &[21])]);
    let new = tables(&[("web", 1, &[12, 13]), ("new", 3, &[31, 32])]);
    for room in 0..3 {
        let mut applier = applier();
        assert_eq!(applier.apply_all(&old), []);
        applier.store.nat_room = Some(room);
        for _ in 0..2 {
            let errors = applier.apply_all(&new);
            assert!(matches!(errors[..], [ApplyError::Nat(_)]), "{errors:?}");
            release(&mut applier);
            assert_eq!(read_back(&applier.store), wanted(&old), "as it was, and not written over");
            assert!(applier.unwritten() > 0);
            let state =
                |last| applier.store.nat.backends.values().any(|end| end.addr == addr(last));
            assert!([11, 12, 21].into_iter().all(state), "{:?}", known(&applier));
        }
        applier.store.nat_room = None;
        assert_eq!(applier.apply(TableDelta::default()), []);
        assert_eq!(read_back(&applier.store), wanted(&new));
        assert_eq!(applier.unwritten(), 0);
        release(&mut applier);
        assert_eq!(known(&applier), [12, 13, 31, 32], "room {room}");
    }
}

#[test]
fn backend_that_nat_does_not_let_go_of_goes_later() {
    let mut applier = applier();
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[11, 12])])), []);
    assert_eq!(applier.apply_all(&tables(&[("web", 1, &[12])])), []);
    applier.store.nat_room = Some(0);
    release(&mut applier);
    assert!(applier.doubts_nat());
    applier.store.nat_room = None;
    assert_eq!(applier.apply(TableDelta::default()), []);
    assert_eq!(known(&applier), [12]);
    assert!(!applier.doubts_nat());
}

#[test]
fn flushed_or_changed_nat_is_filled_again_once_it_is_doubted() {
    let mut applier = applier();
    let world = tables_of(&[
        ("dns", &[udp_at(1)], row(&[11, 12], &[])),
        ("one", &[udp_at(2)], row(&[21], &[])),
    ]);
    assert_eq!(applier.apply_all(&world), []);
    let good = applier.store.nat.clone();
    let strange = End { addr: addr(99), port: Port::new(1) };
    let key = *good.output.targets.keys().next().unwrap();
    let id = *good.backends.keys().next().unwrap();
    let other = OutputKey { end: strange, ..key };
    let spoil: [&dyn Fn(&mut NatRows); 6] = [
        &|nat| *nat = NatRows::default(),
        &|nat| {
            nat.backends.insert(id, strange);
        },
        &|nat| {
            nat.backends.insert(BackendId(77), strange);
        },
        &|nat| {
            nat.output.targets.insert(key, OutputTarget::Direct(Priority::DROP.0));
        },
        &|nat| {
            nat.output.targets.insert(other, OutputTarget::Shared(9));
        },
        &|nat| nat.output.shares.values_mut().for_each(|shares| shares[5] = 0),
    ];
    for (number, spoil) in spoil.iter().enumerate() {
        spoil(&mut applier.store.nat);
        assert_ne!(applier.store.nat, good);
        assert_eq!(applier.apply(TableDelta::default()), []);
        assert_ne!(applier.store.nat, good, "nothing is read that nobody doubts");
        applier.doubt_nat();
        let writes = applier.writes();
        assert_eq!(applier.apply(TableDelta::default()), []);
        assert_eq!(applier.store.nat, good, "number {number}");
        assert!(applier.writes() > writes, "it is counted as drift");
    }
}

#[test]
fn restart_adopts_nat_and_removes_what_went_meanwhile() {
    let world = |cluster: &[u8]| tables_of(&[("dns", &[udp_at(1)], row(cluster, &[]))]);
    let mut first = applier();
    assert_eq!(first.apply_all(&world(&[11, 12])), []);
    let mut second = Applier::restore(first.store.clone()).unwrap();
    assert_eq!(second.apply_all(&world(&[11, 12])), []);
    assert_eq!(second.store.nat, first.store.nat);
    let writes = second.store.nat_writes;
    assert_eq!(second.apply_all(&world(&[11, 12])), []);
    assert_eq!(second.store.nat_writes, writes, "a second time nothing is written");

    let mut third = Applier::restore(first.store).unwrap();
    assert_eq!(third.apply_all(&world(&[12, 13])), []);
    assert_eq!(known(&third), [11, 12, 13]);
    release(&mut third);
    assert_eq!(known(&third), [12, 13]);
    third.store.assert_output_leads_on();
    // Not even its service is there any more.
    let mut fourth = Applier::restore(third.store).unwrap();
    assert_eq!(fourth.apply_all(&Tables::default()), []);
    release(&mut fourth);
    assert_eq!(fourth.store.nat, NatRows::default());
}

proptest! {
    #[test]
    fn nat_holds_what_is_published_whatever_breaks_in_between(
        steps in proptest::collection::vec(
            (
                proptest::collection::btree_map(0_u8..3, proptest::collection::btree_set(0_u8..5, 0..4), 0..4),
                proptest::option::of(0_usize..4),
                any::<[bool; 3]>(),
            ),
            1..10,
        ),
    ) {
        let mut applier = applier();
        for (services, room, [restart, frees, doubts]) in steps {
            let services: Vec<_> = services
                .into_iter()
                .map(|(name, cluster)| {
                    let cluster: Vec<u8> = cluster.into_iter().collect();
                    (format!("s{name}"), [udp_at(name)], row(&cluster, &[]))
                })
                .collect();
            let services: Vec<_> =
                services.iter().map(|(name, ends, row)| (&**name, &ends[..], row.clone())).collect();
            let tables = tables_of(&services);
            applier.store.nat_room = room;
            if doubts {
                applier.doubt_nat();
            }
            let _broken = applier.apply_all(&tables);
            applier.store.frontends.values().for_each(|value| applier.store.assert_translated(*value));
            if frees {
                release(&mut applier);
            }
            if restart {
                applier = Applier::restore(applier.store).unwrap();
                applier.store.nat_room = None;
                prop_assert_eq!(applier.apply_all(&tables), vec![]);
            } else {
                applier.store.nat_room = None;
                prop_assert_eq!(applier.apply(TableDelta::default()), vec![]);
            }
            prop_assert_eq!(applier.store.frontends.len(), tables.frontends.len());
            applier.store.assert_output_leads_on();
            release(&mut applier);
            let mut ends: Vec<_> = tables
                .services
                .values()
                .flat_map(|row| row.all.iter().map(|(row, _)| row.addr))
                .collect();
            let mut held: Vec<_> = applier.store.nat.backends.values().map(|end| end.addr).collect();
            ends.sort();
            held.sort();
            prop_assert_eq!(held, ends);
        }
    }
}

/// A frontend of UDP, and its flags.
type At = (FrontendKey, FrontendFlags);

fn udp_at(last: u8) -> At {
    (FrontendKey::service(addr(last), Port::new(53), Proto::UDP), FrontendFlags::NONE)
}

fn key(name: &str, proto: Proto) -> ServiceKey {
    let mut key = service(name);
    Arc::make_mut(&mut key.port).proto = proto;
    key
}

/// Services at frontends that are all of one protocol.
fn tables_of(services: &[(&str, &[At], ServiceRow)]) -> Tables {
    let mut tables = Tables::default();
    for (name, frontends, row) in services {
        for (at, flags) in *frontends {
            let service = key(name, at.proto);
            tables.services.insert(service.clone(), row.clone().into());
            tables.frontends.insert(*at, FrontendRow { service, flags: *flags });
        }
    }
    tables
}

/// What the node's own packets find at a port of an address, by the shares of it: the last byte of
/// the backend's address and whether the client is hidden, or 0 for a refusal and 1 for silence.
fn finds(applier: &Applier<Fake>, last: u8, port: u16, proto: Proto) -> Option<Vec<(u8, bool)>> {
    let rows = &applier.store.nat;
    applier.store.assert_output_leads_on();
    let key = OutputKey { end: End { addr: addr(last), port: Port::new(port) }, proto };
    let shares = match rows.output.targets.get(&key)? {
        OutputTarget::Direct(number) => vec![*number],
        OutputTarget::Shared(number) => rows.output.shares[number].clone(),
    };
    let what = |number: &u32| match Priority(*number) {
        Priority::REFUSE => REFUSED,
        Priority::DROP => DROPPED,
        Priority(number) => {
            let end = rows.backends[&backend_of(number)];
            (last_byte(end.addr), number & Priority::HIDE != 0)
        }
    };
    Some(shares.iter().map(what).collect())
}

const REFUSED: (u8, bool) = (0, false);
const DROPPED: (u8, bool) = (1, false);

/// What the node finds at a service of UDP with `flags` and `row`.
fn found(flags: FrontendFlags, row: ServiceRow) -> Vec<(u8, bool)> {
    let mut applier = applier();
    let world = tables_of(&[("dns", &[(udp_at(1).0, flags)], row)]);
    assert_eq!(applier.apply_all(&world), []);
    finds(&applier, 1, 53, Proto::UDP).unwrap()
}

/// The row, with the backends of `here` on this node and in the local set.
fn local(row: ServiceRow, here: &[u8]) -> ServiceRow {
    let here: Vec<_> = here.iter().map(|last| backend(*last)).collect();
    let own = BackendFlags::LOCAL.with(BackendFlags::IN_LOCAL_SET);
    let flags = |(row, flags): &(BackendRow, BackendFlags)| {
        (*row, if here.contains(row) { flags.with(own) } else { *flags })
    };
    ServiceRow { all: row.all.iter().map(flags).collect(), ..row }
}

#[test]
fn the_nodes_own_datagrams_are_shared_evenly_by_the_backends() {
    assert_eq!(found(FrontendFlags::NONE, row(&[11], &[12])), [(11, true)], "one needs no shares");
    assert_eq!(found(FrontendFlags::NONE, local(row(&[11], &[]), &[11])), [(11, false)]);
    for count in 2..=40_u8 {
        let cluster: Vec<u8> = (100..100 + count).collect();
        let shares = found(FrontendFlags::NONE, row(&cluster, &[]));
        assert_eq!(shares.len(), SHARES as usize);
        let each = SHARES as usize / usize::from(count);
        for last in cluster {
            let has = shares.iter().filter(|share| **share == (last, true)).count();
            assert!(has == each || has == each + 1, "{has} of {count} backends");
        }
    }
}

#[test]
fn the_node_is_one_client_with_affinity() {
    let shares =
        found(FrontendFlags::NONE, ServiceRow { affinity_seconds: 10, ..row(&[11, 12, 13], &[]) });
    assert_eq!(shares.len(), 1);
}

#[test]
fn the_node_is_refused_or_dropped_as_the_policy_says() {
    use FrontendFlags as F;
    assert_eq!(found(F::NONE, row(&[], &[11])), [REFUSED], "what drains is not chosen");
    assert_eq!(found(F::INTERNAL_LOCAL, row(&[], &[])), [REFUSED]);
    assert_eq!(found(F::INTERNAL_LOCAL, row(&[11, 12], &[])), [DROPPED]);
    let here = local(row(&[11, 12], &[]), &[12]);
    assert_eq!(found(F::INTERNAL_LOCAL, here.clone()), [(12, false)]);
    // The node is none of those outside.
    assert_eq!(found(F::EXTERNAL_LOCAL, here).len(), SHARES as usize);
    let restricted = F::LOAD_BALANCER.with(F::RESTRICTED);
    assert_eq!(found(restricted, row(&[11], &[])), [DROPPED]);
    assert_eq!(found(restricted.with(F::ADMITS_NODE), row(&[11], &[])), [(11, true)]);
}

#[test]
fn the_node_finds_node_ports_at_each_of_its_addresses_of_the_family() {
    let port = FrontendKey::node_port(addr(0), Port::new(30_053), Proto::UDP);
    let world = tables_of(&[("dns", &[(port, FrontendFlags::NODE_PORT)], row(&[11], &[]))]);
    let mut applier = applier();
    assert_eq!(applier.apply_all(&world), []);
    assert_eq!(applier.store.nat.output, OutputRows::default());
    let v6: std::net::IpAddr = "fd00::2".parse().unwrap();
    assert!(applier.set_output(vec![addr(2), addr(3), v6.into()], false));
    assert!(!applier.set_output(vec![addr(2), addr(3), v6.into()], false), "no news");
    assert_eq!(applier.apply(TableDelta::default()), []);
    for last in [2, 3] {
        assert_eq!(finds(&applier, last, 30_053, Proto::UDP).unwrap(), [(11, true)]);
    }
    assert_eq!(applier.store.nat.output.targets.len(), 2);
    assert!(applier.set_output(vec![addr(3)], false));
    assert_eq!(applier.apply(TableDelta::default()), []);
    assert_eq!(applier.store.nat.output.targets.len(), 1);
}

#[test]
fn the_nodes_tcp_is_left_to_its_sockets_unless_they_drop_or_have_no_hook() {
    use FrontendFlags as F;
    let at = |last, flags| (FrontendKey::service(addr(last), Port::new(80), Proto::TCP), flags);
    let world = tables_of(&[
        ("web", &[at(1, F::NONE), at(2, F::INTERNAL_LOCAL)], row(&[11], &[])),
        ("empty", &[at(3, F::NONE)], row(&[], &[])),
    ]);
    let mut applier = applier();
    assert_eq!(applier.apply_all(&world), []);
    let all = |applier: &Applier<Fake>| [1, 2, 3].map(|last| finds(applier, last, 80, Proto::TCP));
    assert_eq!(all(&applier), [None, Some(vec![DROPPED]), None]);
    assert!(applier.set_output(vec![], true));
    assert_eq!(applier.apply(TableDelta::default()), []);
    let all_found = [Some(vec![(11, true)]), Some(vec![DROPPED]), Some(vec![REFUSED])];
    assert_eq!(all(&applier), all_found);
    assert!(applier.set_output(vec![], false));
    assert_eq!(applier.apply(TableDelta::default()), []);
    assert_eq!(all(&applier), [None, Some(vec![DROPPED]), None]);
}

#[test]
fn the_node_finds_a_frontend_that_comes_moves_and_goes_without_its_service() {
    let mut applier = applier();
    let (one, two) = (row(&[11], &[]), row(&[12], &[]));
    let world = |owner: &str, with: bool| {
        let mut tables =
            tables_of(&[("one", &[udp_at(1)], one.clone()), ("two", &[udp_at(2)], two.clone())]);
        if with {
            let service = key(owner, Proto::UDP);
            let row = FrontendRow { service, flags: FrontendFlags::EXTERNAL_IP };
            tables.frontends.insert(udp_at(9).0, row);
        }
        tables.frontends
    };
    assert_eq!(
        applier.apply_all(&tables_of(&[
            ("one", &[udp_at(1)], one.clone()),
            ("two", &[udp_at(2)], two.clone())
        ])),
        []
    );
    for (owner, wanted) in [("one", Some(11)), ("two", Some(12)), ("two", None)] {
        let row = world(owner, wanted.is_some()).remove(&udp_at(9).0);
        let frontends = [(udp_at(9).0, row)].into();
        assert_eq!(applier.apply(TableDelta { frontends, ..TableDelta::default() }), []);
        let wanted = wanted.map(|last| vec![(last, true)]);
        assert_eq!(finds(&applier, 9, 53, Proto::UDP), wanted, "{owner}");
    }
}
