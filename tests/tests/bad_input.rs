//! What is wrong is said in a sentence that names it, and everything else keeps working.

use anyhow::{Context, Result, bail, ensure};
use lab::cluster::eventually;
use lab::objects::{self, Port};
use lab::web::{self, VIPS, Web};
use lab::{AgentOptions, Ask, FailureKind, Pod, Serve};
use proxy_user::loader::pin_directory;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const HTTP: [Port<'static>; 1] = [Port { name: "http", protocol: "TCP", port: 80, target: 8080 }];

#[tokio::test]
async fn agent_that_cannot_begin_says_why_and_what_to_do() -> Result<()> {
    let web = Web::without_agents(1).await?;
    let node = web.cluster.lab.node(0);
    let scratch = web.cluster.lab.scratch();
    let here = scratch.display().to_string();
    let (cgroup, nowhere) = (node.cgroup_root().display().to_string(), format!("{here}/nowhere"));
    fs::write(scratch.join("agent.yaml"), "clusterCIDR: 10.0.0.0/8")?;
    let config = format!("{here}/agent.yaml");
    let good = ["--source", "files", "--manifests", &here, "--cgroup-root", &cgroup];
    let kube = ["--kubeconfig", &nowhere, "--cgroup-root", &cgroup];
    let with = |flag, value| [&good[..], &[flag, value]].concat();
    let cases: [(Vec<&str>, &[&str]); 9] = [
        (with("--min-sync-period", "5"), &["--min-sync-period", "\"5\"", "50ms"]),
        (with("--cluster-cidr", "10.0.0.0/40"), &["--cluster-cidr", "10.0.0.0/40"]),
        (with("--healthz-bind-address", "10256"), &["--healthz-bind-address", "0.0.0.0:10256"]),
        (with("--log-level", "loud"), &["--log-level", "loud", "debug"]),
        (with("--config", &config), &["clusterCIDR", "agent.yaml", "cluster-cidr"]),
        (with("--bpffs-root", &here), &[&here, "no BPF file system", "--bpffs-root", "mount -t"]),
        (vec!["--cgroup-root", &here], &[&here, "no cgroup v2 directory", "--cgroup-root"]),
        (vec!["--source", "files", "--manifests", &nowhere], &[&nowhere, "--manifests"]),
        (kube.into(), &[&nowhere, "kubeconfig", "--kubeconfig"]),
    ];
    for (args, expected) in cases {
        let command = [&["agent"], &args[..]].concat();
        let ended = timeout(Duration::from_secs(5), node.shunt(&command)).await;
        let output = ended.with_context(|| format!("{args:?} is taken"))??;
        let said = output.stderr.lines().last().unwrap_or_default();
        eprintln!("{said}");
        assert_eq!(output.status, Some(1), "{args:?}: {output:?}");
        assert!(said.starts_with("shunt: "), "{args:?}: {output:?}");
        for word in expected {
            assert!(said.contains(word), "{args:?}: no {word:?} in: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn agent_without_privileges_says_which_it_needs() -> Result<()> {
    let web = Web::without_agents(1).await?;
    let node = web.cluster.lab.node(0);
    // A copy that everybody may run, wherever the build is.
    let scratch = web.cluster.lab.scratch();
    let shunt = scratch.join("shunt");
    fs::copy(lab::program::find("shunt")?, &shunt)?;
    let bpffs = format!("--bpffs-root={}", node.bpffs_root().display());
    let cgroup = format!("--cgroup-root={}", node.cgroup_root().display());
    let shunt = shunt.display().to_string();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    for (what, drop) in [("nobody", &nobody[..]), ("no BPF", &["--bounding-set=-bpf,-sys_admin"])] {
        let agent = [&shunt, "agent", "--kubeconfig=/nowhere", &bpffs, &cgroup];
        let command = [drop, &agent].concat();
        let output = timeout(Duration::from_secs(5), node.exec("setpriv", &command)).await??;
        assert_eq!(output.status, Some(1), "{what}: {output:?}");
        for word in ["CAP_BPF", "run as root"] {
            assert!(output.stderr.contains(word), "{what}: no {word:?} in: {}", output.stderr);
        }
    }

    // Those that it names are enough; one more to see the lab's own mount behind /proc.
    let bounding = "--bounding-set=-all,+net_admin,+perfmon,+bpf,+sys_ptrace";
    let control = format!("--control-socket={}", node.control_socket().display());
    let name = format!("--node-name={}", node.name());
    let kubeconfig = format!("--kubeconfig={}", scratch.join("kubeconfig").display());
    let command = [bounding, &shunt, "agent", &kubeconfig, &bpffs, &cgroup, &control, &name];
    let status = async || web.cluster.shunt(0, &["status"]).await;
    let is_well = |status: &Value| status["in_sync"] == true && status["warnings"] == json!([]);
    let well = |status: &Result<Value>| status.as_ref().is_ok_and(is_well);
    let started = eventually("in sync, all attached", status, well);
    tokio::select! {
        ended = node.exec("setpriv", &command) => bail!("{ended:?}"),
        started = started => started?.map(drop),
    }
}

#[tokio::test]
async fn pinned_maps_of_another_layout_are_left_alone_until_cleanup() -> Result<()> {
    let mut web = Web::start(1).await?;
    web.cluster.kill_agent(0).await?;
    let pins = pin_directory(web.cluster.lab.node(0).bpffs_root());
    let options = web.cluster.options();
    // The first one has larger keys and values, the second one smaller ones.
    for (other, name) in [("services", "frontends"), ("node_addrs", "slots")] {
        fs::rename(pins.join(other), pins.join(name))?;
        let ended = web.cluster.start_agent(0, &options)?.wait_synced().await;
        let error = format!("{:#}", ended.err().context("the agent runs")?);
        let named = format!("/{name} has another layout");
        for word in ["exit status: 1", &named, "`shunt cleanup`"] {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
        fs::remove_file(pins.join(name))?;
    }
    assert!(web.client.tcp(VIPS[0]).await.is_ok(), "the old programs serve on");
    web.cluster.lab.node(0).clean_up().await?;
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    web.wait_reached().await
}

/// Scenario 66.
#[tokio::test]
async fn faulty_objects_are_named_and_the_others_are_served() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let folder = web.cluster.lab.scratch().join("manifests");
    fs::create_dir(&folder)?;
    let pods: Vec<&Pod> = web.pods.iter().collect();
    let put = |object: &Value| objects::write(&folder, object);
    put(&objects::node(web.cluster.lab.node(0)))?;
    put(&web::service())?;
    for slice in objects::slices("web", &web::PORTS, &pods) {
        put(&slice)?;
    }
    fs::write(folder.join("garbage.yaml"), "kind: [Service")?;
    let [mut slice, _] = objects::slices("odd", &HTTP, &pods);
    slice["endpoints"][0]["addresses"] = json!(["10.244.1.999"]);
    put(&slice)?;
    let mut odd = objects::service("odd", &["10.96.5.1"], &HTTP);
    odd["spec"]["externalIPs"] = json!(["127.0.0.1", "not an address"]);
    put(&odd)?;
    let mut younger = objects::service("younger", &["10.96.5.2"], &HTTP);
    younger["metadata"]["creationTimestamp"] = json!("2026-02-02T00:00:00Z");
    younger["spec"]["type"] = json!("NodePort");
    younger["spec"]["ports"][0]["nodePort"] = json!(web::NODE_PORT);
    put(&younger)?;

    let options = AgentOptions::files(&folder);
    let status = web.cluster.start_agent(0, &options)?.wait_synced().await?;
    let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
    for warning in &warnings {
        eprintln!("{}: {}", warning["subject"], warning["message"]);
    }
    let expected = [
        ("garbage.yaml", "line 2"),
        ("EndpointSlice default/odd-ipv4", "10.244.1.999"),
        ("Service default/odd", "127.0.0.1"),
        ("Service default/odd", "not an address"),
        ("Service default/younger", "NodePort 31775/TCP (IPv4) goes to Service default/web"),
    ];
    for (subject, message) in expected {
        let is_it = |warning: &&Value| {
            let text = |key: &str| warning[key].as_str().unwrap_or_default().to_owned();
            text("subject").contains(subject) && text("message").contains(message)
        };
        assert!(warnings.iter().any(|warning| is_it(&warning)), "{subject}: {message}");
    }
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    web.wait_reached().await.context("the rest is served, and the NodePort by the oldest")
}

#[tokio::test]
async fn service_that_takes_a_port_of_anothers_cluster_ip_is_told() -> Result<()> {
    let web = Web::start(1).await?;
    let owner = objects::service("owner", &["10.96.6.20"], &HTTP);
    web.cluster.publish(&owner, &HTTP, &[&web.pods[0]])?;
    let port = Port { port: 8443, ..HTTP[0] };
    let mut taker = objects::service("taker", &["10.96.6.21"], &[port]);
    taker["metadata"]["creationTimestamp"] = json!("2026-02-02T00:00:00Z");
    taker["spec"]["externalIPs"] = json!(["10.96.6.20"]);
    web.cluster.publish(&taker, &[port], &[&web.pods[0]])?;

    let events = async || anyhow::Ok(web.cluster.api.objects("events"));
    let is_told =
        |events: &Result<Vec<Value>>| events.as_ref().is_ok_and(|events| !events.is_empty());
    let events = eventually("an event", events, is_told).await??;
    eprintln!("{}", events[0]["message"]);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["reason"], "AddressConflict");
    assert_eq!(events[0]["type"], "Warning");
    assert_eq!(events[0]["involvedObject"]["name"], "taker");
    for word in ["10.96.6.20", "default/owner"] {
        assert!(events[0]["message"].to_string().contains(word), "no {word:?}: {events:?}");
    }

    for to in ["10.96.6.20:80", "10.96.6.21:8443"] {
        let ask = async || web.client.tcp(to).await;
        eventually(to, ask, Result::is_ok).await??;
    }
    let refused = web.client.tcp("10.96.6.20:8443").await.err().map(|failure| failure.kind);
    assert_eq!(refused, Some(FailureKind::Refused), "the owner does not serve that port");
    Ok(())
}

#[tokio::test]
async fn objects_that_cannot_be_read_hold_up_no_other() -> Result<()> {
    let mut web = Web::start(1).await?;
    let put = |i: usize| {
        let mut bad = objects::service(&format!("bad-{i}"), &["10.96.6.1"], &HTTP);
        bad["status"] = json!({"conditions": [{"type": "X", "lastTransitionTime": null}]});
        // Every other one is served, as what is wrong with it does not matter.
        if i.is_multiple_of(2) {
            bad["spec"]["ports"][0]["port"] = json!("http");
        }
        web.cluster.api.apply_raw("services", "default", &format!("bad-{i}"), bad)
    };
    (0..20).try_for_each(put)?;
    let is_named = |status: &Value, count: usize| {
        let warnings = status["warnings"].as_array().into_iter().flatten();
        let subjects: Vec<_> = warnings.filter_map(|warning| warning["subject"].as_str()).collect();
        let named =
            (0..20).step_by(2).filter(|i| subjects.contains(&&*format!("Service default/bad-{i}")));
        named.count() == count
    };
    // The stand-in's, and half of the twenty; the last of them comes behind what is named.
    let are_counted = |status: &Value| status["objects"]["services"] == json!(1 + 10);
    let all = |status: &Value| is_named(status, 10) && are_counted(status);
    web.cluster.agent(0)?.wait_status(all).await?;

    // A change beside them is served within a second, and so it is by an agent that starts anew.
    for (i, restart) in [false, true].into_iter().enumerate() {
        if restart {
            let agent = web.cluster.take_agent(0)?;
            let _ = agent.terminate().await?;
            let options = web.cluster.options();
            let _ = web.cluster.start_agent(0, &options)?.wait_synced().await?;
        }
        let (name, ip) = (format!("after-{i}"), format!("10.96.7.{i}"));
        let service = objects::service(&name, &[&ip], &HTTP);
        web.cluster.publish(&service, &HTTP, &[&web.pods[0]])?;
        let began = Instant::now();
        // conntrack keeps what it knew of a SYN that came too soon, also for those that follow.
        let patience = Duration::from_millis(500);
        let ask = async || web.client.ask(Ask::tcp(format!("{ip}:80")).timeout(patience)).await;
        eventually("the change is served", ask, Result::is_ok).await??;
        ensure!(began.elapsed() < Duration::from_secs(2), "only after {:?}", began.elapsed());
    }
    web.cluster.agent(0)?.wait_status(|status| is_named(status, 10)).await?;
    for i in 0..20 {
        web.cluster.api.delete("services", "default", &format!("bad-{i}"));
    }
    web.cluster.agent(0)?.wait_status(|status| is_named(status, 0)).await?;
    web.wait_reached().await
}

#[tokio::test]
async fn full_table_is_told_in_few_words_and_the_rest_is_served() -> Result<()> {
    let mut web = Web::start(1).await?;
    // 7 Services x 100 ports x (1 ClusterIP + 100 external IPs) = 70,700 frontends.
    let names: Vec<_> = (0..100).map(|port| format!("port-{port}")).collect();
    let ports: Vec<Port<'_>> = (1000..)
        .zip(&names)
        .map(|(port, name)| Port { name, protocol: "TCP", port, target: 8080 })
        .collect();
    for number in 0..7 {
        let (name, ip) = (format!("big-{number}"), format!("10.96.6.{number}"));
        let mut service = objects::service(&name, &[&ip], &ports);
        let external: Vec<_> = (0..100).map(|host| format!("192.0.{number}.{host}")).collect();
        service["spec"]["externalIPs"] = json!(external);
        web.cluster.api.apply(&service)?;
    }
    let is_full = |status: &Value| status["warnings"].to_string().contains("is full");
    let status = web.cluster.agent(0)?.wait_status(is_full).await?;
    eprintln!("{}", status["warnings"]);
    let warnings = status["warnings"].as_array().map_or(0, Vec::len);
    assert!(warnings < 20, "{warnings} warnings");
    assert!(status["warnings"].to_string().contains("default/big-"), "{}", status["warnings"]);
    web.wait_reached().await?;

    for number in 0..7 {
        web.cluster.api.delete("services", "default", &format!("big-{number}"));
    }
    web.cluster.agent(0)?.wait_status(|status| status["warnings"] == json!([])).await?;
    let after = objects::service("after", &["10.96.6.9"], &HTTP);
    web.cluster.publish(&after, &HTTP, &[&web.pods[0]])?;
    let ask = async || web.client.tcp("10.96.6.9:80").await;
    eventually("there is room again", ask, Result::is_ok).await?.map(drop).map_err(Into::into)
}

#[tokio::test]
async fn busy_health_port_is_told_until_it_is_free() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    let node = web.cluster.lab.node(0);
    let busy = node.serve(Serve::tcp(10256).on(node.ipv4())).await?;
    let options = web.cluster.options();
    let agent = web.cluster.start_agent(0, &options)?;
    let told = |status: &Value| status["warnings"].to_string().contains("--healthz-bind-address");
    let status = agent.wait_status(told).await?;
    eprintln!("{}", status["warnings"]);
    busy.stop().await?;
    let status = async || web.cluster.agent(0)?.status().await;
    let freed = |status: &Result<Value>| status.as_ref().is_ok_and(|status| !told(status));
    eventually("the warning goes within seconds", status, freed).await?.map(drop)
}
