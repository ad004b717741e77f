//! Elements of sets and maps: many at once, read back, changed, and refused.

use crate::translation::mark;
use crate::{backends_map, nft, open, table};
use anyhow::Result;
use lab::{Lab, LabConfig};
use proxy_user::netfilter::{Batch, Data, Field, Interval, Set, Socket, Type};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

async fn one_node() -> Result<(Lab, Socket)> {
    let lab = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() }).await?;
    let mut socket = open(lab.node(0))?;
    let mut batch = Batch::new();
    batch.add_table(&table(), "");
    batch.add_set(&table(), &backends_map());
    socket.commit(batch)?;
    Ok((lab, socket))
}

fn backend(id: u32) -> (Data, Data) {
    let addr = Field::Ipv4(Ipv4Addr::from_bits(0x0af4_0000 + id));
    (mark(id), Data::concat(&[addr, Field::Port(8080)]))
}

fn add(pairs: impl IntoIterator<Item = (Data, Data)>) -> Batch {
    let mut batch = Batch::new();
    batch.add_pairs(&table(), "backends", pairs);
    batch
}

fn delete(ids: impl IntoIterator<Item = u32>) -> Batch {
    let mut batch = Batch::new();
    batch.delete_keys(&table(), "backends", ids.into_iter().map(mark));
    batch
}

#[tokio::test]
async fn a_hundred_thousand_elements_go_in_at_once_and_are_read_back() -> Result<()> {
    const COUNT: u32 = 100_000;
    let (_lab, mut socket) = one_node().await?;
    let started = Instant::now();
    socket.commit(add((0..COUNT).map(backend)))?;
    let written = started.elapsed();
    let elements = socket.elements(&table(), "backends")?;
    println!("written in {written:?}, read in {:?}", started.elapsed() - written);
    assert!(written < Duration::from_secs(5), "{written:?}");
    let found: BTreeMap<Vec<u8>, Vec<u8>> =
        elements.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
    let wanted: BTreeMap<Vec<u8>, Vec<u8>> = (0..COUNT)
        .map(backend)
        .map(|(key, value)| (key.as_ref().to_vec(), value.as_ref().to_vec()))
        .collect();
    assert_eq!(elements.len(), COUNT as usize);
    assert!(found == wanted);
    Ok(())
}

#[tokio::test]
async fn a_refused_transaction_names_its_object_and_changes_nothing() -> Result<()> {
    let (_lab, mut socket) = one_node().await?;
    socket.commit(add([backend(1), backend(2)]))?;
    let before = socket.generation()?;
    // A key that is not there, behind changes that could be done.
    let mut batch = add([backend(3)]);
    batch.delete_keys(&table(), "backends", [mark(1), mark(9)]);
    let error = socket.commit(batch).unwrap_err();
    assert!(error.is(libc::ENOENT), "{error:?}");
    let object = "delete 2 elements of set backends of table ip shunt";
    assert_eq!(error.to_string(), format!("nftables refuses to {object}"));
    // A key that is there with another value.
    let error = socket.commit(add([(mark(1), backend(5).1)])).unwrap_err();
    assert!(error.is(libc::EBUSY) || error.is(libc::EEXIST), "{error:?}");
    assert_eq!(socket.generation()?, before);
    assert_eq!(socket.elements(&table(), "backends")?.len(), 2);
    // The next transaction is not mistaken for the refused ones.
    socket.commit(delete([1, 2]))?;
    assert!(socket.elements(&table(), "backends")?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_key_gets_another_value_in_one_transaction() -> Result<()> {
    let (_lab, mut socket) = one_node().await?;
    socket.commit(add([backend(1)]))?;
    let mut batch = delete([1]);
    batch.add_pairs(&table(), "backends", [(mark(1), backend(7).1)]);
    socket.commit(batch)?;
    let elements = socket.elements(&table(), "backends")?;
    assert_eq!(elements.iter().next(), Some((mark(1).as_ref(), backend(7).1.as_ref())));
    // What is there already may be written again.
    socket.commit(add([(mark(1), backend(7).1)]))?;
    Ok(())
}

#[tokio::test]
async fn intervals_are_read_back_as_they_were_written() -> Result<()> {
    let (lab, mut socket) = one_node().await?;
    let set = Set {
        name: "cidrs".to_owned(),
        key: vec![Type::Ipv4Addr],
        data: Vec::new(),
        interval: true,
        size: None,
    };
    let cidrs = ["10.96.0.0/12", "192.0.2.0/25", "192.0.2.128/25", "255.0.0.0/8"];
    let cidrs = cidrs.map(|cidr| Interval::of(cidr.parse().unwrap()));
    let mut batch = Batch::new();
    batch.add_set(&table(), &set);
    batch.add_intervals(&table(), "cidrs", cidrs);
    socket.commit(batch)?;
    assert_eq!(socket.intervals(&table(), "cidrs")?, cidrs);
    let mut batch = Batch::new();
    batch.delete_intervals(&table(), "cidrs", [cidrs[1]]);
    socket.commit(batch)?;
    assert_eq!(socket.intervals(&table(), "cidrs")?, [cidrs[0], cidrs[2], cidrs[3]]);
    // Those of nft, which has an end at zero besides.
    let add = ["add", "element", "ip", "shunt", "cidrs", "{ 198.51.100.7 }"];
    let _ = nft(lab.node(0), &["flush", "set", "ip", "shunt", "cidrs"]).await?;
    let _ = nft(lab.node(0), &add).await?;
    let only = Interval::of("198.51.100.7/32".parse()?);
    assert_eq!(socket.intervals(&table(), "cidrs")?, [only]);
    Ok(())
}

#[tokio::test]
async fn keys_that_are_not_there_can_be_destroyed() -> Result<()> {
    let (_lab, mut socket) = one_node().await?;
    socket.commit(add([backend(1), backend(2)]))?;
    let mut batch = Batch::new();
    batch.destroy_keys(&table(), "backends", [mark(1), mark(9)]);
    match socket.commit(batch) {
        Err(error) if error.is(libc::EINVAL) => println!("a kernel before 6.3: {error}"),
        result => {
            result?;
            assert_eq!(socket.elements(&table(), "backends")?.len(), 1);
        }
    }
    Ok(())
}
