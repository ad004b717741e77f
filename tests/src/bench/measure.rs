//! What is measured on the traffic: which way, what is done there, and what must come of it.

use super::target::Target;
use crate::sprint::Deed;

/// The way that a client takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Way {
    /// From a pod to a ClusterIP, to pods on the same node.
    ClusterIp,
    /// From outside to a NodePort, to pods on the node that was asked.
    NodePortHere,
    /// From outside to a NodePort, to pods on another node.
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
    /// What is to be reached.
    pub(super) target: Option<Target>,
}

impl Measure {
    const fn new(key: &'static str, what: &'static str, way: Way, deed: Deed) -> Self {
        Self { key, what, way, deed, concurrency: 1, scales: false, target: None }
    }

    const fn at_once(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    const fn at_every_size(self) -> Self {
        Self { scales: true, ..self }
    }

    const fn at_least(self, of_direct: f64) -> Self {
        Self { target: Some(Target::OfDirect { at_least: of_direct, beat_proxies: false }), ..self }
    }

    const fn at_least_and_best(self, of_direct: f64) -> Self {
        Self { target: Some(Target::OfDirect { at_least: of_direct, beat_proxies: true }), ..self }
    }

    /// Whether baselines are compared even where there is little time.
    pub(super) const fn compares(&self) -> bool {
        self.scales || matches!(self.target, Some(Target::OfDirect { beat_proxies: true, .. }))
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
pub(super) const MEASURES: [Measure; 17] = {
    use Deed::{Connect, ConnectInOrder, Datagram, Flood, NewDatagram, Request, Stream};
    use Way::{ClusterIp, Neighbour, NodePortHere, NodePortThere};
    [
        Measure::new("clusterip-connect", "ClusterIP, connects", ClusterIp, Connect)
            .at_every_size()
            .at_least_and_best(0.97),
        Measure::new("clusterip-connect-32", "ClusterIP, connects ×32", ClusterIp, Connect)
            .at_once(32)
            .at_every_size()
            .at_least_and_best(0.97),
        Measure::new("nodeport-connect", "NodePort, connects", NodePortHere, Connect)
            .at_every_size()
            .at_least_and_best(0.90),
        Measure::new("nodeport-connect-32", "NodePort, connects ×32", NodePortHere, Connect)
            .at_once(32)
            .at_every_size()
            .at_least_and_best(0.90),
        Measure::new(
            "nodeport-connect-there",
            "NodePort, connects, remote",
            NodePortThere,
            Connect,
        )
        .at_least_and_best(0.90),
        Measure::new(
            "nodeport-connect-there-32",
            "NodePort, connects, remote ×32",
            NodePortThere,
            Connect,
        )
        .at_once(32)
        .at_least_and_best(0.90),
        Measure::new(
            "nodeport-in-order",
            "NodePort, server closes ×32",
            NodePortThere,
            ConnectInOrder,
        )
        .at_once(32)
        .at_least(0.90),
        Measure::new("clusterip-request", "ClusterIP, requests, one socket", ClusterIp, Request)
            .at_least(1.0),
        Measure::new("nodeport-request", "NodePort, requests, one socket", NodePortHere, Request)
            .at_least(0.95),
        Measure::new("clusterip-stream", "ClusterIP, one stream", ClusterIp, Stream).at_least(1.0),
        Measure::new("nodeport-stream", "NodePort, one stream", NodePortHere, Stream)
            .at_least(0.95),
        Measure::new("clusterip-udp-new", "ClusterIP, UDP, a socket each", ClusterIp, NewDatagram)
            .at_every_size()
            .at_least(0.95),
        Measure::new("clusterip-udp", "ClusterIP, UDP, one socket", ClusterIp, Datagram),
        Measure::new("nodeport-udp", "NodePort, UDP, one socket", NodePortHere, Datagram),
        Measure::new("nodeport-udp-flood", "NodePort, UDP one way", NodePortHere, Flood),
        Measure::new("neighbour-connect", "No service, connects to a pod", Neighbour, Connect),
        Measure::new("neighbour-stream", "No service, one stream to a pod", Neighbour, Stream),
    ]
};
