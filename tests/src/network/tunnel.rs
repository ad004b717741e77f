//! Tunnels between nodes, as flannel lays them: one device of VXLAN for each family, and for each
//! other node a neighbour, where its tunnel ends, and a route.

use super::{host, node_addrs, pod_addrs, pod_networks};
use crate::netns::{Mac, Netns, Via};
use anyhow::Result;
use std::net::IpAddr;

/// The largest packets of pods: what the tunnel over IPv6 leaves of 1500 bytes.
pub(super) const MTU: u32 = 1430;

/// The devices, one of each family: index and name.
const DEVICES: [(u32, &str); 2] = [(110, "flannel.1"), (111, "flannel-v6.1")];

/// Makes the tunnels' end on the node `number`.
pub(super) async fn open(node: &Netns, number: u8) -> Result<()> {
    for ((index, name), (outer, inner)) in DEVICES.into_iter().zip(ends(number)) {
        node.add_vxlan(index, name, outer, mac(number, inner), MTU).await?;
        node.add_addr(index, host(inner)).await?;
    }
    Ok(())
}

/// Has `node` reach the pods of the node `other` by the tunnels.
pub(super) async fn route(node: &Netns, other: u8) -> Result<()> {
    let networks = DEVICES.into_iter().zip(ends(other)).zip(pod_networks(other));
    for (((index, _), (outer, inner)), pods) in networks {
        let mac = mac(other, inner);
        node.add_tunnel(index, mac, outer).await?;
        node.add_neighbour(index, inner, mac).await?;
        node.add_route(pods, Via::OnLink(inner, index)).await?;
    }
    Ok(())
}

/// Of each family, the address of the node `number` and that of its end of the tunnel.
fn ends(number: u8) -> [(IpAddr, IpAddr); 2] {
    let (outer, inner) = (node_addrs(number), pod_addrs(number, 0));
    [(outer.v4.into(), inner.v4.into()), (outer.v6.into(), inner.v6.into())]
}

fn mac(number: u8, inner: IpAddr) -> Mac {
    [0x02, 0x18, 0, 0, if inner.is_ipv4() { 4 } else { 6 }, number]
}
