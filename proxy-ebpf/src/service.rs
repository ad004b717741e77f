//! Services as the maps know them: a number, names for people, and counters.

use crate::addr::Proto;

/// The number of one port of one Service in one family: what kube-proxy calls a service port.
/// Stable over updates and restarts.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ServiceId(pub u32);

/// The longest namespace, Service or port name, in bytes (an RFC 1123 label).
pub const NAME_LEN: usize = 63;

/// The names behind a [`ServiceId`]. The programs never read it; the command line does, also
/// when no agent runs, and the next agent finds its numbers again by it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceInfo {
    /// The namespace, zero-padded.
    pub namespace: [u8; NAME_LEN],
    /// The Service's name, zero-padded.
    pub name: [u8; NAME_LEN],
    /// The port's name, zero-padded; empty for an unnamed port.
    pub port_name: [u8; NAME_LEN],
    /// The port's protocol.
    pub proto: Proto,
    /// The family of its backends: 4 or 6.
    pub family: u8,
    /// Zero.
    pub zero: u8,
}

impl ServiceInfo {
    /// The info of a service port in a family (4 or 6), or `None` if a name is longer than a
    /// Kubernetes name can be.
    pub fn new(
        namespace: &str,
        name: &str,
        port_name: &str,
        proto: Proto,
        family: u8,
    ) -> Option<Self> {
        Some(Self {
            namespace: padded(namespace)?,
            name: padded(name)?,
            port_name: padded(port_name)?,
            proto,
            family,
            zero: 0,
        })
    }
}

/// The text in a zero-padded field, or an empty text if it is not UTF-8.
pub fn unpadded(field: &[u8; NAME_LEN]) -> &str {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
    core::str::from_utf8(&field[..end]).unwrap_or_default()
}

fn padded(text: &str) -> Option<[u8; NAME_LEN]> {
    let mut field = [0; NAME_LEN];
    field.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(field)
}

/// What one service was asked for since the maps were made; one copy per CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ServiceCounters {
    /// Connections that were given a backend, on either path: TCP sockets that connected, and SYNs
    /// of TCP and INITs of SCTP that came in.
    pub connections: u64,
    /// Datagrams of UDP that came in and were given a backend. Those of one flow are given the
    /// same one, by conntrack.
    pub datagrams: u64,
    /// Connections and datagrams that were refused or dropped, because no endpoint was usable or
    /// by policy.
    pub refused: u64,
}

const _: () = assert!(size_of::<ServiceInfo>() == 192 && size_of::<ServiceCounters>() == 24);
crate::plain_data!(ServiceId, ServiceInfo, ServiceCounters);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_too_long_ones_are_refused() {
        let info = ServiceInfo::new("kube-system", "kube-dns", "", Proto::UDP, 4).unwrap();
        assert_eq!(unpadded(&info.namespace), "kube-system");
        assert_eq!(unpadded(&info.port_name), "");
        let long = core::str::from_utf8(&[b'a'; NAME_LEN]).unwrap();
        assert_eq!(
            unpadded(&ServiceInfo::new(long, "b", "", Proto::TCP, 4).unwrap().namespace),
            long
        );
        let longer = core::str::from_utf8(&[b'a'; NAME_LEN + 1]).unwrap();
        assert_eq!(ServiceInfo::new("a", longer, "", Proto::TCP, 6), None);
    }
}
