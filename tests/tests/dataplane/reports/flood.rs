//! Connections that are open while others come and go in masses, or forge their packets.

use crate::scene::{Path, Scene, node_port};
use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use lab::Ask;
use lab::objects::{self, Port};
use lab::sprint::{Deed, Service, Sprint};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// What comes while connections are idle.
struct Flood {
    /// How many connections are idle, at each of four NodePorts.
    idle: usize,
    /// For how long others connect, one after the other.
    lasting: Duration,
    /// How many of them there are in a second, at least.
    per_second: f64,
    /// How many flows of one datagram come meanwhile.
    flows: u32,
}

/// kubernetes/kubernetes#18604, cilium/cilium#6280, #12518.
#[tokio::test]
async fn idle_connections_outlive_a_flood_of_others() -> Result<()> {
    let lasting = Duration::from_secs(2);
    // More flows than the conntrack table takes by default on a small node.
    idle_outlive(Flood { idle: 10, lasting, per_second: 100.0, flows: 200_000 }).await
}

/// `cargo test -p tests --test dataplane -- --ignored minute`.
#[tokio::test]
#[ignore = "takes both CPUs of a small machine for a minute"]
async fn idle_connections_outlive_a_minute_of_others() -> Result<()> {
    let lasting = Duration::from_secs(60);
    idle_outlive(Flood { idle: 50, lasting, per_second: 6_000.0, flows: 400_000 }).await
}

async fn idle_outlive(flood: Flood) -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    // On the other node, so the client is hidden.
    let port = [Port { name: "greet", protocol: "TCP", port: 80, target: Service::Greet.port() }];
    let mut greet = objects::service("greet", &["10.96.3.1"], &port);
    greet["spec"]["type"] = json!("NodePort");
    greet["spec"]["ports"][0]["nodePort"] = json!(node_port(3));
    scene.cluster.publish(&greet, &port, &[&scene.web[1]])?;
    scene.web[1].serve_sprints(1).await?;
    scene.start(Path::Socket).await?;
    let lab = &scene.cluster.lab;
    let (outsider, flooder) = (lab.add_client("outsider").await?, lab.add_client("flooder").await?);
    let node = lab.node(0);
    let mut idle = Vec::new();
    for number in [1, 2] {
        for to in node.addrs().at(node_port(number)) {
            for _ in 0..flood.idle {
                let socket = outsider.open(Ask::tcp(to)).await?;
                socket.ask().await?;
                idle.push(socket);
            }
        }
    }

    let to = SocketAddrV4::new(node.ipv4(), node_port(2));
    let datagrams = spawn_blocking(move || flooder.netns().run(|| send_flows(to, flood.flows)));
    let sprint = Sprint {
        // The server keeps TIME_WAIT, and conntrack with it.
        deed: Deed::ConnectInOrder,
        targets: vec![SocketAddr::new(node.ipv4().into(), node_port(3))],
        concurrency: 8,
        duration: flood.lasting,
    };
    let report = outsider.sprint(sprint).await?;
    let sent = datagrams.await???;
    eprintln!(
        "{} connections, {:.0}/s, {} failed; {sent} datagrams",
        report.count,
        report.per_second(),
        report.failed
    );
    assert!(report.per_second() >= flood.per_second, "{report:?}");
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(sent > flood.flows / 4, "{sent} packets are no flood");
    for socket in &idle {
        socket.ask().await.with_context(|| format!("{:?}", socket.peer()))?;
    }
    Ok(())
}

/// Sends datagrams that all have another source, for at most a minute.
fn send_flows(to: SocketAddrV4, flows: u32) -> Result<u32> {
    let wire = Wire::open()?;
    let began = Instant::now();
    for number in 0..flows {
        let [high, low] = u16::try_from(number / 250)?.to_be_bytes();
        let from = Ipv4Addr::new(172, 18, 0x40 + high, low);
        let from = SocketAddrV4::new(from, 20_000 + u16::try_from(number % 250)?);
        wire.send(&datagram(from, to, b"")?, to);
        if began.elapsed() > Duration::from_secs(60) {
            return Ok(number);
        }
    }
    Ok(flows)
}

/// What others send in the name of a client, and of its backend.
#[tokio::test]
async fn forged_packets_change_nothing_about_a_live_connection() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let lab = &scene.cluster.lab;
    let (outsider, forger) = (lab.add_client("outsider").await?, lab.add_client("forger").await?);
    let mut live = Vec::new();
    for (number, backend) in [(1, &scene.web[0]), (2, &scene.web[1])] {
        let to = SocketAddrV4::new(lab.node(0).ipv4(), node_port(number));
        for ask in [Ask::tcp(to), Ask::udp(to)] {
            let socket = outsider.open(ask.clone()).await?;
            let reply = socket.ask().await?;
            let SocketAddr::V4(client) = reply.local else { bail!("{reply:?}") };
            let client = SocketAddrV4::new(outsider.ipv4(), client.port());
            live.push((socket, client, to, SocketAddrV4::new(backend.ipv4(), 8080)));
        }
    }
    for round in 0..20 {
        for (_, client, node, backend) in &live {
            forger.netns().run(|| {
                send_segments(*client, *node, round)?;
                let wire = Wire::open()?;
                wire.send(&datagram(*client, *node, b"forged")?, *node);
                anyhow::Ok(())
            })??;
            // A pod that speaks for another to whom that serves.
            scene.client.netns().run(|| send_segments(*backend, *client, round))??;
        }
        for (socket, _, _, _) in &live {
            let context = || format!("{:?}, round {round}", socket.peer());
            let reply = socket.ask().await.with_context(context)?;
            ensure!(Some(reply.peer) == socket.peer(), "{reply:?}");
        }
    }
    Ok(())
}

/// Sends a SYN, a SYN-ACK and a RST of `from` to `to`, with sequence numbers that somebody made up.
fn send_segments(from: SocketAddrV4, to: SocketAddrV4, round: u32) -> Result<()> {
    let sequence = round.wrapping_mul(0x9e37_79b9);
    let tcp = || ipv4(from, to).tcp(from.port(), to.port(), sequence, 1_024);
    let wire = Wire::open()?;
    for segment in [tcp().syn(), tcp().syn().ack(!sequence), tcp().rst()] {
        let mut packet = Vec::new();
        segment.write(&mut packet, b"")?;
        wire.send(&packet, to);
    }
    Ok(())
}

fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ipv4(from, to).udp(from.port(), to.port()).write(&mut packet, payload)?;
    Ok(packet)
}

fn ipv4(from: SocketAddrV4, to: SocketAddrV4) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
}

/// A socket that sends packets as they are.
struct Wire(OwnedFd);

impl Wire {
    fn open() -> Result<Self> {
        Ok(Self(socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?))
    }

    /// Sends a packet. A full queue loses it, as a wire would.
    fn send(&self, packet: &[u8], to: SocketAddrV4) {
        let _ = sendto(&self.0, packet, SendFlags::empty(), &to);
    }
}
