//! Conntrack entries of UDP that lead to a backend that is gone.
//!
//! Takes the entries, and the pinned maps as they are now; deletes each entry whose backend does
//! not serve what its client asked for, as kube-proxy 1.37 does. The client's next datagram is then
//! given another backend, or refused if there is none. Entries of TCP and SCTP stay, and so does
//! whatever asked for no frontend.

mod served;

use crate::netfilter::conntrack::{Entry, Filter, Key};
use crate::netfilter::{Family, NetfilterError, Socket};
use crate::pinned::{PinnedError, PinnedMaps};
use proxy_ebpf::Proto;
use proxy_ebpf::choose::NodePortRange;
use proxy_ebpf::frontend::FrontendKey;
use served::Served;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long entries of a frontend that is gone are looked for. No program chooses by it any more,
/// so only entries of packets that were under way are still to come.
const DEPARTED: Duration = Duration::from_secs(60);

/// Why stale entries may still be there.
#[derive(thiserror::Error, Debug)]
pub enum StaleError {
    /// What is served is not known.
    #[error("what UDP services lead to cannot be read")]
    Maps(#[from] PinnedError),
    /// The entries could not be listed, or one of them not deleted.
    #[error(
        "conntrack entries of UDP whose backend is gone may stay until they time out (needs \
         CAP_NET_ADMIN and the kernel module nf_conntrack_netlink)"
    )]
    Conntrack(#[from] NetfilterError),
}

/// How many entries were deleted, by family.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Deleted {
    /// Of IPv4.
    pub v4: u64,
    /// Of IPv6.
    pub v6: u64,
}

/// Deletes stale entries of this network namespace, and remembers which frontends have gone.
#[derive(Debug)]
pub struct StaleEntries {
    node_ports: NodePortRange,
    /// The frontends of the last time.
    known: HashSet<FrontendKey>,
    /// Frontends that went, and when that was seen.
    departed: HashMap<FrontendKey, Instant>,
}

impl StaleEntries {
    /// For NodePorts in `node_ports`.
    pub fn new(node_ports: NodePortRange) -> Self {
        Self { node_ports, known: HashSet::new(), departed: HashMap::new() }
    }

    /// Takes note of the frontends that `maps` have, as an earlier agent left them: of those that
    /// go when this agent first writes, entries may be left.
    pub fn remember(&mut self, maps: &PinnedMaps) -> Result<(), PinnedError> {
        self.known = served::frontends(maps)?.into_keys().collect();
        Ok(())
    }

    /// Deletes the entries that are stale by what `maps` say. Tries each of them, and returns the
    /// first error with what was deleted all the same.
    pub fn delete(&mut self, maps: &PinnedMaps) -> (Deleted, Result<(), StaleError>) {
        let mut deleted = Deleted::default();
        let result = self.try_delete(maps, &mut deleted);
        (deleted, result)
    }

    fn try_delete(&mut self, maps: &PinnedMaps, deleted: &mut Deleted) -> Result<(), StaleError> {
        let mut served = Served::read(maps, self.node_ports)?;
        self.follow(&served, Instant::now());
        served.departed = self.departed.keys().copied().collect();
        let mut socket = Socket::open()?;
        let mut first_error = Ok(());
        for family in [Family::Ipv4, Family::Ipv6] {
            for key in stale(&mut socket, family, &served)? {
                let count = match family {
                    Family::Ipv4 => &mut deleted.v4,
                    Family::Ipv6 => &mut deleted.v6,
                };
                match socket.delete_connection(&key) {
                    Ok(was_there) => *count += u64::from(was_there),
                    Err(error) => first_error = first_error.and(Err(error.into())),
                }
            }
        }
        first_error
    }

    /// Notes which frontends have come and gone by `now`.
    fn follow(&mut self, served: &Served, now: Instant) {
        let gone = self.known.iter().filter(|key| !served.has(key)).map(|key| (*key, now));
        self.departed.extend(gone);
        self.departed.retain(|key, since| !served.has(key) && now - *since < DEPARTED);
        self.known = served.frontends().collect();
    }
}

/// The stale entries of `family`.
fn stale(socket: &mut Socket, family: Family, served: &Served) -> Result<Vec<Key>, NetfilterError> {
    let mut stale = Vec::new();
    let datagrams = Filter { family: Some(family), proto: Some(Proto::UDP.0), ..Filter::default() };
    socket.connections(&datagrams, |entry: Entry| {
        if served.is_stale(&entry) {
            stale.push(entry.key);
        }
    })?;
    Ok(stale)
}
