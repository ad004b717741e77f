//! The health check of one Service: what a load balancer learns from `healthCheckNodePort`.
//!
//! A pure function of the Service and its slices. It counts addresses, not ports, and ready
//! endpoints alone: one that terminates still gets traffic and should get no more of it.

use crate::model::{Service, Slice};
use crate::tables::{Family, HealthCheck};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The health check of `service` with its `slices` on `node`, if it has one.
pub(super) fn plan(service: &Service, slices: &[Arc<Slice>], node: &str) -> Option<HealthCheck> {
    let port = service.health_check_node_port?;
    let mut ready: BTreeMap<Family, BTreeSet<IpAddr>> =
        service.cluster_ips.iter().map(|&ip| (Family::of(ip.into()), BTreeSet::new())).collect();
    if ready.is_empty() {
        return None;
    }
    // Endpoints without a port serve nothing.
    for slice in slices.iter().filter(|slice| !slice.headless && !slice.ports.is_empty()) {
        for endpoint in &slice.endpoints {
            if endpoint.conditions.ready
                && endpoint.placement.node.as_deref() == Some(node)
                && let Some(addrs) = ready.get_mut(&Family::of(endpoint.addr.into()))
            {
                addrs.insert(endpoint.addr);
            }
        }
    }
    Some(HealthCheck {
        port,
        ready: ready.into_iter().map(|(f, addrs)| (f, addrs.len())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Placement;
    use crate::model::examples::{service, slice};

    const VIP: [u8; 4] = [10, 96, 0, 1];
    const PODS: [[u8; 4]; 4] = [[10, 1, 0, 1], [10, 1, 0, 2], [10, 1, 0, 3], [10, 1, 0, 4]];

    /// Scenario S12.
    #[test]
    fn addresses_of_ready_endpoints_on_the_node_count_once() {
        let mut service = service("web", VIP);
        let mut one = slice("web-1", "web", PODS);
        let place = |endpoint: &mut crate::model::Endpoint, node: &str| {
            let node = Some(node.into());
            endpoint.placement = Placement { node, ..Placement::default() }.into();
            endpoint.conditions.ready = true;
        };
        for (endpoint, node) in one.endpoints.iter_mut().zip(["a", "a", "a", "b"]) {
            place(endpoint, node);
        }
        one.endpoints[2].conditions.ready = false;
        one.endpoints[2].conditions.terminating = true;
        let two = slice("web-2", "web", [PODS[0]]);
        let mut two = Slice { ports: one.ports.clone(), ..two };
        place(&mut two.endpoints[0], "a");
        let slices = [Arc::new(one), Arc::new(two)];
        assert_eq!(plan(&service, &slices, "a"), None, "no port, no check");
        service.health_check_node_port = Some(31_000);
        let ready = |node| plan(&service, &slices, node).unwrap().ready;
        assert_eq!(ready("a"), [(Family::V4, 2)].into());
        assert_eq!(ready("b"), [(Family::V4, 1)].into());
        assert_eq!(ready("c"), [(Family::V4, 0)].into());
    }

    #[test]
    fn a_service_has_a_check_in_each_of_its_families_and_none_without_an_address() {
        let mut service = service("web", VIP);
        service.health_check_node_port = Some(31_000);
        service.cluster_ips.push("fd00::1".parse().unwrap());
        let ready = plan(&service, &[], "a").unwrap().ready;
        assert_eq!(ready, [(Family::V4, 0), (Family::V6, 0)].into());
        service.cluster_ips.clear();
        assert_eq!(plan(&service, &[], "a"), None);
    }
}
