//! Objects as Kubernetes and its users write them: which of them count, and how they join.

use crate::addresses::{exposed, external};
use crate::everyone::Answer::{From, Refused};
use crate::everyone::Who::{Node, Outsider, Pods};
use crate::everyone::{BEYOND, Everyone, both, only};
use crate::scene::{ready, service, slices, vip};
use anyhow::Result;
use lab::objects::terminating;
use lab::{Ask, Serve, Transport};
use serde_json::{Value, json};

const HERE: &[&str] = &["web-0"];
const AFAR: &[&str] = &["web-1"];
const ALL: &[&str] = &["web-0", "web-1"];

/// Another slice like `slice`.
fn second(slice: &Value) -> Value {
    let mut second = slice.clone();
    second["metadata"]["name"] = json!(format!("{}-2", slice["metadata"]["name"]));
    second
}

/// Scenarios 1 to 3, 5 to 11, 13, 14 and 106; S14.
#[tokio::test]
async fn objects_count_and_join_as_the_api_says() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    let Everyone { scene, .. } = &everyone;
    let [web_0, web_1] = &scene.web;
    web_1.serve(Serve::tcp(9090)).await?;
    web_1.serve(Serve::udp(9090)).await?;
    let api = &scene.cluster.api;
    // Of a slice of `web-0` and one of `web-1` it makes those that the Service has.
    type Change = fn(Value, Value) -> Vec<Value>;
    let changes: [(u8, Change); 14] = [
        (1, |one, _| vec![one]),
        (2, |mut one, two| {
            one["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
            vec![one, second(&two)]
        }),
        (3, |one, _| vec![one]),
        (5, |one, two| vec![one, second(&two)]),
        (6, |one, mut two| {
            two["ports"][0]["port"] = json!(9090);
            two["ports"][1]["port"] = json!(9090);
            vec![one, second(&two)]
        }),
        (7, |mut one, mut two| {
            one["ports"][0]["name"] = json!("other");
            one["ports"][1]["protocol"] = json!("SCTP");
            two["ports"] = json!([two["ports"][0]]);
            vec![one, second(&two)]
        }),
        (8, |mut one, _| {
            one["endpoints"][0]["conditions"] = json!({});
            vec![one]
        }),
        (9, |mut one, _| {
            one["ports"][0]["port"] = Value::Null;
            vec![one]
        }),
        (109, |mut one, _| {
            one["ports"][1]["port"] = json!(0);
            vec![one]
        }),
        (10, |mut one, two| {
            let addrs = [&one, &two].map(|slice| slice["endpoints"][0]["addresses"][0].clone());
            one["endpoints"][0]["addresses"] = json!(addrs);
            vec![one]
        }),
        (11, |one, mut two| {
            two["addressType"] = json!("FQDN");
            two["endpoints"][0]["addresses"] = json!(["web.example.com"]);
            vec![one, second(&two)]
        }),
        (13, |one, _| {
            let mut leaving = second(&one);
            leaving["endpoints"][0]["conditions"] = terminating(false);
            vec![one, leaving]
        }),
        (113, |mut one, _| {
            let running = second(&one);
            one["endpoints"][0]["conditions"] = terminating(false);
            vec![one, running]
        }),
        (14, |one, mut two| {
            two["metadata"]["labels"] = json!({ "kubernetes.io/service-name": "" });
            vec![one, second(&two)]
        }),
    ];
    for (number, change) in changes {
        let mut service = if number == 3 { exposed(number) } else { service(number) };
        match number {
            1 => {
                service["metadata"]["labels"] =
                    json!({ "service.kubernetes.io/service-proxy-name": "" });
            }
            3 => {
                service["spec"]["clusterIP"] = json!("None");
                service["spec"]["clusterIPs"] = json!(["None"]);
            }
            _ => {}
        }
        api.apply(&service)?;
        let of = |pod| slices(number, &[(pod, ready())]);
        for (one, two) in of(web_0).into_iter().zip(of(web_1)) {
            change(one, two).iter().try_for_each(|slice| api.apply(slice))?;
        }
    }
    // Each family has its own.
    api.apply(&service(106))?;
    let [v4, _] = slices(106, &[(web_0, ready())]);
    let [_, v6] = slices(106, &[(web_1, ready())]);
    api.apply(&v4)?;
    api.apply(&v6)?;
    everyone.let_pass(vip(1)).await?;
    everyone.let_pass(external(3)).await?;
    everyone.start(&[]).await?;

    let mut questions = Vec::new();
    for who in [Pods, Node, Outsider] {
        let tcp = |number| only(Transport::Tcp, both(vip(number)));
        let udp = |number| only(Transport::Udp, both(vip(number)));
        let of_family = |index: usize| vec![Ask::tcp(vip(106)[index]), Ask::udp(vip(106)[index])];
        questions.extend([
            ("1: another proxy's", who, both(vip(1)), BEYOND),
            ("2: a slice for DNS only", who, both(vip(2)), From(AFAR)),
            ("3: headless, whatever it says", who, both(external(3)), BEYOND),
            ("5: two slices", who, both(vip(5)), From(ALL)),
            ("6: a number in each slice", who, both(vip(6)), From(ALL)),
            ("7: the name of one slice", who, tcp(7), From(AFAR)),
            ("7: the protocol of neither", who, udp(7), Refused),
            ("8: no conditions", who, both(vip(8)), From(HERE)),
            ("9: a port without a number", who, tcp(9), Refused),
            ("9: the other port", who, udp(9), From(HERE)),
            ("9: one of the number 0", who, udp(109), Refused),
            ("9: the other port", who, tcp(109), From(HERE)),
            ("10: the first address", who, both(vip(10)), From(HERE)),
            ("11: names are no addresses", who, both(vip(11)), From(HERE)),
            ("13: ready here, leaving there", who, both(vip(13)), From(HERE)),
            ("13: leaving there, ready here; S14", who, both(vip(113)), From(HERE)),
            ("14: a slice of no Service", who, both(vip(14)), From(HERE)),
            ("106: IPv4", who, of_family(0), From(HERE)),
            ("106: IPv6", who, of_family(1), From(AFAR)),
        ]);
    }
    everyone.check(&questions).await
}

/// Scenario 12.
#[tokio::test]
async fn a_slice_and_its_service_may_come_in_any_order() -> Result<()> {
    let mut everyone = Everyone::prepare().await?;
    everyone.start(&[]).await?;
    let Everyone { scene, .. } = &everyone;
    let asked = |fact, number, answer| {
        [Pods, Node, Outsider].map(|who| (fact, who, both(vip(number)), answer))
    };
    let put = |number, pod| {
        let slices = slices(number, &[(pod, ready())]);
        slices.iter().try_for_each(|slice| scene.cluster.api.apply(slice))
    };
    scene.cluster.api.apply(&service(1))?;
    let none = asked("12: there is no slice yet", 1, Refused);
    everyone.wait_until("the Service", &none).await?;
    put(12, &scene.web[0])?;
    // Slices come one after another: once this one has, the one of no Service has too.
    put(1, &scene.web[1])?;
    let second = asked("12: the slice came second", 1, From(AFAR));
    everyone.wait_until("the slice", &second).await?;
    scene.cluster.api.apply(&service(12))?;
    let first = asked("12: the slice came first", 12, From(HERE));
    everyone.wait_until("the Service of a slice", &first).await
}
