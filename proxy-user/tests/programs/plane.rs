//! The stage: the real programs and maps in a BPF file system that nothing else sees, filled by
//! the real `apply`. No program is attached to anything; packets are handed to them one by one.

use crate::net::Net;
use crate::packet::Packet;
use crate::writer::{Served, Writer, end};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use aya::programs::Program as AyaProgram;
use aya::{Pod, TestRun as _, TestRunOptions};
use ipnetwork::IpNetwork;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::dns;
use proxy_ebpf::flow::{FlowFlags, FlowKey, FlowValue, Hook};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::outcome::{COUNTERS, Outcome, Program, counter_index};
use proxy_ebpf::service::ServiceCounters;
use proxy_ebpf::{Addr, Proto};
use proxy_user::loader::{Dataplane, DnsLimit, FlowTable, Settings, pin_directory};
use proxy_user::pinned::PinnedMaps;
use proxy_user::tables::{Family, NodeRows, Prefix};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The device that the kernel's test runs seem to come by: loopback. Nothing is sent by it.
const DEVICE: u32 = 1;

/// The device that a packet comes in by or leaves by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// The node's side of a pod's veth.
    Pod,
    /// A device of the node.
    Node,
    /// One that pods are behind, as `--detect-local-mode` says.
    Local,
    /// A device without an address.
    Unnumbered,
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// On.
    Passed,
    /// Nowhere.
    Dropped,
    /// Out by the device that it came in by.
    Returned,
}

/// What came of a packet. The outcome was counted once, and no other one was.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Out {
    pub(crate) fate: Fate,
    pub(crate) outcome: Outcome,
    pub(crate) packet: Vec<u8>,
}

/// The packet goes on, and is now `packet`.
pub(crate) fn passed(outcome: Outcome, packet: &Packet) -> Out {
    Out { fate: Fate::Passed, outcome, packet: packet.bytes() }
}

pub(crate) struct Plane {
    dataplane: Dataplane,
    pub(crate) writer: Writer,
    pub(crate) maps: PinnedMaps,
    pub(crate) flows: FlowTable,
    outcomes: PerCpuArray<MapData, u64>,
    counted: Vec<u64>,
    via: Option<Via>,
    /// Where ClusterIPs are taken from, as far as the programs are told; see
    /// [`Plane::know_services`].
    service_cidrs: Vec<IpNetwork>,
    /// What the programs are told of pods' addresses; see [`Plane::know_pods`].
    cluster_cidrs: Vec<IpNetwork>,
    settings: Settings,
    _bpffs: OwnedFd,
}

impl Plane {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with_snat_ports(snat_ports: RangeInclusive<u16>) -> Self {
        Self::with(|settings| settings.snat_ports = snat_ports)
    }

    pub(crate) fn with_dns_limit(dns_limit: DnsLimit) -> Self {
        Self::with(|settings| settings.dns_limit = dns_limit)
    }

    /// With settings that `adjust` has changed.
    pub(crate) fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let bpffs = bpffs();
        let mut settings = Settings {
            bpffs_root: format!("/proc/self/fd/{}", bpffs.as_raw_fd()).into(),
            node_ports: NodePortRange { first: 30_000, last: 32_767 },
            masquerade_all: false,
            snat_ports: 61_000..=65_535,
            log_level: None,
            dns_limit: DnsLimit { rate: 0, burst: 0 },
        };
        adjust(&mut settings);
        let mut dataplane = Dataplane::load(&settings).expect("the programs load");
        let writer = Writer::new(&mut dataplane);
        let flows = dataplane.flow_table().unwrap();
        let maps = PinnedMaps::open(&settings.bpffs_root).unwrap();
        let outcomes = MapData::from_pin(pin_directory(&settings.bpffs_root).join("outcomes"));
        let outcomes = Map::PerCpuArray(outcomes.unwrap()).try_into().unwrap();
        let counted = vec![0; COUNTERS as usize];
        Self {
            dataplane,
            writer,
            maps,
            flows,
            outcomes,
            counted,
            via: None,
            service_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            settings,
            _bpffs: bpffs,
        }
    }

    /// The loaded programs and their names.
    pub(crate) fn programs(&self) -> impl Iterator<Item = (&str, &AyaProgram)> {
        self.dataplane.programs()
    }

    /// Makes the service `name` have just `served`; frontends are added to those it has.
    pub(crate) fn serve(&mut self, net: Net, name: &str, served: Served<'_>) {
        self.writer.serve(net, name, served);
    }

    /// Another writer of the same maps, as the next agent would be.
    pub(crate) fn another_writer(&self) -> Writer {
        Writer::new(&mut Dataplane::load(&self.settings).unwrap())
    }

    /// Hands `packet` to the program of `hook`.
    pub(crate) fn run(&mut self, via: Via, hook: Hook, packet: &Packet) -> Out {
        self.run_bytes(via, hook, &packet.bytes())
    }

    pub(crate) fn run_bytes(&mut self, via: Via, hook: Hook, packet: &[u8]) -> Out {
        let name = match hook {
            Hook::Ingress => "ingress",
            Hook::Egress => "egress",
        };
        self.run_program(name, via, hook, packet)
    }

    /// Hands `packet` to the program `name`, which counts as the one of `hook`.
    pub(crate) fn run_program(&mut self, name: &str, via: Via, hook: Hook, packet: &[u8]) -> Out {
        self.be_at(via);
        let (fate, packet) = self.run_uncounted(name, packet);
        Out { fate, outcome: self.new_outcome(hook), packet }
    }

    /// Hands `packet` to the program `name` and looks at no counter, which takes most of the time
    /// otherwise. Returns what becomes of the packet, and the packet.
    pub(crate) fn run_uncounted(&self, name: &str, packet: &[u8]) -> (Fate, Vec<u8>) {
        let mut programs = self.dataplane.programs();
        let Some((_, AyaProgram::SchedClassifier(program))) = programs.find(|(n, _)| *n == name)
        else {
            panic!("there is no packet program {name}");
        };
        let mut data_out = vec![0; packet.len().max(1_400) + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut data_out),
            ..Default::default()
        };
        let result = program.test_run(options).unwrap();
        data_out.truncate(result.data_size_out as usize);
        let fate = match result.return_value as i32 {
            -1 => Fate::Passed,
            2 => Fate::Dropped,
            7 => Fate::Returned,
            other => panic!("{name} ended with {other}: not NEXT, SHOT or REDIRECT"),
        };
        (fate, data_out)
    }

    /// The one outcome that was counted since the last time.
    fn new_outcome(&mut self, hook: Hook) -> Outcome {
        let mut new = Vec::new();
        for index in 0..COUNTERS {
            let count = self.outcomes.get(&index, 0).unwrap().iter().sum();
            let before = std::mem::replace(&mut self.counted[index as usize], count);
            new.extend(std::iter::repeat_n(index, (count - before) as usize));
        }
        let program = match hook {
            Hook::Ingress => Program::Ingress,
            Hook::Egress => Program::Egress,
        };
        let matches = |o: &Outcome| new == [counter_index(program, *o as u32)];
        Outcome::ALL.into_iter().find(matches).unwrap_or_else(|| {
            panic!("{program:?} counted {new:?}, not one outcome of its own once")
        })
    }

    /// Makes the one device be `via`. The node's address takes NodePorts, the device's is the
    /// one for SNAT.
    fn be_at(&mut self, via: Via) {
        if self.via.replace(via) == Some(via) {
            return;
        }
        let [v4, v6] = [Family::V4, Family::V6]
            .map(|family| Addr::from(Net::new(Proto::TCP, family).node_port.ip()));
        let mut rows = NodeRows::default();
        rows.addrs.extend([(v4, NodeAddr::NODE_PORT), (v6, NodeAddr::NODE_PORT)]);
        let pod = match via {
            Via::Pod => Device::POD,
            Via::Local => Device::LOCAL,
            Via::Node | Via::Unnumbered => 0,
        };
        let (v4, v6) = match via {
            Via::Unnumbered => (Addr::UNSPECIFIED_V4, Addr::UNSPECIFIED_V6),
            _ => (v4, v6),
        };
        rows.cluster_cidrs = self.cluster_cidrs.iter().copied().map(Prefix::from).collect();
        rows.service_cidrs = Some(self.service_cidrs.iter().copied().map(Prefix::from).collect());
        rows.devices.insert(DEVICE, Device { snat_v4: v4, snat_v6: v6, pod, netns: -1 });
        assert!(self.dataplane.write_node(&rows).1.is_empty());
    }

    /// Makes the one device be a pod's veth with the flags `pod`, where `addrs` are the pod's.
    pub(crate) fn be_pod(&mut self, pod: u32, addrs: &[IpAddr]) {
        self.via = None;
        let mut rows = NodeRows::default();
        rows.devices.insert(DEVICE, Device { pod, ..Device::default() });
        rows.pod_addrs = addrs.iter().map(|addr| (Addr::from(*addr), DEVICE)).collect();
        assert!(self.dataplane.write_node(&rows).1.is_empty());
    }

    /// Hands `packet` to the program that answers names. Returns what becomes of it, and the one
    /// outcome that was counted, by the kind of question.
    pub(crate) fn ask(&mut self, packet: &[u8]) -> (Fate, Vec<u8>, dns::Kind, dns::Outcome) {
        let before = self.dns_counters();
        let (fate, packet) = self.run_uncounted("names", packet);
        let counted = self.dns_counters();
        let all = || dns::Kind::ALL.into_iter().flat_map(|k| dns::Outcome::ALL.map(|o| (k, o)));
        let new: Vec<_> = all()
            .zip(before.iter().zip(counted))
            .filter(|(_, (before, now))| **before != *now)
            .collect();
        let [((kind, outcome), (before, now))] = new[..] else { panic!("counted {new:?}") };
        assert_eq!(before + 1, now, "one packet counts once");
        (fate, packet, kind, outcome)
    }

    fn dns_counters(&self) -> Vec<u64> {
        let map = MapData::from_pin(pin_directory(&self.settings.bpffs_root).join("dns_counters"));
        let map: PerCpuArray<_, u64> = Map::PerCpuArray(map.unwrap()).try_into().unwrap();
        (0..dns::outcome::COUNTERS).map(|index| map.get(&index, 0).unwrap().iter().sum()).collect()
    }

    /// Makes the map of the pods' prefixes say that 10.244.0.0/15 and its like are pods.
    pub(crate) fn know_pods(&mut self) {
        self.cluster_cidrs =
            ["10.244.0.0/15", "fd00:a:f4::/47"].map(|cidr| cidr.parse().unwrap()).into();
        self.via = None;
    }

    /// Makes the map of ServiceCIDRs say that 10.96.0.0/16 and its like are services' addresses.
    pub(crate) fn know_services(&mut self) {
        self.service_cidrs =
            ["10.96.0.0/16", "fd00:a:60::/48"].map(|cidr| cidr.parse().unwrap()).into();
        self.via = None;
    }

    /// Every flow entry of `net`, as a sorted line of text.
    pub(crate) fn entries(&self, net: Net) -> Vec<String> {
        let mut lines: Vec<String> = self
            .maps
            .flows()
            .unwrap()
            .iter()
            .filter(|(key, _)| key.proto == net.proto && Family::of(key.src().addr) == net.family)
            .map(|(key, value)| {
                let ends = [key.src(), key.dst(), value.end()]
                    .map(|end| SocketAddr::new(end.addr.into(), end.port.number()));
                entry(key.hook(), ends[0], ends[1], ends[2], value.flags)
            })
            .collect();
        lines.sort();
        lines
    }

    /// The entry that `packet` would match at `hook`.
    pub(crate) fn entry(&self, hook: Hook, packet: &Packet) -> Option<FlowValue> {
        self.maps.flows().unwrap().get(&flow_key(hook, packet)).copied()
    }

    /// Removes the entry that `packet` would match at `hook`, as eviction does.
    pub(crate) fn evict(&self, hook: Hook, packet: &Packet) {
        self.flows.remove(&[flow_key(hook, packet)]).unwrap();
    }

    /// What the service `name` has carried.
    pub(crate) fn counters(&self, net: Net, name: &str) -> ServiceCounters {
        let services = self.maps.services().unwrap();
        let family = if net.family == Family::V4 { 4 } else { 6 };
        let id = services.iter().find_map(|(id, info)| {
            let named = proxy_ebpf::service::unpadded(&info.name) == name;
            (named && info.proto == net.proto && info.family == family).then_some(*id)
        });
        self.maps.service_counters().unwrap()[id.unwrap().0 as usize]
    }

    /// What is remembered of the clients of services with affinity.
    pub(crate) fn clients(&self) -> BTreeMap<AffinityKey, AffinityRecord> {
        self.affinity().iter().map(Result::unwrap).collect()
    }

    /// Lets `seconds` pass for what is remembered of clients.
    pub(crate) fn age_clients(&self, seconds: u64) {
        let mut affinity = self.affinity();
        for (key, mut record) in self.clients() {
            record.used = record.used.saturating_sub(seconds * 1_000_000_000);
            affinity.insert(key, record, 0).unwrap();
        }
    }

    fn affinity(&self) -> HashMap<MapData, AffinityKey, AffinityRecord> {
        let pin = pin_directory(&self.settings.bpffs_root).join("affinity");
        Map::LruHashMap(MapData::from_pin(pin).unwrap()).try_into().unwrap()
    }

    /// Writes a row of the map `name` past everything that keeps it right.
    pub(crate) fn write_raw<K: Pod, V: Pod>(&self, name: &str, key: K, value: V) {
        let map = MapData::from_pin(pin_directory(&self.settings.bpffs_root).join(name)).unwrap();
        let map = if name == "flows" { Map::LruHashMap(map) } else { Map::HashMap(map) };
        HashMap::<MapData, K, V>::try_from(map).unwrap().insert(key, value, 0).unwrap();
    }
}

/// A flow entry as [`Plane::entries`] gives it.
pub(crate) fn entry(
    hook: Hook,
    src: SocketAddr,
    dst: SocketAddr,
    to: SocketAddr,
    flags: FlowFlags,
) -> String {
    format!("{hook:?} {src} -> {dst} becomes {to} {:05b}", flags.0)
}

pub(crate) fn flow_key(hook: Hook, packet: &Packet) -> FlowKey {
    FlowKey::new(hook, end(packet.src), end(packet.dst), packet.proto)
}

/// A BPF file system that is mounted nowhere, and is gone with its descriptor.
fn bpffs() -> OwnedFd {
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)
        .expect("these tests load programs into the kernel and must run as root");
    fsconfig_create(&context).expect("a BPF file system can be made as root only");
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}
