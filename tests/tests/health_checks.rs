//! `healthCheckNodePort`: what a load balancer outside the cluster learns from a node.

use anyhow::{Context, Result};
use lab::cluster::eventually;
use lab::objects;
use lab::web::{self, PORTS, Web};
use lab::{Ask, Machine};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

const PORT: u16 = 31900;

/// The Service `web` behind a load balancer, for local endpoints only, with a health check.
fn balanced() -> Value {
    let mut service = web::service();
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(PORT);
    service
}

/// The status code, the headers in lower case, and the body that `from` gets.
fn get(from: &Machine, addr: SocketAddr, path: &str) -> Result<(u16, String, Value)> {
    let request = format!("POST {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect(addr)?;
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        let _ = stream.read_to_string(&mut response)?;
        Ok(response)
    };
    let response = from.netns().run(ask)?.with_context(|| format!("{path} of {addr}"))?;
    let (head, body) = response.split_once("\r\n\r\n").context("a whole response")?;
    let code = head.split(' ').nth(1).context("a status line")?.parse()?;
    Ok((code, head.to_lowercase(), serde_json::from_str(body)?))
}

/// Scenarios 97 to 100; S12.
#[tokio::test]
async fn a_node_is_healthy_for_a_service_while_it_has_ready_endpoints() -> Result<()> {
    let web = Web::start(2).await?;
    let nodes = [0, 1].map(|index| web.cluster.lab.node(index).addrs().at(PORT));
    let code = |addr: &SocketAddr| anyhow::Ok(get(&web.outside, *addr, "/")?.0);
    let is = |wanted| move |code: &Result<u16>| code.as_ref().is_ok_and(|code| *code == wanted);

    let absent = get(&web.outside, nodes[0][0], "/");
    assert!(absent.is_err(), "no Service, no listener: {absent:?}");
    web.publish(&balanced())?;
    for (node, addrs) in nodes.iter().enumerate() {
        for addr in addrs {
            eventually("healthy", async || code(addr), is(200)).await??;
            let (_, head, body) = get(&web.outside, *addr, "/any/path")?;
            assert!(head.contains("\r\nx-load-balancing-endpoint-weight: 1"), "{node}: {head}");
            assert_eq!(body["localEndpoints"], 1);
            assert_eq!(body["service"], json!({ "namespace": "default", "name": "web" }));
        }
    }

    // The one on the first node terminates: the node gets no new clients, and serves old ones.
    let slices = objects::slices("web", &PORTS, &web.pods.iter().collect::<Vec<_>>());
    for mut slice in slices {
        slice["endpoints"][0]["conditions"] = objects::terminating(true);
        web.cluster.api.apply(&slice)?;
    }
    for (addrs, wanted) in nodes.iter().zip([503, 200]) {
        for addr in addrs {
            eventually("as its own endpoints are", async || code(addr), is(wanted)).await??;
        }
    }
    for to in web.cluster.lab.node(0).addrs().at(web::NODE_PORT) {
        for ask in [Ask::tcp(to), Ask::udp(to)] {
            assert_eq!(web.outside.ask(ask).await?.name, web.pods[0].name(), "{to}");
        }
    }

    web.publish(&web::service())?;
    let gone = async || get(&web.outside, nodes[0][1], "/").map(drop);
    eventually("the listener goes with the policy", gone, Result::is_err).await?.err();
    Ok(())
}

/// Scenario 105.
#[tokio::test]
async fn a_busy_port_is_told_to_the_services_owner_and_served_once_free() -> Result<()> {
    let mut web = Web::start(1).await?;
    let node = web.cluster.lab.node(0);
    let addr = node.addrs().at(PORT)[0];
    let busy = node.netns().run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    web.publish(&balanced())?;
    let events = async || anyhow::Ok(web.cluster.api.objects("events"));
    let is_told =
        |events: &Result<Vec<Value>>| events.as_ref().is_ok_and(|events| !events.is_empty());
    let events = eventually("an event", events, is_told).await??;
    assert_eq!(events.len(), 1, "IPv6 is free: {events:?}");
    assert_eq!(events[0]["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!(events[0]["type"], "Warning");
    assert_eq!(events[0]["involvedObject"]["name"], "web");
    let uid = &web.cluster.api.objects("services")[0]["metadata"]["uid"];
    assert_eq!((&events[0]["involvedObject"]["uid"], uid.is_string()), (uid, true));
    let says = |status: &Value| {
        let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
        warnings.iter().any(|w| {
            w["subject"] == "Service default/web" && w["message"].to_string().contains("31900")
        })
    };
    let _status = web.cluster.agent(0)?.wait_status(says).await?;
    drop(busy);
    let healthy = async || anyhow::Ok(get(&web.outside, addr, "/")?.0);
    eventually("served", healthy, |code| code.as_ref().is_ok_and(|code| *code == 200)).await??;
    let _status = web.cluster.agent(0)?.wait_status(|status| !says(status)).await?;
    Ok(())
}
