//! Conditions of endpoints, and what traffic policies make of them: ready ones first, terminating
//! ones that serve when there are no others, apart for each set.

use crate::everyone::Answer::{From, Refused, Silence};
use crate::everyone::Who::{Elsewhere, Node, Outsider, Pods};
use crate::everyone::{Everyone, both};
use crate::scene::{ready, unready, vip};
use anyhow::Result;
use lab::objects::terminating;
use serde_json::json;

const HERE: &[&str] = &["web-0"];
const AFAR: &[&str] = &["web-1"];
const ALL: &[&str] = &["web-0", "web-1"];

/// Scenarios 18 and 30 to 35; S5.
#[tokio::test]
async fn each_set_takes_the_ready_endpoints_and_else_those_that_drain() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let Everyone { scene, .. } = &everyone;
    let [web_0, web_1] = &scene.web;
    let published = json!({ "ready": true, "serving": false, "terminating": true });
    let draining = || terminating(true);
    let local = json!({ "externalTrafficPolicy": "Local" });
    for (number, spec, endpoints) in [
        (30, json!({}), vec![(web_0, ready()), (web_1, draining())]),
        (31, json!({}), vec![(web_0, unready()), (web_1, draining())]),
        (32, json!({}), vec![(web_0, terminating(false))]),
        (33, json!({}), vec![(web_0, published), (web_1, unready())]),
        (34, local, vec![(web_0, draining()), (web_1, ready())]),
        (35, json!({}), vec![(web_0, unready()), (web_1, ready())]),
    ] {
        scene.publish_with(number, spec, &endpoints)?;
    }
    everyone.start(&[]).await?;
    let at_node = |number| everyone.node_ports(0, number);
    let mut questions = vec![
        ("34: outsiders keep to the node", Outsider, at_node(34), From(HERE)),
        ("34: the ClusterIP has no such policy", Pods, both(vip(34)), From(AFAR)),
        ("34: nor has a NodePort, for pods", Pods, at_node(34), From(AFAR)),
        ("34: or for the node", Node, at_node(34), From(AFAR)),
    ];
    for (fact, number, answer) in [
        ("30: only the ready one", 30, From(HERE)),
        ("31: the one that drains, of all nodes", 31, From(AFAR)),
        ("32: terminating without serving", 32, Refused),
        ("33: published though not ready", 33, From(HERE)),
        ("35: never the unready one", 35, From(AFAR)),
    ] {
        questions.push((fact, Pods, both(vip(number)), answer));
        questions.push((fact, Node, both(vip(number)), answer));
        questions.push((fact, Outsider, both(vip(number)), answer));
        questions.push((fact, Outsider, at_node(number), answer));
    }
    everyone.check(&questions).await
}

/// Scenarios 36 to 40, 51 to 55 and 57; S1 and S2.
#[tokio::test]
async fn a_policy_local_is_for_those_whom_it_concerns() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let Everyone { scene, .. } = &everyone;
    let [web_0, web_1] = &scene.web;
    let internal = json!({ "internalTrafficPolicy": "Local" });
    let external = json!({ "externalTrafficPolicy": "Local" });
    for (number, spec, endpoints) in [
        (36, &internal, vec![(web_0, ready()), (web_1, ready())]),
        (37, &internal, vec![(web_1, ready())]),
        (38, &internal, vec![(web_0, unready()), (web_1, terminating(false))]),
        (39, &internal, vec![(web_0, terminating(true))]),
        (51, &external, vec![(web_0, ready()), (web_1, ready())]),
        (52, &external, vec![(web_1, ready())]),
        (53, &external, vec![(web_0, unready()), (web_1, terminating(false))]),
        (57, &external, vec![(web_0, terminating(true))]),
    ] {
        scene.publish_with(number, spec.clone(), &endpoints)?;
    }
    everyone.start(&[]).await?;
    let at_node = |number| everyone.node_ports(0, number);
    let questions = [
        ("36: only those here", Pods, both(vip(36)), From(HERE)),
        ("36: also for the node", Node, both(vip(36)), From(HERE)),
        ("36: and for outsiders", Outsider, both(vip(36)), From(HERE)),
        ("36: those there", Elsewhere, both(vip(36)), From(AFAR)),
        ("37: none here, one elsewhere", Pods, both(vip(37)), Silence),
        ("37: for the node", Node, both(vip(37)), Silence),
        ("37: for outsiders", Outsider, both(vip(37)), Silence),
        ("37: there is one there", Elsewhere, both(vip(37)), From(AFAR)),
        ("38: none anywhere", Pods, both(vip(38)), Refused),
        ("38: for the node", Node, both(vip(38)), Refused),
        ("38: for outsiders", Outsider, both(vip(38)), Refused),
        ("39: one that drains here", Pods, both(vip(39)), From(HERE)),
        ("39: none there", Elsewhere, both(vip(39)), Silence),
        ("40: the NodePort uses all", Outsider, at_node(36), From(ALL)),
        ("40: also for pods", Pods, at_node(36), From(ALL)),
        ("40: also for the node", Node, at_node(36), From(ALL)),
        ("40: also with none here", Outsider, at_node(37), From(AFAR)),
        ("51: outsiders keep to the node", Outsider, at_node(51), From(HERE)),
        ("53: pods here get all", Pods, at_node(51), From(ALL)),
        ("54: the node gets all", Node, at_node(51), From(ALL)),
        ("52: none here for outsiders", Outsider, at_node(52), Silence),
        ("S1: there is one for pods", Pods, at_node(52), From(AFAR)),
        ("S1: and for the node", Node, at_node(52), From(AFAR)),
        ("S2: none anywhere", Outsider, at_node(53), Refused),
        ("S2: for pods", Pods, at_node(53), Refused),
        ("S2: for the node", Node, at_node(53), Refused),
        ("52: by the other node", Outsider, everyone.node_ports(1, 52), From(AFAR)),
        ("55: the ClusterIP has all", Pods, both(vip(51)), From(ALL)),
        ("55: also for outsiders", Outsider, both(vip(52)), From(AFAR)),
        ("57: outsiders get the one that drains", Outsider, at_node(57), From(HERE)),
        ("57: not by the other node", Outsider, everyone.node_ports(1, 57), Silence),
    ];
    everyone.check(&questions).await
}
