//! The Services of a measurement, as data: a crowd of the wanted size, and in its middle those
//! that are measured.
//!
//! Each has a number of endpoints; those of the crowd are addresses that nobody has. Gives
//! Kubernetes objects; the rules of kube-proxy are made in [`super::rules`].

use crate::sprint::Service;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};

/// The namespace of all.
pub(super) const NAMESPACE: &str = "bench";

/// A Service, and its endpoints.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// Its ClusterIP.
    pub(super) vip: Ipv4Addr,
    /// Its ports.
    pub(super) ports: Vec<Port>,
    /// Its pods.
    pub(super) endpoints: Vec<Endpoint>,
}

/// A port of an [`Entry`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    /// Its name.
    pub(super) name: &'static str,
    /// `TCP` or `UDP`.
    pub(super) protocol: &'static str,
    /// At the ClusterIP.
    pub(super) port: u16,
    /// At the pods.
    pub(super) target: u16,
    /// At the nodes, if it is a NodePort.
    pub(super) node_port: Option<u16>,
}

/// An endpoint of an [`Entry`].
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// Its address.
    pub(super) addr: Ipv4Addr,
    /// The node it runs on.
    pub(super) node: String,
}

/// The port of a measured Service at its ClusterIP.
pub(super) const fn cluster_port(service: Service) -> u16 {
    80 + service as u16
}

impl Entry {
    /// The measured Service of `number`, with every [`Service`] as a NodePort from `first` on.
    pub(super) fn measured(
        name: &str,
        vip: Ipv4Addr,
        first: u16,
        endpoints: Vec<Endpoint>,
    ) -> Self {
        let port = |service: Service| Port {
            name: match service {
                Service::Greet => "greet",
                Service::Echo => "echo",
                Service::Drain => "drain",
                Service::Datagram => "datagram",
                Service::Count => "count",
            },
            protocol: service.protocol(),
            port: cluster_port(service),
            target: service.port(),
            node_port: Some(first + service as u16),
        };
        Self { name: name.to_owned(), vip, ports: Service::ALL.map(port).into(), endpoints }
    }

    /// The Service of the crowd with `index`, at most 25 endpoints, the `moved`-th time that
    /// they are others.
    pub(super) fn crowd(index: usize, endpoints: usize, moved: u32) -> Self {
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + 32 * index as u32 + (moved & 1);
        let endpoints = (0..endpoints as u32).map(|number| Endpoint {
            addr: (first + number).into(),
            node: format!("elsewhere-{}", number % 8),
        });
        let port = Port { name: "http", protocol: "TCP", port: 80, target: 8080, node_port: None };
        Self {
            name: format!("crowd-{index}"),
            vip: (u32::from(Ipv4Addr::new(10, 96, 0, 1)) + index as u32).into(),
            ports: vec![port],
            endpoints: endpoints.collect(),
        }
    }

    /// Its Service object.
    pub(super) fn service(&self) -> Value {
        let node_ports = self.ports.iter().any(|port| port.node_port.is_some());
        let ports = self.ports.iter().map(|p| {
            let mut port = json!({
                "name": p.name, "protocol": p.protocol, "port": p.port, "targetPort": p.target,
            });
            if let Some(number) = p.node_port {
                port["nodePort"] = number.into();
            }
            port
        });
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(),
            "spec": {
                "type": if node_ports { "NodePort" } else { "ClusterIP" },
                "clusterIP": self.vip,
                "clusterIPs": [self.vip],
                "ipFamilies": ["IPv4"],
                "ports": ports.collect::<Vec<_>>(),
            },
        })
    }

    /// Its EndpointSlice, as the controller writes it, managed fields included.
    pub(super) fn slice(&self) -> Value {
        let mut metadata = self.metadata();
        metadata["labels"] = json!({ "kubernetes.io/service-name": self.name });
        metadata["managedFields"] = json!([{
            "manager": "kube-controller-manager", "operation": "Update",
            "apiVersion": "discovery.k8s.io/v1", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
                "f:metadata": { "f:labels": { ".": {}, "f:kubernetes.io/service-name": {} } },
            },
        }]);
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|p| json!({ "name": p.name, "protocol": p.protocol, "port": p.target }))
            .collect();
        let endpoints: Vec<_> = self.endpoints.iter().map(Endpoint::object).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": endpoints,
        })
    }

    fn metadata(&self) -> Value {
        json!({
            "namespace": NAMESPACE,
            "name": self.name,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        })
    }
}

impl Endpoint {
    fn object(&self) -> Value {
        json!({
            "addresses": [IpAddr::from(self.addr)],
            "nodeName": self.node,
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": {
                "kind": "Pod", "namespace": NAMESPACE, "name": format!("pod-{}", self.addr),
            },
        })
    }
}

/// A crowd with `measured` in its middle, `size` in all, where there is room for a crowd.
pub(super) fn population(size: usize, endpoints: usize, measured: &[Entry]) -> Vec<Entry> {
    let crowd = size.saturating_sub(measured.len());
    let entry = |index| Entry::crowd(index, endpoints, 0);
    let (before, after) = ((0..crowd / 2).map(entry), (crowd / 2..crowd).map(entry));
    before.chain(measured.iter().cloned()).chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn measured_services_are_in_the_middle_and_addresses_are_unique() {
        let measured = Entry::measured("m", Ipv4Addr::new(10, 111, 0, 1), 31_000, Vec::new());
        let all = population(10_000, 25, std::slice::from_ref(&measured));
        assert_eq!(all.len(), 10_000);
        let place = all.iter().position(|entry| entry.name == "m").unwrap();
        assert!((4_990..5_010).contains(&place), "{place}");
        let vips: BTreeSet<_> = all.iter().map(|entry| entry.vip).collect();
        let pods: BTreeSet<_> =
            all.iter().flat_map(|entry| &entry.endpoints).map(|e| e.addr).collect();
        assert_eq!((vips.len(), pods.len()), (10_000, 9_999 * 25));
        assert!(pods.iter().all(|addr| addr.octets()[0] == 10 && addr.octets()[1] >= 128));
    }
}
