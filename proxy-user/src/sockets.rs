//! The node's own sockets: which UDP ones are connected to a backend that serves no longer, and
//! closing those; and which listen where a NodePort takes what is sent to them.
//!
//! The sockets of pods are moved by the packet path, as their datagrams pass a device; those of
//! the node's processes pass none on the way in, so they are told: their calls fail, and they
//! connect anew. Reads everything from the kernel, so it does not matter what was missed before.

use crate::loader::{LoadError, SocketTable, diag};
use crate::model::Warning;
use crate::pinned::PinnedMaps;
use proxy_ebpf::choose::{Caller, Choice, Destination, NodePortRange, Tables as _};
use proxy_ebpf::choose::{choose, find_frontend};
use proxy_ebpf::flow::End;
use proxy_ebpf::frontend::Scope;
use proxy_ebpf::service::{ServiceId, unpadded};
use proxy_ebpf::slot::RangeHeader;
use proxy_ebpf::socket::Translation;
use proxy_ebpf::{Addr, Proto};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Closes the connected UDP sockets that talk to nobody while their service has somebody. Returns
/// how many were closed.
pub fn close_stale(
    sockets: &SocketTable,
    maps: &PinnedMaps,
    node_ports: NodePortRange,
) -> Result<u64, LoadError> {
    let remembered = sockets.udp_peers()?;
    if remembered.is_empty() {
        return Ok(0);
    }
    let connected = diag::connected_udp()
        .map_err(|e| LoadError::Kernel("list the node's connected UDP sockets", e))?;
    let mut closed = 0;
    for socket in connected {
        let translation =
            remembered.get(&socket.cookie).and_then(|peers| peers.receive_from(socket.peer));
        if translation.is_some_and(|translation| is_stale(&translation, maps, node_ports)) {
            diag::destroy(&socket).map_err(|e| {
                LoadError::Kernel(
                    "close UDP sockets whose backend is gone: is the kernel without \
                     CONFIG_INET_DIAG_DESTROY?",
                    e,
                )
            })?;
            closed += 1;
        }
    }
    Ok(closed)
}

/// Whether the backend serves no longer, and another one does. What cannot be read is not stale.
fn is_stale(translation: &Translation, maps: &PinnedMaps, node_ports: NodePortRange) -> bool {
    let End { addr, port } = translation.backend();
    match maps.backend(translation.backend_id) {
        Ok(state) if !state.serves(translation.service, addr, port) => {}
        _ => return false,
    }
    let End { addr, port } = translation.frontend();
    let to = Destination { addr, port, proto: Proto::UDP };
    find_frontend(maps, to, node_ports, true)
        .and_then(|(_, value)| choose(maps, value, Caller::Internal, 0, |_, _| None))
        .is_some_and(|choice| matches!(choice, Choice::Backend(..)))
}

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
