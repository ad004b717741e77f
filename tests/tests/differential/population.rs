//! Random Services, from a seed.

use std::net::IpAddr;

/// What may be behind a Service, and its node by number: pods, and the nodes themselves.
pub(crate) const BACKENDS: [(&str, u8); 6] =
    [("a-1", 1), ("a-2", 1), ("b-1", 2), ("b-2", 2), ("node-1", 1), ("node-2", 2)];
/// The first node and its pods, in each family.
pub(crate) const FIRST_NODES: [[&str; 2]; 2] =
    [["172.18.0.11/32", "10.244.1.0/24"], ["fd00:18::b/128", "fd00:244:1::/64"]];
/// The first node's addresses.
pub(crate) const FIRST_NODE: [&str; 2] = ["172.18.0.11", "fd00:18::b"];

/// A Service, its ports being TCP and UDP 80.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) number: u8,
    pub(crate) kind: Kind,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    /// Whether a client keeps its backend.
    pub(crate) is_sticky: bool,
    /// Whether it has an external IP.
    pub(crate) external_ip: bool,
    /// Whether the first node's address is another external IP.
    pub(crate) at_node: bool,
    /// Whether it has no NodePorts though it is a load balancer.
    pub(crate) without_node_ports: bool,
    /// Whether the load balancer wants to see all traffic itself (`ipMode: Proxy`).
    pub(crate) is_proxied: bool,
    pub(crate) ranges: Ranges,
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Whom a load balancer's address lets in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ranges {
    Everybody,
    /// The client outside.
    Outsider,
    /// The client outside by IPv4, and everybody by IPv6.
    OutsiderByIpv4,
    /// The first node and its pods.
    FirstNode,
}

/// An endpoint of a Service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    /// An index in [`BACKENDS`].
    pub(crate) backend: usize,
    pub(crate) state: State,
    /// The node for whose zone it is meant, if for one.
    pub(crate) hint: Option<u8>,
}

/// The state of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Ready,
    /// Nothing is said of it, which means ready.
    Unstated,
    /// Said to be ready while it ends, for a Service that publishes such addresses.
    Published,
    Unready,
    /// Terminating, and still serving.
    Draining,
    /// Terminating, and not serving any more.
    Dead,
}

impl State {
    const fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Unstated | Self::Published)
    }
}

/// An address at which a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Frontend {
    ClusterIp,
    ExternalIp,
    /// An external IP that is the first node's own address.
    AtNode,
    LoadBalancer,
    /// At the node of that number.
    NodePort(u8),
    /// A port of the ClusterIP that the Service does not have.
    UnservedPort,
}

impl Service {
    /// The frontends that it has, and one that it has not.
    pub(crate) fn frontends(&self) -> Vec<Frontend> {
        let mut frontends = vec![Frontend::ClusterIp, Frontend::UnservedPort];
        frontends.extend(self.external());
        if self.has_node_ports() {
            frontends.extend([Frontend::NodePort(1), Frontend::NodePort(2)]);
        }
        frontends
    }

    /// Its external addresses.
    pub(crate) fn external(&self) -> Vec<Frontend> {
        let is_balanced = self.kind == Kind::LoadBalancer && !self.is_proxied;
        let all = [
            (self.external_ip, Frontend::ExternalIp),
            (self.at_node, Frontend::AtNode),
            (is_balanced, Frontend::LoadBalancer),
        ];
        all.into_iter().filter_map(|(has, frontend)| has.then_some(frontend)).collect()
    }

    pub(crate) fn has_node_ports(&self) -> bool {
        self.kind != Kind::ClusterIp && !self.without_node_ports
    }

    /// The address of a frontend that is not a NodePort.
    pub(crate) fn addr(&self, frontend: Frontend, v4: bool) -> IpAddr {
        let network: u8 = match frontend {
            Frontend::ExternalIp => 97,
            Frontend::LoadBalancer => 98,
            _ => 96,
        };
        let number = self.number;
        let text = match (frontend, v4) {
            (Frontend::AtNode, _) => FIRST_NODE[usize::from(!v4)].to_owned(),
            (_, true) => format!("10.{network}.0.{number}"),
            (_, false) => format!("fd00:{network}::{number:x}"),
        };
        text.parse().expect("all forms are addresses")
    }

    pub(crate) fn node_port(&self) -> u16 {
        31_000 + u16::from(self.number)
    }

    /// The backends for the policy Cluster, for who asks `node`: those that are ready, of them
    /// those meant for its zone if all are meant for one; else those that drain.
    pub(crate) fn cluster(&self, node: u8) -> Vec<usize> {
        let ready: Vec<_> = self.endpoints.iter().filter(|e| e.state.is_ready()).collect();
        let is_hinted = ready.iter().all(|endpoint| endpoint.hint.is_some());
        let here: Vec<_> =
            ready.iter().filter(|e| e.hint == Some(node)).map(|e| e.backend).collect();
        if is_hinted && !here.is_empty() {
            return here;
        }
        self.usable(|_| true)
    }

    /// The backends for the policy Local on `node`.
    pub(crate) fn local(&self, node: u8) -> Vec<usize> {
        self.usable(|endpoint| BACKENDS[endpoint.backend].1 == node)
    }

    /// The endpoints that count among `those`: that are ready, else those that drain.
    fn usable(&self, those: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
        let of = |counts: fn(State) -> bool| -> Vec<_> {
            let all = self.endpoints.iter().filter(|e| counts(e.state) && those(e));
            all.map(|endpoint| endpoint.backend).collect()
        };
        let ready = of(State::is_ready);
        if ready.is_empty() { of(|state| state == State::Draining) } else { ready }
    }
}

/// Draws `count` Services.
pub(crate) fn draw(seed: u64, count: u8) -> Vec<Service> {
    let mut random = Random(seed);
    (1..=count).map(|number| random.service(number)).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }

    fn service(&mut self, number: u8) -> Service {
        let kind = match self.below(4) {
            0 => Kind::ClusterIp,
            1 => Kind::NodePort,
            _ => Kind::LoadBalancer,
        };
        let external_ip = self.one_in(2);
        // Two Services may not have one address.
        let at_node = number == 1 && self.one_in(2);
        let endpoints = if self.one_in(6) { Vec::new() } else { self.endpoints() };
        let is_balancer = kind == Kind::LoadBalancer;
        let ranges = match self.below(6) {
            0 if is_balancer => Ranges::Outsider,
            1 if is_balancer => Ranges::OutsiderByIpv4,
            2 if is_balancer => Ranges::FirstNode,
            _ => Ranges::Everybody,
        };
        Service {
            number,
            kind,
            internal_local: self.one_in(3),
            // It means nothing for a plain ClusterIP.
            external_local: self.one_in(2) && (kind != Kind::ClusterIp || external_ip || at_node),
            is_sticky: self.one_in(5),
            external_ip,
            at_node,
            without_node_ports: self.one_in(4) && is_balancer,
            is_proxied: self.one_in(6) && is_balancer,
            ranges,
            endpoints,
        }
    }

    fn endpoints(&mut self) -> Vec<Endpoint> {
        let are_hinted = self.one_in(3);
        let mut endpoints = Vec::new();
        for backend in 0..BACKENDS.len() {
            let hint = are_hinted && !self.one_in(8);
            let hint = hint.then_some(1 + u8::from(self.one_in(2)));
            if let Some(state) = self.state(backend) {
                endpoints.push(Endpoint { backend, state, hint });
            }
        }
        endpoints
    }

    fn state(&mut self, backend: usize) -> Option<State> {
        // Most Services have pods alone.
        if BACKENDS[backend].0.starts_with("node") && !self.one_in(3) {
            return None;
        }
        match self.below(10) {
            0..=2 => Some(State::Ready),
            3 => Some(State::Unready),
            4 | 5 => Some(State::Draining),
            6 => Some(State::Dead),
            7 => Some(if self.one_in(2) { State::Unstated } else { State::Published }),
            _ => None,
        }
    }
}
