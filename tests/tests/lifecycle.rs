//! Agents come and go: what was served goes on being served, what changed meanwhile is found.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use lab::api::{ApiServer, Fault, Refusal};
use lab::cluster::eventually;
use lab::objects::Port;
use lab::web::{self, PORTS, VIPS, Web};
use lab::{Ask, FailureKind, Pod, objects};
use proxy_ebpf::Addr;
use proxy_ebpf::frontend::{FrontendKey, FrontendValue};
use proxy_ebpf::node::{Device, NodeAddr};
use proxy_ebpf::service::{ServiceId, ServiceInfo};
use proxy_ebpf::slot::Slot;
use proxy_user::loader::pin_directory;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many watches an agent has beside the one that fails.
const OTHER_WATCHES: usize = 4;

/// Long enough for an answer, short where none is expected.
const SHORT: Duration = Duration::from_millis(300);

/// What the node serves, without what traffic counts.
async fn table(web: &Web, node: usize) -> Result<[Value; 2]> {
    let mut services = web.cluster.shunt(node, &["services", "-A"]).await?;
    for row in services.as_array_mut().context("rows")? {
        for counter in ["connections", "datagrams", "refused"] {
            row.as_object_mut().and_then(|row| row.remove(counter)).context(counter)?;
        }
    }
    Ok([services, web.cluster.shunt(node, &["backends", "-A"]).await?])
}

async fn restart(web: &mut Web) -> Result<Duration> {
    let options = web.cluster.options();
    let began = Instant::now();
    web.cluster.start_agent(0, &options)?.wait_synced().await?;
    Ok(began.elapsed())
}

/// Scenario 107.
#[tokio::test]
async fn no_request_fails_while_agents_end_and_start() -> Result<()> {
    let mut web = Web::start(2).await?;
    let before = table(&web, 0).await?;
    let loads = web.start_loads().await?;
    for round in 0..4 {
        loads.go_on(10).await.context("with an agent")?;
        let agent = web.cluster.take_agent(0)?;
        if round % 2 == 0 {
            agent.kill().await?;
        } else {
            let exit = agent.terminate().await?;
            ensure!(exit.success(), "SIGTERM ends an agent well, and not with {exit}");
        }
        loads.go_on(10).await.context("without an agent")?;
        eprintln!("in sync after {:?}", restart(&mut web).await?);
    }
    loads.go_on(10).await?;
    eprintln!("{} requests", loads.stop().await?);
    assert_eq!(table(&web, 0).await?, before, "services and backends keep their numbers");
    Ok(())
}

/// Scenario 107.
#[tokio::test]
async fn no_request_fails_while_agents_are_killed_as_they_start() -> Result<()> {
    let mut web = Web::start(1).await?;
    let before = table(&web, 0).await?;
    web.cluster.kill_agent(0).await?;
    let start = restart(&mut web).await?;
    web.cluster.kill_agent(0).await?;
    let loads = web.start_loads().await?;
    for moment in 0..10 {
        let options = web.cluster.options();
        web.cluster.start_agent(0, &options)?;
        // The moments are spread over the whole start; there is no state to wait for.
        tokio::time::sleep(start * (2 * moment + 1) / 20).await;
        web.cluster.kill_agent(0).await?;
    }
    restart(&mut web).await?;
    loads.go_on(10).await?;
    loads.stop().await?;
    assert_eq!(table(&web, 0).await?, before);
    Ok(())
}

const HTTP: [Port<'static>; 1] = [Port { name: "http", protocol: "TCP", port: 80, target: 8080 }];

/// The ClusterIPs of the Service `number`.
fn ips(number: u8) -> [String; 2] {
    [format!("10.96.1.{number}"), format!("fd00:96::1:{number}")]
}

/// The Service `number` with the backends of `web`, and maybe a NodePort.
fn publish(web: &Web, name: &str, number: u8, node_port: Option<u16>) -> Result<()> {
    let [v4, v6] = ips(number);
    let mut service = objects::service(name, &[&v4, &v6], &HTTP);
    if let Some(port) = node_port {
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(port);
    }
    web.cluster.publish(&service, &HTTP, &web.pods.iter().collect::<Vec<_>>())
}

/// Whether the pod `client`, or the outsider for an address of the node, reaches `to`.
async fn reaches(web: &Web, to: &str) -> Result<bool> {
    let is_node = to.starts_with("172.") || to.starts_with("[fd00:18:");
    let machine = if is_node { &web.outside } else { &*web.client };
    match machine.ask(Ask::tcp(to).timeout(SHORT)).await {
        Ok(_) => Ok(true),
        Err(failure) if failure.kind == FailureKind::Lab => Err(failure.into()),
        Err(_) => Ok(false),
    }
}

async fn wait_table(web: &Web, what: &str, right: impl Fn(&str) -> bool) -> Result<()> {
    let ask = async || table(web, 0).await.map(|table| json!(table).to_string());
    let right = |answer: &Result<String>| answer.as_ref().is_ok_and(|table| right(table));
    eventually(what, ask, right).await?.map(drop)
}

/// Scenario 108.
#[tokio::test]
async fn changes_made_while_no_agent_runs_are_there_after_the_start() -> Result<()> {
    let mut web = Web::start(2).await?;
    let node = web.cluster.lab.node(0).addrs();
    // Where each Service, by its number and its NodePort, is reached.
    let at = |services: &[u8], ports: &[u16]| -> Vec<String> {
        let vips = services.iter().flat_map(|number| ips(*number));
        let vips = vips.map(|ip| if ip.contains(':') { format!("[{ip}]:80") } else { ip + ":80" });
        vips.chain(ports.iter().flat_map(|port| node.at(*port)).map(|to| to.to_string())).collect()
    };
    publish(&web, "same", 1, Some(30001))?;
    publish(&web, "deleted", 2, Some(30002))?;
    publish(&web, "moved", 3, Some(30003))?;
    wait_table(&web, "all are served", |t| t.contains("30001") && t.contains("30003")).await?;
    let numbers = async |web: &Web| -> Result<Value> {
        let service = web.cluster.shunt(0, &["services", "-A", "same"]).await?;
        Ok(json!([service[0]["id"], web.cluster.shunt(0, &["backends", "-A", "same"]).await?]))
    };
    let kept = numbers(&web).await?;

    web.cluster.kill_agent(0).await?;
    for slice in objects::slices("web", &PORTS, &[&web.pods[0]]) {
        web.cluster.api.apply(&slice)?;
    }
    ensure!(web.cluster.api.delete("services", "default", "deleted"), "it was there");
    publish(&web, "added", 4, Some(30004))?;
    publish(&web, "moved", 5, Some(30005))?;
    for to in at(&[2], &[30002]) {
        ensure!(reaches(&web, &to).await?, "{to}: without an agent nothing changes");
    }
    eprintln!("in sync after {:?}", restart(&mut web).await?);

    for to in at(&[1, 4, 5], &[30001, 30004, 30005]) {
        assert!(reaches(&web, &to).await?, "{to} is served");
        assert!(reaches_by_packets(&web.client, &to)?, "{to} is served by packets");
    }
    for to in at(&[2, 3], &[30002, 30003]) {
        assert!(!reaches(&web, &to).await?, "{to} is no more");
        assert!(!reaches_by_packets(&web.client, &to)?, "{to} is no more for packets");
    }
    for _ in 0..20 {
        for (from, ask) in web.paths() {
            assert_eq!(from.ask(ask).await?.name, "web-0", "web-1 is no more");
        }
    }
    assert_eq!(numbers(&web).await?, kept, "what did not change keeps its numbers");
    let table = json!(table(&web, 0).await?).to_string();
    for stale in ["deleted", "10.96.1.3", "30003"] {
        assert!(!table.contains(stale), "{stale} in {table}");
    }
    Ok(())
}

/// Scenario 112.
#[tokio::test]
async fn nothing_is_removed_before_every_list_has_come() -> Result<()> {
    let mut web = Web::start(1).await?;
    let late = Refusal::Late(Duration::from_millis(900));
    let faults =
        [("services", Refusal::Forbidden), ("endpointslices", late), ("nodes", Refusal::Forbidden)];
    for (resource, refusal) in faults {
        let what = format!("{resource}: {refusal:?}");
        let before = table(&web, 0).await?;
        web.cluster.kill_agent(0).await?;
        web.cluster.api.delete("services", "default", "web");
        let fault = Fault { verb: "", resource, times: usize::MAX, refusal };
        web.cluster.api.fail(fault);
        let options = web.cluster.options();
        let agent = web.cluster.start_agent(0, &options)?;
        if refusal == Refusal::Forbidden {
            let status = agent
                .wait_status(|status| {
                    let warnings = status["warnings"].to_string();
                    warnings.contains(resource) && warnings.contains("may not be read (403)")
                })
                .await?;
            assert!(status["synced"].is_null(), "{what}");
        }
        let other_lists_came = async || anyhow::Ok(web.cluster.api.watches());
        eventually(&what, other_lists_came, |n| n.as_ref().is_ok_and(|n| *n == OTHER_WATCHES))
            .await??;
        assert_eq!(table(&web, 0).await?, before, "{what}");
        for vip in VIPS {
            web.client.tcp(vip).await.with_context(|| what.clone())?;
        }

        web.cluster.api.heal();
        web.cluster.agent(0)?.wait_status(is_well).await.with_context(|| what.clone())?;
        assert!(!reaches(&web, VIPS[0]).await?, "{what}: gone after the sync");
        web.publish(&web::service())?;
        web.wait_reached().await?;
    }
    Ok(())
}

/// In sync, and nothing to complain of.
fn is_well(status: &Value) -> bool {
    !status["synced"].is_null() && status["warnings"] == json!([])
}

/// Scenario 109.
#[tokio::test]
async fn without_the_api_server_everything_goes_on_also_over_a_restart() -> Result<()> {
    let mut web = Web::start(1).await?;
    let before = table(&web, 0).await?;
    let loads = web.start_loads().await?;
    web.cluster.api.refuse_connections();
    let refuses = |status: &Value| status["warnings"].to_string().contains("refuses connections");
    let status = web.cluster.agent(0)?.wait_status(refuses).await?;
    assert!(!status["synced"].is_null(), "the maps still hold what was last known");
    loads.go_on(10).await?;
    web.cluster.kill_agent(0).await?;
    let options = web.cluster.options();
    web.cluster.start_agent(0, &options)?.wait_status(refuses).await?;
    loads.go_on(10).await?;
    assert_eq!(table(&web, 0).await?, before);
    let log = web.cluster.agent(0)?.log();
    assert!(!log.contains("ERROR"), "the log tells of each attempt, not of what is wrong:\n{log}");

    let listener = web.cluster.lab.listen(6443)?;
    web.cluster.api.accept_connections(listener)?;
    web.cluster.agent(0)?.wait_status(is_well).await?;
    loads.go_on(10).await?;
    loads.stop().await.map(drop)
}

#[tokio::test]
async fn watches_that_break_lose_no_change() -> Result<()> {
    let mut web = Web::start(1).await?;
    type Break = fn(&ApiServer);
    // What happens before the change, and what after it.
    let faults: [(&str, Break, Break); 5] = [
        ("nothing", |_| {}, |_| {}),
        ("truncated", ApiServer::truncate_watches, |_| {}),
        ("expired", ApiServer::expire_watches, |_| {}),
        ("dropped", ApiServer::drop_watches, |_| {}),
        ("dropped, and the history is gone", ApiServer::drop_watches, ApiServer::compact),
    ];
    for ((what, before, after), number) in faults.into_iter().zip(1..) {
        // A new agent has no reason yet to wait long before it tries again.
        web.cluster.kill_agent(0).await?;
        restart(&mut web).await?;
        let api = &web.cluster.api;
        before(api);
        if what.starts_with("dropped") {
            let open = async || anyhow::Ok(api.watches());
            eventually(what, open, |open| open.as_ref().is_ok_and(|open| *open == 0)).await??;
        }
        publish(&web, &format!("service-{number}"), number, None)?;
        after(api);
        let began = Instant::now();
        let ips = ips(number);
        wait_table(&web, what, |table| ips.iter().all(|ip| table.contains(ip))).await?;
        eprintln!("{what}: served after {:?}", began.elapsed());
    }
    Ok(())
}

/// An agent that looks for drift every second, and has looked once.
async fn start_watchful_agent(web: &mut Web) -> Result<()> {
    web.cluster.start_agents(|_, options| options.flag("--drift-check-period", "1s")).await?;
    let agent = web.cluster.agent(0)?;
    let status = agent.wait_status(|status| !status["drift"].is_null()).await?;
    assert_eq!(status["drift"]["repaired_total"], 0, "a start repairs nothing");
    Ok(())
}

/// Scenario 111.
#[tokio::test]
async fn what_others_change_in_maps_and_links_is_healed_and_told() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    start_watchful_agent(&mut web).await?;
    web.wait_reached().await?;
    let pins = pin_directory(web.cluster.lab.node(0).bpffs_root());
    let before = table(&web, 0).await?;
    let attachments = async |web: &mut Web| -> Result<Value> {
        Ok(web.cluster.agent(0)?.status().await?["attachments"].clone())
    };
    let attached = attachments(&mut web).await?;
    let unlink = |link: &str| fs::remove_file(pins.join("links").join(link)).map_err(Into::into);
    let tampers: [(&str, &dyn Fn() -> Result<()>); 10] = [
        ("the frontends are removed", &|| clear::<FrontendKey, FrontendValue>(&pins, "frontends")),
        ("a frontend leads elsewhere, and another one is made up", &|| {
            let mut map = open::<FrontendKey, FrontendValue>(&pins, "frontends")?;
            let (key, value) = map.iter().next().context("a frontend")??;
            let wrong = FrontendValue::new(&key, 9_999, value.flags());
            let strange = FrontendKey::service(key.addr, proxy_ebpf::Port::new(9), key.proto);
            map.insert(key, wrong, 0)?;
            Ok(map.insert(strange, wrong, 0)?)
        }),
        ("the names are removed", &|| clear::<ServiceId, ServiceInfo>(&pins, "services")),
        ("a slot is overwritten", &|| {
            let frontends = open::<FrontendKey, FrontendValue>(&pins, "frontends")?;
            let (_, value) = frontends.iter().next().context("a frontend")??;
            let map = Map::Array(MapData::from_pin(pins.join("slots"))?);
            let mut slots: Array<_, Slot> = map.try_into()?;
            let range = slots.get(&value.range(), 0)?;
            Ok(slots.set(value.range() + 1, range, 0)?)
        }),
        ("a backend is said to be gone", &|| {
            let map = Map::Array(MapData::from_pin(pins.join("backends"))?);
            let mut backends: Array<_, u64> = map.try_into()?;
            let used = (0..backends.len()).find(|id| backends.get(id, 0).is_ok_and(|b| b != 0));
            Ok(backends.set(used.context("a backend")?, 0, 0)?)
        }),
        ("the node's addresses are removed", &|| clear::<Addr, NodeAddr>(&pins, "node_addrs")),
        ("the devices are removed", &|| clear::<u32, Device>(&pins, "devices")),
        ("the filter before the frontends lets nothing pass", &|| {
            let map = Map::Array(MapData::from_pin(pins.join("addr_filter"))?);
            let mut words: Array<_, u64> = map.try_into()?;
            Ok((0..words.len()).try_for_each(|index| words.set(index, 0, 0))?)
        }),
        ("the socket path is detached", &|| unlink("connect4@cgroup")),
        ("the packet path is detached", &|| unlink("ingress@eth0")),
    ];
    for (what, tamper) in tampers {
        let status = web.cluster.agent(0)?.status().await?;
        let repaired = status["drift"]["repaired_total"].as_u64().context("a number")?;
        tamper().context(what)?;
        let more = |status: &Value| status["drift"]["repaired_total"].as_u64() > Some(repaired);
        let agent = web.cluster.agent(0)?;
        let status = agent.wait_status(|s| more(s)).await.with_context(|| what.to_owned())?;
        assert!(is_well(&status), "{what}: {status}");
        web.wait_reached().await.context(what)?;
        assert_eq!(table(&web, 0).await?, before, "{what}");
        assert_eq!(attachments(&mut web).await?, attached, "{what}");
    }
    Ok(())
}

/// A pinned hash map.
fn open<K: aya::Pod, V: aya::Pod>(pins: &Path, name: &str) -> Result<HashMap<MapData, K, V>> {
    let map = MapData::from_pin(pins.join(name)).with_context(|| format!("open {name}"))?;
    Ok(Map::HashMap(map).try_into()?)
}

/// Removes all rows of a pinned hash map.
fn clear<K: aya::Pod, V: aya::Pod>(pins: &Path, name: &str) -> Result<()> {
    let mut map = open::<K, V>(pins, name)?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    Ok(keys.iter().try_for_each(|key| map.remove(key))?)
}

/// Whether a connection from the pod succeeds for a process that no socket path sees, because it
/// is in no cgroup of the node.
fn reaches_by_packets(pod: &Pod, to: &str) -> Result<bool> {
    let to: SocketAddr = to.parse()?;
    pod.netns().run(|| TcpStream::connect_timeout(&to, SHORT).is_ok())
}

async fn wait_by_packets(pod: &Pod, to: &str) -> Result<()> {
    let ask = async || reaches_by_packets(pod, to);
    eventually(&format!("{} reaches {to} by packets", pod.name()), ask, |answer| {
        answer.as_ref().is_ok_and(|reached| *reached)
    })
    .await?
    .map(drop)
}

#[tokio::test]
async fn packet_path_follows_the_devices_of_pods() -> Result<()> {
    let mut web = Web::without_agents(1).await?;
    start_watchful_agent(&mut web).await?;
    web.wait_reached().await?;
    let links = pin_directory(web.cluster.lab.node(0).bpffs_root()).join("links");
    let pins = || -> Result<BTreeSet<OsString>> {
        fs::read_dir(&links)?.map(|entry| Ok(entry?.file_name())).collect()
    };
    let before = pins()?;
    for name in ["first", "second"] {
        let lab = &web.cluster.lab;
        let pod = lab.add_pod(lab.node(0), name).await?;
        let began = Instant::now();
        let more =
            |pins: &Result<BTreeSet<_>>| pins.as_ref().is_ok_and(|p| p.len() == before.len() + 1);
        eventually(name, async || pins(), more).await??;
        eprintln!("a new pod's device has its program after {:?}", began.elapsed());
        for vip in VIPS {
            wait_by_packets(&pod, vip).await?;
            eprintln!("{vip} {:?}", began.elapsed());
        }
        lab.delete_pod(&pod).await?;
        let gone = |pins: &Result<_>| pins.as_ref().is_ok_and(|pins| *pins == before);
        eventually("the pins of a gone device go", async || pins(), gone).await??;
    }

    let checked = |status: &Value| status["drift"]["checked"].as_str().map(str::to_owned);
    let last = checked(&web.cluster.agent(0)?.status().await?);
    let status = web.cluster.agent(0)?.wait_status(|status| checked(status) > last).await?;
    assert_eq!(status["drift"]["repaired_total"], 0, "devices that come and go are no drift");
    assert!(is_well(&status), "{status}");

    // The device of the pod `client` goes, and another one of the same name comes. No agent sees
    // it: one that runs might see the name gone meanwhile.
    web.cluster.kill_agent(0).await?;
    let (node, pod) = (web.cluster.lab.node(0), &web.client);
    let (addr, pid) = (pod.ipv4(), pod.pid());
    let again = format!(
        "ip link del veth3; ip link add veth3 type veth peer name eth0 netns {pid}; \
         ip link set veth3 up; ip addr add 10.244.1.1/32 dev veth3; \
         nsenter --net=/proc/{pid}/ns/net sh -ec 'ip link set eth0 up; \
         ip addr add {addr}/32 dev eth0; ip route add 10.244.1.1 dev eth0; \
         ip route add default via 10.244.1.1'; ip route add {addr} dev veth3"
    );
    let output = node.exec("sh", &["-ec", &again]).await?;
    ensure!(output.status == Some(0), "{output:?}");
    assert!(!reaches_by_packets(pod, VIPS[0])?, "its programs went with the device");
    start_watchful_agent(&mut web).await?;
    wait_by_packets(&web.client, VIPS[0]).await?;
    assert_eq!(pins()?, before);
    Ok(())
}

/// Scenario 110.
#[tokio::test]
async fn cleanup_removes_everything_of_its_node_and_can_be_repeated() -> Result<()> {
    let mut web = Web::start(2).await?;
    web.cluster.take_agent(0)?.terminate().await?;
    assert!(reaches_by_packets(&web.client, VIPS[0])?, "SIGTERM leaves everything");
    let other = web.cluster.lab.add_pod(web.cluster.lab.node(1), "other").await?;
    for round in ["first", "second"] {
        web.cluster.lab.node(0).clean_up().await.context(round)?;
        let root = web.cluster.lab.node(0).bpffs_root();
        assert_eq!(fs::read_dir(root)?.count(), 0, "{round}: pins below {}", root.display());
    }
    for to in VIPS.map(str::to_owned).iter().chain(&[format!("172.18.0.11:{}", web::NODE_PORT)]) {
        assert!(!reaches(&web, to).await?, "{to} is no longer translated");
        assert!(!reaches_by_packets(&web.client, to)?, "{to} is no longer translated");
    }
    for vip in VIPS {
        other.tcp(vip).await.context("the other node serves on")?;
    }
    restart(&mut web).await?;
    web.wait_reached().await.context("and a new agent makes everything again")
}

#[tokio::test]
async fn cleanup_is_refused_while_an_agent_runs() -> Result<()> {
    let web = Web::start(1).await?;
    let node = web.cluster.lab.node(0);
    let refused = node.shunt(&["cleanup"]).await?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("an agent runs on this node"), "{refused:?}");
    web.client.tcp(VIPS[0]).await.context("nothing was removed")?;
    let forced = node.shunt(&["cleanup", "--force"]).await?;
    assert_eq!(forced.status, Some(0), "{forced:?}");
    assert!(!reaches(&web, VIPS[0]).await?, "what was asked for twice is done");
    Ok(())
}
