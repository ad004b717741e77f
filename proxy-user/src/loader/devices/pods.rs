//! Pods' addresses, as the node's own routing finds them: behind a device of their own by a route
//! for one address, or behind a port of a bridge, whose neighbour table has the address and whose
//! forwarding table has the port.

use super::DevicesError;
use futures::TryStreamExt as _;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A line of the neighbour table (with the address) or the forwarding table (without): the device
/// behind which a link-layer address is.
type Neighbour = (u32, Option<IpAddr>, Vec<u8>);

/// What the tables say.
#[derive(Default)]
pub(super) struct Pods {
    /// The devices that default routes lead to.
    defaults: BTreeSet<u32>,
    routes: BTreeSet<(u32, IpAddr)>,
    neighbours: BTreeSet<Neighbour>,
}

impl Pods {
    /// Reads all tables.
    pub(super) async fn list(handle: &Handle) -> Result<Self, DevicesError> {
        let mut pods = Self::default();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        for request in [v4, v6] {
            let routes: Vec<_> = handle
                .route()
                .get(request)
                .execute()
                .try_collect()
                .await
                .map_err(|e| DevicesError::List("routes", e))?;
            pods.routes.extend(routes.iter().filter_map(host_route));
            pods.defaults.extend(routes.iter().flat_map(default_devices));
        }
        for family in [AddressFamily::Unspec, AddressFamily::Bridge] {
            let request = handle.neighbours().get().set_address_family(family);
            let neighbours: Vec<_> = request
                .execute()
                .try_collect()
                .await
                .map_err(|e| DevicesError::List("neighbours", e))?;
            pods.neighbours.extend(neighbours.iter().filter_map(neighbour));
        }
        Ok(pods)
    }

    /// Whether a default route leads to `device`.
    pub(super) fn has_default_route(&self, device: u32) -> bool {
        self.defaults.contains(&device)
    }

    /// The addresses that each device leads to.
    pub(super) fn addrs(&self) -> BTreeMap<u32, BTreeSet<IpAddr>> {
        let mut addrs: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for (device, addr) in &self.routes {
            addrs.entry(*device).or_default().insert(*addr);
        }
        let ports: BTreeMap<&[u8], u32> = self
            .neighbours
            .iter()
            .filter(|(_, addr, _)| addr.is_none())
            .map(|(port, _, link)| (link.as_slice(), *port))
            .collect();
        for (_, addr, link) in &self.neighbours {
            if let (Some(addr), Some(port)) = (addr, ports.get(link.as_slice())) {
                addrs.entry(*port).or_default().insert(*addr);
            }
        }
        addrs
    }

    /// Whether `event` may change anything that is listed: the kernel tells of every neighbour
    /// that it has just heard of again.
    pub(super) fn is_news(&self, event: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match &event.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                neighbour(message).is_some_and(|neighbour| !self.neighbours.contains(&neighbour))
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message),
            ) => host_route(message).is_some() || !default_devices(message).is_empty(),
            _ => true,
        }
    }
}

/// The devices of a default route, which may have several hops.
fn default_devices(route: &RouteMessage) -> Vec<u32> {
    let is_default = route.header.destination_prefix_length == 0;
    if !is_default || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let devices = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    devices.collect()
}

/// The device and the address of a route for one address that needs no router.
fn host_route(route: &RouteMessage) -> Option<(u32, IpAddr)> {
    let (mut device, mut addr) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => addr = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => addr = Some(IpAddr::V6(*v6)),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    let addr = addr?;
    let whole = if addr.is_ipv4() { 32 } else { 128 };
    let is_one = route.header.destination_prefix_length == whole;
    (is_one && route.header.kind == RouteType::Unicast).then_some((device?, addr))
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut addr, mut link) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                addr = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                addr = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => link = Some(bytes.clone()),
            _ => {}
        }
    }
    let is_bridge = message.header.family == AddressFamily::Bridge;
    (is_bridge == addr.is_none()).then_some((message.header.ifindex, addr, link?))
}
