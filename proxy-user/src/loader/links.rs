//! Links: where the programs are attached.
//!
//! Every link is pinned under `links/PROGRAM@TARGET`, where the target is `cgroup` or a device's
//! name. A link that is there already gets the new program in one atomic step; a link whose
//! target is gone is replaced. On a kernel without tcx, the packet path is attached by the filters
//! of `clsact` instead, which the kernel keeps without pins.

use super::clsact::{self, Filter, Place};
use super::{
    Dataplane, LoadError, NAMES_PROGRAM, SOCKET_PROGRAMS, packet_program, program_fd,
    socket_program, sys,
};
use crate::status::Attachment;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{CgroupAttachMode, LinkOrder, ProgramError, TcAttachType};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The target's name for programs of the socket path.
const CGROUP: &str = "cgroup";

/// A device that the packet path is to be attached to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    /// The interface's name.
    pub name: String,
    /// The interface's index.
    pub index: u32,
    /// Whether packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether queries of names are answered there, if packets begin with an Ethernet header.
    pub names: bool,
}

impl Dataplane {
    /// Attaches the socket path to the cgroup at `root`. Returns how many links were not as they
    /// should be.
    pub fn attach_cgroup(&mut self, root: &Path) -> Result<u64, LoadError> {
        let action = "open the cgroup at --cgroup-root";
        let cgroup = File::open(root).map_err(|e| LoadError::Kernel(action, e))?;
        let id = cgroup.metadata().map_err(|e| LoadError::Kernel(action, e))?.ino();
        let mut made = 0;
        for name in SOCKET_PROGRAMS {
            let failed = |source| LoadError::Attach {
                program: name,
                target: root.display().to_string(),
                source,
            };
            if self.adopt(name, CGROUP, |target| target == id)? {
                continue;
            }
            let program = socket_program(&mut self.ebpf, name)?;
            let link = program.attach(&cgroup, CgroupAttachMode::Single).map_err(failed)?;
            let link = program.take_link(link).map_err(failed)?;
            let link = link.try_into().map_err(|_| failed(ProgramError::NotAttached))?;
            self.pin(name, CGROUP, link)?;
            made += 1;
        }
        Ok(made)
    }

    /// Detaches the socket path. Returns how many links there were.
    pub fn detach_cgroup(&mut self) -> Result<u64, LoadError> {
        let mut removed = 0;
        for path in SOCKET_PROGRAMS.map(|name| self.link_pin(name, CGROUP)) {
            removed += u64::from(path.exists());
            remove(&path)?;
        }
        Ok(removed)
    }

    /// Attaches the packet path to exactly `targets`. Returns how many links were not as they
    /// should be. A device that fails does not keep the others from being attached.
    pub fn attach_devices(&mut self, targets: &BTreeSet<Target>) -> (u64, Vec<LoadError>) {
        let mut made = 0;
        let mut errors = Vec::new();
        for target in targets {
            let attached = match self.has_tcx {
                true => self.attach_target(target),
                false => self.attach_filters(target),
            };
            match attached {
                Ok(links) => made += links,
                Err(error) => errors.push(error),
            }
        }
        let names: BTreeSet<String> = targets.iter().map(|target| escape(&target.name)).collect();
        for path in pins(&self.pins) {
            let target = path.file_name().and_then(|name| name.to_str()).and_then(target_of);
            if target.is_some_and(|target| target != CGROUP && !names.contains(target))
                && let Err(error) = remove(&path)
            {
                errors.push(error);
            }
        }
        if !self.has_tcx
            && let Err(source) = detach_filters_but(targets)
        {
            errors.push(LoadError::Kernel("remove filters from devices", source));
        }
        (made, errors)
    }

    /// Attaches all programs to `target` by filters. Returns how many were not as they should be.
    fn attach_filters(&mut self, target: &Target) -> Result<u64, LoadError> {
        let known = clsact::list(target.index)
            .map_err(|e| LoadError::Kernel("list the filters of a device", e))?;
        let packets = if target.ethernet { "ingress" } else { "ingress_bare" };
        let names = (target.names && target.ethernet).then_some(NAMES_PROGRAM);
        let mut written = 0;
        for (place, wanted) in [(Place::Packets, Some(packets)), (Place::Names, names)] {
            let known = known.iter().find(|filter| filter.is_at(place));
            written += u64::from(self.set_filter(target, place, wanted, known)?);
        }
        Ok(written)
    }

    /// Makes `wanted` the only program of Shunt's at `place`, where `known` is. Returns whether it
    /// was not.
    fn set_filter(
        &self,
        target: &Target,
        place: Place,
        wanted: Option<&'static str>,
        known: Option<&Filter>,
    ) -> Result<bool, LoadError> {
        let is_others = known.is_some_and(|filter| filter.program.is_none());
        let Some(program) = wanted else {
            if known.is_some() && !is_others {
                clsact::remove(target.index, place)
                    .map_err(|e| LoadError::Kernel("remove a filter from a device", e))?;
            }
            return Ok(false);
        };
        let target_name = target.name.clone();
        if is_others {
            return Err(LoadError::Taken { program, target: target_name });
        }
        let missing = || LoadError::Missing(program.to_owned());
        let loaded = self.ebpf.program(program).ok_or_else(missing)?;
        let info = loaded.info().map_err(|source| LoadError::Program(program, source))?;
        let is_right = known.is_some_and(|filter| {
            filter.program.as_deref() == Some(program) && filter.program_id == info.id()
        });
        if !is_right {
            let fd = program_fd(&self.ebpf, program)?;
            clsact::put(target.index, place, program, fd.as_fd())
                .map_err(|source| LoadError::Filter { program, target: target_name, source })?;
        }
        Ok(!is_right)
    }

    /// Attaches all programs to `target`. Returns how many links were not as they should be.
    fn attach_target(&mut self, target: &Target) -> Result<u64, LoadError> {
        let ingress = self.attach_device(target)?;
        let pin = self.link_pin(NAMES_PROGRAM, &escape(&target.name));
        // Each program is attached before those that are there, and this one has to be first: the
        // packet path would give the query to a backend.
        if ingress || !target.names || !target.ethernet {
            remove(&pin)?;
        }
        let names = target.names && target.ethernet && self.attach_names(target)?;
        Ok(u64::from(ingress) + u64::from(names))
    }

    fn attach_names(&mut self, target: &Target) -> Result<bool, LoadError> {
        let index = u64::from(target.index);
        let device = escape(&target.name);
        if self.adopt(NAMES_PROGRAM, &device, |attached| attached & 0xffff_ffff == index)? {
            return Ok(false);
        }
        self.attach_first(NAMES_PROGRAM, target)?;
        Ok(true)
    }

    fn attach_device(&mut self, target: &Target) -> Result<bool, LoadError> {
        let (name, other) =
            if target.ethernet { ("ingress", "ingress_bare") } else { ("ingress_bare", "ingress") };
        let device = escape(&target.name);
        let index = u64::from(target.index);
        if self.adopt(name, &device, |attached| attached & 0xffff_ffff == index)? {
            return Ok(false);
        }
        remove(&self.link_pin(other, &device))?;
        self.attach_first(name, target)?;
        Ok(true)
    }

    /// Attaches a program before all that are there: one that ends the chain would keep packets
    /// from it.
    fn attach_first(&mut self, name: &'static str, target: &Target) -> Result<(), LoadError> {
        let failed =
            |source| LoadError::Attach { program: name, target: target.name.clone(), source };
        let program = packet_program(&mut self.ebpf, name)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program
            .attach_with_options(&target.name, TcAttachType::Ingress, options)
            .map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        let link = link.try_into().map_err(|_| failed(ProgramError::NotAttached))?;
        self.pin(name, &escape(&target.name), link)
    }

    /// Where the programs are attached, by the pins and the devices' filters.
    pub fn attachments(&self) -> BTreeSet<Attachment> {
        let attachment = |path: PathBuf| {
            let (program, target) = path.file_name()?.to_str()?.split_once('@')?;
            Some(Attachment { program: program.to_owned(), target: unescape(target) })
        };
        pins(&self.pins).into_iter().filter_map(attachment).chain(filters()).collect()
    }

    /// Gives the pinned link for `name` at `target` the loaded program, if there is such a link
    /// and it is attached where `is_right` wants it; removes it otherwise.
    fn adopt(
        &self,
        name: &'static str,
        target: &str,
        is_right: impl Fn(u64) -> bool,
    ) -> Result<bool, LoadError> {
        let path = self.link_pin(name, target);
        let pin_error = |source| LoadError::Pin { action: "open", path: path.clone(), source };
        let Some(link) = sys::open_pin(&path).map_err(pin_error)? else { return Ok(false) };
        let program = program_fd(&self.ebpf, name)?;
        let right = sys::link_target(link.as_fd()).is_ok_and(is_right)
            && is_updated(link.as_fd(), program.as_fd()).map_err(|source| LoadError::Pin {
                action: "update",
                path: path.clone(),
                source,
            })?;
        if !right {
            remove(&path)?;
        }
        Ok(right)
    }

    fn pin(&self, name: &str, target: &str, link: FdLink) -> Result<(), LoadError> {
        let path = self.link_pin(name, target);
        match link.pin(&path) {
            Ok(_pinned) => Ok(()),
            Err(error) => {
                let source = io::Error::other(error);
                Err(LoadError::Pin { action: "make", path, source })
            }
        }
    }

    fn link_pin(&self, name: &str, target: &str) -> PathBuf {
        self.pins.join("links").join(format!("{name}@{target}"))
    }
}

/// Where Shunt's filters are, on a kernel without tcx; none if that cannot be read.
pub fn filters() -> Vec<Attachment> {
    let read = || -> io::Result<Vec<Attachment>> {
        let mut found = Vec::new();
        if !sys::has_tcx()? {
            for (device, name) in clsact::devices()? {
                let programs = clsact::list(device)?.into_iter().filter_map(|f| f.program);
                let attachment = |program| Attachment { program, target: name.clone() };
                found.extend(programs.map(attachment));
            }
        }
        Ok(found)
    };
    read().unwrap_or_default()
}

/// Removes Shunt's filters from all devices but `targets`.
fn detach_filters_but(targets: &BTreeSet<Target>) -> io::Result<()> {
    let wanted: BTreeSet<u32> = targets.iter().map(|target| target.index).collect();
    clsact::remove_all(|device| !wanted.contains(&device))
}

/// Removes the packet path from all devices of this network namespace, on a kernel without tcx;
/// pins hold it elsewhere.
pub(super) fn detach_filters() -> io::Result<()> {
    if sys::has_tcx()? { Ok(()) } else { clsact::remove_all(|_| true) }
}

/// The pins of all links below the directory `pins`.
pub(super) fn pins(pins: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(pins.join("links")).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

/// Detaches every program that is pinned below the directory `pins`. The kernel lets go of a
/// removed pin's link some time later; this is at once.
pub(super) fn detach(directory: &Path) -> io::Result<()> {
    for pin in pins(directory) {
        if let Some(link) = sys::open_pin(&pin)? {
            match sys::detach_link(link.as_fd()) {
                // What it was attached to is gone already.
                Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// `false` if the link's target is gone.
fn is_updated(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<bool> {
    match sys::update_link(link, program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> Result<(), LoadError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LoadError::Pin { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn target_of(pin: &str) -> Option<&str> {
    pin.split_once('@').map(|(_, target)| target)
}

/// The BPF file system keeps names with dots for itself; device names have no colons.
fn escape(device: &str) -> String {
    device.replace('.', ":")
}

fn unescape(target: &str) -> String {
    target.replace(':', ".")
}
