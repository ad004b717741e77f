//! The tables `shunt` of nftables, one for each family: the kernel's NAT carries out what the
//! programs have chosen.
//!
//! Takes backends by their ids, and what the node's own packets are to find; writes them in
//! transactions. The rules are a constant handful, whatever the number of Services; what they look
//! up are maps. Nothing is decided here: [`rules`] has the rules, `apply` says what the maps hold.

mod check;
mod rules;

pub use check::{TableCheck, TableState, check};

use crate::netfilter::{
    Batch, Data, Family, Field, Generation, Interval, NetfilterError, NetlinkPort, Socket, Table,
};
use ipnetwork::IpNetwork;
use proxy_ebpf::slot::BackendId;
use proxy_ebpf::{Addr, End, Proto};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The name of the tables.
pub const TABLE: &str = "shunt";
/// How many shares the datagrams of the node are spread over, where a service has more than one
/// backend; see [`OutputRows`].
pub const SHARES: u32 = 32;

/// Whom a packet that the node itself sends is for: a frontend, at one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OutputKey {
    /// The address and port.
    pub end: End,
    /// The protocol.
    pub proto: Proto,
}

/// What an [`OutputKey`] leads to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OutputTarget {
    /// One backend, or a refusal.
    Direct(PriorityNumber),
    /// The shares of this number, which has none of the bits of [`TAG_MASK`](proxy_ebpf::priority::Priority::TAG_MASK).
    Shared(u32),
}

/// A [`Priority`](proxy_ebpf::priority::Priority) that can be sorted.
pub type PriorityNumber = u32;

/// What the node's own packets find: those that no socket hook has given a backend, since they are
/// not TCP.
///
/// The kernel picks the share by the addresses and ports of the packet, so that two first
/// datagrams of one flow at once are translated alike. A backend has as many of the [`SHARES`] as
/// any other, or one more.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct OutputRows {
    /// By whom a packet is for.
    pub targets: BTreeMap<OutputKey, OutputTarget>,
    /// ClusterIPs, of which what no target is for is refused.
    pub cluster_ips: BTreeSet<Addr>,
    /// The shares of a number.
    pub shares: BTreeMap<u32, Vec<PriorityNumber>>,
}

/// A step from what the maps hold to what they are to hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NatStep {
    /// Backends that come.
    pub backends: Vec<(BackendId, End)>,
    /// Backends that go, which no program can choose any more.
    pub gone: Vec<(BackendId, End)>,
    /// What the node's own packets found and are to find no longer.
    pub output_gone: OutputRows,
    /// What they are to find.
    pub output: OutputRows,
}

impl NatStep {
    /// Whether the step changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the rules depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatSettings {
    /// The bit of the packet mark by which a client is hidden (`--masquerade-bit`), as a mask.
    pub masquerade_mark: u32,
}

/// The rows that depend on the node alone.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NatNode {
    /// The address that hidden clients are given on a device, by its interface index and family;
    /// on other devices masquerading chooses.
    pub sources: BTreeSet<(u32, Addr)>,
    /// The networks that ClusterIPs are taken from.
    pub service_networks: BTreeSet<IpNetwork>,
}

/// The tables of the network namespace in which they were opened.
pub struct NatTables {
    socket: Socket,
    families: Vec<Family>,
    settings: NatSettings,
    node: NatNode,
    /// Whether a table may have other rows than those of `node`.
    is_node_unwritten: bool,
    /// The rule set's generation after the last transaction that was made here.
    last: Option<Generation>,
}

impl NatTables {
    /// Opens the tables, and makes them as far as they are not there. What earlier agents have put
    /// into them stays.
    pub fn open(settings: NatSettings) -> Result<Self, NetfilterError> {
        let families = families().collect();
        let mut tables = Self {
            socket: Socket::open()?,
            families,
            settings,
            node: NatNode::default(),
            is_node_unwritten: false,
            last: None,
        };
        for family in tables.families.clone() {
            if !tables.is_written(family)? {
                tables.renew(family, |_, _| ())?;
            }
        }
        Ok(tables)
    }

    /// The name by which events know the changes that are made here.
    pub fn port(&self) -> NetlinkPort {
        self.socket.port()
    }

    /// Deletes the tables.
    pub fn remove() -> Result<(), NetfilterError> {
        let mut socket = Socket::open()?;
        let found = socket.tables()?;
        let mut batch = Batch::new();
        for row in found.iter().filter(|row| row.table.name == TABLE) {
            batch.destroy_table(&row.table);
        }
        socket.commit(batch)
    }

    /// Makes the maps of backends hold just `backends`, in one transaction for each family: no
    /// packet meets a map without them. Makes the tables first, if somebody has removed them.
    ///
    /// There is no comparison with what they hold: the kernel lists a map in time that grows with
    /// the square of its size (250,000 elements take 1.8 s), and fills it anew in 0.4 s.
    pub fn refill_backends(&mut self, backends: &[(BackendId, End)]) -> Result<(), NetfilterError> {
        for family in self.families.clone() {
            self.renew(family, |batch, table| {
                batch.flush_set(table, rules::BACKENDS);
                add_backends(batch, table, backends);
            })?;
        }
        Ok(())
    }

    /// Makes what the node's own packets find just `rows`, in one transaction for each family.
    pub fn refill_output(&mut self, rows: &OutputRows) -> Result<(), NetfilterError> {
        for family in self.families.clone() {
            let table = table(family);
            let mut batch = Batch::new();
            batch.flush_set(&table, rules::OUTPUT_SERVICES);
            batch.flush_set(&table, rules::OUTPUT_SHARES);
            batch.flush_set(&table, rules::CLUSTER_IPS);
            add_output(&mut batch, &table, rows);
            self.commit_batch(batch)?;
        }
        Ok(())
    }

    /// Takes `step`, in one transaction for each family.
    pub fn commit(&mut self, step: &NatStep) -> Result<(), NetfilterError> {
        for family in self.families.clone() {
            let table = table(family);
            let mut batch = Batch::new();
            let gone = step.gone.iter().filter(|(_, end)| family_of(end.addr) == family);
            batch.delete_keys(&table, rules::BACKENDS, gone.map(|(id, _)| number(id.0)));
            let old = &step.output_gone;
            let targets = targets_of(old, family).map(|(key, _)| key);
            batch.delete_keys(&table, rules::OUTPUT_SERVICES, targets);
            let shares = shares_of(old, family).map(|(key, _)| key);
            batch.delete_keys(&table, rules::OUTPUT_SHARES, shares);
            batch.delete_keys(&table, rules::CLUSTER_IPS, cluster_ips_of(old, family));
            add_backends(&mut batch, &table, &step.backends);
            add_output(&mut batch, &table, &step.output);
            self.commit_batch(batch)?;
        }
        Ok(())
    }

    /// Whether nobody has changed any table of this network namespace since the last transaction
    /// that was made here.
    pub fn is_untouched(&mut self) -> Result<bool, NetfilterError> {
        Ok(self.last.is_some() && self.last == Some(self.socket.generation()?))
    }

    fn commit_batch(&mut self, batch: Batch) -> Result<(), NetfilterError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.socket.commit(batch)?;
        self.last = Some(self.socket.generation()?);
        Ok(())
    }

    /// Makes the rows of the node what `node` says. Returns whether they were others. What fails is
    /// written the next time.
    pub fn write_node(&mut self, node: NatNode) -> Result<bool, NetfilterError> {
        if self.node == node && !self.is_node_unwritten {
            return Ok(false);
        }
        self.node = node;
        self.is_node_unwritten = true;
        for family in self.families.clone() {
            let mut batch = Batch::new();
            self.add_node_rows(&mut batch, &table(family));
            self.commit_batch(batch)?;
        }
        self.is_node_unwritten = false;
        Ok(true)
    }

    fn add_node_rows(&self, batch: &mut Batch, table: &Table) {
        let family = table.family;
        batch.flush_set(table, rules::SOURCES);
        let own = self.node.sources.iter().filter(|(_, addr)| family_of(*addr) == family);
        let own = own.map(|(index, addr)| (number(*index), Data::from(field(*addr))));
        batch.add_pairs(table, rules::SOURCES, own);
        batch.flush_set(table, rules::SERVICE_NETWORKS);
        let is_its = |network: &&IpNetwork| network.is_ipv4() == (family == Family::Ipv4);
        let networks = apart(self.node.service_networks.iter().filter(is_its).copied());
        batch.add_intervals(table, rules::SERVICE_NETWORKS, networks.map(Interval::of));
    }

    /// Whether the table of `family` is there with all of its rules.
    fn is_written(&mut self, family: Family) -> Result<bool, NetfilterError> {
        let found = self.socket.rules(&table(family))?;
        Ok(rules::ruleset(family, self.settings).is_written_as(&found))
    }

    /// Makes what is missing of a table, writes its rows of the node, and has `fill` add more, all
    /// in one transaction.
    fn renew(
        &mut self,
        family: Family,
        fill: impl Fn(&mut Batch, &Table),
    ) -> Result<(), NetfilterError> {
        let is_written = self.is_written(family)?;
        let ruleset = rules::ruleset(family, self.settings);
        let table = table(family);
        let batch = |nodes: &Self, is_anew: bool| {
            let mut batch = Batch::new();
            if is_anew {
                batch.destroy_table(&table);
            }
            if !is_written {
                ruleset.write(&mut batch, &table);
            }
            nodes.add_node_rows(&mut batch, &table);
            fill(&mut batch, &table);
            batch
        };
        match self.commit_batch(batch(self, false)) {
            // A set of another version may have other fields.
            Err(_) if !is_written => self.commit_batch(batch(self, true)),
            result => result,
        }
    }
}

impl OutputTarget {
    fn number(self) -> u32 {
        match self {
            Self::Direct(priority) => priority,
            Self::Shared(number) => number,
        }
    }
}

/// The families that have a table: a kernel that was booted without IPv6 has none of it.
fn families() -> impl Iterator<Item = Family> {
    let has_v6 = std::path::Path::new("/proc/net/if_inet6").exists();
    [Some(Family::Ipv4), has_v6.then_some(Family::Ipv6)].into_iter().flatten()
}

/// The networks of which none holds another.
fn apart(networks: impl Iterator<Item = IpNetwork>) -> impl Iterator<Item = IpNetwork> {
    let mut all: Vec<IpNetwork> = networks.collect();
    all.sort_by_key(|network| (network.prefix(), network.network()));
    let mut kept: Vec<IpNetwork> = Vec::new();
    for network in all {
        if !kept.iter().any(|wider| wider.contains(network.network())) {
            kept.push(network);
        }
    }
    kept.into_iter()
}

fn add_backends(batch: &mut Batch, table: &Table, backends: &[(BackendId, End)]) {
    let own = backends.iter().filter(|(_, end)| family_of(end.addr) == table.family);
    let pairs = own.map(|(id, end)| (number(id.0), rules::end(*end)));
    batch.add_pairs(table, rules::BACKENDS, pairs);
}

/// Adds what the node's own packets find; shares before what leads to them.
fn add_output(batch: &mut Batch, table: &Table, rows: &OutputRows) {
    batch.add_pairs(table, rules::OUTPUT_SHARES, shares_of(rows, table.family));
    batch.add_pairs(table, rules::OUTPUT_SERVICES, targets_of(rows, table.family));
    batch.add_keys(table, rules::CLUSTER_IPS, cluster_ips_of(rows, table.family));
}

/// The ClusterIPs of `family`.
fn cluster_ips_of(rows: &OutputRows, family: Family) -> impl Iterator<Item = Data> {
    let own = rows.cluster_ips.iter().filter(move |addr| family_of(**addr) == family);
    own.map(|addr| field(*addr).into())
}

/// The elements of the targets of `family`.
fn targets_of(rows: &OutputRows, family: Family) -> impl Iterator<Item = (Data, Data)> {
    let own = rows.targets.iter().filter(move |(key, _)| family_of(key.end.addr) == family);
    own.map(|(key, target)| (rules::output_key(key), number(target.number())))
}

/// The elements of the shares of `family`: they are those of numbers that a target of the family
/// names, whose last bit says so (see `apply`).
fn shares_of(rows: &OutputRows, family: Family) -> impl Iterator<Item = (Data, Data)> {
    rows.shares.iter().filter(move |(number, _)| share_family(**number) == family).flat_map(
        |(shares, priorities)| {
            (0..).zip(priorities).map(|(index, priority)| {
                let key = Data::concat(&[Field::Mark(*shares), Field::Mark(index)]);
                (key, number(*priority))
            })
        },
    )
}

/// The number of the shares of a service port: of its local set, or of its cluster set.
pub fn share_number(service: u32, local: bool, family: Family) -> u32 {
    service << 2 | u32::from(local) << 1 | u32::from(family == Family::Ipv6)
}

fn share_family(number: u32) -> Family {
    if number & 1 == 0 { Family::Ipv4 } else { Family::Ipv6 }
}

/// The family of `addr`.
pub const fn family_of(addr: Addr) -> Family {
    if addr.is_v4() { Family::Ipv4 } else { Family::Ipv6 }
}

/// The name of the table of `family`.
pub fn table(family: Family) -> Table {
    Table { family, name: TABLE.to_owned() }
}

fn number(number: u32) -> Data {
    Field::Mark(number).into()
}

fn field(addr: Addr) -> Field {
    IpAddr::from(addr).into()
}
