//! The stage: the real programs and maps in a BPF file system that nothing else sees, filled by
//! the real `apply`, and the tables of NAT in a network namespace of the test's own. No program is
//! attached to anything; packets are handed to them one by one.

use crate::net::Net;
use crate::packet::Packet;
use crate::writer::{Served, Writer};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use aya::programs::Program as AyaProgram;
use aya::{Pod, TestRun as _, TestRunOptions};
use ipnetwork::IpNetwork;
use proxy_ebpf::affinity::{AffinityKey, AffinityRecord};
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::node::{Device, DeviceFlags, NodeAddr};
use proxy_ebpf::outcome::{COUNTERS, Outcome, Program, counter_index};
use proxy_ebpf::priority::Priority;
use proxy_ebpf::service::ServiceCounters;
use proxy_ebpf::slot::BackendId;
use proxy_ebpf::{Addr, Proto, dns};
use proxy_user::loader::{Dataplane, DnsLimit, Settings, pin_directory};
use proxy_user::nat::table;
use proxy_user::netfilter::{Family as NatFamily, Socket};
use proxy_user::pinned::PinnedMaps;
use proxy_user::tables::{Family, NodeRows, Prefix};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The device that the kernel's test runs seem to come by: loopback. Nothing is sent by it.
const DEVICE: u32 = 1;
pub(crate) const NODE_PORTS: NodePortRange = NodePortRange { first: 30_000, last: 32_767 };
/// The bit of the packet mark that hides a client.
const MASQUERADE_MARK: u32 = 1 << 14;
/// The size of the context of a packet program, `struct __sk_buff`.
const CONTEXT: usize = 192;
/// Where it has `priority`.
const PRIORITY: usize = 32;

/// The device that a packet comes in by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// The node's side of a pod's veth.
    Pod,
    /// The same, as a port of a bridge whose frames netfilter does not see.
    Bridged,
    /// A device of the node.
    Node,
    /// One that pods are behind, as `--detect-local-mode` says.
    Local,
}

impl Via {
    pub(crate) const ALL: [Self; 4] = [Self::Pod, Self::Bridged, Self::Node, Self::Local];

    pub(crate) const fn flags(self) -> DeviceFlags {
        match self {
            Self::Pod => DeviceFlags::POD,
            Self::Bridged => DeviceFlags::POD.with(DeviceFlags::UNSEEN_BRIDGE),
            Self::Node => DeviceFlags::NODE,
            Self::Local => DeviceFlags::LOCAL,
        }
    }
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

/// What netfilter is told of a packet's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// Nothing.
    Nothing,
    /// It goes to the backend that NAT finds under the number, which sees the client.
    To(SocketAddr),
    /// It goes to that backend, which sees the node.
    Hidden(SocketAddr),
    /// It is refused.
    Refuse,
    /// It is dropped.
    Drop,
}

/// What came of a packet, which went on as it was. The outcome was counted once, and no other was.
pub(crate) type Out = (Outcome, Told);

pub(crate) struct Plane {
    dataplane: Dataplane,
    pub(crate) writer: Writer,
    pub(crate) maps: PinnedMaps,
    pub(crate) nat: Socket,
    /// The backends that NAT had when it was last asked.
    backends: BTreeMap<BackendId, SocketAddr>,
    outcomes: PerCpuArray<MapData, u64>,
    counted: Vec<u64>,
    via: Option<Via>,
    /// Addresses of the node beside the one that takes NodePorts.
    own: Vec<Addr>,
    /// Where ClusterIPs are taken from, as far as the programs are told; see
    /// [`Plane::know_services`].
    pub(crate) service_cidrs: Vec<IpNetwork>,
    /// What the programs are told of pods' addresses; see [`Plane::know_pods`].
    pub(crate) cluster_cidrs: Vec<IpNetwork>,
    settings: Settings,
    _bpffs: OwnedFd,
}

impl Plane {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with_dns_limit(dns_limit: DnsLimit) -> Self {
        Self::with(|settings| settings.dns_limit = dns_limit)
    }

    /// With settings that `adjust` has changed. Takes this thread out of the machine's network.
    pub(crate) fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        // SAFETY: the danger of unshare(2) is `CLONE_FILES`, after which threads no longer share
        // descriptors; a network namespace of its own leaves them alone.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .expect("these tests load programs into the kernel and must run as root");
        let bpffs = bpffs();
        let mut settings = Settings {
            node_ports: NODE_PORTS,
            masquerade_mark: MASQUERADE_MARK,
            dns_limit: DnsLimit { rate: 0, burst: 0 },
            ..Settings::new(format!("/proc/self/fd/{}", bpffs.as_raw_fd()))
        };
        adjust(&mut settings);
        let mut dataplane = Dataplane::load(&settings).expect("the programs load");
        let writer = Writer::new(&mut dataplane);
        let nat = Socket::open().unwrap();
        let maps = PinnedMaps::open(&settings.bpffs_root).unwrap();
        let outcomes = MapData::from_pin(pin_directory(&settings.bpffs_root).join("outcomes"));
        let outcomes = Map::PerCpuArray(outcomes.unwrap()).try_into().unwrap();
        let counted = vec![0; COUNTERS as usize];
        Self {
            dataplane,
            writer,
            maps,
            nat,
            backends: BTreeMap::new(),
            outcomes,
            counted,
            via: None,
            own: Vec::new(),
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

    /// Hands `packet` to the program at ingress.
    pub(crate) fn run(&mut self, via: Via, packet: &Packet) -> Out {
        self.run_bytes(via, &packet.bytes())
    }

    pub(crate) fn run_bytes(&mut self, via: Via, packet: &[u8]) -> Out {
        let (outcome, priority) = self.run_program("ingress", via, 0, packet);
        (outcome, self.told(priority))
    }

    /// Hands `packet`, whose `skb->priority` somebody has set, to the program `name` of the packet
    /// path. Returns the outcome and what the priority is then.
    pub(crate) fn run_program(
        &mut self,
        name: &str,
        via: Via,
        priority: u32,
        packet: &[u8],
    ) -> (Outcome, u32) {
        self.be_at(via);
        let (fate, after, priority) = self.run_uncounted(name, priority, packet);
        assert_eq!(fate, Fate::Passed);
        assert!(after == packet, "the packet goes on as it was");
        (self.new_outcome(), priority)
    }

    /// Hands `packet` to the program `name` and looks at no counter, which takes most of the time
    /// otherwise. Returns what becomes of the packet, the packet, and its priority.
    pub(crate) fn run_uncounted(
        &self,
        name: &str,
        priority: u32,
        packet: &[u8],
    ) -> (Fate, Vec<u8>, u32) {
        let mut programs = self.dataplane.programs();
        let Some((_, AyaProgram::SchedClassifier(program))) = programs.find(|(n, _)| *n == name)
        else {
            panic!("there is no packet program {name}");
        };
        let mut data_out = vec![0; packet.len().max(1_400) + 64];
        let (mut ctx_in, mut ctx_out) = ([0; CONTEXT], [0; CONTEXT]);
        ctx_in[PRIORITY..][..4].copy_from_slice(&priority.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut data_out),
            ctx_in: Some(&ctx_in),
            ctx_out: Some(&mut ctx_out),
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
        let priority = ctx_out[PRIORITY..][..4].try_into().unwrap();
        (fate, data_out, u32::from_ne_bytes(priority))
    }

    /// What a priority tells netfilter. The backend is the one that the map of NAT has under the
    /// number: the kernel would send the connection there.
    fn told(&mut self, priority: u32) -> Told {
        let priority = match Priority(priority) {
            Priority(0) => return Told::Nothing,
            Priority::REFUSE => return Told::Refuse,
            Priority::DROP => return Told::Drop,
            priority => priority,
        };
        assert!(priority.is_tagged(), "{priority:?}");
        let id = BackendId(priority.0 & Priority::BACKEND_MASK);
        if !self.backends.contains_key(&id) {
            self.backends = self.nat_backends();
        }
        let backend = *self.backends.get(&id).unwrap_or_else(|| panic!("NAT has no {id:?}"));
        if priority.0 & Priority::HIDE == 0 { Told::To(backend) } else { Told::Hidden(backend) }
    }

    /// The backends that the maps of NAT have in the kernel.
    pub(crate) fn nat_backends(&mut self) -> BTreeMap<BackendId, SocketAddr> {
        let mut backends = BTreeMap::new();
        for (family, len) in [(NatFamily::Ipv4, 4), (NatFamily::Ipv6, 16)] {
            for (key, value) in self.nat.elements(&table(family), "backends").unwrap().iter() {
                let (addr, port) = value.split_at(len);
                let addr = match <[u8; 4]>::try_from(addr) {
                    Ok(v4) => IpAddr::from(v4),
                    Err(_) => IpAddr::from(<[u8; 16]>::try_from(addr).unwrap()),
                };
                let port = u16::from_be_bytes([port[0], port[1]]);
                let id = BackendId(u32::from_ne_bytes(key[..4].try_into().unwrap()));
                backends.insert(id, SocketAddr::new(addr, port));
            }
        }
        backends
    }

    /// The one outcome that was counted since the last time.
    fn new_outcome(&mut self) -> Outcome {
        let mut new = Vec::new();
        for index in 0..COUNTERS {
            let count = self.outcomes.get(&index, 0).unwrap().iter().sum();
            let before = std::mem::replace(&mut self.counted[index as usize], count);
            new.extend(std::iter::repeat_n(index, (count - before) as usize));
        }
        let matches = |o: &Outcome| new == [counter_index(Program::Ingress, *o as u32)];
        Outcome::ALL
            .into_iter()
            .find(matches)
            .unwrap_or_else(|| panic!("counted {new:?}, not one outcome of its own once"))
    }

    /// Makes the one device be `via`. The node's address takes NodePorts.
    fn be_at(&mut self, via: Via) {
        if self.via.replace(via) == Some(via) {
            return;
        }
        let mut rows = NodeRows::default();
        for family in [Family::V4, Family::V6] {
            let addr = Net::new(Proto::TCP, family).node_port.ip();
            rows.addrs.insert(addr.into(), NodeAddr::NODE_PORT);
        }
        rows.addrs.extend(self.own.iter().map(|addr| (*addr, NodeAddr::OWN)));
        rows.cluster_cidrs = self.cluster_cidrs.iter().copied().map(Prefix::from).collect();
        rows.service_cidrs = Some(self.service_cidrs.iter().copied().map(Prefix::from).collect());
        rows.devices.insert(DEVICE, Device { flags: via.flags(), netns: -1 });
        assert!(self.dataplane.write_node(&rows).1.is_empty());
    }

    /// Makes the one device be a pod's veth with these flags, where `addrs` are the pod's.
    pub(crate) fn be_pod(&mut self, flags: DeviceFlags, addrs: &[IpAddr]) {
        self.via = None;
        let mut rows = NodeRows::default();
        rows.devices.insert(DEVICE, Device { flags, netns: -1 });
        rows.pod_addrs = addrs.iter().map(|addr| (Addr::from(*addr), DEVICE)).collect();
        assert!(self.dataplane.write_node(&rows).1.is_empty());
    }

    /// Hands `packet` to the program that answers names. Returns what becomes of it, and the one
    /// outcome that was counted, by the kind of question.
    pub(crate) fn ask(&mut self, packet: &[u8]) -> (Fate, Vec<u8>, dns::Kind, dns::Outcome) {
        let before = self.dns_counters();
        let (fate, packet, _) = self.run_uncounted("names", 0, packet);
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

    /// Makes `end` an address of the node at which there are no NodePorts.
    pub(crate) fn own(&mut self, end: SocketAddr) {
        self.own.push(end.ip().into());
        self.via = None;
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
        HashMap::<MapData, K, V>::try_from(Map::HashMap(map))
            .unwrap()
            .insert(key, value, 0)
            .unwrap();
    }
}

/// A BPF file system that is mounted nowhere, and is gone with its descriptor.
fn bpffs() -> OwnedFd {
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)
        .expect("these tests load programs into the kernel and must run as root");
    fsconfig_create(&context).expect("a BPF file system can be made as root only");
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}
