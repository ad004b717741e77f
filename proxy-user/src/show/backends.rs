//! `shunt backends`: one row a backend of a service port.

use super::snapshot::{Filter, Selected, Snapshot, display_name};
use super::{Column, Row, column, judged, socket, wide};
use crate::pinned::Range;
use comfy_table::Cell;
use proxy_ebpf::slot::{BackendFlags, BackendId, Slot};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A backend of a service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BackendRow {
    /// `namespace/name`, followed by `:port` where the port has a name.
    pub service: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The backend's address.
    pub address: IpAddr,
    /// The backend's port.
    pub port: u16,
    /// `ready`; `terminating` if it still serves; `not serving`.
    pub state: &'static str,
    /// Whether it runs on this node.
    pub local: bool,
    /// The sets that it may be chosen from, `cluster` and `local`; or `draining`: it keeps the UDP
    /// flows that it has.
    pub sets: Vec<&'static str>,
    /// The number of the backend in the maps.
    pub id: u32,
}

/// The backends of the service ports that `filter` admits, in the order of their addresses.
pub fn backends(snapshot: &Snapshot, filter: &Filter) -> Vec<BackendRow> {
    let mut rows = Vec::new();
    for Selected { info, range, .. } in snapshot.select(filter) {
        let of_range = range.map(sets).unwrap_or_default();
        let mut of_service: Vec<_> = of_range
            .into_values()
            .map(|(slot, sets)| BackendRow {
                service: display_name(info),
                protocol: info.proto.to_string(),
                address: slot.addr.into(),
                port: slot.port.number(),
                state: state(slot.flags),
                local: slot.flags.has(BackendFlags::LOCAL),
                sets,
                id: slot.backend.0,
            })
            .collect();
        of_service.sort_by_key(|row| (row.address, row.port));
        rows.append(&mut of_service);
    }
    rows
}

/// Each backend of a range once, with the sets that it is in.
fn sets(range: &Range) -> BTreeMap<BackendId, (&Slot, Vec<&'static str>)> {
    let mut found = BTreeMap::new();
    let sets =
        [("cluster", range.cluster()), ("local", range.local()), ("draining", range.draining())];
    for (set, slots) in sets {
        for slot in slots {
            found.entry(slot.backend).or_insert((slot, Vec::new())).1.push(set);
        }
    }
    found
}

/// The state of a backend in a word.
pub(super) fn state(flags: BackendFlags) -> &'static str {
    if flags.has(BackendFlags::READY) {
        "ready"
    } else if flags.has(BackendFlags::SERVING) {
        "terminating"
    } else {
        "not serving"
    }
}

impl Row for BackendRow {
    const COLUMNS: &'static [Column] = &[
        column("SERVICE"),
        column("PROTO"),
        column("BACKEND"),
        column("STATE"),
        column("LOCAL"),
        column("SETS"),
        wide("ID"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.service),
            Cell::new(&self.protocol),
            Cell::new(socket(self.address.into(), proxy_ebpf::Port::new(self.port))),
            judged(self.state, self.state == "ready"),
            Cell::new(if self.local { "yes" } else { "no" }),
            Cell::new(self.sets.join(",")),
            Cell::new(self.id),
        ]
    }
}
