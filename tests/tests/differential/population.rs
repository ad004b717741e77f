//! Random Services, from a seed.

use std::net::IpAddr;

/// The pods that may be behind a Service: their nodes, by number.
pub(crate) const BACKENDS: [(&str, u8); 4] = [("a-1", 1), ("a-2", 1), ("b-1", 2), ("b-2", 2)];

/// A Service, its ports being TCP and UDP 80.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) number: u8,
    pub(crate) kind: Kind,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    /// Whether it has an external IP.
    pub(crate) external_ip: bool,
    /// Whether sources are restricted to the outsider, for a load balancer's address.
    pub(crate) restricted: bool,
    /// Pods, by their index in [`BACKENDS`].
    pub(crate) endpoints: Vec<(usize, State)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// The state of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Ready,
    Unready,
    /// Terminating, and still serving.
    Draining,
    /// Terminating, and not serving any more.
    Dead,
}

/// An address at which a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Frontend {
    ClusterIp,
    ExternalIp,
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
        if self.external_ip {
            frontends.push(Frontend::ExternalIp);
        }
        if self.kind == Kind::LoadBalancer {
            frontends.push(Frontend::LoadBalancer);
        }
        if self.kind != Kind::ClusterIp {
            frontends.extend([Frontend::NodePort(1), Frontend::NodePort(2)]);
        }
        frontends
    }

    /// The address of a frontend that is not a node's.
    pub(crate) fn addr(&self, frontend: Frontend, v4: bool) -> IpAddr {
        let network: u8 = match frontend {
            Frontend::ExternalIp => 97,
            Frontend::LoadBalancer => 98,
            _ => 96,
        };
        let number = self.number;
        let text = if v4 {
            format!("10.{network}.0.{number}")
        } else {
            format!("fd00:{network}::{number:x}")
        };
        text.parse().expect("both forms are addresses")
    }

    pub(crate) fn node_port(&self) -> u16 {
        31_000 + u16::from(self.number)
    }

    /// The endpoints that count: those that are ready, else those that drain; on one node or all.
    pub(crate) fn usable(&self, node: Option<u8>) -> Vec<usize> {
        let of = |wanted: State| -> Vec<_> {
            let here = |pod: usize| node.is_none_or(|node| BACKENDS[pod].1 == node);
            let all = self.endpoints.iter().filter(|(pod, state)| *state == wanted && here(*pod));
            all.map(|(pod, _)| *pod).collect()
        };
        let ready = of(State::Ready);
        if ready.is_empty() { of(State::Draining) } else { ready }
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
        let endpoints = if self.one_in(6) {
            Vec::new()
        } else {
            (0..BACKENDS.len()).filter_map(|pod| self.endpoint(pod)).collect()
        };
        Service {
            number,
            kind,
            internal_local: self.one_in(3),
            // It means nothing for a plain ClusterIP.
            external_local: self.one_in(2) && (kind != Kind::ClusterIp || external_ip),
            external_ip,
            restricted: self.one_in(3) && kind == Kind::LoadBalancer,
            endpoints,
        }
    }

    fn endpoint(&mut self, pod: usize) -> Option<(usize, State)> {
        let state = match self.below(8) {
            0..=2 => State::Ready,
            3 => State::Unready,
            4 | 5 => State::Draining,
            6 => State::Dead,
            _ => return None,
        };
        Some((pod, state))
    }
}
