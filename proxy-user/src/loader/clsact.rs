//! Filters: where the packet path is attached on a kernel without tcx (before Linux 6.6).
//!
//! Takes devices and programs; gives each device a `clsact` queueing discipline and the filters
//! of `cls_bpf` on its ingress (tc-bpf(8)). The kernel keeps them until they are removed, or the
//! device goes; there is nothing to pin. Shunt's filters are known by their names; nobody else's
//! is ever replaced or removed, and the queueing discipline stays for others.

use super::netlink::{Action, Request, ask, attribute, pack, word};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

const NETLINK_ROUTE: isize = 0;
const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const IFLA_IFNAME: u16 = 3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's return value says what becomes of the packet.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// `TC_H_MAKE(TC_H_CLSACT, 0)` and `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`.
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 3;
/// The lengths of `struct tcmsg` and `struct ifinfomsg`.
const TC_MESSAGE: usize = 20;
const LINK_MESSAGE: usize = 16;

/// What the names of Shunt's filters begin with; the program's follows.
const OWNER: &str = "shunt:";
/// The handle of Shunt's filters among those of one priority: "Sh".
const HANDLE: u32 = 0x5368;

/// Where in a device's chain a filter is: those of lower priorities come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Before the packet path, which would give a query of a name to a backend.
    Names = 1,
    /// The packet path.
    Packets = 2,
}

/// A filter at one of Shunt's places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    /// The program's name if it is Shunt's, `None` if it is somebody else's.
    pub(super) program: Option<String>,
    /// The program's id in the kernel.
    pub(super) program_id: u32,
    priority: u16,
}

impl Filter {
    /// Whether it is at `place`.
    pub(super) fn is_at(&self, place: Place) -> bool {
        self.priority == place as u16
    }
}

/// The filters at Shunt's places on the ingress of the device with the index `device`.
pub(super) fn list(device: u32) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    let list = request(RTM_GETTFILTER, Action::List);
    ask(list, &message(device, 0, INGRESS, 0), |filter| filters.extend(read(filter)))?;
    Ok(filters)
}

/// Makes `program` run at `place` of the device with the index `device`; it replaces the one that
/// is there in one step. The caller has looked that this is Shunt's.
pub(super) fn put(
    device: u32,
    place: Place,
    name: &str,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    add_qdisc(device)?;
    let mut options = pack(TCA_BPF_FD, &(program.as_raw_fd() as u32).to_ne_bytes());
    options.extend(pack(TCA_BPF_NAME, format!("{OWNER}{name}\0").as_bytes()));
    options.extend(pack(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()));
    let mut body = message(device, HANDLE, INGRESS, info(place));
    body.extend(pack(TCA_KIND, b"bpf\0"));
    body.extend(pack(TCA_OPTIONS, &options));
    ask(request(RTM_NEWTFILTER, Action::Put), &body, |_| {})
}

/// Removes the filter at `place` of the device with the index `device`.
pub(super) fn remove(device: u32, place: Place) -> io::Result<()> {
    let mut body = message(device, HANDLE, INGRESS, info(place));
    body.extend(pack(TCA_KIND, b"bpf\0"));
    match ask(request(RTM_DELTFILTER, Action::Remove), &body, |_| {}) {
        // The device went meanwhile, and the filter with it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        result => result,
    }
}

/// Removes Shunt's filters from the devices of this thread's network namespace whose index is
/// `unwanted`.
pub(super) fn remove_all(unwanted: impl Fn(u32) -> bool) -> io::Result<()> {
    for (device, _) in devices()?.into_iter().filter(|(device, _)| unwanted(*device)) {
        for filter in list(device)? {
            for place in [Place::Names, Place::Packets] {
                if filter.program.is_some() && filter.is_at(place) {
                    remove(device, place)?;
                }
            }
        }
    }
    Ok(())
}

/// The indices and names of the devices of this thread's network namespace.
pub(super) fn devices() -> io::Result<Vec<(u32, String)>> {
    let mut devices = Vec::new();
    let list = request(RTM_GETLINK, Action::List);
    ask(list, &[0; LINK_MESSAGE], |link| {
        let name = link.get(LINK_MESSAGE..).and_then(|rest| attribute(rest, IFLA_IFNAME));
        devices.extend(word(link, 4).zip(name.map(text)));
    })?;
    Ok(devices)
}

/// Gives a device the queueing discipline that filters of its ingress belong to, if it has none.
fn add_qdisc(device: u32) -> io::Result<()> {
    let mut body = message(device, CLSACT_HANDLE, TC_H_CLSACT, 0);
    body.extend(pack(TCA_KIND, b"clsact\0"));
    match ask(request(RTM_NEWQDISC, Action::Create), &body, |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// A filter of `cls_bpf` with Shunt's handle, at one of its places.
fn read(filter: &[u8]) -> Option<Filter> {
    let (handle, info) = (word(filter, 8)?, word(filter, 16)?);
    let priority = (info >> 16) as u16;
    let is_place = [Place::Names, Place::Packets].iter().any(|&place| priority == place as u16);
    if handle != HANDLE || !is_place {
        return None;
    }
    let options = attribute(filter.get(TC_MESSAGE..)?, TCA_OPTIONS).unwrap_or_default();
    let name = attribute(options, TCA_BPF_NAME).map(text).unwrap_or_default();
    let program_id = attribute(options, TCA_BPF_ID).and_then(|id| word(id, 0)).unwrap_or_default();
    Some(Filter { program: name.strip_prefix(OWNER).map(str::to_owned), program_id, priority })
}

/// A `struct tcmsg`.
fn message(device: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, device, handle, parent, info].map(u32::to_ne_bytes).concat()
}

/// Priority and protocol: that of all packets, as everybody's at ingress.
fn info(place: Place) -> u32 {
    (place as u32) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn request(kind: u16, action: Action) -> Request {
    Request { protocol: NETLINK_ROUTE, kind, action }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel tells of a filter with this `handle`, `priority` and `name`.
    fn told(handle: u32, priority: u32, name: &str) -> Vec<u8> {
        let mut options = pack(TCA_BPF_NAME, format!("{name}\0").as_bytes());
        options.extend(pack(TCA_BPF_ID, &7_u32.to_ne_bytes()));
        let mut filter = message(2, handle, INGRESS, priority << 16);
        filter.extend(pack(TCA_KIND, b"bpf\0"));
        filter.extend(pack(TCA_OPTIONS, &options));
        filter
    }

    #[test]
    fn a_filter_is_shunts_by_its_place_and_name_and_others_at_the_place_are_seen() {
        let own = read(&told(HANDLE, 2, "shunt:ingress")).unwrap();
        assert_eq!((own.program.as_deref(), own.program_id), (Some("ingress"), 7));
        assert!(own.is_at(Place::Packets) && !own.is_at(Place::Names));
        let others = read(&told(HANDLE, 1, "policy")).unwrap();
        assert!(others.program.is_none() && others.is_at(Place::Names));
        assert_eq!(read(&told(1, 2, "shunt:ingress")), None, "another handle");
        assert_eq!(read(&told(HANDLE, 3, "shunt:ingress")), None, "another priority");
        assert_eq!(read(&[0; 12]), None);
    }
}
