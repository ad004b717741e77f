//! What the kernel holds: which backends a frontend has, and what the maps weigh.

use crate::bench::population::Entry;
use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use proxy_ebpf::choose::Tables;
use proxy_ebpf::frontend::FrontendKey;
use proxy_ebpf::slot::RangeHeader;
use proxy_ebpf::{Addr, Port, Proto};
use proxy_user::loader::pin_directory;
use proxy_user::pinned::PinnedMaps;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long a change may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a map: little beside what is measured, and the agent keeps the CPU.
const PAUSE: Duration = Duration::from_micros(20);

/// Waits until the programs would choose among the endpoints of `entry` and no others.
pub(super) fn wait_for(maps: &PinnedMaps, entry: &Entry) -> Result<Instant> {
    let port = entry.ports.first().context("a Service without ports")?;
    let vip = Addr::from(IpAddr::from(entry.vip));
    let key = FrontendKey::service(vip, Port::new(port.port), Proto::TCP);
    let mut expected: Vec<_> =
        entry.endpoints.iter().map(|e| Addr::from(IpAddr::from(e.addr))).collect();
    expected.sort_unstable();
    let started = Instant::now();
    loop {
        if chosen(maps, &key).is_some_and(|chosen| chosen == expected) {
            return Ok(Instant::now());
        }
        ensure!(started.elapsed() < LIMIT, "{} had not changed after {LIMIT:?}", entry.name);
        thread::sleep(PAUSE);
    }
}

/// The addresses that a frontend's backends have, sorted.
fn chosen(maps: &PinnedMaps, key: &FrontendKey) -> Option<Vec<Addr>> {
    let range = maps.frontend(key)?.range();
    let header = RangeHeader::from_slot(&maps.slot(range)?);
    let slots = (1..=header.cluster).map(|index| Some(maps.slot(range + index)?.addr));
    let mut addrs = slots.collect::<Option<Vec<_>>>()?;
    addrs.sort_unstable();
    Some(addrs)
}

/// What the maps below `root` weigh, in MiB, by the kernel's own account.
pub(super) fn map_memory(root: &Path) -> Result<f64> {
    let folder = pin_directory(root);
    let mut total = 0.0;
    for name in proxy_ebpf::maps::NAMES {
        let map = MapData::from_pin(folder.join(name)).with_context(|| format!("open {name}"))?;
        let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let text = fs::read_to_string(&info).with_context(|| format!("read {info}"))?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let bytes = bytes.and_then(|bytes| bytes.trim().parse::<f64>().ok());
        total += bytes.with_context(|| format!("{info} has no memlock"))?;
    }
    Ok(total / f64::from(1 << 20))
}
