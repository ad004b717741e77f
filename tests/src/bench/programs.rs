//! The kernel programs alone: nanoseconds of a run, by the kernel's own statistics while traffic
//! goes through them, and how many instructions the verifier walked.
//!
//! The statistics include part of the cost of reading the clock; a program that does nothing is
//! measured in the same way, and its time is taken off. In the midst of connections, whose code
//! and data have taken its place in the caches since the last run, a program takes longer than
//! again and again in a loop. The program at ingress is also run on single packets, as often as it
//! goes: those that are not for it, and those that open a connection to a service.

mod sys;

use super::arena::{Arena, Corner};
use super::contender::Contender;
use super::measure::Way;
use super::options::Options;
use super::report::Row;
use crate::network::ETH0;
use crate::sprint::{Deed, Service, Sprint};
use anyhow::{Context, Result, bail, ensure};
use aya::maps::MapData;
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use indicatif::ProgressBar;
use proxy_ebpf::priority::Priority;
use proxy_user::loader::pin_directory;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

/// The interface index of loopback, in every namespace.
const LO: u32 = 1;

/// A program by its name, what it meets, the traffic for that, and the most that it may take.
struct Case {
    program: &'static str,
    meets: &'static str,
    way: Way,
    deed: Deed,
    most: Option<f64>,
}

const fn case(
    program: &'static str,
    meets: &'static str,
    way: Way,
    deed: Deed,
    most: Option<f64>,
) -> Case {
    Case { program, meets, way, deed, most }
}

const CASES: [Case; 5] = {
    use Deed::{Connect, Knock};
    use Way::{ClusterIp, Neighbour, NodePortHere};
    [
        case("connect4", "a service", ClusterIp, Connect, Some(150.0)),
        case("connect4", "no service", Neighbour, Connect, Some(25.0)),
        case("connect4", "a service, in a loop", ClusterIp, Knock, Some(150.0)),
        case("connect4", "no service, in a loop", Neighbour, Knock, Some(25.0)),
        case("ingress", "new connections", NodePortHere, Connect, None),
    ]
};

/// Measures the programs of the agent in the arena, with the Services that it has now.
pub(super) async fn run(
    options: &Options,
    arena: &Arena,
    size: usize,
    bar: &ProgressBar,
) -> Result<Vec<Row>> {
    let Some(corner) = arena.corner(Contender::Shunt) else { return Ok(Vec::new()) };
    bar.set_message("the programs alone");
    let programs = of_agent(arena.node(corner).bpffs_root(), "outcomes")?;
    let find = |name: &str| {
        let found = programs.iter().find(|program| program.name_as_str() == Some(name));
        found.with_context(|| format!("the kernel has no program {name}"))
    };
    // Counted only while this is open, for all programs of the machine.
    let _stats = enable_stats(Stats::RunTime).context("count the run time of programs")?;
    let (turn, count) = options.pick((50, 1), (300, 3), (1000, 5));
    let turn = Duration::from_millis(turn);

    let mut rows = Vec::new();
    let row = |what: &str| Row::new("programs-run", what, Some(size), "ns");
    let mut clocks = [0.0; 2];
    for (clock, (meets, deed)) in
        clocks.iter_mut().zip([("", Deed::Connect), (", in a loop", Deed::Knock)])
    {
        let nanos = empty(arena, deed, turn, count).await?;
        let what = format!("An empty program{meets}");
        rows.push(row(&what).cell(Contender::Direct, nanos.iter().copied()));
        *clock = super::stats::Figure::of(nanos).map_or(0.0, |figure| figure.median);
    }
    for case in &CASES {
        let clock = clocks[usize::from(case.deed == Deed::Knock)];
        let program = find(case.program)?.fd()?;
        let mut nanos = Vec::new();
        for _ in 0..count {
            let took = while_asked(arena, corner, case, turn, program.as_fd()).await?;
            nanos.push((took - clock).max(0.0));
        }
        let what = format!("{}, {}", case.program, case.meets);
        let row = row(&what).cell(Contender::Shunt, nanos);
        rows.push(case.most.into_iter().fold(row, Row::at_most));
    }
    rows.extend(test_runs(arena, corner, find("ingress")?, size, options)?);
    for program in &programs {
        let walked = program.verified_instruction_count();
        let Some((name, walked)) = program.name_as_str().zip(walked) else { continue };
        let what = format!("{name}, verified");
        let row = Row::new("programs-verified", &what, None, "insns");
        rows.push(row.cell(Contender::Shunt, [f64::from(walked)]));
    }
    Ok(rows)
}

/// One packet, in a loop through the program at ingress of the node's device.
fn test_runs(
    arena: &Arena,
    corner: &Corner,
    ingress: &ProgramInfo,
    size: usize,
    options: &Options,
) -> Result<Vec<Row>> {
    let repeat = options.pick(1_000, 1_000_000, 1_000_000);
    let way = Way::NodePortHere;
    let from = SocketAddrV4::new(arena.client(corner, way).ipv4(), 40_000);
    let service = |service: Service| match arena.targets(corner, way, service).first() {
        Some(SocketAddr::V4(to)) => Ok(*to),
        _ => bail!("{service:?} has no frontend"),
    };
    let packets = [
        ("one packet not ours", no_service(), false),
        ("one SYN to a service", packet(TCP, from, service(Service::Greet)?, SYN), true),
        ("one UDP to a service", packet(UDP, from, service(Service::Datagram)?, 0), true),
    ];
    let program = ingress.fd()?;
    let run = |(what, packet, chooses): (&str, Vec<u8>, bool)| {
        let ran = arena.node(corner).netns().run(|| {
            (0..3)
                .map(|_| sys::test_run(&program, &packet, ETH0, repeat))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let ran = ran.with_context(|| format!("run ingress on {what}"))?;
        let chose = ran.iter().all(|ran| Priority(ran.priority).is_tagged() == chooses);
        ensure!(chose, "ingress, {what}: {ran:?}, which is no choice or should be none");
        let what = format!("ingress, {what}");
        let row = Row::new("programs-test-run", &what, Some(size), "ns");
        let nanos = ran.iter().map(|ran| ran.took.as_nanos() as f64);
        Ok(row.cell(Contender::Shunt, nanos))
    };
    packets.into_iter().map(run).collect()
}

/// A TCP segment from a pod to a pod, of a connection that is open.
fn no_service() -> Vec<u8> {
    let pod = |node, last| Ipv4Addr::new(10, 244, node, last);
    packet(TCP, SocketAddrV4::new(pod(2, 2), 40_000), SocketAddrV4::new(pod(3, 3), 8080), ACK)
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet without payload, with an Ethernet header; `flags` are those of TCP.
fn packet(proto: u8, from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Vec<u8> {
    let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    if proto == TCP {
        transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    } else {
        // The length, and no checksum.
        transport.extend([0, 8, 0, 0]);
    }
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    packet.extend([0x45, 0, 0, 20 + transport.len() as u8, 0, 1, 0x40, 0, 64, proto, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(transport);
    packet
}

/// The programs that use the map `name` pinned below `root`: those of one agent, of all that the
/// machine may have.
pub(super) fn of_agent(root: &Path, name: &str) -> Result<Vec<ProgramInfo>> {
    let pin = pin_directory(root).join(name);
    let map = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
    let id = map.info()?.id();
    let mut programs = Vec::new();
    for program in loaded_programs() {
        // One that has gone since it was listed is none of ours.
        let Ok(program) = program else { continue };
        if matches!(program.map_ids(), Ok(Some(ids)) if ids.contains(&id)) {
            programs.push(program);
        }
    }
    ensure!(!programs.is_empty(), "no program uses the map {}", pin.display());
    Ok(programs)
}

/// The time of a run of a program that does nothing, at connect(2) of the direct path's client.
async fn empty(arena: &Arena, deed: Deed, turn: Duration, count: usize) -> Result<Vec<f64>> {
    let corner = arena.corner(Contender::Direct).context("the direct path takes part")?;
    let cgroup = arena.client(corner, Way::ClusterIp).cgroup();
    let cgroup = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    let (program, _link) = sys::attach_empty(&cgroup).context("attach an empty program")?;
    let case = case("empty", "anything", Way::ClusterIp, deed, None);
    let mut nanos = Vec::new();
    for _ in 0..count {
        nanos.push(while_asked(arena, corner, &case, turn, program.as_fd()).await?);
    }
    Ok(nanos)
}

/// Nanoseconds of a run of `program` while the traffic of `case` goes through it.
async fn while_asked(
    arena: &Arena,
    corner: &Corner,
    case: &Case,
    turn: Duration,
    program: BorrowedFd<'_>,
) -> Result<f64> {
    let targets = arena.targets(corner, case.way, case.deed.service());
    let sprint = Sprint { deed: case.deed, targets, concurrency: 1, duration: turn };
    let (runs, nanos) = statistics(program)?;
    let report = arena.client(corner, case.way).sprint(sprint).await?;
    ensure!(report.failed == 0, "{}: {:?}", case.meets, report.failure);
    let (runs, nanos) = (statistics(program)?.0 - runs, statistics(program)?.1 - nanos);
    ensure!(runs > 0, "{} did not run where it meets {}", case.program, case.meets);
    Ok(nanos as f64 / runs as f64)
}

/// What the kernel counts for a run of a program that does nothing, in nanoseconds, while it counts
/// run times.
pub(super) fn clock() -> Result<f64> {
    let program = sys::empty_classifier().context("load an empty program")?;
    let _took =
        sys::test_run(&program, &no_service(), LO, 100_000).context("run an empty program")?;
    let (runs, nanos) = statistics(program.as_fd())?;
    Ok(nanos as f64 / runs.max(1) as f64)
}

/// How often a program has run, and for how many nanoseconds.
pub(super) fn statistics(program: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = |key| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        value.with_context(|| format!("{path} has no {key}"))
    };
    Ok((value("run_cnt:")?, value("run_time_ns:")?))
}
