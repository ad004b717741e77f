//! What others change is told of, and by whom.

use crate::translation::{TAG, rule_set};
use crate::{lab, nft, open, table};
use anyhow::{Context as _, Result};
use proxy_user::netfilter::{Change, Event, Events, NetlinkPort, Object};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The events up to the end of a transaction, and whose it was.
async fn transaction(events: &mut Events) -> Result<(Vec<Change>, String, NetlinkPort)> {
    let mut changes = Vec::new();
    loop {
        let found = timeout(Duration::from_secs(5), events.next()).await;
        for event in found.context("no event came")?? {
            match event {
                Event::Changed(change) => changes.push(change),
                Event::Done(done) => return Ok((changes, done.process, done.by)),
                Event::Lost => anyhow::bail!("events were lost"),
            }
        }
    }
}

#[tokio::test]
async fn a_flushed_rule_set_is_told_of_and_ones_own_changes_are_known() -> Result<()> {
    let (lab, _, b) = lab().await?;
    let node = lab.node(0);
    let mut socket = open(node)?;
    let runtime = tokio::runtime::Handle::current();
    let mut events = node.netns().run(|| {
        let _context = runtime.enter();
        Events::open()
    })??;
    socket.commit(rule_set(TAG | 7, (b.ipv4(), 8080).into()))?;
    let (changes, _, by) = transaction(&mut events).await?;
    assert_eq!(by, socket.port());
    assert!(changes.iter().all(|change| change.by == by && change.table == table()), "{changes:?}");
    for object in [Object::Table, Object::Chain, Object::Rule, Object::Set, Object::Element] {
        let is_added = |change: &Change| change.object == object && !change.deleted;
        assert!(changes.iter().any(is_added), "{object:?} in {changes:?}");
    }

    let started = Instant::now();
    let _ = nft(node, &["flush", "ruleset"]).await?;
    let (changes, process, by) = transaction(&mut events).await?;
    println!("told of {} changes {:?} after nft was started", changes.len(), started.elapsed());
    assert_eq!(process, "nft");
    assert_ne!(by, socket.port());
    let is_ours = |change: &Change| {
        (change.object, change.deleted) == (Object::Table, true) && change.table == table()
    };
    assert!(changes.iter().any(is_ours), "{changes:?}");
    assert!(started.elapsed() < Duration::from_secs(1));
    Ok(())
}
