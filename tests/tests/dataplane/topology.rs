//! Topology: hints of endpoints, and where the node that chooses says that it is.

use crate::everyone::Answer::From;
use crate::everyone::Who::{Elsewhere, Node, Outsider, Pods};
use crate::everyone::{Everyone, both};
use crate::scene::{ready, serve, service, slices, unready, vip};
use anyhow::Result;
use lab::Pod;
use lab::objects::{self, terminating};
use serde_json::{Value, json};

const ONE: &[&str] = &["web-0"];
const TWO: &[&str] = &["web-1"];
const ALL: &[&str] = &["web-0", "web-1"];

fn in_zone(node: &lab::Node, zone: Option<&str>) -> Value {
    let mut object = objects::node(node);
    if let Some(zone) = zone {
        object["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
    }
    object
}

fn zones(zone: &str) -> Value {
    json!({ "forZones": [{ "name": zone }] })
}

fn nodes(node: &str, zone: &str) -> Value {
    json!({ "forNodes": [{ "name": node }], "forZones": [{ "name": zone }] })
}

/// Publishes the service `number` with endpoints in the given conditions, and with hints.
fn publish(
    everyone: &Everyone,
    number: u8,
    spec: &Value,
    endpoints: &[(&Pod, Value, Value)],
) -> Result<()> {
    let mut service = service(number);
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    everyone.scene.cluster.api.apply(&service)?;
    let conditions: Vec<_> = endpoints.iter().map(|(pod, it, _)| (*pod, it.clone())).collect();
    for mut slice in slices(number, &conditions) {
        for (index, (_, _, hints)) in endpoints.iter().enumerate() {
            slice["endpoints"][index]["hints"] = hints.clone();
        }
        everyone.scene.cluster.api.apply(&slice)?;
    }
    Ok(())
}

/// Scenarios 75 to 83; S6.
#[tokio::test]
async fn hints_decide_by_zone_and_node_where_they_are_complete() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let lab = &everyone.scene.cluster.lab;
    let web_2 = lab.add_pod(lab.node(0), "web-2").await?;
    serve(&web_2).await?;
    for (node, zone) in lab.nodes().iter().zip(["a", "b"]) {
        everyone.scene.cluster.api.apply(&in_zone(node, Some(zone)))?;
    }
    let [web_0, web_1] = &everyone.scene.web;
    let (a, b, c) = (zones("a"), zones("b"), zones("c"));
    // Each is hinted at the other's zone: what is near is no reason.
    let crossed = |conditions: [Value; 2]| {
        let [one, two] = conditions;
        vec![(web_0, one, b.clone()), (web_1, two, a.clone())]
    };
    let none = json!({});
    let local = json!({ "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local" });
    let by_node = |one, two| vec![(web_0, ready(), one), (web_1, ready(), two)];
    let mut unhinted = crossed([ready(), ready()]);
    unhinted.push((&web_2, unready(), none.clone()));
    for (number, spec, endpoints) in [
        (75, &none, crossed([ready(), ready()])),
        (76, &none, vec![(web_0, ready(), none.clone()), (web_1, ready(), a.clone())]),
        (77, &none, vec![(web_0, ready(), c.clone()), (web_1, ready(), b.clone())]),
        (78, &none, by_node(nodes("node-1", "b"), nodes("node-2", "a"))),
        (178, &none, by_node(nodes("node-3", "b"), nodes("node-2", "a"))),
        (79, &none, unhinted),
        (80, &local, crossed([ready(), ready()])),
        (81, &none, crossed([terminating(true), terminating(true)])),
    ] {
        publish(&everyone, number, spec, &endpoints)?;
    }
    everyone.start(&[]).await?;
    let at = |node, number| everyone.node_ports(node, number);
    let questions = [
        ("75: those for the zone", Pods, both(vip(75)), From(TWO)),
        ("75: also for the node", Node, both(vip(75)), From(TWO)),
        ("75: those for the other zone", Elsewhere, both(vip(75)), From(ONE)),
        ("76: one without a hint, so all", Pods, both(vip(76)), From(ALL)),
        ("77: none for the zone, so all", Pods, both(vip(77)), From(ALL)),
        ("77: there is one for the other zone", Elsewhere, both(vip(77)), From(TWO)),
        ("78: the node comes before the zone", Pods, both(vip(78)), From(ONE)),
        ("78: no node, so the zone", Pods, both(vip(178)), From(TWO)),
        ("78: for the other node there is one", Elsewhere, both(vip(178)), From(TWO)),
        ("78: also for the node", Node, both(vip(78)), From(ONE)),
        ("79: an unready one need not have a hint", Pods, both(vip(79)), From(TWO)),
        ("80: a local set has no hints", Pods, both(vip(80)), From(ONE)),
        ("80: neither has the external one", Outsider, at(0, 80), From(ONE)),
        ("81: what drains is taken from everywhere", Pods, both(vip(81)), From(ALL)),
        ("83: the zone of the node that is asked", Outsider, at(0, 75), From(TWO)),
        ("83: the zone of the other one", Outsider, at(1, 75), From(ONE)),
    ];
    everyone.check(&questions).await?;

    for (zone, answer) in [(Some("b"), ONE), (None, ALL), (Some("a"), TWO)] {
        let node = everyone.scene.cluster.lab.node(0);
        everyone.scene.cluster.api.apply(&in_zone(node, zone))?;
        let questions = [
            ("82: the node has moved", Pods, both(vip(75)), From(answer)),
            ("82: also for itself", Node, both(vip(75)), From(answer)),
            ("82: its NodePort too", Outsider, at(0, 75), From(answer)),
            ("82: the other node has not", Elsewhere, both(vip(75)), From(ONE)),
        ];
        everyone.wait_until(&format!("the zone {zone:?}"), &questions).await?;
    }
    Ok(())
}
