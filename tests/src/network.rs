//! The network of a lab: a bridge that stands for the wire between machines, and what a CNI
//! plugin does for pods.
//!
//! Addresses: nodes 172.18.0.11, .12 … and fd00:18::b, ::c …; clients 172.18.0.101 …; pods
//! 10.244.NODE.2 … and fd00:244:NODE::2 …; the bridge itself, where servers for all may listen,
//! 172.18.0.2 and fd00:18::2. With tunnels, a node's end is 10.244.NODE.0 and fd00:244:NODE::.
//! No namespace has a route or a device that leads out of the lab.

mod tunnel;

use crate::machine::Addrs;
use crate::netns::{Link, Mac, Netns, Via, add_veth};
use anyhow::Result;
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

/// The index of eth0 in every machine; above those of the devices that a kernel may put into
/// a new namespace (`tunl0`, `sit0` and others).
pub(crate) const ETH0: u32 = 100;
/// The index of the bridge, in the fabric or in a node.
const BRIDGE: u32 = 101;
/// The index of the device on top of eth0, or of the fabric's bridge.
const UPLINK: u32 = 102;
/// Below the indices of veths.
const VETHS: u32 = 1000;

/// The VLAN of [`Uplink::Vlan`].
const VLAN_ID: u16 = 18;
/// Calico's address of the node's end of every pod's veth.
const GATEWAY_MAC: Mac = [0xee; 6];
/// Where Calico's pods find the node.
const GATEWAY: Addrs = Addrs {
    v4: Ipv4Addr::new(169, 254, 1, 1),
    v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee),
};

/// The address on the fabric's own bridge.
pub const FABRIC: Addrs = fabric_addrs(2);
/// The networks that all pods are in, as `--cluster-cidr` takes them.
pub const POD_NETWORKS: &str = "10.244.0.0/16,fd00:244::/32";

/// How the node connects its pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cni {
    /// A route for each pod to its veth, which has the gateway's address, as with kindnet and ptp.
    #[default]
    Routed,
    /// A route for each pod to its veth, which has no address: pods send all they have to a
    /// link-local gateway, as with Calico.
    Calico,
    /// The veths are ports of the bridge cni0, and nodes route to each other's, as with flannel's
    /// host-gw.
    Bridge,
    /// The same, with a tunnel of VXLAN between the nodes, as with flannel by default.
    Vxlan,
}

/// By which device a machine is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Uplink {
    /// eth0.
    #[default]
    Plain,
    /// A VLAN of eth0, which itself has no address.
    Vlan,
    /// A MACVLAN device on eth0, which itself has no address.
    Macvlan,
}

impl Uplink {
    /// The device's name.
    pub const fn device(self) -> &'static str {
        match self {
            Self::Plain => "eth0",
            Self::Vlan => "eth0.18",
            Self::Macvlan => "mac0",
        }
    }

    const fn index(self) -> u32 {
        match self {
            Self::Plain => ETH0,
            Self::Vlan | Self::Macvlan => UPLINK,
        }
    }
}

/// `rp_filter` in every namespace (RFC 3704).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RpFilter {
    /// No check.
    Off,
    /// A packet must come by the device that its answer would leave by.
    Strict,
    /// Its source must have a route; what systemd sets.
    #[default]
    Loose,
}

/// What kind of machine a namespace is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It forwards.
    Router,
    /// It does not.
    Leaf,
}

/// Makes the namespace of a machine, without devices but for `lo`.
pub(crate) async fn make_netns(name: &str, role: Role, rp_filter: RpFilter) -> Result<Netns> {
    let rp_filter = match rp_filter {
        RpFilter::Off => "0",
        RpFilter::Strict => "1",
        RpFilter::Loose => "2",
    };
    let mut sysctls = vec![
        ("ipv4/conf/all/rp_filter", rp_filter),
        ("ipv4/conf/default/rp_filter", rp_filter),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        // Link-local addresses can be used at once.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
    ];
    if role == Role::Router {
        sysctls.extend([
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // Else a client would learn ways around the node that it asks.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Every refusal is told: a test asks more than the kernel would answer in a second.
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ]);
    }
    Netns::create(name, &sysctls).await
}

/// The wire between machines: a bridge in a namespace of its own.
pub(crate) struct Fabric {
    netns: Netns,
    uplink: Uplink,
    ports: AtomicU32,
}

impl Fabric {
    pub(crate) async fn make(uplink: Uplink) -> Result<Self> {
        let netns = make_netns("fabric", Role::Leaf, RpFilter::Off).await?;
        netns.add_bridge(BRIDGE, "br0").await?;
        if uplink != Uplink::Vlan {
            for addr in fabric_networks(FABRIC) {
                netns.add_addr(BRIDGE, addr).await?;
            }
        }
        Ok(Self { netns, uplink, ports: AtomicU32::new(0) })
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Gives `machine` an eth0 on the wire.
    pub(crate) async fn plug(&self, machine: &Netns, addrs: Addrs) -> Result<()> {
        let number = self.ports.fetch_add(1, Ordering::Relaxed);
        let name = format!("port{number}");
        let index = VETHS + number;
        let near = Link { netns: &self.netns, index, name: &name, bridge: Some(BRIDGE), mac: None };
        let far = Link { netns: machine, index: ETH0, name: "eth0", bridge: None, mac: None };
        add_veth(near, far).await?;
        let name = self.uplink.device();
        match self.uplink {
            Uplink::Plain => {}
            Uplink::Macvlan => machine.add_macvlan(UPLINK, name, ETH0).await?,
            Uplink::Vlan => {
                machine.add_vlan(UPLINK, name, ETH0, VLAN_ID).await?;
                if number == 0 {
                    // A bridge has its carrier from its first port.
                    self.netns.add_vlan(UPLINK, "br0.18", BRIDGE, VLAN_ID).await?;
                    for addr in fabric_networks(FABRIC) {
                        self.netns.add_addr(UPLINK, addr).await?;
                    }
                }
            }
        }
        for addr in fabric_networks(addrs) {
            machine.add_addr(self.uplink.index(), addr).await?;
        }
        Ok(())
    }
}

/// Prepares a node for its pods. What it has no better route for goes to the fabric, which
/// throws it away.
pub(crate) async fn prepare_node(cni: Cni, node: &Netns, number: u8) -> Result<()> {
    node.add_route(network(Ipv4Addr::UNSPECIFIED, 0), Via::Gateway(FABRIC.v4.into())).await?;
    node.add_route(network(Ipv6Addr::UNSPECIFIED, 0), Via::Gateway(FABRIC.v6.into())).await?;
    if matches!(cni, Cni::Bridge | Cni::Vxlan) {
        node.add_bridge(BRIDGE, "cni0").await?;
        let [v4, v6] = pod_networks(number);
        let gateway = pod_addrs(number, 1);
        node.add_addr(BRIDGE, network(gateway.v4, v4.prefix())).await?;
        node.add_addr(BRIDGE, network(gateway.v6, v6.prefix())).await?;
    }
    if cni == Cni::Vxlan { tunnel::open(node, number).await } else { Ok(()) }
}

/// Has `node` reach the pods of the node `other`.
pub(crate) async fn route_pods(cni: Cni, node: &Netns, other: u8) -> Result<()> {
    if cni == Cni::Vxlan {
        return tunnel::route(node, other).await;
    }
    let [v4, v6] = pod_networks(other);
    let gateway = node_addrs(other);
    node.add_route(v4, Via::Gateway(gateway.v4.into())).await?;
    node.add_route(v6, Via::Gateway(gateway.v6.into())).await
}

/// Connects the `index`-th pod of the node `number`: the CNI plugin's ADD.
pub(crate) async fn connect_pod(
    cni: Cni,
    node: &Netns,
    pod: &Netns,
    number: u8,
    index: u8,
) -> Result<()> {
    let veth = pod_veth(index);
    let (name, bridge, mac) = match cni {
        Cni::Routed => (format!("veth{index}"), None, None),
        Cni::Calico => (format!("cali{index}"), None, Some(GATEWAY_MAC)),
        Cni::Bridge | Cni::Vxlan => (format!("veth{index}"), Some(BRIDGE), None),
    };
    let near = Link { netns: node, index: veth, name: &name, bridge, mac };
    add_veth(near, Link { netns: pod, index: ETH0, name: "eth0", bridge: None, mac: None }).await?;
    if bridge.is_some() {
        node.allow_hairpin(veth).await?;
    }
    if cni == Cni::Vxlan {
        pod.set_mtu(ETH0, tunnel::MTU).await?;
        node.set_mtu(veth, tunnel::MTU).await?;
    }
    let pod_addrs = pod_addrs(number, index);
    let gateway = if cni == Cni::Calico { GATEWAY } else { self::pod_addrs(number, 1) };
    let ends = [
        (IpAddr::from(pod_addrs.v4), IpAddr::from(gateway.v4)),
        (pod_addrs.v6.into(), gateway.v6.into()),
    ];
    for ((addr, gateway), whole) in ends.into_iter().zip(pod_networks(number)) {
        let mut via = Via::Gateway(gateway);
        match cni {
            Cni::Routed => {
                node.add_addr(veth, host(gateway)).await?;
                node.add_route(host(addr), Via::Link(veth)).await?;
                pod.add_addr(ETH0, host(addr)).await?;
                pod.add_route(host(gateway), Via::Link(ETH0)).await?;
            }
            Cni::Calico => {
                node.add_route(host(addr), Via::Link(veth)).await?;
                pod.add_addr(ETH0, host(addr)).await?;
                // Calico answers for it by proxy_arp, which needs a default route that a lab has
                // not; Cilium and the AWS plugin do it like this.
                pod.add_neighbour(ETH0, gateway, GATEWAY_MAC).await?;
                via = Via::OnLink(gateway, ETH0);
            }
            Cni::Bridge | Cni::Vxlan => {
                pod.add_addr(ETH0, network(addr, whole.prefix())).await?;
            }
        }
        let everywhere = if addr.is_ipv4() {
            network(Ipv4Addr::UNSPECIFIED, 0)
        } else {
            network(Ipv6Addr::UNSPECIFIED, 0)
        };
        pod.add_route(everywhere, via).await?;
    }
    Ok(())
}

/// Takes the pod's devices and routes away: the CNI plugin's DEL.
pub(crate) async fn disconnect_pod(node: &Netns, index: u8) -> Result<()> {
    node.delete_link(pod_veth(index)).await
}

/// The index of the node's end of a pod's veth.
fn pod_veth(index: u8) -> u32 {
    VETHS + u32::from(index)
}

/// The addresses of the node `number`, counted from 1.
pub(crate) const fn node_addrs(number: u8) -> Addrs {
    fabric_addrs(10 + number)
}

/// The addresses of the client `number`, counted from 1.
pub(crate) const fn client_addrs(number: u8) -> Addrs {
    fabric_addrs(100 + number)
}

/// The addresses of the pod `index` on the node `number`; those of index 1 are the gateway's.
pub(crate) const fn pod_addrs(number: u8, index: u8) -> Addrs {
    Addrs {
        v4: Ipv4Addr::new(10, 244, number, index),
        v6: Ipv6Addr::new(0xfd00, 0x244, number as u16, 0, 0, 0, 0, index as u16),
    }
}

/// The networks of the pods of the node `number`, one of each family.
pub(crate) fn pod_networks(number: u8) -> [IpNetwork; 2] {
    let base = pod_addrs(number, 0);
    [network(base.v4, 24), network(base.v6, 64)]
}

const fn fabric_addrs(index: u8) -> Addrs {
    Addrs {
        v4: Ipv4Addr::new(172, 18, 0, index),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, index as u16),
    }
}

fn fabric_networks(addrs: Addrs) -> [IpNetwork; 2] {
    [network(addrs.v4, 16), network(addrs.v6, 64)]
}

fn host(addr: IpAddr) -> IpNetwork {
    addr.into()
}

fn network(addr: impl Into<IpAddr>, prefix: u8) -> IpNetwork {
    IpNetwork::new(addr.into(), prefix).expect("the prefixes in this file fit their families")
}
