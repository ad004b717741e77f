//! The lab itself: starts machines, joins them, and takes everything away again.

use crate::bpffs::BpfFs;
use crate::cgroup::CgroupTree;
use crate::guard::Guardian;
use crate::machine::{Addrs, Machine};
use crate::netns::Netns;
use crate::network::{self, Cni, Fabric, Role, RpFilter, Uplink};
use crate::program;
use crate::traffic::{ExecOutput, Failure};
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use ipnetwork::IpNetwork;
use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// What a lab is to be like.
#[derive(Clone, Copy, Debug)]
pub struct LabConfig {
    /// How many nodes, at most 80.
    pub nodes: u8,
    /// How the nodes connect their pods.
    pub cni: Cni,
    /// `rp_filter` in nodes, pods and clients.
    pub rp_filter: RpFilter,
    /// By which device nodes and clients are on the wire.
    pub uplink: Uplink,
}

impl Default for LabConfig {
    /// Two nodes, routed pods.
    fn default() -> Self {
        let (cni, rp_filter, uplink) = Default::default();
        Self { nodes: 2, cni, rp_filter, uplink }
    }
}

/// Nodes, pods and clients that see each other and nothing else.
///
/// Dropping it kills every process in it and removes all it made; if the process dies, the
/// guardian does so. It belongs to the tokio runtime that it was started in.
pub struct Lab {
    // The order is that of the end: kill and remove, reap, let go.
    tree: CgroupTree,
    nodes: Vec<Node>,
    fabric: Fabric,
    clients: AtomicU8,
    config: LabConfig,
    _bpffs: BpfFs,
    _guardian: Guardian,
}

/// A node.
pub struct Node {
    machine: Machine,
    number: u8,
    uplink: Uplink,
    pods: AtomicU8,
    pub(crate) agents: AtomicU32,
    cgroup_root: PathBuf,
    bpffs_root: PathBuf,
    pub(crate) scratch: PathBuf,
}

/// A pod.
#[derive(Clone)]
pub struct Pod {
    machine: Machine,
    node: String,
    index: u8,
}

impl Lab {
    /// Starts a lab. This needs root, and the program `lab-worker` beside the running one.
    pub async fn start(config: LabConfig) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the lab makes network namespaces and cgroups: run this as root"
        );
        ensure!(config.nodes <= 80, "{} nodes: a lab has at most 80", config.nodes);
        let tree = CgroupTree::create()?;
        let guardian = Guardian::start(tree.path())?;
        let bpffs = BpfFs::mount().context("make a BPF file system for the lab")?;
        let fabric = Fabric::make(config.uplink).await?;
        let numbers = 1..=config.nodes;
        let nodes = numbers.map(|number| Node::start(number, config, &tree, &fabric, &bpffs));
        let nodes = try_join_all(nodes).await?;
        for (node, other) in nodes.iter().flat_map(|n| nodes.iter().map(move |o| (n, o))) {
            if node.number != other.number {
                network::route_pods(config.cni, node.netns(), other.number).await?;
            }
        }
        let clients = AtomicU8::new(1);
        Ok(Self { tree, nodes, fabric, clients, config, _bpffs: bpffs, _guardian: guardian })
    }

    /// The node at `index`, counted from 0.
    ///
    /// # Panics
    ///
    /// If the lab has fewer nodes.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Starts a pod on `node`.
    pub async fn add_pod(&self, node: &Node, name: &str) -> Result<Pod> {
        let index = node.pods.fetch_add(1, Ordering::Relaxed);
        ensure!(index < u8::MAX, "{} has no addresses left for the pod {name}", node.name());
        let starting = async {
            let netns = network::make_netns(name, Role::Leaf, self.config.rp_filter).await?;
            let cni = self.config.cni;
            network::connect_pod(cni, node.netns(), &netns, node.number, index).await?;
            let cgroup = self.tree.child(&format!("{}/pod-{name}", node.name()))?;
            let addrs = network::pod_addrs(node.number, index);
            let machine = Machine::start(netns, addrs, cgroup).await?;
            anyhow::Ok(Pod { machine, node: node.name().to_owned(), index })
        };
        starting.await.with_context(|| format!("add the pod {name} on {}", node.name()))
    }

    /// Ends a pod: kills its processes, and takes its devices and routes away.
    pub async fn delete_pod(&self, pod: &Pod) -> Result<()> {
        let node = self.nodes.iter().find(|node| node.name() == pod.node);
        let node = node.with_context(|| format!("{} is a pod of another lab", pod.name()))?;
        pod.kill()?;
        network::disconnect_pod(node.netns(), pod.index).await
    }

    /// Starts a client outside the cluster: on the wire of the nodes, with no route to pods or
    /// services. [`Machine::route`] gives it one.
    pub async fn add_client(&self, name: &str) -> Result<Machine> {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        ensure!(number < 150, "no addresses left for the client {name}");
        let starting = async {
            let addrs = network::client_addrs(number);
            let netns = network::make_netns(name, Role::Leaf, self.config.rp_filter).await?;
            self.fabric.plug(&netns, addrs).await?;
            Machine::start(netns, addrs, self.tree.child(&format!("client-{name}"))?).await
        };
        starting.await.with_context(|| format!("add the client {name}"))
    }

    /// The namespace of the wire, whose addresses ([`network::FABRIC`]) every node reaches.
    pub fn fabric(&self) -> &Netns {
        self.fabric.netns()
    }

    /// Listens on the wire, for a server that runs in this process, such as a Kubernetes API.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let addr = SocketAddr::from((network::FABRIC.v4, port));
        let listening = self.fabric().run(|| TcpListener::bind(addr))?;
        let listener = listening.with_context(|| format!("listen on {addr} in the fabric"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// A directory for files of the lab; it goes with it.
    pub fn scratch(&self) -> &Path {
        self.tree.scratch()
    }

    /// The cgroup at the root of the lab.
    pub fn cgroup(&self) -> &Path {
        self.tree.path()
    }
}

impl Node {
    async fn start(
        number: u8,
        config: LabConfig,
        tree: &CgroupTree,
        fabric: &Fabric,
        bpffs: &BpfFs,
    ) -> Result<Self> {
        let name = format!("node-{number}");
        let starting = async {
            let addrs = network::node_addrs(number);
            let netns = network::make_netns(&name, Role::Router, config.rp_filter).await?;
            fabric.plug(&netns, addrs).await?;
            network::prepare_node(config.cni, &netns, number).await?;
            let cgroup = tree.child(&format!("{name}/host"))?;
            let scratch = tree.scratch().join(&name);
            std::fs::create_dir(&scratch).context("make a directory for its files")?;
            anyhow::Ok(Self {
                machine: Machine::start(netns, addrs, cgroup).await?,
                number,
                uplink: config.uplink,
                pods: AtomicU8::new(2),
                agents: AtomicU32::new(1),
                cgroup_root: tree.child(&name)?,
                bpffs_root: bpffs.directory(&name)?,
                scratch,
            })
        };
        starting.await.with_context(|| format!("start {name}"))
    }

    /// The device by which it is on the wire.
    pub fn uplink(&self) -> &'static str {
        self.uplink.device()
    }

    /// The networks of its pods, one of each family.
    pub fn pod_networks(&self) -> [IpNetwork; 2] {
        network::pod_networks(self.number)
    }

    /// The cgroup in which all its processes and pods are: the root, to its agent.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// Its directory of the lab's BPF file system.
    pub fn bpffs_root(&self) -> &Path {
        &self.bpffs_root
    }

    /// Where its agent's control socket is.
    pub fn control_socket(&self) -> PathBuf {
        self.scratch.join("control.sock")
    }

    /// Loads rules of nftables on the node, in one transaction.
    pub async fn nft(&self, rules: &str) -> Result<()> {
        let file = self.scratch.join("rules.nft");
        std::fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
        let output = self.exec("nft", &["-f", &file.display().to_string()]).await?;
        ensure!(output.status == Some(0), "nft on {}: {}", self.name(), output.stderr);
        Ok(())
    }

    /// Removes all that Shunt has in the kernel; its agent has ended.
    pub async fn clean_up(&self) -> Result<()> {
        let output = self.shunt(&["cleanup"]).await?;
        ensure!(output.status == Some(0), "shunt cleanup on {}: {}", self.name(), output.stderr);
        Ok(())
    }

    /// Runs the program `shunt` on the node, where its agent's maps and socket are.
    pub async fn shunt(&self, args: &[&str]) -> Result<ExecOutput, Failure> {
        let program = program::find("shunt").map_err(Failure::lab)?.display().to_string();
        let maps = format!("SHUNT_BPFFS_ROOT={}", self.bpffs_root().display());
        let socket = format!("SHUNT_CONTROL_SOCKET={}", self.control_socket().display());
        let command = [maps.as_str(), socket.as_str(), program.as_str()];
        self.exec("env", &[&command, args].concat()).await
    }
}

impl Pod {
    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }
}

impl Deref for Node {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Deref for Pod {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Addrs {
    /// The socket addresses at `port`, one of each family.
    pub fn at(self, port: u16) -> [SocketAddr; 2] {
        [(self.v4, port).into(), (self.v6, port).into()]
    }
}
