//! Another vendor's program on a device: it counts packets and lets them go on.
//!
//! Shows whether programs beside it leave it in its place and let packets come to it.

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
            let program = sys::load(&count).context("load the program")?;
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
