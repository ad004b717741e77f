//! An agent that is killed with `--dns=full`: nobody listens where its resolver was, and every name
//! is answered all the same.

use super::scene::{Scene, describe, query};
use anyhow::{Context as _, Result, ensure};
use hickory_proto::rr::RecordType;
use lab::cluster::eventually;
use lab::{Machine, NameExchange};
use serde_json::Value;
use std::net::SocketAddr;

/// A name that the kernel leaves alone.
const NAME: &str = "_pg._tcp.db.shop.svc.cluster.local.";

/// One who asks: over TCP or UDP, from a new port (0) or from a socket that stays open.
struct Asker {
    who: Machine,
    to: SocketAddr,
    tcp: bool,
    port: u16,
}

impl Asker {
    async fn ask(&self, scene: &Scene) -> Result<String> {
        let query = query(NAME, RecordType::SRV)?;
        let exchange = scene.exchange(self.to, self.tcp, &query);
        let exchange = NameExchange { port: self.port, ..exchange };
        let reply = self.who.exchange_names(exchange).await.with_context(|| self.describe());
        describe(&reply?)
    }

    fn describe(&self) -> String {
        format!("{} at {}, TCP {}, port {}", self.who.name(), self.to, self.tcp, self.port)
    }
}

/// The resolver knows the records, the stand-in for the DNS service has none.
fn is_resolvers(answer: &str) -> bool {
    answer.starts_with("8500 3/0/6")
}

fn is_services(answer: &str) -> bool {
    answer == "8180 0/0/0"
}

#[tokio::test]
async fn names_are_answered_while_no_agent_runs_and_by_the_next_one() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=full"]).await?;
    let lab = &scene.cluster.lab;
    let late = lab.add_pod(lab.node(0), "late").await?;
    let mut askers = Vec::new();
    for (index, (to, tcp)) in scene.transports().into_iter().enumerate() {
        for who in [&**scene.client(), lab.node(0)] {
            askers.push(Asker { who: who.clone(), to, tcp, port: 0 });
        }
        if !tcp {
            let port = 5_300 + index as u16;
            // The first query of a pod is translated at its socket, those of the other one at
            // its veth; a socket of the node would be told that nobody listens.
            for who in [&**scene.client(), &*late] {
                askers.push(Asker { who: who.clone(), to, tcp, port });
            }
        }
    }
    for asker in &askers {
        let answer = asker.ask(&scene).await?;
        ensure!(is_resolvers(&answer), "{}: {answer}", asker.describe());
    }
    let is_attached = |status: &Value| {
        let attached = status["attachments"].as_array().into_iter().flatten();
        attached.filter(|attachment| attachment["program"] == "names").count() == 2
    };
    let _ = scene.cluster.agent(0)?.wait_status(is_attached).await?;
    scene.cluster.kill_agent(0).await?;
    for _ in 0..3 {
        for asker in &askers {
            let answer = asker.ask(&scene).await.context("no agent runs")?;
            ensure!(is_services(&answer), "{}: {answer}", asker.describe());
        }
    }
    let options = scene.cluster.options().flag("--dns", "full");
    let agent = scene.cluster.start_agent(0, &options)?;
    let listens =
        |status: &Value| status["dns"]["resolver"].as_array().is_some_and(|addrs| addrs.len() == 2);
    let _ = agent.wait_status(listens).await?;
    for asker in &askers {
        let ask = async || asker.ask(&scene).await;
        if asker.port == 0 {
            let is_back = |answer: &Result<String>| answer.as_deref().is_ok_and(is_resolvers);
            let _ = eventually("the resolver answers again", ask, is_back).await??;
        } else {
            // Its flow stays where it is.
            let answer = ask().await.context("the next agent runs")?;
            ensure!(is_services(&answer), "{}: {answer}", asker.describe());
        }
    }
    Ok(())
}
