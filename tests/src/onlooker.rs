//! Another vendor's program on a device: it counts packets, or tags them for a VLAN, and lets them
//! go on.
//!
//! Shows whether programs beside it leave it in its place and let packets come to it, and what
//! becomes of tagged packets, which a kernel without VLAN devices takes and drops like any other.

mod sys;

use crate::netns::Netns;
use anyhow::{Context, Result};
use std::os::fd::OwnedFd;

/// Which packets of a device it sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Those that come.
    Ingress,
    /// Those that leave.
    Egress,
}

/// Where it stands among the programs of its hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Before those that are there.
    First,
    /// Behind them.
    Last,
}

/// A program at a hook of tcx; it is detached when dropped.
pub struct Onlooker {
    count: OwnedFd,
    _link: OwnedFd,
}

impl Onlooker {
    /// Attaches a program to `device` of `netns`.
    pub fn attach(netns: &Netns, device: &str, direction: Direction, place: Place) -> Result<Self> {
        let attach = || -> Result<Self> {
            let index = sys::index(device).context("find the device")?;
            let count = sys::make_counter().context("make a map")?;
            let program = sys::load_counter(&count).context("load the program")?;
            let link = sys::attach(&program, index, direction, place).context("attach it")?;
            Ok(Self { count, _link: link })
        };
        netns.run(attach)?.with_context(|| format!("watch {direction:?} of {device} in {netns}"))
    }

    /// How many packets have come to it.
    pub fn packets(&self) -> Result<u64> {
        sys::read(&self.count).context("read the counter")
    }
}

/// A program that gives all that leaves a device a tag of IEEE 802.1Q, beside the packet as where
/// the device puts it on the wire; it is detached when dropped.
pub struct Tagger {
    _link: OwnedFd,
}

impl Tagger {
    /// Attaches a program to `device` of `netns`, before those that are there. The `tag` is a
    /// priority in the upper three bits and the number of the VLAN in the lower twelve.
    pub fn attach(netns: &Netns, device: &str, tag: u16) -> Result<Self> {
        let attach = || -> Result<Self> {
            let index = sys::index(device).context("find the device")?;
            let program = sys::load_tagger(tag).context("load the program")?;
            let link = sys::attach(&program, index, Direction::Egress, Place::First);
            Ok(Self { _link: link.context("attach it")? })
        };
        netns.run(attach)?.with_context(|| format!("tag what leaves {device} in {netns}"))
    }
}
