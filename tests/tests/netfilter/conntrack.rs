//! What conntrack knows of translated connections, and that a deleted entry is chosen anew.

use crate::translation::{TAG, rule_set};
use crate::{lab, open};
use anyhow::{Context as _, Result};
use lab::{Ask, Serve};
use proxy_user::netfilter::conntrack::{Entry, Filter, Key, Status, TcpState};
use proxy_user::netfilter::{Family, Socket};
use std::net::SocketAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The entries that `filter` wants.
fn entries(socket: &mut Socket, filter: Filter) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    socket.connections(&filter, |entry| found.push(entry))?;
    Ok(found)
}

#[tokio::test]
async fn translated_connections_are_listed_and_others_are_not() -> Result<()> {
    let (lab, a, b) = lab().await?;
    futures::try_join!(b.serve(Serve::tcp(8080)), b.serve(Serve::udp(8080)))?;
    let node = lab.node(0);
    node.netns().sysctl("netfilter/nf_conntrack_acct", "1")?;
    let mut socket = open(node)?;
    let backend: SocketAddr = (b.ipv4(), 8080).into();
    socket.commit(rule_set(TAG | 7, backend))?;
    let before = socket.conntrack_usage()?;
    let _direct = a.open(Ask::tcp(backend)).await?;
    let held = a.open(Ask::tcp("10.96.0.1:80")).await?;
    let _ = held.ask().await?;
    let _ = a.udp("10.96.0.1:80").await?;
    let usage = socket.conntrack_usage()?;
    assert_eq!((usage.entries, usage.max), (before.entries + 3, before.max));

    let translated = Filter { status: Status::DESTINATION_NAT, ..Filter::default() };
    assert_eq!(entries(&mut socket, translated)?.len(), 2);
    let tcp = Filter { family: Some(Family::Ipv4), proto: Some(TCP), ..translated };
    let found = entries(&mut socket, tcp)?;
    let [entry] = found[..] else { panic!("{found:?}") };
    assert_eq!(entry.key.original.source, held.local());
    assert_eq!(entry.key.original.destination, "10.96.0.1:80".parse()?);
    assert_eq!((entry.reply.source, entry.reply.destination), (backend, held.local()));
    assert_eq!(entry.tcp, Some(TcpState::Established));
    assert!(entry.status.contains(Status::SEEN_REPLY) && entry.status.contains(Status::ASSURED));
    assert!(!entry.status.contains(Status::SOURCE_NAT));
    assert!(entry.timeout.is_some_and(|timeout| timeout.as_secs() > 60), "{entry:?}");
    let [sent, answered] = entry.counters.context("no counters")?;
    assert!(sent.packets >= 3 && answered.bytes > 100, "{entry:?}");

    // The kernel filters by itself only within a family.
    let udp = Filter { family: None, proto: Some(UDP), ..translated };
    assert_eq!(entries(&mut socket, udp)?.len(), 1);
    let v6 = Filter { family: Some(Family::Ipv6), ..Filter::default() };
    assert!(entries(&mut socket, v6)?.iter().all(|entry| entry.key.original.source.is_ipv6()));
    let marked = Filter { mark: Some((0x4000, 0x4000)), ..Filter::default() };
    assert_eq!(entries(&mut socket, marked)?, []);
    Ok(())
}

#[tokio::test]
async fn a_socket_whose_entry_is_deleted_reaches_the_next_backend() -> Result<()> {
    let (lab, a, b) = lab().await?;
    let c = lab.add_pod(lab.node(0), "c").await?;
    futures::try_join!(b.serve(Serve::udp(8080)), c.serve(Serve::udp(8080)))?;
    let mut socket = open(lab.node(0))?;
    socket.commit(rule_set(TAG | 7, (b.ipv4(), 8080).into()))?;
    let held = a.open(Ask::udp("10.96.0.1:80")).await?;
    assert_eq!(held.ask().await?.name, b.name());
    socket.commit(rule_set(TAG | 7, (c.ipv4(), 8080).into()))?;
    assert_eq!(held.ask().await?.name, b.name(), "conntrack remembers");

    let udp = Filter {
        family: Some(Family::Ipv4),
        proto: Some(UDP),
        status: Status::DESTINATION_NAT,
        mark: None,
    };
    let found = entries(&mut socket, udp)?;
    let [entry] = found[..] else { panic!("{found:?}") };
    let other = Key { id: entry.key.id.wrapping_add(1), ..entry.key };
    assert!(!socket.delete_connection(&other)?, "another entry's number");
    assert!(socket.delete_connection(&entry.key)?);
    assert!(!socket.delete_connection(&entry.key)?, "it is gone");
    assert_eq!(held.ask().await?.name, c.name());
    assert_eq!(entries(&mut socket, udp)?.len(), 1);
    Ok(())
}
