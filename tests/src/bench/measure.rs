//! What is measured on the traffic: which way, what is done there, and what must come of it.

use super::surroundings::Surroundings;
use super::target::Target;
use crate::sprint::Deed;

/// The way that a client takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Way {
    /// From a pod to a ClusterIP, to pods on the same node.
    ClusterIp,
    /// From outside to a NodePort, to pods on the node that was asked: Shunt keeps the client's
    /// address.
    NodePortHere,
    /// From outside to a NodePort, to pods on another node: the client is hidden behind the node
    /// that was asked, or its replies would not come back by it.
    NodePortThere,
    /// From a pod to pods by their own addresses, past the proxy: what it costs its neighbours.
    Neighbour,
}

/// A measurement on the traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// Its name, for `--only` and in `report.json`.
    pub(super) key: &'static str,
    /// What it is, for people.
    pub(super) what: &'static str,
    /// The way.
    pub(super) way: Way,
    /// What is done.
    pub(super) deed: Deed,
    /// How many at once.
    pub(super) concurrency: usize,
    /// Whether the number of Services may matter to it, so that it runs at every size.
    pub(super) scales: bool,
    /// Whether the connections of others may matter to it.
    pub(super) in_a_crowd: bool,
    /// What is to be reached beside a CNI's rules.
    target: Option<Target>,
}

impl Measure {
    const fn new(key: &'static str, what: &'static str, way: Way, deed: Deed) -> Self {
        let (concurrency, scales, in_a_crowd, target) = (1, false, false, None);
        Self { key, what, way, deed, concurrency, scales, in_a_crowd, target }
    }

    const fn at_once(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    const fn at_every_size(self) -> Self {
        Self { scales: true, ..self }
    }

    const fn in_a_crowd(self) -> Self {
        Self { in_a_crowd: true, ..self }
    }

    const fn of_direct(self, at_least: f64) -> Self {
        Self { target: Some(Target::of_direct(at_least)), ..self }
    }

    const fn of_both(self, nftables: f64, direct: f64) -> Self {
        let target = Target::Shares { of_direct: Some(direct), of_nftables: Some(nftables) };
        Self { target: Some(target), ..self }
    }

    /// What is to be reached in `surroundings`. Where conntrack is off without a proxy, new
    /// connections to a NodePort that keeps the client's address are compared with those of other
    /// proxies alone: all of them have it on.
    pub(super) fn target(&self, surroundings: Surroundings) -> Option<Target> {
        match self.target {
            Some(Target::Shares { of_nftables: Some(bar), .. })
                if surroundings == Surroundings::Bare
                    && self.way == Way::NodePortHere
                    && self.deed == Deed::Connect =>
            {
                Some(Target::Shares { of_direct: None, of_nftables: Some(bar) })
            }
            target => target,
        }
    }

    /// What the count of a second is called.
    pub(super) const fn unit(&self) -> &'static str {
        match self.deed {
            Deed::Stream => "GB/s",
            _ => "/s",
        }
    }

    /// How many of the counted things are one unit.
    pub(super) const fn scale(&self) -> f64 {
        if matches!(self.deed, Deed::Stream) { 1e9 } else { 1.0 }
    }
}

/// All measurements on the traffic, in the order of the report.
pub(super) const MEASURES: [Measure; 18] = {
    use Deed::{Connect, ConnectInOrder, Datagram, Flood, NewDatagram, Request, Stream};
    use Way::{ClusterIp, Neighbour, NodePortHere, NodePortThere};
    [
        Measure::new("clusterip-connect", "ClusterIP, connects", ClusterIp, Connect)
            .at_every_size()
            .of_both(1.0, 0.97),
        Measure::new("clusterip-connect-32", "ClusterIP, connects ×32", ClusterIp, Connect)
            .at_once(32)
            .at_every_size()
            .of_both(1.0, 0.97),
        Measure::new("nodeport-connect", "NodePort, connects", NodePortHere, Connect)
            .at_every_size()
            .in_a_crowd()
            .of_both(1.03, 0.95),
        Measure::new("nodeport-connect-32", "NodePort, connects ×32", NodePortHere, Connect)
            .at_once(32)
            .at_every_size()
            .in_a_crowd()
            .of_both(1.03, 0.95),
        Measure::new("nodeport-hidden", "NodePort, hidden, connects", NodePortThere, Connect)
            .in_a_crowd()
            .of_both(1.0, 0.90),
        Measure::new(
            "nodeport-hidden-32",
            "NodePort, hidden, connects ×32",
            NodePortThere,
            Connect,
        )
        .at_once(32)
        .in_a_crowd()
        .of_both(1.0, 0.90),
        Measure::new(
            "nodeport-hidden-in-order",
            "NodePort, hidden, in order ×32",
            NodePortThere,
            ConnectInOrder,
        )
        .at_once(32)
        .of_both(1.0, 0.90),
        Measure::new("clusterip-request", "ClusterIP, requests, one socket", ClusterIp, Request)
            .of_direct(0.98),
        Measure::new("nodeport-request", "NodePort, requests, one socket", NodePortHere, Request)
            .in_a_crowd()
            .of_direct(0.98),
        Measure::new("clusterip-udp", "ClusterIP, UDP, one socket", ClusterIp, Datagram)
            .of_direct(0.98),
        Measure::new("nodeport-udp", "NodePort, UDP, one socket", NodePortHere, Datagram)
            .in_a_crowd()
            .of_direct(0.98),
        Measure::new("clusterip-stream", "ClusterIP, one stream", ClusterIp, Stream)
            .of_direct(0.98),
        Measure::new("nodeport-stream", "NodePort, one stream", NodePortHere, Stream)
            .of_direct(0.98),
        Measure::new("clusterip-udp-new", "ClusterIP, UDP, a socket each", ClusterIp, NewDatagram)
            .at_every_size()
            .of_both(1.0, 0.95),
        Measure::new("nodeport-udp-new", "NodePort, UDP, a socket each", NodePortHere, NewDatagram)
            .in_a_crowd()
            .of_both(1.0, 0.95),
        Measure::new("nodeport-udp-flood", "NodePort, UDP one way", NodePortHere, Flood),
        Measure::new("neighbour-connect", "No service, connects to a pod", Neighbour, Connect),
        Measure::new("neighbour-stream", "No service, one stream to a pod", Neighbour, Stream),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direct_path_is_no_bar_for_a_node_port_where_it_has_no_conntrack() {
        let target = |key: &str, surroundings| {
            let measure = MEASURES.iter().find(|measure| measure.key == key).unwrap();
            measure.target(surroundings).unwrap().direct_words()
        };
        assert_eq!(target("nodeport-connect", Surroundings::Cni), "≥ 0.95");
        assert_eq!(target("nodeport-connect", Surroundings::Bare), "");
        assert_eq!(target("clusterip-connect", Surroundings::Bare), "≥ 0.97");
    }
}
