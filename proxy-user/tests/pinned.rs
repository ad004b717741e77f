//! The pinned maps are read as they were written: real maps, in a BPF file system that nothing
//! else sees. Needs root.

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use proxy_ebpf::choose::{Caller, Choice, Destination, NodePortRange, choose, find_frontend};
use proxy_ebpf::flow::{FlowKey, FlowValue};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::outcome::{COUNTERS, Outcome, Program, counter_index};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendFlags, BackendId, BackendState, RangeHeader, Slot};
use proxy_ebpf::{Addr, Port, Proto};
use proxy_user::pinned::{Fill, PinnedMaps, directory};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// A BPF file system that is mounted nowhere, and is gone with its descriptor.
struct Bpffs(OwnedFd);

impl Bpffs {
    fn new() -> Self {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC).expect("needs root");
        fsconfig_create(&context).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Self(fsmount(&context, flags, MountAttrFlags::empty()).unwrap())
    }

    fn root(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn hash<K: Pod, V: Pod>(path: &Path, max: u32, entries: &[(K, V)]) {
    let mut map = HashMap::<MapData, K, V>::create(max, 0).unwrap();
    for (key, value) in entries {
        map.insert(key, value, 0).unwrap();
    }
    map.pin(path).unwrap();
}

fn array<V: Pod>(path: &Path, max: u32, entries: &[(u32, V)]) {
    let mut map = Array::<MapData, V>::create(max, 0).unwrap();
    for (index, value) in entries {
        map.set(*index, value, 0).unwrap();
    }
    map.pin(path).unwrap();
}

/// Writes `of_cpu(0)`, `of_cpu(1)` … at `index`.
fn per_cpu<V: Pod>(path: &Path, max: u32, index: u32, of_cpu: impl Fn(u64) -> V) {
    let mut map = PerCpuArray::<MapData, V>::create(max, 0).unwrap();
    let values: Vec<V> = (0..nr_cpus().unwrap() as u64).map(of_cpu).collect();
    map.set(index, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    map.pin(path).unwrap();
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn backend(id: u32) -> Slot {
    let flags = BackendFlags::READY.with(BackendFlags::SERVING);
    let (addr, port) = (addr("10.244.0.2"), Port::new(5300 + id as u16));
    Slot { addr, port, flags, backend: BackendId(id) }
}

#[test]
fn what_is_in_the_pinned_maps_is_read() {
    let bpffs = Bpffs::new();
    let dir = directory(&bpffs.root());
    std::fs::create_dir_all(&dir).unwrap();

    let service = ServiceId(3);
    let key = FrontendKey::service(addr("10.96.0.10"), Port::new(53), Proto::UDP);
    let value = FrontendValue::new(&key, 5, FrontendFlags::INTERNAL_LOCAL);
    let header = RangeHeader { service, cluster: 2, local: 0, affinity_seconds: 0, zero: [0; 2] };
    let info = ServiceInfo::new("kube-system", "kube-dns", "dns", Proto::UDP, 4).unwrap();
    let state = BackendState::new(service, backend(1).addr, backend(1).port, BackendFlags::SERVING);
    // An element that another key has taken over: its tag is wrong.
    let foreign = FrontendKey::service(addr("10.96.0.11"), Port::new(53), Proto::UDP);

    hash(&dir.join("frontends"), 16, &[(key, value), (foreign, value)]);
    array(&dir.join("slots"), 32, &[(5, header.to_slot()), (6, backend(1)), (7, backend(2))]);
    array(&dir.join("backends"), 8, &[(1, state)]);
    hash(&dir.join("services"), 8, &[(service, info)]);
    hash(&dir.join("node_addrs"), 8, &[(addr("192.168.0.1"), NodeAddr::NODE_PORT)]);
    hash::<u32, Device>(&dir.join("devices"), 8, &[]);
    hash::<FlowKey, FlowValue>(&dir.join("flows"), 8, &[]);
    let carried = |cpu| ServiceCounters { connections: cpu + 1, ..Default::default() };
    per_cpu(&dir.join("service_counters"), 8, service.0, carried);
    let refused = counter_index(Program::Connect, Outcome::NoEndpoint);
    per_cpu(&dir.join("outcomes"), COUNTERS, refused, |_| 1_u64);

    let maps = PinnedMaps::open(&bpffs.root()).unwrap();
    let mut frontends = maps.frontends().unwrap();
    assert_eq!(frontends.clone().into_iter().collect::<Vec<_>>(), [(key, value)]);
    let ranges = maps.ranges(&mut frontends).unwrap();
    assert_eq!(ranges.len(), 1);
    assert_eq!(ranges[&5].header, header);
    assert_eq!(ranges[&5].cluster(), [backend(1), backend(2)]);
    assert!(ranges[&5].local().is_empty());
    assert_eq!(maps.services().unwrap()[&service], info);
    assert_eq!(maps.backend(BackendId(1)).unwrap(), state);

    let cpus = nr_cpus().unwrap() as u64;
    let counters = maps.counters().unwrap();
    assert_eq!(counters.services[0].counters.connections, cpus * (cpus + 1) / 2);
    let seen: Vec<_> = counters.outcomes.iter().filter(|counter| counter.count > 0).collect();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].outcome, seen[0].count), (Outcome::NoEndpoint, cpus));
    assert_eq!(counters.no_local[&("IPv4", "internal")], 1);
    assert_eq!(counters.no_local.values().sum::<usize>(), 1);
    assert!(counters.fill.contains(&Fill { map: "slots", used: 3, max: 32 }));
    assert!(counters.fill.contains(&Fill { map: "frontends", used: 2, max: 16 }));

    let to = Destination { addr: key.addr, port: key.port, proto: key.proto };
    let node_ports = NodePortRange { first: 30000, last: 32767 };
    let (found, value) = find_frontend(&maps, to, node_ports, false).unwrap();
    assert_eq!(found, key);
    assert_eq!(choose(&maps, value, Caller::Internal, 0), Some(Choice::Drop(service)));
}
