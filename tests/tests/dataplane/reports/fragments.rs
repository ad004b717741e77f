//! Datagrams whose parts come in any order.

use crate::scene::{Path, Scene, node_port};
use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

const PAYLOAD: usize = 4_000;
/// How much of a datagram is in a packet; a multiple of 8.
const PART: usize = 1_480;

/// cilium/cilium#25709, #13349: several queues, bonds and middleboxes change the order.
#[tokio::test]
async fn fragments_are_served_in_any_order() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0).ipv4();
    let mut port = 7_000;
    for (number, name) in [(1, "web-0"), (2, "web-1")] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            port += 1;
            let from = SocketAddrV4::new(outsider.ipv4(), port);
            let to = SocketAddrV4::new(node, node_port(number));
            let answer = outsider.netns().run(|| ask(from, to, order))?;
            let answer = answer.with_context(|| format!("{name}, in the order {order:?}"))?;
            assert!(answer.starts_with(name), "{order:?}: {answer}");
        }
    }
    Ok(())
}

/// Sends a datagram in parts, and gives what is answered.
fn ask(from: SocketAddrV4, to: SocketAddrV4, order: [usize; 3]) -> Result<String> {
    let listener = UdpSocket::bind(from)?;
    listener.set_read_timeout(Some(Duration::from_secs(2)))?;
    let raw = socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::RAW))?;
    let mut datagram = Vec::new();
    // A checksum of zero says that there is none (RFC 768).
    for word in [from.port(), to.port(), (8 + PAYLOAD) as u16, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.resize(8 + PAYLOAD, b'q');
    let parts: Vec<_> = datagram.chunks(PART).collect();
    for index in order {
        let packet = fragment(from, to, index * PART, parts[index], index + 1 < parts.len());
        let _ = sendto(&raw, &packet, SendFlags::empty(), &SocketAddr::V4(to))?;
    }
    let mut answer = vec![0; 70_000];
    let (length, sender) = listener.recv_from(&mut answer).context("no answer")?;
    assert_eq!(sender, SocketAddr::V4(to));
    Ok(String::from_utf8_lossy(&answer[..length.min(40)]).into_owned())
}

fn fragment(
    from: SocketAddrV4,
    to: SocketAddrV4,
    offset: usize,
    part: &[u8],
    is_more: bool,
) -> Vec<u8> {
    let more = if is_more { 0x2000 } else { 0 };
    let mut packet = vec![0x45, 0];
    // The port is an identification that no other datagram here has.
    for word in [20 + part.len() as u16, from.port(), more | (offset / 8) as u16] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend([64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(part);
    packet
}
