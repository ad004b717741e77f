//! The flows of the packet path, read and swept apart from everything else.
//!
//! Removing entries leaves their bytes in the programs' filter (see [`proxy_ebpf::filter`]); so
//! whoever removes begins a new generation of it.

use super::LoadError;
use super::store::each_batch;
use super::sys::{self, MappedArray};
use proxy_ebpf::filter::{FLOW_ELEMENTS, GENERATION, Generation, flow_byte, is_of_flow};
use proxy_ebpf::flow::{FlowKey, FlowValue};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The flows of the packet path.
pub struct FlowTable {
    flows: OwnedFd,
    filter: Mutex<Filter>,
}

struct Filter {
    bytes: MappedArray<u64>,
    /// Whether all entries are in its generation.
    complete: bool,
}

impl FlowTable {
    /// The table of the maps `flows` and `filter`. Fills the filter, of which an older agent may
    /// have known nothing.
    pub(super) fn open(flows: BorrowedFd<'_>, filter: BorrowedFd<'_>) -> Result<Self, LoadError> {
        let table = Self {
            flows: flows
                .try_clone_to_owned()
                .map_err(|e| LoadError::Kernel("open the flows once more", e))?,
            filter: Mutex::new(Filter {
                bytes: MappedArray::new(filter, FLOW_ELEMENTS)
                    .map_err(|e| LoadError::Kernel("map the filter of flows into memory", e))?,
                complete: true,
            }),
        };
        table.refilter()?;
        Ok(table)
    }

    /// All entries of all flows. Takes about 0.1 ms for 1,000 entries.
    pub fn entries(&self) -> Result<Vec<(FlowKey, FlowValue)>, LoadError> {
        sys::entries(self.flows.as_fd()).map_err(|e| LoadError::Kernel("read the flows", e))
    }

    /// Removes entries. One that is gone already is no error.
    pub fn remove(&self, keys: &[FlowKey]) -> Result<(), LoadError> {
        let failed = each_batch(self.flows.as_fd(), keys, sys::delete_batch);
        match failed.into_iter().find(|(_, e)| e.kind() != io::ErrorKind::NotFound) {
            Some((_, error)) => Err(LoadError::Kernel("remove flows that have ended", error)),
            None => self.refilter(),
        }
    }

    /// Begins a new generation of the filter, with all entries that there are.
    ///
    /// A flow that begins meanwhile is among the entries, or its program writes the new generation
    /// into the filter, or still the last one, which counts until the next.
    fn refilter(&self) -> Result<(), LoadError> {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let Filter { bytes, complete } = &mut *filter;
        let last = Generation(bytes.get(GENERATION) as u8);
        let generation = if *complete { last.next() } else { last };
        bytes.set(GENERATION, generation.0.into());
        *complete = false;
        for (key, value) in self.entries()? {
            if is_of_flow(&key, &value) {
                bytes.set_byte(flow_byte(key.src(), key.dst()), generation.0);
            }
        }
        *complete = true;
        Ok(())
    }
}
