//! Endpoints: which of them are used, by their conditions, and what happens without any.

use crate::scene::{
    Path, Scene, mapped_sockets, node_port, reaches, ready, refused, sockets, unready, vip,
};
use anyhow::Result;
use lab::objects::terminating;
use serde_json::json;

#[tokio::test]
async fn a_service_without_a_usable_endpoint_is_refused_at_once() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let [web_0, web_1] = &scene.web;
    let facts = [
        (1, "no endpoint at all", vec![]),
        (2, "only unready ones", vec![(web_0, unready()), (web_1, unready())]),
        (3, "only one that terminates and does not serve", vec![(web_0, terminating(false))]),
    ];
    let numbers = facts.map(|(number, fact, endpoints)| {
        scene.publish_with(number, json!({}), &endpoints).map(|()| (number, fact))
    });
    scene.start(Path::Socket).await?;
    let node = scene.cluster.lab.node(0);
    for published in numbers {
        let (number, fact) = published?;
        refused(fact, &scene.client, sockets(vip(number))).await;
        refused(fact, &scene.client, mapped_sockets(vip(number))).await;
        refused(fact, &scene.client, sockets(node.addrs().at(node_port(number)))).await;
        refused(fact, node, sockets(vip(number))).await;
    }
    Ok(())
}

#[tokio::test]
async fn ready_endpoints_come_first_and_terminating_ones_that_serve_second() -> Result<()> {
    let mut scene = Scene::routed().await?;
    let [web_0, web_1] = &scene.web;
    let facts = [
        (1, "an unready one is left out", [unready(), ready()], "web-1"),
        (2, "a terminating one is left out", [ready(), terminating(true)], "web-0"),
        (3, "a terminating one serves as the last", [unready(), terminating(true)], "web-1"),
    ];
    for (number, _, [one, two], _) in facts.clone() {
        scene.publish_with(number, json!({}), &[(web_0, one), (web_1, two)])?;
    }
    scene.start(Path::Socket).await?;
    let Scene { client, web, .. } = &scene;
    for (number, fact, _, expected) in facts {
        let used = web.iter().find(|pod| pod.name() == expected).expect("one of the two");
        // A single backend: asked as often as if there were two.
        for _ in 0..6 {
            reaches(fact, client, sockets(vip(number)), &[(used, client.addrs())]).await?;
        }
    }
    Ok(())
}
