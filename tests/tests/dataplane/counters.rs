//! Counters: what `shunt services` says that a service has carried.

use crate::scene::{Path, Scene, mapped_sockets, sockets, vip};
use anyhow::Result;
use lab::{Ask, Cni};

#[tokio::test]
async fn the_socket_path_counts_connections_and_refusals() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.publish(2, &[])?;
    scene.start(Path::Socket).await?;
    let asks = [sockets(vip(1)), mapped_sockets(vip(1))].concat();
    for ask in &asks {
        scene.client.ask(ask.clone()).await?;
    }
    assert_eq!(scene.counter(1, "connections").await?, asks.len() as u64);
    assert_eq!(scene.counter(1, "packets").await?, 0, "packets pass as they are");
    assert_eq!(scene.counter(1, "refused").await?, 0);

    // The second datagram of a socket is no new flow.
    let socket = scene.client.open(Ask::udp_unconnected(vip(1)[0])).await?;
    socket.ask().await?;
    socket.ask().await?;
    assert_eq!(scene.counter(1, "connections").await?, asks.len() as u64 + 1);

    let asks = [sockets(vip(2)), mapped_sockets(vip(2))].concat();
    for ask in &asks {
        scene.client.ask(ask.clone()).await.expect_err("no endpoint");
    }
    assert_eq!(scene.counter(2, "refused").await?, asks.len() as u64);
    assert_eq!(scene.counter(2, "connections").await?, 0);
    Ok(())
}

#[tokio::test]
async fn the_packet_path_counts_connections_packets_and_bytes() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    // With SNAT a packet passes two entries, and counts once all the same.
    for from in [&*scene.client, &outsider] {
        for (to, headers) in vip(1).into_iter().zip([28, 48]) {
            let counters = async || {
                anyhow::Ok([
                    scene.counter(1, "connections").await?,
                    scene.counter(1, "packets").await?,
                    scene.counter(1, "bytes").await?,
                ])
            };
            let before = counters().await?;
            let socket = from.open(Ask::udp(to).payload(1_000)).await?;
            let (first, _) = (socket.ask().await?, socket.ask().await?);
            // A reply says who answers and who asked, and ends the line.
            let reply = format!("{} {} ", first.name, first.client).len() as u64 + 1_001;
            let after = counters().await?;
            let grown = [0, 1, 2].map(|index| after[index] - before[index]);
            let bytes = 2 * (headers + 1_000) + 2 * (headers + reply);
            assert_eq!(grown, [1, 4, bytes], "{} → {to}", from.name());
        }
    }
    Ok(())
}
