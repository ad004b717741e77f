//! Services, written into the maps as the agent writes them: tables go through the real `apply`.

use crate::net::Net;
use proxy_ebpf::frontend::{FrontendFlags, FrontendKey};
use proxy_ebpf::slot::BackendFlags;
use proxy_ebpf::{Addr, Port};
use proxy_user::apply::Applier;
use proxy_user::loader::Dataplane;
use proxy_user::loader::store::MapStore;
use proxy_user::loader::sys::wait_for_programs;
use proxy_user::tables::{
    BackendRow, DnsRow, FrontendRow, ServiceKey, ServicePortName, ServiceRow, TableDelta,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a service has; the rest is empty.
#[derive(Clone, Copy, Default)]
pub(crate) struct Served<'a> {
    pub(crate) cluster: &'a [SocketAddr],
    pub(crate) local: &'a [SocketAddr],
    /// Endpoints that serve, but are not chosen.
    pub(crate) draining: &'a [SocketAddr],
    pub(crate) frontends: &'a [(SocketAddr, FrontendFlags)],
    pub(crate) affinity_seconds: u32,
    /// Whose addresses may reach its restricted frontends.
    pub(crate) sources: &'a [SocketAddr],
}

pub(crate) const CLUSTER_IP: FrontendFlags = FrontendFlags::NONE;
pub(crate) const NODE_PORT: FrontendFlags = FrontendFlags::NODE_PORT;
/// All of an address that is no other frontend.
pub(crate) const REFUSED: FrontendFlags = FrontendFlags::REFUSED;

/// Keeps the maps of services.
pub(crate) struct Writer(Applier<MapStore>);

impl Writer {
    /// The writer of the maps of `dataplane`, which may hold services already.
    pub(crate) fn new(dataplane: &mut Dataplane) -> Self {
        Self(Applier::restore(dataplane.take_store().unwrap()).unwrap())
    }

    /// Makes the service `name` have just `served`; frontends are added to those it has.
    pub(crate) fn serve(&mut self, net: Net, name: &str, served: Served<'_>) {
        let row = |end: &SocketAddr| BackendRow { addr: end.ip().into(), port: port(*end) };
        let known = |end: &SocketAddr| {
            let serving = BackendFlags::READY.with(BackendFlags::SERVING);
            let here = net.here.iter().chain([&net.pod]).any(|other| other.ip() == end.ip());
            let flags = [
                (here, BackendFlags::LOCAL),
                (served.cluster.contains(end), BackendFlags::IN_CLUSTER_SET),
                (served.local.contains(end), BackendFlags::IN_LOCAL_SET),
            ];
            let flags = flags.into_iter().filter(|(has, _)| *has);
            flags.fold(serving, |flags, (_, flag)| flags.with(flag))
        };
        let ends = [served.cluster, served.local, served.draining].concat();
        let all: BTreeMap<_, _> = ends.iter().map(|end| (row(end), known(end))).collect();
        let service = Arc::new(ServiceRow {
            all: all.into_iter().collect(),
            affinity_seconds: served.affinity_seconds,
            source_ranges: served.sources.iter().map(|end| Addr::from(end.ip()).into()).collect(),
        });
        let key = service_key(net, name);
        let mut delta = TableDelta::default();
        for (end, flags) in served.frontends {
            let row = FrontendRow { service: key.clone(), flags: *flags };
            delta.frontends.insert(frontend_key(net, *end, *flags), Some(row));
        }
        delta.services.insert(key, Some(service));
        self.apply(delta);
    }

    /// Compares what NAT has with what it should have, and mends it.
    pub(crate) fn mend_nat(&mut self) {
        self.0.doubt_nat();
        self.apply(TableDelta::default());
    }

    pub(crate) fn apply(&mut self, delta: TableDelta) {
        assert_eq!(self.0.apply(delta), []);
    }

    /// Makes the cluster zone what `row` says, for an hour.
    pub(crate) fn write_zone(&mut self, row: Option<&DnsRow>) {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        self.write_zone_until(row, (time.tv_sec as u64 + 3_600) * 1_000_000_000);
    }

    /// Makes the cluster zone what `row` says, until so many nanoseconds of the monotonic clock.
    pub(crate) fn write_zone_until(&mut self, row: Option<&DnsRow>, fresh_until: u64) {
        self.0.write_zone(row, fresh_until).unwrap();
    }

    /// Frees what was replaced, when no program can read it any more.
    pub(crate) fn release(&mut self) {
        let quarantine = self.0.take_quarantine();
        wait_for_programs().unwrap();
        self.0.release(quarantine);
    }
}

pub(crate) fn frontend_key(net: Net, end: SocketAddr, flags: FrontendFlags) -> FrontendKey {
    if flags.has(REFUSED) {
        FrontendKey::address(end.ip().into())
    } else if flags.has(NODE_PORT) {
        FrontendKey::node_port(end.ip().into(), port(end), net.proto)
    } else {
        FrontendKey::service(end.ip().into(), port(end), net.proto)
    }
}

fn service_key(net: Net, name: &str) -> ServiceKey {
    let [namespace, name, port] = ["default", name, ""].map(Arc::from);
    let port = ServicePortName { namespace, name, port, proto: net.proto };
    ServiceKey { port: port.into(), family: net.family }
}

fn port(end: SocketAddr) -> Port {
    Port::new(end.port())
}
