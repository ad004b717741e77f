//! Changes while packets arrive: every new flow gets a backend of a state that the service had
//! while its first packet was looked at, and none finds a service half written.

use crate::net::Net;
use crate::packet::ETHERNET;
use crate::plane::{Fate, Plane};
use crate::writer::{CLUSTER_IP, Served};
use proxy_ebpf::Proto;
use proxy_user::tables::Family;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::thread;

const FLOWS: u32 = 150_000;
/// After how many states what they have left is used again.
const RELEASE: u16 = 256;
const FIRST_PORT: u16 = 1000;

/// How many backends the service has in a state: far more in every second one.
const fn len(state: u16) -> u8 {
    if state.is_multiple_of(2) { 1 } else { 40 }
}

/// The backends of a state. No two states share one: the port says which state it is of.
fn backends(state: u16) -> Vec<SocketAddr> {
    let backend = |host| SocketAddr::new([10, 245, 7, host].into(), FIRST_PORT + state);
    (1..=len(state)).map(backend).collect()
}

#[test]
fn flow_that_begins_during_a_change_gets_a_backend_of_before_or_after_it() {
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
            while !over.load(SeqCst) && state < u16::MAX - FIRST_PORT {
                state += 1;
                begun.store(state, SeqCst);
                writer.serve(
                    net,
                    "web",
                    Served { cluster: &backends(state), ..Default::default() },
                );
                done.store(state, SeqCst);
                if state.is_multiple_of(RELEASE) {
                    writer.release();
                }
            }
            state
        });
        let wrong = (0..FLOWS).find_map(|flow| {
            // The low half of the client's address, and its port.
            packet[ETHERNET + 14..][..2].copy_from_slice(&((flow >> 16) as u16).to_be_bytes());
            packet[ETHERNET + 20..][..2].copy_from_slice(&(flow as u16).to_be_bytes());
            let oldest = done.load(SeqCst);
            let (fate, out) = plane.run_uncounted("ingress", &packet);
            let states = oldest..=begun.load(SeqCst);
            let dst = &out[ETHERNET + 16..][..4];
            let port = u16::from_be_bytes([out[ETHERNET + 22], out[ETHERNET + 23]]);
            let state = port.wrapping_sub(FIRST_PORT);
            let right = fate == Fate::Passed
                && states.contains(&state)
                && dst[..3] == [10, 245, 7]
                && (1..=len(state)).contains(&dst[3]);
            (!right).then(|| format!("flow {flow} in the states {states:?}: {dst:?} port {port}"))
        });
        over.store(true, SeqCst);
        let states = writing.join().unwrap();
        assert_eq!(wrong, None);
        assert!(states > RELEASE, "only {states} states were written meanwhile");
    });
}
