//! Which differences are those of docs/differences.md, and which are faults. Pure.

use crate::population::{BACKENDS, FIRST_NODE, Frontend, Ranges};
use crate::question::{Answer, Client, Question};
use lab::kube_proxy::Mode;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Compares what kube-proxy's rules answered with what Shunt did.
pub(crate) fn judge(
    question: &Question<'_>,
    mode: Mode,
    kube_proxy: &BTreeSet<Answer>,
    shunt: &BTreeSet<Answer>,
) -> Result<(), String> {
    let fault = || Err(format!("kube-proxy {kube_proxy:?}, Shunt {shunt:?}"));
    if answers_past_the_node(question) || mode == Mode::Nftables && is_dropped_too_early(question) {
        let served = sources(shunt).is_some_and(|ours| match question.service.is_sticky {
            true => is_kept(question, &ours),
            false => ours.into_keys().eq(names(&question.service.cluster(question.asked_node()))),
        });
        return if served { Ok(()) } else { fault() };
    }
    if mode == Mode::Iptables && is_other_in_iptables(question) {
        return if has_answers(shunt) { fault() } else { Ok(()) };
    }
    let is_refused = |answers: &BTreeSet<_>| answers.contains(&Answer::Refusal);
    if kube_proxy == shunt
        || (is_forbidden(kube_proxy) || is_refused_too_early(question)) && !has_answers(shunt)
        || is_refused(kube_proxy) && is_refused_at_output(question) && is_forbidden(shunt)
        // To TCP kube-proxy's refusals are limited in number, and Shunt's are not.
        || is_refused(kube_proxy) && !has_answers(kube_proxy) && shunt.iter().eq([&Answer::Refusal])
    {
        return Ok(());
    }
    let (Some(theirs), Some(ours)) = (sources(kube_proxy), sources(shunt)) else {
        return fault();
    };
    if question.service.is_sticky {
        return if is_kept(question, &ours) { Ok(()) } else { fault() };
    }
    let same_backends = theirs.keys().eq(ours.keys());
    let is_stated = theirs.iter().zip(&ours).all(|((backend, theirs), (_, ours))| {
        theirs == ours || ours.iter().all(|ours| keeps_client(question, backend, *ours))
    });
    if same_backends && is_stated { Ok(()) } else { fault() }
}

/// A pod that asks the frontend of a node that is not its own, for a policy Local that does not
/// hold for pods. kube-proxy leaves the client as it is, so a backend elsewhere answers it
/// directly, and the client knows nothing of that; Shunt puts itself between.
fn answers_past_the_node(question: &Question<'_>) -> bool {
    question.client.is_pod()
        && question.service.external_local
        && matches!(question.frontend, Frontend::NodePort(node) if node != question.client.node())
        && !question.service.cluster(question.asked_node()).is_empty()
}

/// The node asks an address that is not its own, for a policy Local that does not hold for it. In
/// the mode nftables (not in iptables) what has no endpoint here is dropped before that is known.
fn is_dropped_too_early(question: &Question<'_>) -> bool {
    question.client == Client::Node
        && question.service.external_local
        && question.service.external().contains(&question.frontend)
        && is_let_in(question)
        && question.service.local(1).is_empty()
        && !question.service.cluster(1).is_empty()
}

/// The node is not among those that a load balancer without endpoints lets in. kube-proxy refuses
/// at output before it looks at the source; others are dropped by both.
fn is_refused_too_early(question: &Question<'_>) -> bool {
    question.client == Client::Node
        && !is_let_in(question)
        && question.service.cluster(1).is_empty()
}

/// The node asks a NodePort of its own by UDP. kube-proxy refuses that where it comes in again, by
/// ICMP; Shunt where it leaves, which send(2) says.
fn is_refused_at_output(question: &Question<'_>) -> bool {
    question.client == Client::Node && matches!(question.frontend, Frontend::NodePort(_))
}

/// Where kube-proxy's mode iptables does not decide as its mode nftables: it knows no ports that
/// a ClusterIP does not have; it refuses everybody at a load balancer without endpoints, also
/// who is not let in; and what the node itself sends to an external address without endpoints
/// goes where the routes lead.
fn is_other_in_iptables(question: &Question<'_>) -> bool {
    let Question { service, frontend, client, .. } = question;
    let is_empty = service.cluster(question.asked_node()).is_empty();
    *frontend == Frontend::UnservedPort
        || is_empty && !is_let_in(question)
        || is_empty && *client == Client::Node && service.external().contains(frontend)
}

/// Whether a load balancer's source ranges let the client in.
fn is_let_in(question: &Question<'_>) -> bool {
    let Question { service, client, v4, .. } = question;
    let is_let_in = match service.ranges {
        Ranges::Everybody => true,
        Ranges::OutsiderByIpv4 if !v4 => true,
        Ranges::Outsider | Ranges::OutsiderByIpv4 => *client == Client::Outsider,
        Ranges::FirstNode => *client != Client::Outsider && client.node() == 1,
    };
    is_let_in || question.frontend != Frontend::LoadBalancer
}

/// Whether a client of a sticky Service was kept to a backend, one that it might get. With
/// policies, the backend of one frontend may be none of another's, and is chosen again.
fn is_kept(question: &Question<'_>, ours: &BTreeMap<&str, BTreeSet<IpAddr>>) -> bool {
    let Question { service, .. } = question;
    let node = question.asked_node();
    let usable = [service.cluster(node), service.local(node)].concat();
    let has_policy = service.internal_local || service.external_local;
    (has_policy || ours.len() == 1)
        && ours.keys().all(|ours| names(&usable).any(|name| name == *ours))
}

fn names(backends: &[usize]) -> impl Iterator<Item = &'static str> {
    backends.iter().map(|backend| BACKENDS[*backend].0)
}

/// Whether netfilter kept the node itself from sending.
fn is_forbidden(answers: &BTreeSet<Answer>) -> bool {
    !answers.is_empty() && answers.iter().all(|answer| *answer == Answer::Forbidden)
}

fn has_answers(answers: &BTreeSet<Answer>) -> bool {
    answers.iter().any(|answer| matches!(answer, Answer::From(..)))
}

/// As whom each backend saw the client, if all there was were answers.
fn sources(answers: &BTreeSet<Answer>) -> Option<BTreeMap<&str, BTreeSet<IpAddr>>> {
    let mut sources: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for answer in answers {
        let Answer::From(backend, client) = answer else { return None };
        let _ = sources.entry(backend.as_str()).or_default().insert(*client);
    }
    Some(sources)
}

/// Whether `source` is the client's own address where docs/decisions/0004 says that Shunt keeps
/// it: the reply passes the node by itself.
fn keeps_client(question: &Question<'_>, backend: &str, source: IpAddr) -> bool {
    let Question { client, v4, .. } = *question;
    let own = match (client, v4) {
        (Client::Pod(node), true) => format!("10.244.{node}.2"),
        (Client::Pod(node), false) => format!("fd00:244:{node}::2"),
        (Client::Backend, true) => "10.244.1.3".to_owned(),
        (Client::Backend, false) => "fd00:244:1::3".to_owned(),
        (Client::Node, v4) => FIRST_NODE[usize::from(!v4)].to_owned(),
        (Client::Outsider, true) => "172.18.0.101".to_owned(),
        (Client::Outsider, false) => "fd00:18::65".to_owned(),
    };
    let node = BACKENDS.iter().find(|(name, _)| *name == backend).map(|(_, node)| *node);
    let asked = question.asked_node();
    let passes = node == Some(asked) || client.is_pod() && client.node() == asked;
    source.to_string() == own && passes
}
