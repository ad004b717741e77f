//! The node's own sockets: those that listen where a NodePort takes what is sent to them.

use crate::loader::{LoadError, diag};
use crate::model::Warning;
use crate::pinned::PinnedMaps;
use proxy_ebpf::choose::{Destination, NodePortRange, Tables as _, find_frontend};
use proxy_ebpf::frontend::Scope;
use proxy_ebpf::service::{ServiceId, unpadded};
use proxy_ebpf::slot::RangeHeader;
use proxy_ebpf::{Addr, End};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// A warning for each process of the node that listens where a NodePort is: what is sent there goes
/// to the Service, and the process never hears of it.
pub fn shadowed(
    maps: &PinnedMaps,
    node_ports: NodePortRange,
) -> Result<BTreeSet<Warning>, LoadError> {
    let listening = diag::listening()
        .map_err(|e| LoadError::Kernel("list the node's sockets that listen", e))?;
    // Whoever cannot read the maps is told so elsewhere.
    let (Ok(own), Ok(services)) = (maps.node_addrs(), maps.services()) else {
        return Ok(BTreeSet::new());
    };
    let mut warnings = BTreeSet::new();
    for (proto, End { addr, port }) in listening {
        if !(node_ports.first..=node_ports.last).contains(&port.number()) {
            continue;
        }
        // One of IPv6 that listens everywhere hears IPv4 too.
        let is_at =
            |own: &&Addr| **own == addr || addr.is_unspecified() && (own.is_v4() || !addr.is_v4());
        let taken = own.keys().filter(is_at).find_map(|addr| {
            service_at(maps, node_ports, Destination { addr: *addr, port, proto })
        });
        if let Some(info) = taken.and_then(|id| services.get(&id)) {
            let (namespace, name) = (unpadded(&info.namespace), unpadded(&info.name));
            let at = SocketAddr::new(addr.into(), port.number());
            warnings.insert(Warning {
                subject: format!("Service {namespace}/{name}"),
                message: format!(
                    "a process of this node listens at {at}/{proto}, which is a NodePort: it gets \
                     nothing that is sent there; give one of the two another port"
                ),
            });
        }
    }
    Ok(warnings)
}

/// The service whose NodePort `to` is.
fn service_at(maps: &PinnedMaps, node_ports: NodePortRange, to: Destination) -> Option<ServiceId> {
    let (key, value) = find_frontend(maps, to, node_ports, false)?;
    (key.scope() == Scope::Node)
        .then(|| maps.slot(value.range()).map(|slot| RangeHeader::from_slot(&slot).service))?
}
