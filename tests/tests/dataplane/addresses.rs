//! Addresses that are not the cluster's own: NodePorts, external IPs and those of load balancers.
//! What is not a service's goes where it would go without Shunt.

use crate::everyone::Answer::{From, Refused, Silence};
use crate::everyone::Who::{Elsewhere, Node, Outsider, Pods};
use crate::everyone::{Answer, BEYOND, Everyone, Question, both, only};
use crate::scene::{PORTS, node_port, ready, serve, service, slices, vip};
use anyhow::Result;
use lab::{Ask, Pod, Serve, Transport};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;

const HERE: &[&str] = &["web-0"];
const AFAR: &[&str] = &["web-1"];
const ALL: &[&str] = &["web-0", "web-1"];
/// A process of the first node itself.
const HOST: &[&str] = &["node-1"];

/// The load balancer's addresses of the service `number`.
pub(crate) fn balancer(number: u8) -> [SocketAddr; 2] {
    [
        SocketAddr::from(([192, 0, 2, number], 80)),
        SocketAddr::from(([0xfd00, 0x192, 0, 0, 0, 0, 0, number.into()], 80)),
    ]
}

/// The external IPs of the service `number`.
pub(crate) fn external(number: u8) -> [SocketAddr; 2] {
    [
        SocketAddr::from(([198, 51, 100, number], 80)),
        SocketAddr::from(([0xfd00, 0x198, 0, 0, 0, 0, 0, number.into()], 80)),
    ]
}

fn texts(addrs: [SocketAddr; 2]) -> [String; 2] {
    addrs.map(|addr| addr.ip().to_string())
}

/// The Service `number` behind a load balancer, with `more` in each entry of its ingress.
pub(crate) fn balanced(number: u8, more: &Value) -> Value {
    let mut service = service(number);
    service["spec"]["type"] = json!("LoadBalancer");
    let ingress = texts(balancer(number)).map(|ip| {
        let mut entry = more.clone();
        entry["ip"] = json!(ip);
        entry
    });
    service["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    service
}

/// The Service `number` with external IPs and no NodePort.
pub(crate) fn exposed(number: u8) -> Value {
    let mut service = service(number);
    service["spec"]["type"] = json!("ClusterIP");
    service["spec"]["externalIPs"] = json!(texts(external(number)));
    for index in 0..PORTS.len() {
        service["spec"]["ports"][index]["nodePort"] = Value::Null;
    }
    service
}

fn publish(everyone: &Everyone, number: u8, service: &Value, pods: &[&Pod]) -> Result<()> {
    let api = &everyone.scene.cluster.api;
    api.apply(service)?;
    let endpoints: Vec<_> = pods.iter().map(|pod| (*pod, ready())).collect();
    slices(number, &endpoints).iter().try_for_each(|slice| api.apply(slice))
}

/// `to` is asked by pods, by the node, and by an outsider.
fn by_all(fact: &'static str, to: [SocketAddr; 2], answer: Answer) -> [Question; 3] {
    [Pods, Node, Outsider].map(|who| (fact, who, both(to), answer))
}

/// Scenarios 53, 54, 58 to 62 and 64 to 66; S3 and S4.
#[tokio::test]
async fn an_address_outside_the_cluster_is_a_services_if_it_says_so() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let Everyone { scene, aside, .. } = &everyone;
    let [web_0, web_1] = &scene.web;
    serve(&scene.client).await?;
    let local = |mut service: Value| {
        service["spec"]["externalTrafficPolicy"] = json!("Local");
        service
    };
    publish(&everyone, 58, &local(exposed(58)), &[web_0, web_1])?;
    publish(&everyone, 59, &exposed(59), &[web_1])?;
    publish(&everyone, 60, &balanced(60, &json!({})), &[web_1])?;
    publish(&everyone, 160, &balanced(160, &json!({ "ipMode": "VIP" })), &[web_1])?;
    publish(&everyone, 61, &balanced(61, &json!({ "ipMode": "Proxy" })), &[web_1])?;
    let mut named = balanced(62, &json!({}));
    named["status"]["loadBalancer"]["ingress"] = json!([{ "hostname": "lb.example.com" }]);
    publish(&everyone, 62, &named, &[web_1])?;
    let mut without_ports = balanced(64, &json!({}));
    without_ports["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    for index in 0..PORTS.len() {
        without_ports["spec"]["ports"][index]["nodePort"] = Value::Null;
    }
    publish(&everyone, 64, &without_ports, &[web_1])?;
    // One address: the one has port 80, the other 81.
    let mut other_port = balanced(165, &json!({}));
    other_port["status"] = balanced(65, &json!({}))["status"].clone();
    for index in 0..PORTS.len() {
        other_port["spec"]["ports"][index]["port"] = json!(81);
    }
    publish(&everyone, 65, &balanced(65, &json!({})), &[web_0])?;
    publish(&everyone, 165, &other_port, &[web_1])?;
    // One address and one port: the older one has it.
    let mut younger = balanced(66, &json!({}));
    younger["metadata"]["creationTimestamp"] = json!("2026-02-02T00:00:00Z");
    let mut older = balanced(166, &json!({}));
    older["status"] = younger["status"].clone();
    publish(&everyone, 66, &younger, &[web_0])?;
    publish(&everyone, 166, &older, &[web_1])?;
    // Pods that are their own backends.
    publish(&everyone, 4, &local(balanced(4, &json!({}))), &[&scene.client])?;
    publish(&everyone, 5, &local(balanced(5, &json!({}))), &[aside])?;
    for to in [60, 61, 62, 160].map(balancer).into_iter().chain([external(59)]) {
        everyone.let_pass(to).await?;
    }
    everyone.start(&[]).await?;

    let mut questions = vec![
        ("58: outsiders keep to the node", Outsider, both(external(58)), From(HERE)),
        ("58: pods get all", Pods, both(external(58)), From(ALL)),
        ("58: the node gets all", Node, both(external(58)), From(ALL)),
        ("59: on every node", Elsewhere, both(external(59)), From(AFAR)),
        ("60: on every node", Elsewhere, both(balancer(65)), From(HERE)),
        ("62: its NodePort is served", Outsider, everyone.node_ports(0, 62), From(AFAR)),
        ("64: the ClusterIP too", Pods, both(vip(64)), From(AFAR)),
        ("66: the younger one has the rest", Pods, both(vip(66)), From(HERE)),
    ];
    let at_81 = balancer(65).map(|to| SocketAddr::new(to.ip(), 81));
    for rows in [
        by_all("59: an external IP on no interface", external(59), From(AFAR)),
        by_all("60: a balancer's address", balancer(60), From(AFAR)),
        by_all("60: one of the mode VIP", balancer(160), From(AFAR)),
        by_all("61: one of the mode Proxy", balancer(61), BEYOND),
        by_all("62: one that is not named", balancer(62), BEYOND),
        by_all("64: without NodePorts", balancer(64), From(AFAR)),
        by_all("65: the port of the one", balancer(65), From(HERE)),
        by_all("65: the port of the other", at_81, From(AFAR)),
        by_all("66: the oldest has it", balancer(66), From(AFAR)),
    ] {
        questions.extend(rows);
    }
    everyone.check(&questions).await?;

    for (pod, number, name) in
        [(&everyone.scene.client, 4, "client"), (&everyone.aside, 5, "aside")]
    {
        for ask in both(balancer(number)).into_iter().chain(everyone.node_ports(0, number)) {
            let reply = pod.ask(ask.clone()).await?;
            assert_eq!((reply.name.as_str(), reply.peer.to_string()), (name, ask.to), "S4: itself");
        }
    }
    // Which one has an address does not depend on what happened.
    for number in [66, 166] {
        let again = everyone.scene.cluster.api.objects("services");
        let name = format!("svc-{number}");
        let again = again.into_iter().find(|service| service["metadata"]["name"] == name);
        let again = again.unwrap_or_default();
        let _ = everyone.scene.cluster.api.delete("services", "default", &name);
        let answer = if number == 66 { AFAR } else { HERE };
        let left = by_all("66: the one that is left has it", balancer(66), From(answer));
        everyone.wait_until("one is left", &left).await?;
        everyone.scene.cluster.api.apply(&again)?;
        let both = by_all("66: both are there", balancer(66), From(AFAR));
        everyone.wait_until("the oldest has it again", &both).await?;
    }
    Ok(())
}

/// Scenarios 41, 42, 46 to 49 and 67; S15.
#[tokio::test]
async fn a_node_port_goes_to_its_service_and_every_other_port_to_the_node() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let Everyone { scene, .. } = &everyone;
    let [web_0, web_1] = &scene.web;
    let node = scene.cluster.lab.node(0);
    // TCP and UDP of one number, of two Services.
    for (number, index, pod) in [(46, 0, web_0), (146, 1, web_1)] {
        let mut half = service(number);
        let mut port = half["spec"]["ports"][index].clone();
        port["nodePort"] = json!(node_port(46));
        half["spec"]["ports"] = json!([port]);
        publish(&everyone, number, &half, &[pod])?;
    }
    publish(&everyone, 47, &service(47), &[web_1])?;
    publish(&everyone, 48, &service(48), &[])?;
    let mut v4_only = service(49);
    v4_only["spec"]["clusterIPs"] = json!([vip(49)[0].ip()]);
    v4_only["spec"]["ipFamilies"] = json!(["IPv4"]);
    publish(&everyone, 49, &v4_only, &[web_1])?;
    publish(&everyone, 67, &exposed(67), &[web_1])?;
    everyone.let_pass(external(67)).await?;
    // Processes of the node listen on the same ports, and on one that is nobody's.
    for number in [47, 49, 50] {
        node.serve(Serve::tcp(node_port(number))).await?;
        for addr in node.addrs().at(0) {
            node.serve(Serve::udp(node_port(number)).on(addr.ip())).await?;
        }
    }
    // An address of the node that is not in the list.
    node.add_addr("172.18.0.78/16").await?;
    let unlisted = SocketAddr::from(([172, 18, 0, 78], node_port(47)));
    node.serve(Serve::udp(node_port(47)).on(unlisted.ip())).await?;
    // A list of one family says nothing of the other.
    let flags = [("--node-port-addresses", "172.18.0.8/29"), ("--external-ips", "false")];
    everyone.start(&flags).await?;
    let node = everyone.scene.cluster.lab.node(0);
    let [v4, v6] = node.addrs().at(node_port(49));
    let at = |number| everyone.node_ports(0, number);
    let one = |to: SocketAddr| vec![Ask::tcp(to), Ask::udp(to)];
    let mut questions = vec![
        ("67: they are off", Pods, both(external(67)), BEYOND),
        ("67: for the node", Node, both(external(67)), BEYOND),
        ("67: for outsiders", Outsider, both(external(67)), BEYOND),
        ("67: the ClusterIP is not", Pods, both(vip(67)), From(AFAR)),
    ];
    for who in [Pods, Node, Outsider] {
        questions.extend([
            ("46: TCP of the one", who, only(Transport::Tcp, at(46)), From(HERE)),
            ("46: UDP of the other", who, only(Transport::Udp, at(46)), From(AFAR)),
            ("42: an address that is not in the list", who, one(unlisted), From(HOST)),
            ("47: whoever listens there; S15", who, at(47), From(AFAR)),
            ("48: no endpoint", who, at(48), Refused),
            ("49: its family", who, one(v4), From(AFAR)),
            ("49: the other family", who, one(v6), From(HOST)),
            ("a port that is no service's", who, at(50), From(HOST)),
        ]);
    }
    for who in [Pods, Node, Outsider] {
        questions.push(("41: the other node", who, everyone.node_ports(1, 47), From(AFAR)));
    }
    everyone.check(&questions).await?;
    // Those who no longer hear anything are named; nobody else is.
    let told = |status: &Value| {
        let listens = |warning: &&Value| warning["message"].to_string().contains("listens at");
        let warnings = status["warnings"].as_array().into_iter().flatten().filter(listens);
        let subjects = warnings.filter_map(|warning| warning["subject"].as_str());
        subjects.collect::<BTreeSet<_>>()
            == ["Service default/svc-47", "Service default/svc-49"].into()
    };
    everyone.scene.cluster.agent(0)?.wait_status(told).await.map(drop)
}

/// Scenarios 70 to 73; S11.
#[tokio::test]
async fn ranges_hold_for_the_balancers_addresses_of_their_family_and_a_zero_for_none() -> Result<()>
{
    let mut everyone = Everyone::prepare().await?;
    let web_1 = &everyone.scene.web[1];
    let strange = json!(["203.0.113.0/24", "fd00:203::/64"]);
    for (number, ranges) in [
        (70, strange.clone()),
        (71, json!(["0.0.0.0/0", "203.0.113.0/24", "::/0"])),
        (171, json!(["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"])),
        (72, json!(["fd00:203::/64"])),
        (172, json!(["203.0.113.0/24"])),
        (73, json!([" 172.18.0.0/16 ", "\tfd00:18::/64\n"])),
    ] {
        let mut service = balanced(number, &json!({}));
        service["spec"]["loadBalancerSourceRanges"] = ranges;
        if number == 70 {
            service["spec"]["externalIPs"] = json!(texts(external(number)));
        }
        publish(&everyone, number, &service, &[web_1])?;
    }
    everyone.start(&[]).await?;
    let family = |number, index: usize| {
        let to = balancer(number)[index];
        vec![Ask::tcp(to), Ask::udp(to)]
    };
    let mut questions = vec![
        ("73: within", Outsider, both(balancer(73)), From(AFAR)),
        ("73: the node too", Node, both(balancer(73)), From(AFAR)),
        ("73: not within", Pods, both(balancer(73)), Silence),
    ];
    for who in [Pods, Node, Outsider] {
        questions.extend([
            ("70: in no range", who, both(balancer(70)), Silence),
            ("70: the NodePort", who, everyone.node_ports(0, 70), From(AFAR)),
            ("70: the external IP", who, both(external(70)), From(AFAR)),
            ("70: the ClusterIP", who, both(vip(70)), From(AFAR)),
            ("71: a zero", who, both(balancer(71)), From(AFAR)),
            ("71: two halves", who, both(balancer(171)), From(AFAR)),
            ("72: of the other family", who, family(72, 0), From(AFAR)),
            ("72: of its own", who, family(72, 1), Silence),
            ("S11: the other way round", who, family(172, 1), From(AFAR)),
            ("S11: of its own", who, family(172, 0), Silence),
        ]);
    }
    everyone.check(&questions).await
}
