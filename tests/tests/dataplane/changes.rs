//! Changes of Services while they are asked: what was so is no more, and what is new is so at
//! every frontend.

use crate::everyone::Answer::{From, Refused};
use crate::everyone::Who::{Node, Outsider, Pods};
use crate::everyone::{Answer, BEYOND, Everyone, Question, both};
use crate::scene::{node_port, ready, service, slices, vip};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use lab::cluster::eventually;
use lab::{Ask, Load, LoadReport, Machine, Serve};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

const HERE: &[&str] = &["web-0"];
const AFAR: &[&str] = &["web-1"];
const ALL: &[&str] = &["web-0", "web-1"];
const HOST: &[&str] = &["node-1"];

fn balancer() -> [SocketAddr; 2] {
    [([192, 0, 2, 63], 80).into(), ([0xfd00, 0x192, 0, 0, 0, 0, 0, 63], 80).into()]
}

fn by_all(fact: &'static str, to: &[Ask], answer: Answer) -> [Question; 3] {
    [Pods, Node, Outsider].map(|who| (fact, who, to.to_vec(), answer))
}

/// Scenarios 1, 2, 4, 28, 45, 56 and 63.
#[tokio::test]
async fn a_service_that_changes_is_served_as_it_is_now() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let Everyone { scene, .. } = &everyone;
    let [web_0, web_1] = &scene.web;
    scene.publish(1, &[web_0, web_1])?;
    let node = scene.cluster.lab.node(0);
    node.serve(Serve::tcp(node_port(1))).await?;
    for addr in node.addrs().at(0) {
        node.serve(Serve::udp(node_port(1)).on(addr.ip())).await?;
    }
    for to in [vip(1), balancer()] {
        everyone.let_pass(to).await?;
    }
    everyone.start(&[]).await?;
    let (at_node, at_vip) = (everyone.node_ports(0, 1), both(vip(1)));
    everyone.check(&by_all("a NodePort", &at_node, From(ALL))).await?;

    let api = &everyone.scene.cluster.api;
    let apply = |change: &dyn Fn(&mut Value)| {
        let mut service = service(1);
        change(&mut service);
        api.apply(&service)
    };
    apply(&|service| service["spec"]["externalTrafficPolicy"] = json!("Local"))?;
    let local = ("56: Local", Outsider, at_node.clone(), From(HERE));
    everyone.wait_until("the policy Local", &[local]).await?;
    everyone.check(&[("56: pods are no outsiders", Pods, at_node.clone(), From(ALL))]).await?;
    apply(&|_| {})?;
    let cluster = ("56: Cluster", Outsider, at_node.clone(), From(ALL));
    everyone.wait_until("the policy Cluster", &[cluster]).await?;

    let ingress = |mode| {
        let entry = |to: SocketAddr| json!({ "ip": to.ip(), "ipMode": mode });
        json!({ "loadBalancer": { "ingress": balancer().map(entry) } })
    };
    for (mode, answer) in [("VIP", From(ALL)), ("Proxy", BEYOND), ("VIP", From(ALL))] {
        apply(&|service| {
            service["spec"]["type"] = json!("LoadBalancer");
            service["status"] = ingress(mode);
        })?;
        let questions = by_all("63: the mode of its address", &both(balancer()), answer);
        everyone.wait_until(mode, &questions).await?;
    }

    apply(&|service| {
        service["spec"]["type"] = json!("ClusterIP");
        for index in 0..2 {
            service["spec"]["ports"][index]["nodePort"] = Value::Null;
        }
    })?;
    let questions = by_all("45: no NodePort any more", &at_node, From(HOST));
    everyone.wait_until("a ClusterIP", &questions).await?;
    everyone.check(&by_all("45: the ClusterIP stays", &at_vip, From(ALL))).await?;
    everyone
        .check(&by_all("45: and the balancer's address goes", &both(balancer()), BEYOND))
        .await?;

    for (kind, answer) in [("ExternalName", BEYOND), ("ClusterIP", From(ALL))] {
        apply(&|service| {
            service["spec"]["type"] = json!(kind);
            service["spec"]["externalName"] = json!("web.example.com");
        })?;
        everyone.wait_until(kind, &by_all("4: what it is", &at_vip, answer)).await?;
    }

    let another = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    for (labels, answer) in [(another, BEYOND), (json!({}), From(ALL))] {
        apply(&|service| service["metadata"]["labels"] = labels.clone())?;
        let questions = by_all("1: whose it is", &at_vip, answer);
        everyone.wait_until("another proxy's", &questions).await?;
    }
    for (headless, answer) in [(true, Refused), (false, From(ALL))] {
        let [web_0, web_1] = &everyone.scene.web;
        for mut slice in slices(1, &[(web_0, ready()), (web_1, ready())]) {
            if headless {
                slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
            }
            api.apply(&slice)?;
        }
        let questions = by_all("2: for names only", &at_vip, answer);
        everyone.wait_until("headless slices", &questions).await?;
    }

    let _ = api.delete("services", "default", "svc-1");
    let mut again = service(1);
    again["spec"]["clusterIPs"] = json!(vip(2).map(|vip| vip.ip()));
    again["spec"]["clusterIP"] = json!(vip(2)[0].ip());
    api.apply(&again)?;
    let mut questions = by_all("28: the new address", &both(vip(2)), From(ALL)).to_vec();
    questions.extend(by_all("28: the old one", &at_vip, BEYOND));
    questions.extend(by_all("28: its NodePort", &at_node, From(ALL)));
    everyone.wait_until("another Service of the same name", &questions).await
}

/// Scenario 15.
#[tokio::test]
async fn a_burst_of_changes_ends_in_the_last_state() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    everyone.scene.publish(1, &[])?;
    everyone.start(&[]).await?;
    let api = &everyone.scene.cluster.api;
    let [web_0, web_1] = &everyone.scene.web;
    for (end, ending) in [(0, From(HERE)), (1, Refused), (2, From(AFAR))] {
        // A hundred, of which some are of the Service, and some take a slice away.
        for step in 0..100 {
            let endpoints = match (step + end) % 3 {
                0 => vec![(web_0, ready())],
                1 => vec![],
                _ => vec![(web_1, ready())],
            };
            let mut changed = service(1);
            changed["spec"]["sessionAffinity"] =
                json!(if step % 2 == 0 { "ClientIP" } else { "None" });
            api.apply(&changed)?;
            if step % 10 == 0 {
                let _ = api.delete("endpointslices", "default", "svc-1-ipv4");
            }
            slices(1, &endpoints).iter().try_for_each(|slice| api.apply(slice))?;
        }
        let questions = [Pods, Node, Outsider]
            .map(|who| ("15: the last one counts", who, both(vip(1)), ending));
        everyone.wait_until("the last state", &questions).await?;
        everyone.check(&questions).await?;
    }
    Ok(())
}

/// Who answers `from` at `to`, asked often.
async fn heard(from: &Machine, to: SocketAddr) -> Result<BTreeSet<String>> {
    let asking = (0..30).map(|_| from.tcp(to));
    Ok(try_join_all(asking).await?.into_iter().map(|reply| reply.name).collect())
}

/// Scenario 89.
#[tokio::test]
async fn no_connection_of_a_client_with_affinity_fails_while_its_backend_goes() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let affinity = json!({ "sessionAffinity": "ClientIP" });
    let publish = |everyone: &Everyone, pod: usize| {
        let web = &everyone.scene.web[pod];
        everyone.scene.publish_with(1, affinity.clone(), &[(web, ready())])
    };
    publish(&everyone, 0)?;
    everyone.start(&[]).await?;
    let node = everyone.scene.cluster.lab.node(0).addrs().at(node_port(1));
    let mut loads = Vec::new();
    for to in vip(1).into_iter().chain(node) {
        for from in [&*everyone.scene.client, &everyone.aside, &everyone.outsider] {
            let load = Load::new(Ask::tcp(to)).per_second(50.0);
            loads.push((from.start_load(load).await?, from.name().to_owned(), to));
        }
    }
    for pod in [1, 0] {
        publish(&everyone, pod)?;
        let name = everyone.scene.web[pod].name();
        for (load, ..) in &loads {
            let before = load.report().await?.backends.get(name).copied().unwrap_or(0);
            let more = |report: &LoadReport| report.backends.get(name).is_some_and(|n| *n > before);
            let asked = async || load.report().await;
            let moved = |report: &Result<LoadReport, _>| report.as_ref().is_ok_and(more);
            let _report = eventually(name, asked, moved).await??;
        }
    }
    for (load, from, to) in loads {
        let report = load.stop().await?;
        assert_eq!(report.failed(), 0, "{from} → {to}: {report:?}");
    }
    Ok(())
}

/// Scenario S10.
#[tokio::test]
async fn a_client_that_has_a_backend_elsewhere_keeps_to_the_node_where_it_must() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let spec = json!({ "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local" });
    let publish = |everyone: &Everyone, count: usize| {
        let web = &everyone.scene.web;
        let all = [(&web[1], ready()), (&web[0], ready())];
        everyone.scene.publish_with(1, spec.clone(), &all[..count])
    };
    publish(&everyone, 1)?;
    everyone.start(&[]).await?;
    let known = [Pods, Node, Outsider].map(|who| ("the only one", who, both(vip(1)), From(AFAR)));
    everyone.check(&known).await?;
    publish(&everyone, 2)?;
    everyone.scene.wait_endpoints(1, 2).await?;
    everyone.check(&known).await?;
    let at_node = everyone.node_ports(0, 1);
    let questions = [
        ("pods stay with theirs", Pods, at_node.clone(), From(AFAR)),
        ("outsiders keep to the node", Outsider, at_node, From(HERE)),
    ];
    everyone.check(&questions).await
}

/// Scenarios 85, 86 and S9.
#[tokio::test]
async fn a_client_is_free_without_affinity_and_once_its_time_is_over() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let affinity = |seconds: u32| {
        json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
        })
    };
    let publish = |everyone: &Everyone, number, spec| {
        let [web_0, web_1] = &everyone.scene.web;
        everyone.scene.publish_with(number, spec, &[(web_0, ready()), (web_1, ready())])
    };
    publish(&everyone, 1, affinity(60))?;
    publish(&everyone, 2, affinity(1))?;
    everyone.start(&[]).await?;
    let Everyone { scene, aside, .. } = &everyone;
    for from in [&*scene.client, aside] {
        for to in vip(1) {
            assert_eq!(heard(from, to).await?.len(), 1, "85: {} → {to}", from.name());
        }
    }
    for (spec, count) in [(json!({ "sessionAffinity": "None" }), 2), (affinity(60), 1)] {
        publish(&everyone, 1, spec)?;
        for from in [&*scene.client, aside] {
            for to in vip(1) {
                let is =
                    |names: &Result<BTreeSet<_>>| names.as_ref().is_ok_and(|n| n.len() == count);
                let asked = async || heard(from, to).await;
                let _names = eventually("85: affinity or none", asked, is).await??;
            }
        }
    }
    // Without a new connection for longer than its second, a client gets another backend sooner or
    // later, however much it says over those that it has.
    let moving = [&*scene.client, aside].into_iter().flat_map(|from| vip(2).map(|to| (from, to)));
    let moving = moving.map(|(from, to)| async move {
        let first = heard(from, to).await?;
        assert_eq!(first.len(), 1, "86: {} → {to}", from.name());
        let open = from.open(Ask::tcp(to)).await?;
        for _ in 0..30 {
            for _ in 0..4 {
                // The time itself is what is asked for.
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert!(first.contains(&open.ask().await?.name), "S9: {} → {to}", from.name());
            }
            if !first.contains(&from.tcp(to).await?.name) {
                return Ok(());
            }
        }
        anyhow::bail!("86: {} → {to} stays with {first:?}", from.name())
    });
    try_join_all(moving).await.map(drop).context("after an idle second")
}
