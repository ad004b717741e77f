//! What the tests share: a pod that asks, a stand-in for the DNS service, and the objects of the
//! vectors.

use anyhow::{Context as _, Result, bail};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use lab::cluster::Cluster;
use lab::objects;
use lab::{Cni, LabConfig, NameExchange, NameServer, Pod};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// The objects of the vectors.
const WORLD: &str = include_str!("world.yaml");

/// The Corefile that kubeadm writes.
pub(crate) const KUBEADM: &str = ".:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf
    cache 30
    loop
    reload
    loadbalance
}
";

/// The port of the DNS service's pods.
const COREDNS_PORT: u16 = 1053;

/// A cluster of two nodes, a pod that asks, and the DNS service's pod on the other node.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    client: Pod,
    dns: Pod,
    /// The stand-in for CoreDNS.
    pub(crate) coredns: NameServer,
}

impl Scene {
    pub(crate) async fn prepare() -> Result<Self> {
        Self::prepare_on(Cni::default()).await
    }

    pub(crate) async fn prepare_on(cni: Cni) -> Result<Self> {
        let cluster = Cluster::without_agents(LabConfig { cni, ..Default::default() }).await?;
        let lab = &cluster.lab;
        let (client, dns) = futures::try_join!(
            lab.add_pod(lab.node(0), "client"),
            lab.add_pod(lab.node(1), "dns")
        )?;
        let coredns = dns.serve_names(COREDNS_PORT).await?;
        Ok(Self { cluster, client, dns, coredns })
    }

    /// Publishes the objects of the vectors, with the stand-in behind the DNS service.
    pub(crate) fn publish_world(&self) -> Result<()> {
        for mut object in world()? {
            if object["metadata"]["name"] == "kube-dns-1" {
                object["endpoints"] = json!([objects::endpoint(&self.dns, self.dns.ipv4())]);
                let mut v6 = object.clone();
                v6["metadata"]["name"] = json!("kube-dns-2");
                v6["addressType"] = json!("IPv6");
                v6["endpoints"] = json!([objects::endpoint(&self.dns, self.dns.ipv6())]);
                self.cluster.api.apply(&v6)?;
            }
            self.cluster.api.apply(&object)?;
        }
        self.cluster.api.apply(&objects::corefile(KUBEADM))
    }

    /// Publishes the IPv4 endpoints of the headless Service `shop/db`: host name, last byte of
    /// the address, and whether it is ready. Gives the EndpointSlice.
    pub(crate) fn publish_db(&self, endpoints: &[(&str, u8, bool)]) -> Result<Value> {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(hostname, last, ready)| {
                json!({
                    "addresses": [format!("10.244.1.{last}")],
                    "hostname": hostname,
                    "conditions": { "ready": ready },
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop",
                "name": "db-4",
                "labels": { "kubernetes.io/service-name": "db" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "pg", "port": 5432, "protocol": "TCP" }],
            "endpoints": endpoints,
        });
        self.cluster.api.apply(&slice)?;
        Ok(slice)
    }

    /// Starts the agents with `flags`, and waits until the first one answers names and denies.
    pub(crate) async fn start(&mut self, flags: &[&str]) -> Result<()> {
        let pairs: Vec<_> = flags.iter().filter_map(|flag| flag.split_once('=')).collect();
        let starting = self.cluster.start_agents(|_, options| {
            pairs.iter().fold(options, |options, (flag, value)| options.flag(flag, value))
        });
        starting.await?;
        let is_up = |status: &Value| {
            let dns = &status["dns"];
            let attached = status["attachments"].as_array().is_some_and(|attached| {
                attached.iter().any(|attachment| attachment["program"] == "names")
            });
            dns["denies"] == json!(true) && attached
        };
        let _ = self.cluster.agent(0)?.wait_status(is_up).await?;
        // The pod's address is found a moment after its device.
        let web = query("web.shop.svc.cluster.local.", RecordType::A)?;
        let asked = async || self.ask(self.dns_v4(), false, &web).await;
        let answered = |reply: &Result<Vec<u8>>| {
            let found = reply.as_ref().ok().and_then(|reply| describe(reply).ok());
            found.is_some_and(|found| found == "8500 1/0/0 10.96.1.1")
        };
        let _ = lab::cluster::eventually("names are answered", asked, answered).await??;
        let _ = self.coredns.take_asked().await?;
        Ok(())
    }

    pub(crate) fn dns_v4(&self) -> SocketAddr {
        ([10, 96, 0, 10], 53).into()
    }

    /// The DNS service over IPv4 and IPv6, and whether over TCP.
    pub(crate) fn transports(&self) -> Vec<(SocketAddr, bool)> {
        let v6 = SocketAddr::new("fd00:10:96::a".parse().expect("it is an address"), 53);
        [self.dns_v4(), v6].into_iter().flat_map(|to| [(to, false), (to, true)]).collect()
    }

    pub(crate) fn exchange(&self, to: SocketAddr, tcp: bool, query: &[u8]) -> NameExchange {
        NameExchange { to, tcp, port: 0, query: query.to_vec(), timeout: Duration::from_secs(3) }
    }

    /// What the pod gets.
    pub(crate) async fn ask(&self, to: SocketAddr, tcp: bool, query: &[u8]) -> Result<Vec<u8>> {
        let asked = self.client.exchange_names(self.exchange(to, tcp, query)).await;
        asked.with_context(|| format!("ask {to}, TCP {tcp}"))
    }

    /// Whether the kernel answers the pod, by the command line.
    pub(crate) async fn is_kernels(&self, name: &str, kind: RecordType) -> Result<bool> {
        let (kind, from) = (kind.to_string(), self.client.ipv4().to_string());
        let answer = self.cluster.shunt(0, &["dns", name, &kind, "--from", &from]).await?;
        match answer["answered_by"].as_str() {
            Some("kernel") => Ok(true),
            Some("DNS service") => Ok(false),
            _ => bail!("{answer}"),
        }
    }

    /// What glibc finds in the pod, with a resolv.conf like the kubelet's for the namespace
    /// `shop`.
    pub(crate) async fn getent(&self, name: &str) -> Result<String> {
        self.with_search_list(&format!("getent ahosts {name}")).await
    }

    /// What `command` prints in the pod, with such a resolv.conf.
    pub(crate) async fn with_search_list(&self, command: &str) -> Result<String> {
        let conf = self.cluster.lab.scratch().join("resolv.conf");
        let search = "shop.svc.cluster.local svc.cluster.local cluster.local";
        fs::write(&conf, format!("search {search}\nnameserver 10.96.0.10\noptions ndots:5\n"))?;
        // The file lies in the place of the machine's own for this command alone.
        let script = format!("mount --bind {} /etc/resolv.conf && exec {command}", conf.display());
        let output = self.client.exec("unshare", &["--mount", "sh", "-c", &script]).await?;
        Ok(output.stdout + &output.stderr)
    }
}

impl Scene {
    /// The pod that asks.
    pub(crate) fn client(&self) -> &Pod {
        &self.client
    }

    /// What dig prints in the pod.
    pub(crate) async fn dig(&self, args: &str) -> Result<String> {
        let args: Vec<_> = ["+tries=1", "+time=3"].into_iter().chain(args.split(' ')).collect();
        let ran = self.client.exec("dig", &args).await;
        let output = ran.context("run dig; `cargo xtask setup` installs it")?;
        Ok(output.stdout + &output.stderr)
    }
}

/// The objects of the vectors.
pub(crate) fn world() -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(WORLD);
    let objects = documents.map(|document| {
        let mut object = Value::deserialize(document)?;
        let is_slice = object["kind"] == "EndpointSlice";
        object["apiVersion"] = json!(if is_slice { "discovery.k8s.io/v1" } else { "v1" });
        Ok(object)
    });
    objects.collect()
}

/// A query's bytes.
pub(crate) fn query(name: &str, kind: RecordType) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(message.to_vec()?)
}

/// The flags, the counts, and the answers' data, sorted, with `…` for the zone.
pub(crate) fn describe(reply: &[u8]) -> Result<String> {
    let count = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    let message = Message::from_vec(reply)?;
    let data: BTreeSet<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    let data = data.into_iter().collect::<Vec<_>>().join(", ").replace(".cluster.local.", "…");
    let text = format!("{:04x} {}/{}/{} {data}", count(2), count(6), count(8), count(10));
    Ok(text.trim_end().to_owned())
}

/// All that a reply says, but for its order, and for the serial number, which grows.
pub(crate) fn normal(reply: &[u8]) -> Result<String> {
    let message = Message::from_vec(reply)?;
    let owners: BTreeSet<_> = message.answers.iter().map(|r| (r.name.to_string(), r.ttl)).collect();
    let authorities: Vec<_> =
        message.authorities.iter().map(|r| (r.name.to_string(), r.ttl)).collect();
    Ok(format!("{} {owners:?} {authorities:?}", describe(reply)?))
}

/// Questions about names that exist, nearly exist, and do not, in letters of either case; the
/// same ones each time.
pub(crate) fn random_questions(count: usize) -> Vec<(String, RecordType)> {
    const LABELS: [&str; 24] = [
        "web",
        "db",
        "db-0",
        "db-1",
        "cache",
        "bare",
        "empty",
        "big",
        "ext",
        "extin",
        "web6",
        "10-244-2-21",
        "10-244-1-11",
        "_http",
        "_tcp",
        "_pg",
        "nosuch",
        "a",
        "shop",
        "default",
        "kube-system",
        "nons",
        "svc",
        "unnamed",
    ];
    const KINDS: [RecordType; 12] = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::A,
        RecordType::AAAA,
        RecordType::A,
        RecordType::SRV,
        RecordType::TXT,
        RecordType::MX,
        RecordType::SOA,
        RecordType::PTR,
        RecordType::HTTPS,
        RecordType::NS,
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let question = |_| {
        let mut labels = Vec::new();
        for _ in 0..random(5) {
            labels.push(LABELS[random(LABELS.len())]);
        }
        // Most names have the form of a Service's.
        if random(4) > 0 {
            labels.push(LABELS[random(12)]);
            labels.extend(["shop", "svc"]);
        }
        let mut name: String = labels.iter().map(|label| format!("{label}.")).collect();
        name += "cluster.local.";
        if random(2) == 0 {
            let letters =
                name.chars().map(|c| if random(2) == 0 { c.to_ascii_uppercase() } else { c });
            name = letters.collect();
        }
        (name, KINDS[random(KINDS.len())])
    };
    (0..count).map(question).collect()
}
