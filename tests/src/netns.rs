//! A network namespace of the lab: anonymous, held open by a file descriptor, gone with it.
//!
//! Gives a place to run closures in and the netlink requests that the lab makes of it. Never
//! touches the namespace that the process itself is in, and leaves nothing in `/run/netns`.

mod sys;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::link::{InfoBridgePort, LinkAttribute, MacVlanMode, State};
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan,
    LinkVxlan, RouteMessageBuilder,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fmt, panic, process, thread};

/// A network namespace; it lives as long as this value or a process or socket in it.
pub struct Netns {
    name: String,
    file: File,
    netlink: rtnetlink::Handle,
}

/// One end of a veth pair.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    /// The namespace in which it appears.
    pub(crate) netns: &'a Netns,
    /// Its interface index, chosen by the lab, so that nobody has to look it up.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: &'a str,
    /// The bridge that it is a port of, in its namespace.
    pub(crate) bridge: Option<u32>,
    /// Its link-layer address; of the kernel's choice if there is none.
    pub(crate) mac: Option<Mac>,
}

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Via {
    /// To a router.
    Gateway(IpAddr),
    /// To a router on the link of a device, whatever the networks of the device are.
    OnLink(IpAddr, u32),
    /// The same, by a way that carries packets of at most so many bytes.
    Narrow(IpAddr, u32, u32),
    /// To the network behind a device.
    Link(u32),
}

/// How far an IPv6 address of a device is.
struct Ipv6State {
    link: u32,
    link_local: bool,
    /// The kernel has not finished adding it, for all that `accept_dad` is off.
    tentative: bool,
}

/// The address of a bridge; no two are on one link.
const BRIDGE_MAC: Mac = [0x02, 0x18, 0, 0, 0, 1];

/// How long a device may take to come up.
const SETTLING: Duration = Duration::from_secs(10);

/// The index of the loopback device in every namespace.
const LO: u32 = 1;

impl Netns {
    /// Makes a namespace and sets `sysctls` (paths below `/proc/sys/net`) before it has devices.
    ///
    /// It must be called in a tokio runtime, which from then on carries its netlink socket.
    pub async fn create(name: &str, sysctls: &[(&str, &str)]) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let made = in_thread(|| -> Result<_> {
            sys::unshare_network().context("unshare the network namespace (is this root?)")?;
            let file = File::open("/proc/thread-self/ns/net").context("open the namespace")?;
            for (key, value) in sysctls {
                write_sysctl(key, value)?;
            }
            let _context = runtime.enter();
            let (connection, netlink, _) =
                rtnetlink::new_connection().context("open a netlink socket")?;
            runtime.spawn(connection);
            Ok((file, netlink))
        });
        let (file, netlink) = made.with_context(|| format!("make the namespace of {name}"))?;
        let netns = Self { name: name.to_owned(), file, netlink };
        netns.set_up(LO).await?;
        Ok(netns)
    }

    /// Runs `work` in a thread of its own that is in this namespace.
    ///
    /// A socket made in there stays in this namespace wherever it is used afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("enter the namespace of {self}"))?;
            Ok(work())
        })
    }

    /// The path by which any process of root can enter the namespace while this process lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()).into()
    }

    /// Sets a sysctl, given as its path below `/proc/sys/net`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))?.with_context(|| format!("in {self}"))
    }

    /// Has the stack fill in all checksums of what leaves this namespace, where otherwise a veth
    /// would pretend that the next device does, and none would ever be looked at.
    pub async fn turn_off_checksum_offload(&self) -> Result<()> {
        self.turn_off(&[sys::Offload::SendChecksum]).await
    }

    /// Has the stack do everything itself that a device could do for it: fill in
    /// checksums, cut data into segments, and join them.
    pub async fn turn_off_offloads(&self) -> Result<()> {
        self.turn_off(&sys::Offload::ALL).await
    }

    async fn turn_off(&self, offloads: &[sys::Offload]) -> Result<()> {
        let is_ethernet =
            |link: &&String| ["eth", "cali", "cni", "flannel"].iter().any(|n| link.contains(n));
        for link in self.links().await?.iter().filter(is_ethernet) {
            for offload in offloads {
                self.run(|| sys::turn_off(*offload, link))?
                    .with_context(|| format!("turn off {offload:?} of {link} in {self}"))?;
            }
        }
        Ok(())
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<()> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        let done = self.netlink.link().set(link).execute().await;
        done.with_context(|| format!("set link {index} up in {self}"))
    }

    /// Waits until the device sends what it is given and can ask for IPv6 neighbours, as CNI
    /// plugins do before they return.
    ///
    /// Until then the first packets are lost, and the neighbour is asked for again a second
    /// later. It takes long where others hold the lock of the network configuration.
    async fn settle(&self, index: u32) -> Result<()> {
        self.until(index, async || {
            let link = self.netlink.link().get().match_index(index).execute().try_next().await;
            let link = link.with_context(|| format!("read link {index} of {self}"))?;
            let up = LinkAttribute::OperState(State::Up);
            Ok(link.is_some_and(|link| link.attributes.contains(&up)))
        })
        .await?;
        // The device asks from its link-local address.
        self.until(index, async || {
            let addrs = self.ipv6_addrs(index)?;
            let link_local = addrs.iter().any(|addr| addr.link_local);
            Ok(link_local && !addrs.iter().any(|addr| addr.tentative))
        })
        .await
    }

    /// Asks the kernel again and again until the device is as it should be.
    async fn until(&self, index: u32, is_so: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + SETTLING;
        while !is_so().await? {
            ensure!(Instant::now() < deadline, "link {index} of {self} does not come up");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// The IPv6 addresses of a device. Not by netlink, which lists for one caller at a time.
    fn ipv6_addrs(&self, index: u32) -> Result<Vec<Ipv6State>> {
        let path = "/proc/thread-self/net/if_inet6";
        let list = self.run(|| fs::read_to_string(path))?;
        let list = list.with_context(|| format!("read {path} in {self}"))?;
        let addrs = list.lines().filter_map(Ipv6State::parse);
        Ok(addrs.filter(|addr| addr.link == index).collect())
    }

    pub(crate) async fn add_bridge(&self, index: u32, name: &str) -> Result<()> {
        // Without a querier, snooping would drop the multicast of neighbour discovery. An address
        // that is not given is that of the lowest port, and changes when a lower one comes: then
        // whoever knows the bridge is unheard until the neighbour is asked for again.
        let bridge = LinkBridge::new(name).index(index).mcast_snooping(false);
        let bridge = bridge.address(BRIDGE_MAC.to_vec()).up().build();
        let done = self.netlink.link().add(bridge).execute().await;
        done.with_context(|| format!("add bridge {name} in {self}"))
    }

    /// Lets a port of a bridge give back what it took: a pod may be its own backend.
    pub(crate) async fn allow_hairpin(&self, port: u32) -> Result<()> {
        let port = LinkBridgePort::new(port).append_info_data(InfoBridgePort::HairpinMode(true));
        let done = self.netlink.link().set_port(port.build()).execute().await;
        done.with_context(|| format!("set the hairpin mode of a bridge's port in {self}"))
    }

    /// Makes the VLAN `id` of the device `parent` a device of its own.
    pub(crate) async fn add_vlan(
        &self,
        index: u32,
        name: &str,
        parent: u32,
        id: u16,
    ) -> Result<()> {
        let vlan = LinkVlan::new(name, parent, id).index(index).up().build();
        let done = self.netlink.link().add(vlan).execute().await;
        done.with_context(|| format!("add the VLAN {name} in {self}"))?;
        self.settle(index).await
    }

    /// Makes a device with an address of its own on the device `parent`.
    pub(crate) async fn add_macvlan(&self, index: u32, name: &str, parent: u32) -> Result<()> {
        let device = LinkMacVlan::new(name, parent, MacVlanMode::Bridge).index(index).up().build();
        let done = self.netlink.link().add(device).execute().await;
        done.with_context(|| format!("add the MACVLAN {name} in {self}"))?;
        self.settle(index).await
    }

    /// Makes a tunnel of VXLAN (RFC 7348) from `local`, without learning: [`Netns::add_tunnel`]
    /// says who is at the other ends.
    pub(crate) async fn add_vxlan(
        &self,
        index: u32,
        name: &str,
        local: IpAddr,
        mac: Mac,
        mtu: u32,
    ) -> Result<()> {
        let vxlan = LinkVxlan::new(name, 1).index(index).address(mac.to_vec()).mtu(mtu);
        let vxlan = match local {
            IpAddr::V4(local) => vxlan.local(local),
            IpAddr::V6(local) => vxlan.local6(local),
        };
        let vxlan = vxlan.port(8472).learning(false).up().build();
        let done = self.netlink.link().add(vxlan).execute().await;
        done.with_context(|| format!("add the tunnel {name} in {self}"))
    }

    /// Has the tunnel `link` reach the address `mac` by the machine at `remote`.
    pub(crate) async fn add_tunnel(&self, link: u32, mac: Mac, remote: IpAddr) -> Result<()> {
        let entry = self.netlink.neighbours().add_bridge(link, &mac).destination(remote);
        let done = entry.flags(NeighbourFlags::Own).execute().await;
        done.with_context(|| format!("add a tunnel to {remote} in {self}"))
    }

    /// Makes `mac` the address of the neighbour `addr`, for good.
    pub(crate) async fn add_neighbour(&self, link: u32, addr: IpAddr, mac: Mac) -> Result<()> {
        let done = self.netlink.neighbours().add(link, addr).link_layer_address(&mac);
        done.execute().await.with_context(|| format!("add the neighbour {addr} in {self}"))
    }

    /// Sets the size of the largest packets that a device carries.
    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).mtu(mtu).build();
        let done = self.netlink.link().set(link).execute().await;
        done.with_context(|| format!("set the MTU of link {index} to {mtu} in {self}"))
    }

    pub(crate) async fn delete_link(&self, index: u32) -> Result<()> {
        let done = self.netlink.link().del(index).execute().await;
        done.with_context(|| format!("delete link {index} in {self}"))
    }

    /// The names of the devices in this namespace.
    pub async fn links(&self) -> Result<Vec<String>> {
        let links = self.netlink.link().get().execute().try_collect::<Vec<_>>().await;
        let links = links.with_context(|| format!("list the links of {self}"))?;
        let attributes = links.into_iter().flat_map(|link| link.attributes);
        let names = attributes.filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        Ok(names.collect())
    }

    pub(crate) async fn add_addr(&self, link: u32, addr: IpNetwork) -> Result<()> {
        let done = self.netlink.address().add(link, addr.ip(), addr.prefix()).execute().await;
        done.with_context(|| format!("add {addr} to link {link} in {self}"))?;
        // Then it can be bound, and neighbours who ask for it are heard (RFC 4862, 5.4.2).
        self.until(link, async || Ok(!self.ipv6_addrs(link)?.iter().any(|addr| addr.tentative)))
            .await
    }

    pub(crate) async fn delete_addr(&self, link: u32, addr: IpNetwork) -> Result<()> {
        let mut add = self.netlink.address().add(link, addr.ip(), addr.prefix());
        let message = add.message_mut().clone();
        let done = self.netlink.address().del(message).execute().await;
        done.with_context(|| format!("delete {addr} from link {link} in {self}"))
    }

    pub(crate) async fn add_route(&self, to: IpNetwork, via: Via) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix())
            .with_context(|| format!("route {to}"))?;
        let route = match via {
            Via::Gateway(gateway) => {
                route.gateway(gateway).with_context(|| format!("route {to} via {gateway}"))?
            }
            Via::OnLink(gateway, link) | Via::Narrow(gateway, link, _) => route
                .gateway(gateway)
                .with_context(|| format!("route {to} via {gateway}"))?
                .output_interface(link)
                .onlink(),
            Via::Link(index) => route.output_interface(index),
        };
        let mut route = route.build();
        if matches!(via, Via::Link(_)) && to.is_ipv4() {
            route.header.scope = rtnetlink::packet_route::route::RouteScope::Link;
        }
        if let Via::Narrow(_, _, mtu) = via {
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        let done = self.netlink.route().add(route).replace().execute().await;
        done.with_context(|| format!("add a route to {to} via {via:?} in {self}"))
    }
}

/// Makes a veth pair, both ends up; `near` may be a port of a bridge, `far` may not.
pub(crate) async fn add_veth(near: Link<'_>, far: Link<'_>) -> Result<()> {
    use rtnetlink::packet_route::link::{InfoData, InfoVeth};
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(far.name)
        .index(far.index)
        .setns_by_fd(far.netns.file.as_raw_fd())
        .build();
    let mut pair = LinkMessageBuilder::<LinkVeth>::new(near.name, far.name)
        .index(near.index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .up();
    if let Some(bridge) = near.bridge {
        pair = pair.controller(bridge);
    }
    if let Some(mac) = near.mac {
        pair = pair.address(mac.to_vec());
    }
    let done = near.netns.netlink.link().add(pair.build()).execute().await;
    done.with_context(|| {
        format!("join {} of {} with {} of {}", near.name, near.netns, far.name, far.netns)
    })?;
    // The kernel makes the far end first, and cannot set it up while it has no peer.
    far.netns.set_up(far.index).await?;
    // A port of a bridge asks for nobody; the bridge does.
    near.netns.settle(near.bridge.unwrap_or(near.index)).await?;
    far.netns.settle(far.index).await
}

impl Ipv6State {
    /// Reads a line: address, index, length of the prefix, scope, flags (hexadecimal), name.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace().skip(1);
        let mut number = || u32::from_str_radix(fields.next()?, 16).ok();
        let (link, _prefix, scope, flags) = (number()?, number()?, number()?, number()?);
        // IPV6_ADDR_LINKLOCAL (include/net/ipv6.h), IFA_F_TENTATIVE (linux/if_addr.h).
        Some(Self { link, link_local: scope == 0x20, tentative: flags & 0x40 != 0 })
    }
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{key}");
    fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
}

/// Runs `work` in a thread that ends with it, so that the namespace it enters stays its own.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|e| panic::resume_unwind(e))
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
