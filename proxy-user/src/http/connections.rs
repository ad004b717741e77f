//! The open connections of a listener, or of several together: no more than a number, each no
//! longer than a time.
//!
//! A connection beyond the number takes the place of another: of the client that has the most, the
//! oldest. So a flood displaces itself, and the kubelet is answered meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;

/// How long a connection may last: a slow scrape of a big node's metrics takes some seconds.
const LONGEST: Duration = Duration::from_secs(20);

/// Connections that share a bound; clones are the same.
#[derive(Clone, Debug)]
pub struct Connections {
    most: usize,
    longest: Duration,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// How many there have been.
    opened: u64,
    /// From the oldest on.
    connections: VecDeque<Connection>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    client: IpAddr,
    task: AbortHandle,
}

impl Connections {
    /// Up to `most` connections.
    pub fn new(most: usize) -> Self {
        Self { most, longest: LONGEST, open: Arc::default() }
    }

    /// Lets `serve` answer a connection of the client `from`, as a task; it is dropped when the
    /// connection has to go.
    pub fn spawn(&self, from: IpAddr, serve: impl Future<Output = ()> + Send + 'static) {
        let mut open = self.lock();
        if open.connections.len() >= self.most {
            open.close_one();
        }
        let number = open.opened;
        open.opened += 1;
        let ended = Ended { number, open: Arc::clone(&self.open) };
        let longest = self.longest;
        let task = tokio::spawn(async move {
            let _ended = ended;
            // Too late is the client's loss.
            drop(tokio::time::timeout(longest, serve).await);
        });
        let (client, task) = (client(from), task.abort_handle());
        open.connections.push_back(Connection { number, client, task });
    }

    /// Closes a connection, if there is any, so that there are descriptors again.
    pub fn close_one(&self) {
        self.lock().close_one();
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn close_one(&mut self) {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        for connection in &self.connections {
            *counts.entry(connection.client).or_default() += 1;
        }
        let count = |connection: &Connection| counts.get(&connection.client).copied();
        let most = counts.values().max().copied();
        let oldest = self.connections.iter().position(|connection| count(connection) == most);
        if let Some(connection) = oldest.and_then(|index| self.connections.remove(index)) {
            connection.task.abort();
        }
    }
}

/// Takes a connection out when its task has ended, or is dropped.
struct Ended {
    number: u64,
    open: Arc<Mutex<Open>>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.connections.retain(|connection| connection.number != self.number);
    }
}

/// What counts as one client: an IPv4 address, or the IPv6 network of a link (RFC 4291, 2.5.1), of
/// which a client has every address.
fn client(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(addr) => {
            let host = u128::from(u64::MAX);
            Ipv6Addr::from_bits(addr.to_bits() & !host).into()
        }
        addr => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::sync::oneshot;

    /// A connection of the client `from` that ends only when it is closed; the result tells.
    fn open(connections: &Connections, from: &str) -> oneshot::Receiver<()> {
        let (held, closed) = oneshot::channel();
        connections.spawn(from.parse().unwrap(), async move {
            let _held = held;
            pending::<()>().await;
        });
        closed
    }

    fn is_open(closed: &mut oneshot::Receiver<()>) -> bool {
        closed.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[tokio::test]
    async fn who_has_the_most_connections_gives_its_oldest_for_another() {
        let connections = Connections::new(4);
        let mut kubelet = open(&connections, "10.0.0.1");
        let mut balancer = open(&connections, "fd00:1::1");
        let mut flood: Vec<_> =
            (1..20).map(|host| open(&connections, &format!("fd00:2::{host}"))).collect();
        let first = flood.remove(0);
        assert!(first.await.is_err(), "closed");
        let last = flood.split_off(16);
        for closed in flood {
            assert!(closed.await.is_err(), "closed");
        }
        for mut closed in last {
            assert!(is_open(&mut closed), "the newest of the flood");
        }
        assert!(is_open(&mut kubelet) && is_open(&mut balancer), "others stay");
        assert_eq!(connections.lock().connections.len(), 4);
    }

    #[tokio::test]
    async fn a_connection_ends_after_some_time() {
        let longest = Duration::from_millis(20);
        let connections = Connections { longest, ..Connections::new(4) };
        let closed = open(&connections, "::ffff:10.0.0.1");
        assert!(closed.await.is_err(), "closed");
        tokio::task::yield_now().await;
        assert!(connections.lock().connections.is_empty());
    }
}
