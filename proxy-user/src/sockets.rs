//! The node's own UDP sockets: which of them are connected to a backend that serves no longer, and
//! closing those.
//!
//! The sockets of pods are moved by the packet path, as their datagrams pass a device; those of
//! the node's processes pass none on the way in, so they are told: their calls fail, and they
//! connect anew. Reads everything from the kernel, so it does not matter what was missed before.

use crate::loader::{LoadError, SocketTable, diag};
use crate::pinned::PinnedMaps;
use proxy_ebpf::Proto;
use proxy_ebpf::choose::{Caller, Choice, Destination, NodePortRange, choose, find_frontend};
use proxy_ebpf::flow::End;
use proxy_ebpf::socket::Translation;

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
