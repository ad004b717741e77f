//! The node's resolver: queries in over UDP and TCP, replies out.
//!
//! It runs on a thread of its own, so that neither a pass over ten thousand Services nor a storm
//! of queries waits for the other. It answers only who may ask: everybody else could make it
//! send its replies to a third. What it cannot answer now it fails, and never denies.

use super::answer::{Action, Reply, Transport, answer, failure};
use super::upstream::{ask_tcp, ask_udp, question_type, read_message, write_message};
use super::zone::Zone;
use crate::metrics::Metrics;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::Record;
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{self, Handle};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How many queries may wait for an upstream; one more is failed at once.
const WAITING: usize = 1_000;
/// How many connections may be open; one more is closed.
const CONNECTIONS: usize = 256;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// What the resolver answers from; the agent keeps it true.
#[derive(Debug)]
pub struct Knowledge {
    /// The cluster zone.
    pub zone: Zone,
    /// The servers for everything else.
    pub upstreams: Vec<SocketAddr>,
    /// Who may ask, beside the node itself.
    pub clients: Vec<IpNetwork>,
}

/// The node's resolver. It ends with the process.
pub struct Server {
    runtime: Handle,
    shared: Arc<Shared>,
    listeners: BTreeMap<SocketAddr, [JoinHandle<()>; 2]>,
}

struct Shared {
    knowledge: Arc<RwLock<Knowledge>>,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    metrics: Metrics,
}

impl Server {
    /// Starts the resolver's thread; it listens nowhere yet.
    ///
    /// # Errors
    ///
    /// If the kernel gives no thread, or no epoll instance.
    pub fn start(knowledge: Arc<RwLock<Knowledge>>, metrics: Metrics) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let body = move || runtime.block_on(pending::<()>());
        let _detached = std::thread::Builder::new().name("resolver".to_owned()).spawn(body)?;
        let shared = Arc::new(Shared {
            knowledge,
            waiting: Arc::new(Semaphore::new(WAITING)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            metrics,
        });
        Ok(Self { runtime: handle, shared, listeners: BTreeMap::new() })
    }

    /// Listens at `addrs` and nowhere else; each UDP socket is given to `publish` once, before it
    /// is read. Says where it cannot, and why.
    pub fn listen(
        &mut self,
        addrs: &[SocketAddr],
        mut publish: impl FnMut(SocketAddr, &std::net::UdpSocket) -> io::Result<()>,
    ) -> Vec<(SocketAddr, io::Error)> {
        self.listeners.retain(|addr, tasks| {
            let keep = addrs.contains(addr);
            if !keep {
                tasks.iter().for_each(JoinHandle::abort);
            }
            keep
        });
        let mut errors = Vec::new();
        for &addr in
            addrs.iter().filter(|addr| !self.listeners.contains_key(addr)).collect::<Vec<_>>()
        {
            match self.bind(addr, &mut publish) {
                Ok(tasks) => drop(self.listeners.insert(addr, tasks)),
                Err(error) => errors.push((addr, error)),
            }
        }
        errors
    }

    /// Where it listens.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.listeners.keys().copied().collect()
    }

    fn bind(
        &self,
        addr: SocketAddr,
        publish: &mut impl FnMut(SocketAddr, &std::net::UdpSocket) -> io::Result<()>,
    ) -> io::Result<[JoinHandle<()>; 2]> {
        let _context = self.runtime.enter();
        let udp = std::net::UdpSocket::bind(addr)?;
        let tcp = std::net::TcpListener::bind(addr)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        publish(addr, &udp)?;
        let udp = serve_udp(self.shared.clone(), Arc::new(UdpSocket::from_std(udp)?));
        let tcp = serve_tcp(self.shared.clone(), TcpListener::from_std(tcp)?);
        Ok([self.runtime.spawn(udp), self.runtime.spawn(tcp)])
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 65_535];
    loop {
        // An error is that of an earlier reply, which nobody wanted.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let query = &buffer[..length];
        if !shared.admits(client.ip(), &socket.local_addr()) {
            shared.metrics.resolved(kind(query), "refused");
            continue;
        }
        match shared.answer(query, Transport::Udp) {
            Action::Reply(reply) => {
                if let Some(bytes) = shared.encode(query, reply) {
                    // A reply that cannot be sent is lost, as on the way.
                    drop(socket.send_to(&bytes, client).await);
                }
            }
            Action::Ignore => {}
            action => {
                let (shared, socket, query) = (shared.clone(), socket.clone(), query.to_vec());
                let _detached = tokio::spawn(async move {
                    if let Some(bytes) = shared.ask(&query, action, Transport::Udp).await {
                        drop(socket.send_to(&bytes, client).await);
                    }
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            // Out of descriptors, say; at once would be a busy loop.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let permit = shared.connections.clone().try_acquire_owned();
        if let Ok(permit) = permit
            && shared.admits(client.ip(), &listener.local_addr())
        {
            let shared = shared.clone();
            let _detached = tokio::spawn(async move {
                // A connection ends when its client wants no more.
                drop(converse(&shared, stream).await);
                drop(permit);
            });
        }
    }
}

/// Answers the queries of a connection one after the other (RFC 7766 section 6.2.1).
async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let query = timeout(SILENCE, read_message(&mut stream)).await??;
        let reply = match shared.answer(&query, Transport::Tcp) {
            Action::Reply(reply) => shared.encode(&query, reply),
            Action::Ignore => return Ok(()),
            action => shared.ask(&query, action, Transport::Tcp).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(SILENCE, write_message(&mut stream, &reply)).await??;
    }
}

impl Shared {
    /// Whether the client may ask: a process on this node, or one of the clients that are known.
    fn admits(&self, client: IpAddr, own: &io::Result<SocketAddr>) -> bool {
        let client = client.to_canonical();
        client.is_loopback()
            || own.as_ref().is_ok_and(|own| own.ip() == client)
            || self.read().clients.iter().any(|clients| clients.contains(client))
    }

    fn read(&self) -> RwLockReadGuard<'_, Knowledge> {
        self.knowledge.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, query: &[u8], transport: Transport) -> Action {
        answer(&self.read().zone, query, transport)
    }

    fn encode(&self, query: &[u8], reply: Reply) -> Option<Vec<u8>> {
        self.metrics.resolved(kind(query), code(reply.code()));
        reply.encode()
    }

    /// Does for `query` what takes an upstream; fails it if none answers, or too many wait.
    async fn ask(&self, query: &[u8], action: Action, transport: Transport) -> Option<Vec<u8>> {
        let permit = self.waiting.try_acquire();
        let upstreams = self.read().upstreams.clone();
        let upstreams = if permit.is_ok() { upstreams.as_slice() } else { &[] };
        match action {
            Action::Resolve(mut reply, target) => {
                match resolve(upstreams, target).await {
                    Some(answers) => reply.complete(answers),
                    None => reply.fail(),
                }
                self.encode(query, reply)
            }
            Action::Forward => {
                let reply = match transport {
                    Transport::Udp => ask_udp(upstreams, query).await,
                    Transport::Tcp => ask_tcp(upstreams, query).await,
                };
                match reply {
                    Some(reply) => {
                        self.metrics.resolved(kind(query), "forwarded");
                        Some(reply)
                    }
                    None => self.encode(query, failure(query, transport)),
                }
            }
            Action::Reply(reply) => self.encode(query, reply),
            Action::Ignore => None,
        }
    }
}

/// What the upstreams find for `question`.
async fn resolve(upstreams: &[SocketAddr], question: Query) -> Option<Vec<Record>> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(question);
    let mut edns = Edns::new();
    edns.set_max_payload(super::answer::UDP_SIZE);
    query.set_edns(edns);
    let query = query.to_vec().ok()?;
    let mut reply = Message::from_vec(&ask_udp(upstreams, &query).await?).ok()?;
    if reply.metadata.truncation {
        reply = Message::from_vec(&ask_tcp(upstreams, &query).await?).ok()?;
    }
    match reply.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Some(reply.answers),
        _ => None,
    }
}

/// The query's type as the metrics call it; few, whatever is asked.
fn kind(query: &[u8]) -> &'static str {
    match question_type(query) {
        Some(1) => "A",
        Some(28) => "AAAA",
        Some(33) => "SRV",
        Some(12) => "PTR",
        Some(16) => "TXT",
        _ => "other",
    }
}

fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::super::zone::{PodNames, ZoneSettings};
    use super::*;
    use crate::model::ObjectName;
    use hickory_proto::rr::{Name, RecordType};

    /// A resolver of an empty zone that denies, and where it listens.
    fn server(upstreams: Vec<SocketAddr>) -> (Server, SocketAddr) {
        let zone = Zone::new(ZoneSettings {
            zone: "cluster.local".into(),
            ttl: 30,
            serial: 1,
            deny: true,
            pods: PodNames::Unknown,
            service: ObjectName { namespace: "kube-system".into(), name: "kube-dns".into() },
        });
        let knowledge = Knowledge { zone, upstreams, clients: Vec::new() };
        let mut server =
            Server::start(Arc::new(RwLock::new(knowledge)), Metrics::new("0")).unwrap();
        // A port that is free for both, and stays so: an address of this process alone.
        let addr = (1..).map(|n| SocketAddr::from(([127, 53, 0, n], 10_053)));
        let addr =
            addr.take(200).find(|&addr| server.listen(&[addr], |_, _| Ok(())).is_empty()).unwrap();
        (server, addr)
    }

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn code(reply: Option<Vec<u8>>) -> ResponseCode {
        Message::from_vec(&reply.unwrap()).unwrap().metadata.response_code
    }

    #[tokio::test]
    async fn what_no_upstream_answers_is_failed_and_never_denied() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let refusing = closed.local_addr().unwrap();
        drop(closed);
        for upstreams in [vec![], vec![refusing]] {
            let (_server, addr) = server(upstreams);
            let (inside, outside) = (query("a.b.svc.cluster.local."), query("example.com."));
            assert_eq!(code(ask_udp(&[addr], &inside).await), ResponseCode::NXDomain);
            assert_eq!(code(ask_udp(&[addr], &outside).await), ResponseCode::ServFail);
            assert_eq!(code(ask_tcp(&[addr], &outside).await), ResponseCode::ServFail);
        }
    }

    #[tokio::test]
    async fn one_more_than_may_wait_is_failed_at_once() {
        // It takes queries and answers none.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (server, addr) = server(vec![silent.local_addr().unwrap()]);
        let _all = server.shared.waiting.clone().acquire_many_owned(WAITING as u32).await.unwrap();
        let began = std::time::Instant::now();
        assert_eq!(code(ask_udp(&[addr], &query("example.com.")).await), ResponseCode::ServFail);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn only_known_clients_and_the_node_are_admitted() {
        let (server, addr) = server(vec![]);
        server.shared.knowledge.write().unwrap().clients = vec!["10.244.0.0/16".parse().unwrap()];
        let admits = |client: &str| server.shared.admits(client.parse().unwrap(), &Ok(addr));
        assert!(admits("10.244.7.7") && admits("127.0.0.1") && admits("::ffff:10.244.7.7"));
        assert!(admits(&addr.ip().to_string()));
        assert!(!admits("192.0.2.1") && !admits("fd00::1"));
    }
}
