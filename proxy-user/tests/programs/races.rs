//! Changes while packets arrive: every new connection gets a backend of a state that the service had
//! while its first packet was looked at, and none finds a service half written.

use crate::net::Net;
use crate::packet::ETHERNET;
use crate::plane::{Fate, Plane};
use crate::writer::{CLUSTER_IP, Served};
use proxy_ebpf::Proto;
use proxy_ebpf::priority::Priority;
use proxy_user::tables::Family;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// How many packets there are at least, and for how long at most, until there are states enough.
const PACKETS: u32 = 50_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// After how many states what they have left is used again.
const RELEASE: u16 = 64;
/// The last state: ids are not used again before it.
const LAST: u16 = 10_000;

/// How many backends the service has in a state: far more in every second one.
const fn len(state: u16) -> u32 {
    if state.is_multiple_of(2) { 1 } else { 40 }
}

/// The ids of the backends of a state. They are given out in order, and no two states share one.
const fn ids(state: u16) -> std::ops::Range<u32> {
    let first = 1 + (state as u32).div_ceil(2) * len(0) + (state as u32) / 2 * len(1);
    first..first + len(state)
}

fn backends(state: u16) -> Vec<SocketAddr> {
    let backend = |host: u32| SocketAddr::new([10, 245, 7, host as u8].into(), 1_000 + state);
    (1..=len(state)).map(backend).collect()
}

#[test]
fn connection_that_begins_during_a_change_gets_a_backend_of_before_or_after_it() {
    let mut plane = Plane::new();
    let net = Net::new(Proto::UDP, Family::V4);
    let frontends = &[(net.vip, CLUSTER_IP)];
    plane.serve(net, "web", Served { cluster: &backends(0), frontends, ..Default::default() });
    let mut writer = plane.another_writer();
    let (begun, done, over) = (AtomicU16::new(0), AtomicU16::new(0), AtomicBool::new(false));
    let mut packet = net.opening(net.pod, net.vip).bytes();

    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut state = 0;
            while !over.load(SeqCst) && state < LAST {
                state += 1;
                begun.store(state, SeqCst);
                let cluster = &backends(state);
                writer.serve(net, "web", Served { cluster, ..Default::default() });
                done.store(state, SeqCst);
                if state.is_multiple_of(RELEASE) {
                    writer.release();
                }
            }
            state
        });
        let begin = Instant::now();
        let lasts = |number: u32| {
            let are_few = number < PACKETS || done.load(SeqCst) <= RELEASE;
            are_few && begin.elapsed() < PATIENCE
        };
        let wrong = (0..).take_while(|number| lasts(*number)).find_map(|number| {
            // The low half of the client's address, and its port.
            packet[ETHERNET + 14..][..2].copy_from_slice(&((number >> 16) as u16).to_be_bytes());
            packet[ETHERNET + 20..][..2].copy_from_slice(&(number as u16).to_be_bytes());
            let oldest = done.load(SeqCst);
            let (fate, _, told) = plane.run_uncounted("ingress", 0, &packet);
            let mut states = oldest..=begun.load(SeqCst);
            let id = told ^ Priority::TAG ^ Priority::HIDE;
            let right = fate == Fate::Passed && states.any(|state| ids(state).contains(&id));
            (!right).then(|| format!("packet {number} in the states {oldest} and on: {told:x}"))
        });
        over.store(true, SeqCst);
        let states = writing.join().unwrap();
        assert_eq!(wrong, None);
        assert!(states > RELEASE, "only {states} states were written meanwhile");
    });
}
