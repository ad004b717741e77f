//! `shunt explain`: what the programs do with a new connection, step by step, and why.
//!
//! Runs the programs' own decision ([`find_frontend`], [`choose`]) on a snapshot, and adds the
//! names of the objects behind it. Says nothing of established flows: they stay where they are.

mod reasons;

use super::backends::state;
use super::{Document, FrontendRef, Output, Snapshot, socket};
use crate::pinned::Range;
use proxy_ebpf::choose::{
    Caller, Choice, Destination, NodePortRange, Sender, choose, find_frontend, hides_client,
    uses_local_set,
};
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey, FrontendValue, Scope};
use proxy_ebpf::slot::{BackendFlags, Slot};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// The agent makes no frontend for a NodePort outside its range, so the range needs not be known.
const ANY_NODE_PORT: NodePortRange = NodePortRange { first: 0, last: u16::MAX };

/// How many backends the text lists; the other formats list all.
const LISTED: usize = 10;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// The destination, as the caller writes it.
    pub to: Destination,
    /// The caller's address; `None` for a process on this node.
    pub from: Option<IpAddr>,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Explanation {
    /// The destination, `address:port`.
    pub destination: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The caller, in words.
    pub from: String,
    /// The frontend at the destination; absent if there is none at this port.
    pub frontend: Option<FrontendRef>,
    /// The service, `namespace/name` or `namespace/name:port`.
    pub service: Option<String>,
    /// Seconds for which a client stays with its backend, 0 for a new choice each time.
    pub affinity_seconds: u32,
    /// What happens: one answer, or two where it depends on whether the caller is inside the
    /// cluster and that is not known. Empty if Shunt leaves such a connection alone.
    pub answers: Vec<Answer>,
    /// The steps of the decision, in sentences.
    pub steps: Vec<Step>,
    /// What may have been meant instead, in sentences; only without a frontend.
    pub nearest: Vec<String>,
}

/// A step of the decision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    /// What is decided: `frontend`, `service`, `path`, `sources`, `policy`.
    pub step: &'static str,
    /// How.
    pub finding: String,
}

/// What happens to the connections of a group of callers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    /// `inside` (pods and this node), `outside`, or `anyone`.
    pub caller: &'static str,
    /// `forwarded`, `refused`, `dropped`; `inconsistent` if the maps contradict themselves.
    pub verdict: &'static str,
    /// The set that is chosen from: `cluster`, `local` or, where it does not come to a choice,
    /// `none`.
    pub set: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// The backends that may be chosen, each as likely as the other.
    pub backends: Vec<Candidate>,
}

impl Answer {
    /// The same for every caller, and from no set.
    fn before_choice(verdict: &'static str, reason: &str) -> Self {
        let reason = reason.to_owned();
        Self { caller: "anyone", verdict, set: "none", reason, backends: Vec::new() }
    }
}

/// A backend that may be chosen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Candidate {
    /// Its address and port.
    pub address: SocketAddr,
    /// `ready`; `terminating` if it still serves.
    pub state: &'static str,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether it sees this node's address instead of the client's.
    pub hides_client: bool,
}

/// Explains what happens to a new connection.
pub fn explain(snapshot: &Snapshot, question: Question) -> Explanation {
    let Question { to, from } = question;
    let (caller, from_words) = reasons::caller(snapshot, from);
    // Loopback reaches NodePorts from the node's own network namespace only.
    let loopback = from.is_none_or(|from| from.is_loopback());
    let found = find_frontend(snapshot, to, ANY_NODE_PORT, loopback);
    let mut explanation = Explanation {
        destination: SocketAddr::new(to.addr.into(), to.port.number()),
        protocol: to.proto.to_string(),
        from: from_words,
        frontend: None,
        service: None,
        affinity_seconds: 0,
        answers: Vec::new(),
        steps: Vec::new(),
        nearest: Vec::new(),
    };
    let mut step = |finding: &str| {
        explanation.steps.push(Step { step: "frontend", finding: finding.to_owned() });
        explanation.nearest = reasons::nearest(snapshot, to);
    };
    match found {
        Some((key, _)) if key.scope() == Scope::Address => {
            step("none at this port and protocol of a ClusterIP");
            explanation.answers =
                vec![Answer::before_choice("refused", "the Service has no such port")];
        }
        Some((key, value)) => {
            follow(snapshot, question, caller, (key, value), &mut explanation);
        }
        None => match snapshot.service_cidrs.iter().find(|cidr| cidr.contains(to.addr.into())) {
            Some(cidr) => {
                step(&format!("none, and the address is in the ServiceCIDR {cidr}"));
                let reason = "no Service has this address";
                explanation.answers = vec![Answer::before_choice("dropped", reason)];
            }
            None => {
                step("none at this address, port and protocol: Shunt leaves the connection alone");
            }
        },
    }
    explanation
}

/// Follows the decision from a frontend to the backends.
fn follow(
    snapshot: &Snapshot,
    Question { to, from }: Question,
    caller: Option<Caller>,
    (key, value): (FrontendKey, FrontendValue),
    explanation: &mut Explanation,
) {
    explanation.frontend = Some(FrontendRef::new(&key, value));
    let mut step = |step, finding| explanation.steps.push(Step { step, finding });
    let kind = value.flags().kind();
    step(
        "frontend",
        match key.scope() {
            Scope::Service | Scope::Address => format!("{kind} {}", socket(to.addr, to.port)),
            Scope::Node if to.addr.is_loopback() => {
                format!("NodePort {}, on loopback for processes of this node", to.port)
            }
            Scope::Node => format!("NodePort {}, which {} of this node takes", to.port, to.addr),
        },
    );
    if let Some(range) = snapshot.range_of(value) {
        let id = range.header.service;
        step("service", format!("{} (id {})", snapshot.name(id), id.0));
        explanation.service = Some(snapshot.name(id));
        explanation.affinity_seconds = range.header.affinity_seconds;
    }
    if value.flags().has(FrontendFlags::RESTRICTED) {
        let (admitted, finding) = reasons::sources(snapshot, value, from);
        explanation.steps.push(Step { step: "sources", finding });
        if !admitted {
            let reason = "loadBalancerSourceRanges do not hold the source";
            explanation.answers = vec![Answer::before_choice("dropped", reason)];
            return;
        }
    }
    explanation
        .steps
        .push(Step { step: "policy", finding: reasons::policy(value.flags()).to_owned() });

    let finding = reasons::path(snapshot, to, value, from);
    explanation.steps.push(Step { step: "path", finding });
    let callers = match caller {
        _ if !value.flags().has(FrontendFlags::EXTERNAL_LOCAL) => {
            vec![(Caller::Internal, "anyone")]
        }
        Some(Caller::Internal) => vec![(Caller::Internal, "inside")],
        Some(Caller::External) => vec![(Caller::External, "outside")],
        None => vec![(Caller::Internal, "inside"), (Caller::External, "outside")],
    };
    let answer = |(caller, who)| {
        let is_inside = caller == Caller::Internal && who == "inside";
        let sender = reasons::sender(snapshot, from, is_inside);
        answer(snapshot, value, (caller, who), sender)
    };
    explanation.answers = callers.into_iter().map(answer).collect();
}

fn answer(
    snapshot: &Snapshot,
    value: FrontendValue,
    (caller, who): (Caller, &'static str),
    sender: Option<Sender>,
) -> Answer {
    let local = uses_local_set(value.flags(), caller);
    let slots: &[Slot] = match snapshot.range_of(value) {
        Some(range) if local => range.local(),
        Some(range) => range.cluster(),
        None => &[],
    };
    let set = if local { "local" } else { "cluster" };
    let (verdict, reason) = match choose(snapshot, value, caller, 0, |_, _| None) {
        Some(Choice::Backend(..)) => ("forwarded", forwarded(slots, local)),
        Some(Choice::Refuse(_)) => {
            ("refused", "no endpoint of the service is ready or still serving, on any node".into())
        }
        Some(Choice::Drop(_)) => {
            let elsewhere =
                snapshot.range_of(value).map_or(0, |range: &Range| range.cluster().len());
            (
                "dropped",
                format!(
                    "the policy wants an endpoint on this node, and all that serve \
                     ({elsewhere}) run on others"
                ),
            )
        }
        None => (
            "inconsistent",
            "the frontend names slots that are not there: the agent's drift check repairs it, \
             see `shunt status`"
                .into(),
        ),
    };
    let backends = slots.iter().map(|slot| candidate(value, slot, sender)).collect();
    Answer { caller: who, verdict, set, reason, backends }
}

/// The backend in `slot`, for `sender`; a process of this node is none, and has no address to hide.
fn candidate(value: FrontendValue, slot: &Slot, sender: Option<Sender>) -> Candidate {
    let hides = |sender| hides_client(value.flags(), sender, slot, false, || false);
    Candidate {
        hides_client: sender.is_some_and(hides),
        address: SocketAddr::new(slot.addr.into(), slot.port.number()),
        state: state(slot.flags),
        local: slot.flags.has(BackendFlags::LOCAL),
    }
}

fn forwarded(slots: &[Slot], local: bool) -> String {
    let ready = slots.iter().filter(|slot| slot.flags.has(BackendFlags::READY)).count();
    let place = if local { " on this node" } else { "" };
    match (slots.len(), ready) {
        (1, 1) => format!("to the one ready endpoint{place}"),
        (all, ready) if all == ready => {
            format!("to one of {all} ready endpoints{place}, at random")
        }
        (1, _) => format!("to the one endpoint{place} that still serves; it is terminating"),
        (all, _) => format!(
            "to one of {all} endpoints{place} that still serve, at random; all are terminating"
        ),
    }
}

impl Document for Explanation {
    fn text(&self, _: Output) -> String {
        let mut text = format!("{}/{} from {}\n\n", self.destination, self.protocol, self.from);
        for (number, Step { step, finding }) in self.steps.iter().enumerate() {
            text += &format!("{}. {step:<9} {finding}\n", number + 1);
        }
        for answer in &self.answers {
            let who = match answer.caller {
                "inside" => "pods and this node: ",
                "outside" => "callers from outside the cluster: ",
                _ => "",
            };
            text += &format!("\n{who}{}: {}\n", answer.verdict, answer.reason);
            for backend in answer.backends.iter().take(LISTED) {
                let place = if backend.local { ", on this node" } else { "" };
                let seen = if backend.hides_client { ", sees this node as the client" } else { "" };
                text += &format!("   {}  {}{place}{seen}\n", backend.address, backend.state);
            }
            if let Some(more @ 1..) = answer.backends.len().checked_sub(LISTED) {
                text += &format!("   and {more} more (-o json lists all)\n");
            }
        }
        let forwarded = self.answers.iter().any(|answer| answer.verdict == "forwarded");
        if forwarded && self.affinity_seconds > 0 {
            text += &format!(
                "\na client stays with its backend for {} (session affinity)\n",
                super::span(self.affinity_seconds.into())
            );
        }
        for near in &self.nearest {
            text += &format!("   {near}\n");
        }
        text
    }
}
