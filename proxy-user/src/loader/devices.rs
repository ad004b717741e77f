//! Devices: the interfaces and addresses of the node's network namespace, followed live.
//!
//! Every change makes the whole list be read again, so that nothing is missed for ever.

mod pods;

use crate::model::Interface;
use futures::{StreamExt as _, TryStreamExt as _};
use ipnetwork::IpNetwork;
use pods::Pods;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{Handle, MulticastGroup};
use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;

/// How long events are gathered before the list is read.
const GATHER: Duration = Duration::from_millis(5);
/// How often the list is read without any event.
const RESYNC: Duration = Duration::from_secs(30);

/// The interfaces cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("cannot list {0}")]
    List(&'static str, #[source] rtnetlink::Error),
}

/// Follows the interfaces for ever; every state goes into `interfaces`. `listed` is called
/// whenever they could be read.
pub async fn follow(
    interfaces: &watch::Sender<Vec<Interface>>,
    listed: impl Fn(),
) -> Result<(), DevicesError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Neigh,
    ];
    let (connection, handle, mut events) =
        rtnetlink::new_multicast_connection(&groups).map_err(DevicesError::Socket)?;
    let _connection = tokio::spawn(connection);
    loop {
        let pods = Pods::list(&handle).await?;
        let list = list(&handle, &pods).await?;
        listed();
        interfaces.send_if_modified(|known| {
            let changed = *known != list;
            *known = list;
            changed
        });
        // Some news, the end of the stream (then the next list fails) or a while.
        let mut news = pin!((&mut events).filter(|(event, _)| ready(pods.is_news(event))));
        let _any = tokio::time::timeout(RESYNC, news.next()).await;
        tokio::time::sleep(GATHER).await;
        while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, events.next()).await {}
    }
}

async fn list(handle: &Handle, pods: &Pods) -> Result<Vec<Interface>, DevicesError> {
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|e| DevicesError::List("interfaces", e))?;
    let addresses: Vec<_> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|e| DevicesError::List("addresses", e))?;
    let mut behind = pods.addrs();
    let mut interfaces = BTreeMap::new();
    for link in links {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let controller = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        });
        // Asking for it is what makes the kernel give the namespace an id.
        let peer_netns = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkNetNsId(id) => Some(*id),
            _ => None,
        });
        let Some(name) = name else { continue };
        let index = link.header.index;
        let interface = Interface {
            index,
            name,
            up: link.header.flags.contains(LinkFlags::Up),
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            ethernet: link.header.link_layer_type == LinkLayerType::Ether,
            default_route: pods.has_default_route(index),
            unseen_bridge: is_unseen_bridge(&link),
            controller,
            peer_netns,
            addrs: Vec::new(),
            pods: behind.remove(&index).unwrap_or_default().into_iter().collect(),
        };
        interfaces.insert(index, interface);
    }
    for address in addresses {
        let Some(interface) = interfaces.get_mut(&address.header.index) else { continue };
        if address.header.scope != AddressScope::Universe {
            continue;
        }
        // On a point-to-point device the own address is the local one.
        let own = |local: bool| {
            address.attributes.iter().find_map(move |attribute| match attribute {
                AddressAttribute::Local(addr) if local => Some(*addr),
                AddressAttribute::Address(addr) if !local => Some(*addr),
                _ => None,
            })
        };
        let network = own(true)
            .or_else(|| own(false))
            .and_then(|addr| IpNetwork::new(addr, address.header.prefix_len).ok());
        interface.addrs.extend(network);
    }
    Ok(interfaces.into_values().collect())
}

/// Whether the link is a bridge whose frames pass by netfilter's hooks of one family at least
/// (`br_netfilter`: `net.bridge.bridge-nf-call-iptables`, or the bridge's own switch).
fn is_unseen_bridge(link: &LinkMessage) -> bool {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos.as_slice()),
        _ => None,
    });
    let infos = infos.unwrap_or_default();
    let own = |switch: fn(&InfoBridge) -> bool| {
        infos.iter().any(|info| match info {
            LinkInfo::Data(InfoData::Bridge(settings)) => settings.iter().any(switch),
            _ => false,
        })
    };
    let all = |sysctl: &str| {
        let path = format!("/proc/sys/net/bridge/{sysctl}");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    };
    let sees_v4 = all("bridge-nf-call-iptables")
        || own(|setting| matches!(setting, InfoBridge::NfCallIpTables(true)));
    let sees_v6 = all("bridge-nf-call-ip6tables")
        || own(|setting| matches!(setting, InfoBridge::NfCallIp6Tables(true)));
    infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) && !(sees_v4 && sees_v6)
}
