//! Connections that are open while others come and go in masses.

use crate::scene::{Path, Scene, node_port};
use anyhow::Result;
use lab::Ask;
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// How many flows of one packet: more than the conntrack table takes by default on a small node.
const FLOWS: u32 = 200_000;

/// kubernetes/kubernetes#18604, cilium/cilium#6280, #12518.
#[tokio::test]
async fn idle_connections_outlive_a_flood_of_others() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let lab = &scene.cluster.lab;
    let (outsider, flooder) = (lab.add_client("outsider").await?, lab.add_client("flooder").await?);
    let node = lab.node(0);
    let mut idle = Vec::new();
    for number in [1, 2] {
        for to in node.addrs().at(node_port(number)) {
            for _ in 0..10 {
                let socket = outsider.open(Ask::tcp(to)).await?;
                socket.ask().await?;
                idle.push(socket);
            }
        }
    }
    let to = SocketAddrV4::new(node.ipv4(), node_port(2));
    let sent = flooder.netns().run(|| flood(to))??;
    assert!(sent > FLOWS / 4, "{sent} packets are no flood");
    for socket in &idle {
        socket.ask().await?;
    }
    Ok(())
}

/// Sends datagrams that all have another source, for at most 20 s.
fn flood(to: SocketAddrV4) -> Result<u32> {
    let raw = socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::RAW))?;
    let began = Instant::now();
    for number in 0..FLOWS {
        let [high, low] = u16::try_from(number / 250)?.to_be_bytes();
        let from = Ipv4Addr::new(172, 18, 0x40 + high, low);
        let packet = datagram(from, 20_000 + u16::try_from(number % 250)?, to);
        // A full queue loses packets, as a wire would.
        let _ = sendto(&raw, &packet, SendFlags::empty(), &to);
        if began.elapsed() > Duration::from_secs(20) {
            return Ok(number);
        }
    }
    Ok(FLOWS)
}

/// An IPv4 packet with an empty datagram; the kernel fills in lengths and sums of its own header.
fn datagram(from: Ipv4Addr, port: u16, to: SocketAddrV4) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.ip().octets());
    for word in [port, to.port(), 8, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet
}
