//! Netfilter over netlink, against the kernel: what is written is what nft prints and what packets
//! meet; what is read is what is there; what others change is told of.

mod conntrack;
mod events;
mod rules;
mod sets;
mod translation;

use anyhow::{Context as _, Result};
use lab::{Lab, LabConfig, Machine, Pod};
use proxy_user::netfilter::{Family, Set, Socket, Table, Type};

/// The table that all tests write.
fn table() -> Table {
    Table { family: Family::Ipv4, name: "shunt".to_owned() }
}

/// The map of backends by their numbers.
fn backends_map() -> Set {
    Set {
        name: "backends".to_owned(),
        key: vec![Type::Mark],
        data: vec![Type::Ipv4Addr, Type::Port],
        interval: false,
        size: None,
    }
}

/// A socket to netfilter in the namespace of `machine`.
fn open(machine: &Machine) -> Result<Socket> {
    Ok(machine.netns().run(Socket::open)??)
}

/// A node with the pods `a` and `b`.
async fn lab() -> Result<(Lab, Pod, Pod)> {
    let lab = Lab::start(LabConfig::default()).await?;
    let (a, b) = futures::try_join!(lab.add_pod(lab.node(0), "a"), lab.add_pod(lab.node(0), "b"))?;
    Ok((lab, a, b))
}

/// What `nft` prints with `args` on `machine`.
async fn nft(machine: &Machine, args: &[&str]) -> Result<String> {
    let output = machine.exec("nft", args).await.with_context(|| format!("nft {args:?}"))?;
    anyhow::ensure!(output.status == Some(0), "nft {args:?}: {}", output.stderr);
    Ok(output.stdout)
}
