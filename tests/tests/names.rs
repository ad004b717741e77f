//! Names of the cluster, as pods and nodes ask for them: answered in the kernel, or by the DNS
//! service.

#[path = "names/clients.rs"]
mod clients;
#[path = "names/oracle.rs"]
mod oracle;
#[path = "names/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, bail, ensure};
use hickory_proto::rr::RecordType;
use lab::Cni;
use lab::cluster::eventually;
use oracle::Oracle;
use oracle::answer::Action;
use scene::{KUBEADM, Scene, describe, query};
use serde_json::json;

/// What CoreDNS answers; see the file.
const VECTORS: &str = include_str!("names/vectors.txt");

#[tokio::test]
async fn kernel_answers_its_vectors_without_the_dns_service() -> Result<()> {
    for cni in [Cni::Routed, Cni::Calico, Cni::Bridge] {
        let mut scene = Scene::prepare_on(cni).await?;
        scene.publish_world()?;
        scene.start(&["--dns=kernel"]).await?;
        let udp: Vec<_> = scene.transports().into_iter().filter(|(_, tcp)| !tcp).collect();
        // At a bridge, the node learns whose an address is by the pod's first packet.
        let query_of_web = query("web.shop.svc.cluster.local.", RecordType::A)?;
        for (to, _) in &udp {
            let ask = async || {
                let _reply = scene.ask(*to, false, &query_of_web).await?;
                anyhow::Ok(scene.coredns.take_asked().await?)
            };
            let by_kernel = |asked: &Result<Vec<_>>| matches!(asked, Ok(a) if a.is_empty());
            let _ = eventually("the kernel answers", ask, by_kernel).await??;
        }
        let mut wrong = String::new();
        let mut answered = 0;
        for Vector { name, kind, expected } in vectors()? {
            let by_kernel = scene.is_kernels(&name, kind).await?;
            let query = query(&name, kind)?;
            for (to, _) in &udp {
                let found = describe(&scene.ask(*to, false, &query).await?)?;
                let asked = scene.coredns.take_asked().await?;
                if asked.is_empty() != by_kernel || (by_kernel && found != expected) {
                    wrong += &format!("{name} {kind} {to}: {found}, by the kernel {by_kernel}\n");
                }
            }
            answered += u32::from(by_kernel);
        }
        ensure!(wrong.is_empty(), "{cni:?}\n{wrong}");
        ensure!(answered >= 40, "{cni:?} {answered}");
    }
    Ok(())
}

/// A question, and what CoreDNS answers.
struct Vector {
    name: String,
    kind: RecordType,
    expected: String,
}

fn vectors() -> Result<Vec<Vector>> {
    let mut vectors = Vec::new();
    for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
        let [name, kinds, expected] = line.split(" | ").collect::<Vec<_>>()[..] else {
            bail!("{line}")
        };
        let name = match name {
            "@" => "cluster.local.".to_owned(),
            name if name.ends_with('.') => name.to_owned(),
            name => format!("{name}.cluster.local."),
        };
        for kind in kinds.split(' ') {
            let (name, expected) = (name.clone(), expected.to_owned());
            vectors.push(Vector { name, kind: kind.parse()?, expected });
        }
    }
    Ok(vectors)
}

#[tokio::test]
async fn outside_name_takes_two_queries_and_not_eight() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=kernel"]).await?;
    let resolved = |output: &str| output.contains("192.0.2.53") && output.contains("2001:db8::53");

    let output = scene.getent("www.example.com").await?;
    ensure!(resolved(&output), "{output}");
    let asked = scene.coredns.take_asked().await?;
    ensure!(asked.len() == 2, "{asked:?}");
    ensure!(asked.iter().all(|name| name.starts_with("www.example.com. ")), "{asked:?}");

    // Of a name with so few dots, the search list is tried first.
    let output = scene.getent("web").await?;
    ensure!(output.contains("10.96.1.1") && output.contains("fd00:10:96::101"), "{output}");
    ensure!(scene.coredns.take_asked().await?.is_empty());

    // Another plugin may know names of the zone: everything unknown is asked.
    let hosts = KUBEADM.replace("    loop\n", "    hosts {\n      fallthrough\n    }\n");
    scene.cluster.api.apply(&lab::objects::corefile(&hosts))?;
    let denies = |status: &serde_json::Value| status["dns"]["denies"] == json!(true);
    let status = scene.cluster.agent(0)?.wait_status(|status| !denies(status)).await?;
    let reason = status["dns"]["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("`hosts`"), "{reason}");
    // The stand-in knows every name, so the first of the search list is taken.
    let output = scene.getent("www.example.com").await?;
    ensure!(resolved(&output), "{output}");
    let asked = scene.coredns.take_asked().await?;
    ensure!(asked[0].starts_with("www.example.com.shop.svc.cluster.local. "), "{asked:?}");

    scene.cluster.api.apply(&lab::objects::corefile(KUBEADM))?;
    let _ = scene.cluster.agent(0)?.wait_status(denies).await?;
    Ok(())
}

#[tokio::test]
async fn ready_pod_always_has_a_name_while_a_stateful_set_rolls() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=kernel"]).await?;
    let query = query("db-0.db.shop.svc.cluster.local.", RecordType::A)?;
    for round in 0..40_u8 {
        // Pod db-1 goes, comes back elsewhere, and then db-0 moves in one step.
        let gone = [("db-0", 100 + round, true), ("db-1", 11, false)];
        let back = [("db-0", 100 + round, true), ("db-1", round, true)];
        for endpoints in [&gone, &back] {
            let _slice = scene.publish_db(endpoints)?;
            let expected = format!("8500 1/0/0 10.244.1.{}", 100 + round);
            let reached = eventually(
                "the name follows the pod",
                async || -> Result<String> {
                    let found = describe(&scene.ask(scene.dns_v4(), false, &query).await?)?;
                    ensure!(found.starts_with("8500 1/0/0 10.244.1."), "{found}");
                    Ok(found)
                },
                |answer| answer.as_ref().is_ok_and(|found| *found == expected) || answer.is_err(),
            );
            reached.await??;
        }
    }
    ensure!(scene.coredns.take_asked().await?.is_empty(), "all was answered in the kernel");
    Ok(())
}

#[tokio::test]
async fn kernel_says_what_coredns_would_while_everything_changes() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=kernel", "--min-sync-period=0"]).await?;
    let mut oracle = Oracle::new(scene::world()?)?;
    let mut by_kernel = 0;
    for (round, (name, kind)) in scene::random_questions(1500).into_iter().enumerate() {
        if round.is_multiple_of(10) {
            let last = (round / 10 % 200) as u8;
            let endpoints = [("db-0", last, true), ("db-1", last + 1, !last.is_multiple_of(3))];
            oracle.take(scene.publish_db(&endpoints)?)?;
        }
        let query = query(&name, kind)?;
        let expected = match oracle.answer(&query)? {
            Action::Reply(reply) => scene::normal(&reply.to_vec()?)?,
            other => format!("{other:?}"),
        };
        // `None` if the kernel leaves it to the DNS service.
        let ask = async || -> Result<Option<String>> {
            let reply = scene.ask(scene.dns_v4(), false, &query).await?;
            let passed = !scene.coredns.take_asked().await?.is_empty();
            if passed { Ok(None) } else { scene::normal(&reply).map(Some) }
        };
        let is_right = |found: &Result<Option<String>>| match found {
            Ok(Some(found)) => *found == expected,
            Ok(None) => true,
            Err(_) => false,
        };
        // The oracle knows a change at once, the kernel a moment later.
        let found = eventually(&format!("{name} {kind}: {expected}"), ask, is_right).await??;
        by_kernel += u32::from(found.is_some());
    }
    println!("{by_kernel} of 1500 by the kernel");
    ensure!(by_kernel > 700, "{by_kernel}");
    Ok(())
}

#[tokio::test]
async fn names_are_answered_after_the_agent_too_until_the_next_one_leaves_them() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=kernel"]).await?;
    let agent = scene.cluster.take_agent(0)?;
    let _ = agent.terminate().await?;
    let web = query("web.shop.svc.cluster.local.", RecordType::A)?;
    let kernel = scene.ask(scene.dns_v4(), false, &web).await?;
    ensure!(describe(&kernel)? == "8500 1/0/0 10.96.1.1", "the kernel goes on for a while");

    // An agent that leaves names to the service takes them away, and denies none meanwhile.
    let options = scene.cluster.options().flag("--dns", "off");
    let _ = scene.cluster.start_agent(0, &options)?;
    let passed = eventually(
        "the service is asked",
        async || scene.ask(scene.dns_v4(), false, &web).await.and_then(|reply| describe(&reply)),
        |found| !found.as_ref().is_ok_and(|found| found == "8500 1/0/0 10.96.1.1"),
    );
    ensure!(passed.await?? == "8180 1/0/0 192.0.2.53");
    let _ = scene.cluster.agent(0)?.wait_synced().await?;
    Ok(())
}

#[tokio::test]
async fn names_of_the_node_and_over_tcp_are_answered_by_the_dns_service() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=kernel"]).await?;
    let web = query("web.shop.svc.cluster.local.", RecordType::A)?;
    let service = "8180 1/0/0 192.0.2.53";
    for (to, tcp) in scene.transports() {
        let node = scene.cluster.lab.node(0);
        let on_node = node.exchange_names(scene.exchange(to, tcp, &web)).await?;
        ensure!(describe(&on_node)? == service, "{to}, TCP {tcp}: {}", describe(&on_node)?);
        if tcp {
            let in_pod = scene.ask(to, tcp, &web).await?;
            ensure!(describe(&in_pod)? == service, "{to}: {}", describe(&in_pod)?);
        }
    }
    Ok(())
}

#[tokio::test]
async fn name_that_is_new_is_not_denied_by_a_node_that_lost_the_api_server() -> Result<()> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    scene.start(&["--dns=kernel"]).await?;
    let new = query("late.shop.svc.cluster.local.", RecordType::A)?;
    let denied = describe(&scene.ask(scene.dns_v4(), false, &new).await?)?;
    ensure!(denied.starts_with("8503"), "nobody denies it at first: {denied}");
    ensure!(scene.coredns.take_asked().await?.is_empty());

    scene.cluster.api.refuse_connections();
    let lost = std::time::Instant::now();
    loop {
        let _reply = scene.ask(scene.dns_v4(), false, &new).await?;
        if !scene.coredns.take_asked().await?.is_empty() {
            break;
        }
        ensure!(lost.elapsed().as_secs() < 16, "it is still denied");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    Ok(())
}
