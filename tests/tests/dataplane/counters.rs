//! Counters: what `shunt services` says that a service was asked for.

use crate::everyone::only;
use crate::scene::{Path, Scene, hearing, mapped_sockets, sockets, vip};
use anyhow::Result;
use lab::{Cni, Transport};

#[tokio::test]
async fn the_socket_path_counts_connections_and_refusals() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.publish(2, &[])?;
    scene.start(Path::Socket).await?;
    let asks = |number| [sockets(vip(number)), mapped_sockets(vip(number))].concat();
    for ask in only(Transport::Tcp, asks(1)) {
        let socket = scene.client.open(ask).await?;
        // The second request of a connection counts no more than its packets do.
        let (_first, _second) = (socket.ask().await?, socket.ask().await?);
    }
    assert_eq!(scene.counter(1, "connections").await?, 3);
    assert_eq!(scene.counter(1, "datagrams").await?, 0);
    assert_eq!(scene.counter(1, "refused").await?, 0);
    for ask in only(Transport::Tcp, asks(2)) {
        scene.client.ask(ask.clone()).await.expect_err("no endpoint");
    }
    assert_eq!(scene.counter(2, "refused").await?, 3);
    assert_eq!(scene.counter(2, "connections").await?, 0);
    Ok(())
}

#[tokio::test]
async fn the_packet_path_counts_connections_datagrams_and_refusals() -> Result<()> {
    let mut scene = Scene::strict(Cni::Routed).await?;
    scene.publish(1, &[&scene.web[1]])?;
    scene.publish(2, &[])?;
    scene.start(Path::Packet).await?;
    let outsider = scene.routed_outsider().await?;
    for (from, count) in [(&*scene.client, 1), (&outsider, 2)] {
        for ask in hearing(sockets(vip(1))) {
            let socket = from.open(ask).await?;
            let (_first, _second) = (socket.ask().await?, socket.ask().await?);
        }
        // One of each family; each datagram counts.
        assert_eq!(scene.counter(1, "connections").await?, 2 * count, "{}", from.name());
        assert_eq!(scene.counter(1, "datagrams").await?, 4 * count, "{}", from.name());
        for ask in hearing(sockets(vip(2))) {
            from.ask(ask.clone()).await.expect_err("no endpoint");
        }
        assert_eq!(scene.counter(2, "refused").await?, 4 * count, "{}", from.name());
    }
    assert_eq!(scene.counter(1, "refused").await?, 0);
    Ok(())
}
