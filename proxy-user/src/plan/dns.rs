//! The plan of names: what the names of the cluster zone stand for.
//!
//! A pure function of a Service and its slices, as CoreDNS's plugin `kubernetes` reads them
//! (plugin/kubernetes/kubernetes.go, `findServices`). It answers nothing; the rows are for the
//! kernel.

use crate::model::{Endpoint, ObjectName, Service, ServiceType, Slice};
use crate::tables::{DnsName, NameKind, NameRow};
use proxy_ebpf::Addr;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
/// The longest label (RFC 1035 section 2.3.4).
const LABEL_LEN: usize = 63;

/// The names outside `svc` and `pod` that CoreDNS knows.
pub(super) const OTHER_NAMES: [&str; 2] = ["dns-version", "ns.dns"];

/// The endpoints that names stand for, each with its slice: all that are ready.
fn ready_endpoints(slices: &[Arc<Slice>]) -> impl Iterator<Item = (&Slice, &Endpoint)> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().map(|e| (&**slice, e)));
    endpoints.filter(|(_, endpoint)| endpoint.conditions.ready)
}

/// The first label of an endpoint's own name: its host name, or else its address with dashes.
fn endpoint_label(endpoint: &Endpoint) -> Cow<'_, str> {
    match (&endpoint.hostname, endpoint.addr) {
        (Some(hostname), _) => hostname.to_ascii_lowercase().into(),
        (None, IpAddr::V4(addr)) => addr.to_string().replace('.', "-").into(),
        (None, IpAddr::V6(addr)) => {
            let mut label = addr.to_string().replace(':', "-");
            // No label ends in a dash.
            if label.ends_with('-') {
                label.push('0');
            }
            label.into()
        }
    }
}

/// The name `<namespace>.svc`.
pub(super) fn namespace_name(namespace: &str) -> DnsName {
    DnsName(format!("{namespace}.svc").into())
}

/// A name that exists, and for which the kernel has no address.
pub(super) fn bare(kind: NameKind) -> NameRow {
    NameRow { kind, v4: Vec::new(), v6: Vec::new() }
}

/// The rows of `service`: its own name, and those of its endpoints.
///
/// A headless Service without a ready endpoint has no name. One with an endpoint whose label
/// makes no name is not the kernel's to answer: it could not tell that another name of the
/// Service is unknown.
pub(super) fn rows(service: &Service, slices: &[Arc<Slice>]) -> BTreeMap<DnsName, NameRow> {
    let ObjectName { namespace, name } = &service.name;
    let own = DnsName(format!("{name}.{namespace}.svc").to_ascii_lowercase().into());
    let mut rows = BTreeMap::new();
    if service.kind == ServiceType::ExternalName
        || service.cluster_ips.is_empty() && !service.headless
    {
        rows.insert(own, bare(NameKind::External));
        return rows;
    }
    let mut kind = NameKind::Service;
    let mut addrs: Vec<Addr> = Vec::new();
    for (_, endpoint) in ready_endpoints(slices) {
        let label = endpoint_label(endpoint);
        if label.is_empty() || label.len() > LABEL_LEN || label.contains('.') {
            kind = NameKind::External;
            continue;
        }
        let name = DnsName(format!("{label}.{own}").into());
        let row = rows.entry(name).or_insert_with(|| bare(NameKind::Endpoint));
        let addr = Addr::from(endpoint.addr);
        if addr.is_v4() {
            row.v4.push(addr);
        } else {
            row.v6.push(addr);
        }
        addrs.push(addr);
    }
    if !service.headless {
        addrs = service.cluster_ips.iter().map(|&ip| ip.into()).collect();
    }
    if !addrs.is_empty() || kind == NameKind::External {
        let (v4, v6) = addrs.into_iter().partition(|addr| addr.is_v4());
        rows.insert(own, NameRow { kind, v4, v6 });
    }
    for row in rows.values_mut() {
        for addrs in [&mut row.v4, &mut row.v6] {
            addrs.sort();
            addrs.dedup();
        }
    }
    rows
}
