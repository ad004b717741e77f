//! An embedded Kubernetes API server, for tests and demos without a cluster.
//!
//! It speaks the real protocol for the kinds that Shunt and its users need: list in pages, watch
//! with versions, bookmarks and streamed lists, 410, bearer tokens, RBAC refusals, and writes as
//! `kubectl` makes them; and it fails on command. It validates nothing, allocates no addresses
//! and runs no controllers. Plain HTTP: `kubectl` sends no token over it.

mod fault;
mod http;
mod kinds;
mod patch;
mod selector;
mod store;
mod watch;

pub use fault::{Fault, Refusal};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use store::Store;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch as signal;

/// How long the end of the server's threads is waited for; they never block.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// A running API server. Dropping it ends it, and every connection.
pub struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    /// The server's own threads: when they go, its sockets are closed at once.
    runtime: Option<Runtime>,
}

/// What all connections share.
struct Shared {
    state: Mutex<State>,
    /// Wakes the watches; see [`Signal`].
    signal: signal::Sender<Signal>,
}

struct State {
    store: Store,
    faults: Vec<Fault>,
    token: Option<String>,
    /// Watches end in the middle of an event that has this text; lists have it.
    poison: Option<String>,
    /// The version that the last watch of each resource began at.
    watched_from: BTreeMap<&'static str, u64>,
}

/// What has happened so often; a watch compares with what it last saw.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Signal {
    version: u64,
    bookmarks: u64,
    drops: u64,
    truncations: u64,
    expirations: u64,
    /// Whether open watches send nothing, and do not end.
    frozen: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    /// Changes the store, and wakes the watches.
    fn write<T>(&self, write: impl FnOnce(&mut Store) -> T) -> T {
        let mut state = self.state();
        let result = write(&mut state.store);
        let version = state.store.version();
        drop(state);
        self.signal.send_modify(|signal| signal.version = version);
        result
    }
}

impl ApiServer {
    /// Serves on `listener`, with an empty store. Threads of the server stay in the network
    /// namespace of `listener`, so it may be called from any.
    pub fn start(listener: TcpListener) -> Result<Self> {
        let addr = listener.local_addr().context("the API server's socket has no address")?;
        let state = State {
            store: Store::default(),
            faults: Vec::new(),
            token: None,
            poison: None,
            watched_from: BTreeMap::new(),
        };
        let (signal, _) = signal::channel(Signal::default());
        let shared = Arc::new(Shared { state: Mutex::new(state), signal });
        let mut server = Self { shared, addr, runtime: None };
        server.accept_connections(listener)?;
        Ok(server)
    }

    /// Serves on a free port of 127.0.0.1.
    pub fn on_loopback() -> Result<Self> {
        Self::start(TcpListener::bind("127.0.0.1:0").context("cannot bind 127.0.0.1")?)
    }

    /// The address that it serves on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL that it serves on.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// A kubeconfig for the server at `url`, with `token` if it asks for one.
    pub fn kubeconfig(url: &str, token: Option<&str>) -> String {
        let user = token.map_or("{}".into(), |token| format!("{{token: {token:?}}}"));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters: [{{name: lab, cluster: {{server: {url:?}}}}}]\n\
             users: [{{name: lab, user: {user}}}]\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n"
        )
    }

    /// Creates or replaces the objects in `yaml`: any number of documents, of the served kinds.
    pub fn apply_yaml(&self, yaml: &str) -> Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let object: Value = serde::Deserialize::deserialize(document)?;
            if !object.is_null() {
                self.apply(&object)?;
            }
        }
        Ok(())
    }

    /// Creates or replaces an object, such as one of k8s-openapi's; it must carry `apiVersion`
    /// and `kind`.
    pub fn apply(&self, object: &impl Serialize) -> Result<()> {
        let object = serde_json::to_value(object)?;
        let kind = kinds::of_object(&object).context("an object of a kind that is not served")?;
        self.shared.write(|store| store.apply(kind, object))
    }

    /// Stores `object` as it is, but for a new version in its metadata if it has some: what a client
    /// of another version of the API would call no object of its kind.
    pub fn apply_raw(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        object: Value,
    ) -> Result<()> {
        let kind = kinds::KINDS.iter().find(|kind| kind.plural == resource);
        let kind = kind.context("a resource that is not served")?;
        let namespace = if kind.namespaced { namespace } else { "" };
        self.shared
            .write(|store| store.put_raw((kind.plural, namespace.into(), name.into()), object));
        Ok(())
    }

    /// Deletes an object, such as `("services", "default", "web")`; whether it was there.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
        let Some(kind) = kinds::KINDS.iter().find(|kind| kind.plural == resource) else {
            return false;
        };
        let namespace = if kind.namespaced { namespace } else { "" };
        self.shared
            .write(|store| store.delete(&(kind.plural, namespace.into(), name.into())))
            .is_some()
    }

    /// The objects of a resource, such as `events`.
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        self.shared.state().store.objects(resource).map(|(_, object)| (**object).clone()).collect()
    }

    /// The current resource version.
    pub fn version(&self) -> u64 {
        self.shared.state().store.version()
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.shared.signal.receiver_count()
    }

    /// The version that the last watch of `resource` began at; 0 for one that asked for a list.
    pub fn watched_from(&self, resource: &str) -> Option<u64> {
        self.shared.state().watched_from.get(resource).copied()
    }

    /// Answers requests as `fault` says, until it is used up or [`heal`](Self::heal)ed.
    pub fn fail(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// How many requests the faults that were asked for will still answer.
    pub fn faults_left(&self) -> usize {
        self.shared.state().faults.iter().map(|fault| fault.times).sum()
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        self.shared.state().faults.clear();
    }

    /// Asks for `token` from now on; `None` lets everybody in. Open watches go on.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.state().token = token.map(Into::into);
    }

    /// Forgets the history: versions before the current one are answered with 410.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// Sends a bookmark to every watch that asked for them.
    pub fn bookmark(&self) {
        self.shared.signal.send_modify(|signal| signal.bookmarks += 1);
    }

    /// Breaks the connection of every watch.
    pub fn drop_watches(&self) {
        self.shared.signal.send_modify(|signal| signal.drops += 1);
    }

    /// Ends every watch in the middle of the next object that it sends.
    pub fn truncate_watches(&self) {
        self.shared.signal.send_modify(|signal| signal.truncations += 1);
    }

    /// Ends every watch, now and later, in the middle of a change of an object that has `text`.
    pub fn truncate_lines_with(&self, text: &str) {
        self.shared.state().poison = Some(text.into());
    }

    /// Lets all watches fall silent, those that are opened later too, as behind a proxy that has
    /// lost the server; `false` lets them go on.
    pub fn freeze_watches(&self, frozen: bool) {
        self.shared.signal.send_modify(|signal| signal.frozen = frozen);
    }

    /// Sends every watch the event that its version is too old, and ends it.
    pub fn expire_watches(&self) {
        self.shared.signal.send_modify(|signal| signal.expirations += 1);
    }

    /// Closes every connection and the socket: when it returns, connections are refused.
    pub fn refuse_connections(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not wait for another one, but this may be called from one.
            let ended = std::thread::spawn(|| runtime.shutdown_timeout(SHUTDOWN)).join();
            ended.expect("shutting a runtime down does not panic");
        }
    }

    /// Serves again, on `listener`; the store is as it was.
    pub fn accept_connections(&mut self, listener: TcpListener) -> Result<()> {
        self.refuse_connections();
        listener.set_nonblocking(true)?;
        self.addr = listener.local_addr()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-server")
            .enable_all()
            .build()
            .context("cannot start the API server's thread")?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let service = http::router(self.shared.clone());
        runtime.spawn(async move { axum::serve(listener, service).await });
        self.runtime = Some(runtime);
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.refuse_connections();
    }
}
