//! Shunt against kube-proxy's rules: the same random Services in clusters alike, the same
//! questions from everywhere, and the answers compared.
//!
//! `population` draws the Services, `rules` writes what kube-proxy's mode nftables would for them,
//! `world` runs a cluster with one or the other, `question` lists who asks what, and `verdict` says
//! which differences are stated in docs/differences.md and which are faults.

mod population;
mod question;
mod rules;
mod verdict;
mod world;

use anyhow::Result;
use futures::{StreamExt, stream};
use lab::kube_proxy::{Mode, program_of_environment};
use lab::{Cni, Transport};
use population::draw;
use question::{Answer, Question, questions};
use std::collections::BTreeSet;
use std::env;
use std::time::Duration;
use verdict::judge;
use world::{Proxy, World};

/// How many Services are drawn.
const SERVICES: u8 = 8;
/// How often a question is asked at first, and how often at most until the answers are the same.
const TIMES: [usize; 2] = [10, 100];
/// How long an answer may take at first, and where the answers differ.
const PATIENCE: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(1_500)];
/// How many questions are asked at once.
const AT_ONCE: usize = 48;

#[tokio::test]
async fn services_answer_as_with_kube_proxys_rules_where_pods_are_routed() -> Result<()> {
    answers_are_the_same(Proxy::Rules, Cni::Routed, 1).await
}

#[tokio::test]
async fn services_answer_as_with_kube_proxys_rules_behind_a_link_local_gateway() -> Result<()> {
    answers_are_the_same(Proxy::Rules, Cni::Calico, 2).await
}

#[tokio::test]
async fn services_answer_as_with_kube_proxys_rules_where_pods_are_bridged() -> Result<()> {
    answers_are_the_same(Proxy::Rules, Cni::Bridge, 3).await
}

#[tokio::test]
async fn services_answer_as_with_kube_proxys_rules_over_a_tunnel() -> Result<()> {
    answers_are_the_same(Proxy::Rules, Cni::Vxlan, 4).await
}

#[tokio::test]
#[ignore = "needs a kube-proxy: SHUNT_KUBE_PROXY=/path/to/it"]
async fn services_answer_as_with_a_kube_proxy_in_its_mode_nftables() -> Result<()> {
    answers_are_the_same(kube_proxy(Mode::Nftables)?, Cni::Routed, 5).await
}

#[tokio::test]
#[ignore = "needs a kube-proxy: SHUNT_KUBE_PROXY=/path/to/it"]
async fn services_answer_as_with_a_kube_proxy_in_its_mode_iptables() -> Result<()> {
    answers_are_the_same(kube_proxy(Mode::Iptables)?, Cni::Routed, 6).await
}

/// The kube-proxy that is named in the environment.
fn kube_proxy(mode: Mode) -> Result<Proxy> {
    Ok(Proxy::Real(program_of_environment()?, mode))
}

async fn answers_are_the_same(reference: Proxy, cni: Cni, seed: u64) -> Result<()> {
    // Any number tells another story: SEED=$RANDOM.
    let seed = env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
    let services = draw(seed, SERVICES);
    let (mut kube_proxy, mut socket, mut packet) = futures::try_join!(
        World::start(reference, cni, &services),
        World::start(Proxy::SocketPath, cni, &services),
        World::start(Proxy::PacketPath, cni, &services),
    )?;
    ask_everything(&kube_proxy, &socket, &packet, &questions(&services), seed).await?;
    // Rules are not changed; the others have to come there from where they are.
    if kube_proxy.proxy != Proxy::Rules {
        let services = draw(!seed, SERVICES);
        futures::try_join!(
            kube_proxy.change(&services),
            socket.change(&services),
            packet.change(&services),
        )?;
        // For netfilter, datagrams from a port that was used before are an old flow.
        let mut questions = questions(&services);
        questions.retain(|question| question.transport == Transport::Tcp);
        ask_everything(&kube_proxy, &socket, &packet, &questions, !seed).await?;
    }
    Ok(())
}

async fn ask_everything(
    kube_proxy: &World,
    socket: &World,
    packet: &World,
    questions: &[Question<'_>],
    seed: u64,
) -> Result<()> {
    let comparing = questions.iter().map(async |question| {
        let mut wrong = Vec::new();
        for shunt in [socket, packet] {
            wrong.extend(compare(question, kube_proxy, shunt).await.err());
        }
        wrong
    });
    let wrong: Vec<_> = stream::iter(comparing).buffer_unordered(AT_ONCE).collect().await;
    let wrong: BTreeSet<_> = wrong.into_iter().flatten().collect();
    println!("{} questions, seed {seed}", questions.len());
    if !wrong.is_empty() {
        println!("{}{}", socket.outcomes().await?, packet.outcomes().await?);
    }
    let list = wrong.iter().cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "seed {seed}: {} differ:\n{list}", wrong.len());
    Ok(())
}

/// Asks both until they have said the same, as far as they must, or often enough.
async fn compare(question: &Question<'_>, kube_proxy: &World, shunt: &World) -> Result<(), String> {
    let mut heard = [BTreeSet::new(), BTreeSet::new()];
    for (times, patience) in TIMES.into_iter().zip(PATIENCE) {
        if patience != PATIENCE[0] {
            // What came too late was not silence.
            let is_silence = |answer: &Answer| *answer == Answer::Silence;
            heard.iter_mut().for_each(|heard| heard.retain(|answer| !is_silence(answer)));
        }
        for (world, heard) in [kube_proxy, shunt].into_iter().zip(&mut heard) {
            heard.extend(world.ask(question, times, patience).await);
        }
        if judge(question, kube_proxy.proxy.mode(), &heard[0], &heard[1]).is_ok() {
            return Ok(());
        }
    }
    judge(question, kube_proxy.proxy.mode(), &heard[0], &heard[1])
        .map_err(|fault| format!("{question}, {:?}: {fault}", shunt.proxy))
}
