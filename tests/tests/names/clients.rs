//! Clients that people use, in pods: dig, and what is linked with musl; pods that opt out; and
//! devices that leave checksums to the software.

use super::scene::{Scene, describe, query};
use anyhow::{Context as _, Result, ensure};
use hickory_proto::rr::RecordType;
use lab::cluster::eventually;
use lab::{Pod, objects};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A client for `getaddrinfo`: prints each address of its argument.
const CLIENT: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **args) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    int error = getaddrinfo(args[count - 1], 0, &hints, &found);
    if (error) {
        puts(gai_strerror(error));
        return 1;
    }
    for (; found; found = found->ai_next) {
        char host[64];
        getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
        puts(host);
    }
}
"#;

async fn scene(flag: &str) -> Result<Scene> {
    let mut scene = Scene::prepare().await?;
    scene.publish_world()?;
    let big = objects::service("shop/big", &[], &[]);
    let [mut slice, _] = objects::slices("shop/big", &[], &[]);
    slice["endpoints"] =
        (1..=60).map(|last| json!({ "addresses": [format!("10.244.9.{last}")] })).collect();
    scene.cluster.api.apply(&big)?;
    scene.cluster.api.apply(&slice)?;
    scene.start(&[flag]).await?;
    Ok(scene)
}

/// Builds the client with musl's own libc, statically.
fn musl_client(scene: &Scene) -> Result<PathBuf> {
    let scratch = scene.cluster.lab.scratch();
    let (source, program) = (scratch.join("client.c"), scratch.join("client"));
    fs::write(&source, CLIENT)?;
    let mut compiler = Command::new("musl-gcc");
    let built = compiler.arg("-static").arg("-o").args([&program, &source]).status();
    let built = built.context("run musl-gcc; `cargo xtask setup` installs it")?;
    ensure!(built.success(), "musl-gcc: {built}");
    Ok(program)
}

#[tokio::test]
async fn musl_finds_names_and_asks_two_queries_for_an_outside_name() -> Result<()> {
    let scene = scene("--dns=kernel").await?;
    let client = musl_client(&scene)?.display().to_string();
    let output = scene.with_search_list(&format!("{client} www.example.com")).await?;
    ensure!(output.contains("192.0.2.53") && output.contains("2001:db8::53"), "{output}");
    let asked = scene.coredns.take_asked().await?;
    ensure!(asked.len() == 2, "{asked:?}");
    ensure!(asked.iter().all(|name| name.starts_with("www.example.com. ")), "{asked:?}");

    for (name, expected) in [
        ("web", &["10.96.1.1", "fd00:10:96::101"][..]),
        ("db-0.db", &["10.244.1.11", "fd00:10:244:1::b"]),
        // It has no address of the other family, which is no end of the search.
        ("kubernetes.default", &["10.96.0.1"]),
    ] {
        let output = scene.with_search_list(&format!("{client} {name}")).await?;
        let mut found: Vec<_> = output.lines().collect();
        found.sort_unstable();
        ensure!(found == expected, "{name}: {output}");
    }
    ensure!(scene.coredns.take_asked().await?.is_empty(), "all was answered in the kernel");
    Ok(())
}

/// Asks dig over IPv4 and IPv6, and compares the status and the number of records. All are
/// answered on the node.
async fn dig(scene: &Scene, questions: &[(&str, &str, u8)]) -> Result<()> {
    for (question, status, records) in questions {
        for server in ["10.96.0.10", "fd00:10:96::a"] {
            let output = scene.dig(&format!("@{server} {question}")).await?;
            ensure!(output.contains(&format!("status: {status}")), "{question}: {output}");
            ensure!(output.contains(&format!("ANSWER: {records},")), "{question}: {output}");
            // What dig says of a reply that it does not like; of `.local` it warns each time.
            let wrong = ["malformed", "mismatch", "bad packet", "extra bytes"];
            ensure!(!wrong.iter().any(|word| output.contains(word)), "{question}: {output}");
        }
    }
    let asked = scene.coredns.take_asked().await?;
    ensure!(asked.is_empty(), "{asked:?}");
    Ok(())
}

#[tokio::test]
async fn dig_is_answered_by_the_kernel_with_any_option() -> Result<()> {
    let scene = scene("--dns=kernel").await?;
    let questions = [
        ("web.shop.svc.cluster.local A", "NOERROR", 1),
        ("WeB.shop.svc.CLUSTER.local AAAA +noedns", "NOERROR", 1),
        ("web.shop.svc.cluster.local A +nocookie +ednsopt=65001:0badcafe", "NOERROR", 1),
        ("web.shop.svc.cluster.local A +dnssec +cdflag +norecurse", "NOERROR", 1),
        ("web.shop.svc.cluster.local MX", "NOERROR", 0),
        ("nosuch.shop.svc.cluster.local A", "NXDOMAIN", 0),
        ("big.shop.svc.cluster.local A +bufsize=1232", "NOERROR", 60),
        ("big.shop.svc.cluster.local A +bufsize=4096", "NOERROR", 60),
    ];
    dig(&scene, &questions).await
}

#[tokio::test]
async fn answers_of_the_kernel_arrive_without_offloads_too() -> Result<()> {
    let scene = scene("--dns=kernel").await?;
    let (node, pod) = (scene.cluster.lab.node(0), scene.client());
    // First as they are, then without in the pod, then on the node too.
    for step in 0..3 {
        match step {
            0 => {}
            1 => pod.netns().turn_off_offloads().await?,
            _ => node.netns().turn_off_offloads().await?,
        }
        for (name, kind, expected) in [
            ("web.shop", RecordType::A, "8500 1/0/0 10.96.1.1"),
            ("web.shop", RecordType::AAAA, "8500 1/0/0 fd00:10:96::101"),
            ("nosuch.shop", RecordType::A, "8503 0/1/0"),
            // An odd number of bytes, and an even one.
            ("web6.shop", RecordType::A, "8500 0/1/0"),
            ("db-0.db.shop", RecordType::A, "8500 1/0/0 10.244.1.11"),
        ] {
            let query = query(&format!("{name}.svc.cluster.local."), kind)?;
            for (to, _) in scene.transports().into_iter().filter(|(_, tcp)| !tcp) {
                let found = describe(&scene.ask(to, false, &query).await?)?;
                ensure!(found == expected, "step {step}, {name} {kind} {to}: {found}");
            }
        }
    }
    ensure!(scene.coredns.take_asked().await?.is_empty(), "all was answered in the kernel");
    Ok(())
}

/// The Pod object of `pod`, with a choice of who answers its names.
fn object(pod: &Pod, dns: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "default",
            "name": pod.name(),
            "annotations": { "shunt.dev/dns": dns },
        },
        "spec": { "nodeName": pod.node(), "containers": [] },
        "status": {
            "phase": "Running",
            "podIP": pod.ipv4(),
            "podIPs": [{ "ip": pod.ipv4() }, { "ip": pod.ipv6() }],
        },
    })
}

#[tokio::test]
async fn pod_that_opts_out_is_answered_by_the_dns_service_and_others_are_not() -> Result<()> {
    let scene = scene("--dns=kernel").await?;
    let lab = &scene.cluster.lab;
    let other = lab.add_pod(lab.node(0), "other").await?;
    let web = query("web.shop.svc.cluster.local.", RecordType::A)?;
    let (kernel, service) = ("8500 1/0/0 10.96.1.1", "8180 1/0/0 192.0.2.53");
    let udp: Vec<_> = scene.transports().into_iter().filter(|(_, tcp)| !tcp).collect();
    let becomes = async |who: &Pod, expected: &str| -> Result<()> {
        for (to, _) in &udp {
            let asked = async || {
                let reply = who.exchange_names(scene.exchange(*to, false, &web)).await?;
                describe(&reply)
            };
            let reached = |found: &Result<String>| found.as_ref().is_ok_and(|f| f == expected);
            let _ = eventually("the one who is to answer does", asked, reached).await??;
        }
        Ok(())
    };
    becomes(&other, kernel).await?;
    scene.cluster.api.apply(&object(scene.client(), "off"))?;
    becomes(scene.client(), service).await?;
    becomes(&other, kernel).await?;
    scene.cluster.api.apply(&object(scene.client(), "on"))?;
    becomes(scene.client(), kernel).await
}
