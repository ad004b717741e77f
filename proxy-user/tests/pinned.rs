//! The pinned maps are read as they were written, by the library and by the command line: real
//! maps, in a BPF file system that nothing else sees. Needs root.

#![expect(clippy::unwrap_used, reason = "a test")]

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use ipnetwork::IpNetwork;
use proxy_ebpf::choose::{Caller, Choice, Destination, NodePortRange, choose, find_frontend};
use proxy_ebpf::dns::decide::{Lookup, Names as _};
use proxy_ebpf::dns::{Kind, NameKey, NameKind, NameValue, Zone, outcome as names};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::outcome::{COUNTERS, Outcome, Program, counter_index};
use proxy_ebpf::service::{ServiceCounters, ServiceId, ServiceInfo};
use proxy_ebpf::slot::{BackendFlags, BackendId, BackendState, RangeHeader, Slot};
use proxy_ebpf::source::Source;
use proxy_ebpf::{Addr, Port, Proto};
use proxy_user::loader::sys::{MappedArray, open_pin};
use proxy_user::loader::{Dataplane, Settings, pin_directory};
use proxy_user::pinned::{Fill, PinnedMaps};
use proxy_user::tables::NodeRows;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The only way in which the kernel makes a trie.
const BPF_F_NO_PREALLOC: u32 = 1;

/// Puts this thread, and the processes that it starts, into a network namespace of their own, which
/// takes the tables of nftables.
fn leave_network() {
    // SAFETY: the danger of unshare(2) is `CLONE_FILES`, after which threads no longer share
    // descriptors; a network namespace of its own leaves them alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("needs root");
}

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
        // By process id, so that a child process finds it too.
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
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

/// A trie that holds the prefixes `rows`, each with its bits.
fn trie<K: Pod>(path: &Path, rows: &[(u32, K)]) {
    let mut map = LpmTrie::<MapData, K, u32>::create(8, BPF_F_NO_PREALLOC).unwrap();
    for (bits, prefix) in rows {
        map.insert(&Key::new(*bits, *prefix), 1, 0).unwrap();
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

const SERVICE: ServiceId = ServiceId(3);

/// The frontend at `vip`, port 53, UDP.
fn dns(vip: &str) -> FrontendKey {
    FrontendKey::service(addr(vip), Port::new(53), Proto::UDP)
}

fn header() -> RangeHeader {
    let (cluster, draining) = (2, 1);
    RangeHeader { service: SERVICE, cluster, local: 0, affinity_seconds: 0, draining, zero: 0 }
}

fn value() -> FrontendValue {
    FrontendValue::new(&dns("10.96.0.10"), 5, FrontendFlags::INTERNAL_LOCAL)
}

fn info() -> ServiceInfo {
    ServiceInfo::new("kube-system", "kube-dns", "dns", Proto::UDP, 4).unwrap()
}

fn state() -> BackendState {
    let Slot { addr, port, .. } = backend(1);
    BackendState::new(SERVICE, addr, port, BackendFlags::SERVING)
}

/// Pins maps that hold one service of two backends, both on other nodes, with a policy that
/// wants local ones.
fn pin_example(bpffs_root: &Path) {
    let dir = pin_directory(bpffs_root);
    std::fs::create_dir_all(&dir).unwrap();
    // The second element is one that another key has taken over: its tag is wrong.
    let frontends = [(dns("10.96.0.10"), value()), (dns("10.96.0.11"), value())];
    hash(&dir.join("frontends"), 16, &frontends);
    let slots = [header().to_slot(), backend(1), backend(2), backend(3), backend(4)];
    let slots: Vec<_> = (5..).zip(slots).collect();
    array(&dir.join("slots"), 32, &slots);
    array(&dir.join("backends"), 8, &[(1, state())]);
    hash(&dir.join("services"), 8, &[(SERVICE, info())]);
    hash(&dir.join("node_addrs"), 8, &[(addr("192.168.0.1"), NodeAddr::NODE_PORT)]);
    let pods = [(96 + 16, addr("10.244.0.0")), (56, addr("fd00:244::"))];
    trie(&dir.join("cluster_cidrs"), &pods);
    trie(&dir.join("service_cidrs"), &[(96 + 12, addr("10.96.0.0"))]);
    trie::<Source>(&dir.join("source_ranges"), &[]);
    hash::<u32, Device>(&dir.join("devices"), 8, &[]);
    let carried = |cpu| ServiceCounters { connections: cpu + 1, ..Default::default() };
    per_cpu(&dir.join("service_counters"), 8, SERVICE.0, carried);
    let refused = counter_index(Program::Connect, Outcome::NoEndpoint as u32);
    per_cpu(&dir.join("outcomes"), COUNTERS, refused, |_| 1_u64);
    pin_names(&dir);
}

/// Pins maps that hold the name `web.shop.svc`, and a denied query.
fn pin_names(dir: &Path) {
    let key = NameKey::new("web.shop.svc").unwrap();
    array(&dir.join("dns_zone"), 1, &[(0, Zone::new("cluster.local", &[]).unwrap())]);
    hash(&dir.join("dns_names"), 8, &[(key, 2)]);
    array(&dir.join("dns_values"), 8, &[(2, NameValue::new(&key, NameKind::Service, 3, 1, 0))]);
    array(&dir.join("dns_records"), 8, &[(3, addr("10.96.1.1"))]);
    let denied = names::counter_index(Kind::A, names::Outcome::NoName);
    per_cpu(&dir.join("dns_counters"), names::COUNTERS, denied, |_| 1_u64);
    hash::<Addr, u32>(&dir.join("pod_addrs"), 8, &[(addr("10.244.0.2"), 7)]);
}

#[test]
fn what_is_in_the_pinned_maps_is_read() {
    let bpffs = Bpffs::new();
    pin_example(&bpffs.root());

    let maps = PinnedMaps::open(&bpffs.root()).unwrap();
    let mut frontends = maps.frontends().unwrap();
    assert_eq!(frontends.clone().into_iter().collect::<Vec<_>>(), [(dns("10.96.0.10"), value())]);
    let ranges = maps.ranges(&mut frontends).unwrap();
    assert_eq!(ranges.len(), 1);
    assert_eq!(ranges[&5].header, header());
    assert_eq!(ranges[&5].cluster(), [backend(1), backend(2)]);
    assert!(ranges[&5].local().is_empty());
    assert_eq!(ranges[&5].draining(), [backend(3)]);
    assert_eq!(maps.services().unwrap()[&SERVICE], info());
    assert_eq!(maps.backend(BackendId(1)).unwrap(), state());

    let service_cidrs = maps.service_cidrs().unwrap();
    assert_eq!(service_cidrs, ["10.96.0.0/12".parse().unwrap()]);
    let cidrs: Vec<_> = maps.cluster_cidrs().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.244.0.0/16", "fd00:244::/56"]);
    assert_eq!(maps.node_addrs().unwrap().len(), 1);
    assert!(maps.devices().unwrap().is_empty());

    let cpus = nr_cpus().unwrap() as u64;
    let counters = maps.counters().unwrap();
    assert_eq!(counters.services[0].counters.connections, cpus * (cpus + 1) / 2);
    let seen: Vec<_> = counters.outcomes.iter().filter(|counter| counter.count > 0).collect();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].outcome, seen[0].count), (Outcome::NoEndpoint, cpus));
    assert_eq!(counters.no_local[&("IPv4", "internal")], 1);
    assert_eq!(counters.no_local.values().sum::<usize>(), 1);
    assert!(counters.fill.contains(&Fill { map: "slots", used: 4, max: 32 }));
    assert!(counters.fill.contains(&Fill { map: "frontends", used: 1, max: 16 }));
    assert!(counters.fill.contains(&Fill { map: "dns_names", used: 1, max: 8 }));
    let denied: Vec<_> = counters.names.iter().filter(|counter| counter.count > 0).collect();
    assert_eq!(
        (denied.len(), denied[0].outcome, denied[0].count),
        (1, names::Outcome::NoName, cpus)
    );
    let found = maps.name(&NameKey::new("web.shop.svc").unwrap());
    let Lookup::Found(value) = found else { panic!("{found:?}") };
    assert_eq!(maps.records(value, false).unwrap(), [addr("10.96.1.1")]);
    assert_eq!(maps.name(&NameKey::new("web.shop").unwrap()), Lookup::Absent);
    assert_eq!(maps.pod_device(addr("10.244.0.2")), Some(7));

    let key = dns("10.96.0.10");
    let to = Destination { addr: key.addr, port: key.port, proto: key.proto };
    let node_ports = NodePortRange { first: 30000, last: 32767 };
    let (found, value) = find_frontend(&maps, to, node_ports, false).unwrap();
    assert_eq!(found, key);
    assert_eq!(choose(&maps, value, Caller::Internal, 0, |_, _| None), Some(Choice::Drop(SERVICE)));
}

#[test]
fn maps_of_the_loader_can_be_read() {
    leave_network();
    let bpffs = Bpffs::new();
    let settings = Settings::new(bpffs.root());
    let mut dataplane = Dataplane::load(&settings).unwrap();
    let pods: IpNetwork = "10.244.0.0/16".parse().unwrap();
    let rows = NodeRows { cluster_cidrs: [pods.into()].into(), ..NodeRows::default() };
    assert!(dataplane.write_node(&rows).1.is_empty());
    drop(dataplane);

    let maps = PinnedMaps::open(&bpffs.root()).unwrap();
    assert_eq!(maps.cluster_cidrs().unwrap().len(), 1);
    let full: Vec<_> = maps.counters().unwrap().fill.iter().map(|fill| fill.used).collect();
    assert_eq!(full, [0; 4]);
}

#[test]
fn commands_answer_without_an_agent_and_keep_their_exit_codes() {
    leave_network();
    let bpffs = Bpffs::new();
    pin_example(&bpffs.root());
    let runtime = tempfile::tempdir().unwrap();
    let run = |root: &Path, args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_shunt"))
            .args(args)
            .env("SHUNT_BPFFS_ROOT", root)
            .env("SHUNT_CONTROL_SOCKET", runtime.path().join("agent.sock"))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let cases: [(&[&str], i32, &str); 8] = [
        (&["services"], 0, "ClusterIP 10.96.0.10:53"),
        (&["services", "-n", "kube-system", "kube-dns", "-o", "json"], 0, "\"cluster\": 2"),
        (&["services", "absent"], 1, "no Service absent"),
        (&["backends", "kube-dns"], 0, "10.244.0.2:5302"),
        (&["explain", "10.96.0.10:53", "--proto", "udp"], 0, "dropped"),
        (&["explain", "10.96.0.10:53"], 3, "10.96.0.10 is reached at 53/UDP"),
        (&["explain", "10.96.0.10"], 2, "ADDR:PORT"),
        (&["status"], 3, "not running"),
    ];
    let root = bpffs.root();
    for (args, code, text) in cases {
        let (found, out, err) = run(&root, args);
        assert_eq!(found, Some(code), "{args:?}: {out}{err}");
        assert!(out.contains(text) || err.contains(text), "{args:?}: {out}{err}");
    }
    let (code, _, err) = run(runtime.path(), &["services"]);
    assert!(code == Some(1) && err.contains("no maps are pinned"), "{code:?}: {err}");
    for _ in 0..2 {
        assert_eq!(run(&root, &["cleanup"]).0, Some(0), "cleanup may be repeated");
    }
    assert!(run(&root, &["services"]).2.contains("no maps are pinned"));
}

#[test]
fn mapped_array_is_its_map_in_every_step_of_the_mapping() {
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    // Three steps of 32,768 words, and a part of a fourth.
    let len = 100_000;
    let bpffs = Bpffs::new();
    let path = bpffs.root().join("words");
    let mut map = Array::<MapData, u64>::create(len, BPF_F_MMAPABLE).unwrap();
    map.set(len - 1, 7, 0).unwrap();
    map.pin(&path).unwrap();
    let map = Map::Array(MapData::from_pin(&path).unwrap());
    let map: Array<_, u64> = map.try_into().unwrap();
    let pin = open_pin(&path).unwrap().unwrap();
    let mut mapped = MappedArray::<u64>::new(pin.as_fd(), len).unwrap();
    for index in [0, 32_767, 32_768, len - 2] {
        mapped.set(index, u64::from(index) + 1);
        assert_eq!(map.get(&index, 0).unwrap(), u64::from(index) + 1);
    }
    assert_eq!(mapped.get(len - 1), 7);
    mapped.unmap();
    assert_eq!((mapped.get(len - 1), mapped.get(32_768)), (7, 32_769), "it is mapped again");
    mapped.set(len, 1);
    assert_eq!(mapped.get(len), 0, "beyond the end is nothing");
}
