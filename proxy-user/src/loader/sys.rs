//! The kernel calls that aya does not have: map batches, mapped arrays, link updates, pins, a
//! wait for readers, and the cookie of a network namespace; and two of glibc's allocator.
//!
//! The one module of this crate with unsafe code. Takes and gives plain Rust; decides nothing.

#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use aya::Pod;
use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{self, NonNull};

/// How much of an array is mapped in one step: a multiple of every size of pages.
const MAPPED_AT_ONCE: usize = 1 << 16;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Calls `bpf(2)` with `attr`, one of the variants of the kernel's `union bpf_attr`.
fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` with its own size; the kernel takes absent
    // fields for zero, and writes within that size only.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<A>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `struct { … } batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A batch that stopped early.
#[derive(Debug)]
pub struct BatchError {
    /// How many elements were done; the next one is the one that failed.
    pub done: usize,
    /// Why.
    pub error: io::Error,
}

fn batch<K, V>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    keys: &[K],
    values: Option<&[V]>,
) -> Result<(), BatchError> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.map_or(0, |values| values.as_ptr() as u64),
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    match bpf(command, &mut attr) {
        Ok(_) => Ok(()),
        Err(error) => Err(BatchError { done: (attr.count as usize).min(keys.len()), error }),
    }
}

/// Writes `rows` to a hash map, in order. Since Linux 5.6.
pub fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    rows: &[(K, V)],
) -> Result<(), BatchError> {
    let (keys, values): (Vec<K>, Vec<V>) = rows.iter().copied().unzip();
    batch(BPF_MAP_UPDATE_BATCH, map, &keys, Some(&values))
}

/// Removes `keys` from a hash map, in order. Since Linux 5.6.
pub fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), BatchError> {
    batch::<K, ()>(BPF_MAP_DELETE_BATCH, map, keys, None)
}

/// All elements of a hash map. One that changes meanwhile may be missed or come twice. Since
/// Linux 5.6.
pub fn entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut room = 4_096;
    let mut keys: Vec<K> = Vec::with_capacity(room);
    let mut values: Vec<V> = Vec::with_capacity(room);
    let mut position: Option<u32> = None;
    loop {
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: position.as_ref().map_or(0, |position| ptr::from_ref(position) as u64),
            out_batch: ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let end = match &result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                keys.reserve(room);
                values.reserve(room);
                continue;
            }
            Err(_) => return result.map(|_| Vec::new()),
        };
        let (keys, values) = (keys.spare_capacity_mut(), values.spare_capacity_mut());
        all.extend(keys.iter().zip(values).take(attr.count as usize).map(|(key, value)| {
            // SAFETY: the kernel has written the first `count` keys and values, and `Pod` types
            // are valid for all bytes.
            unsafe { (key.assume_init_read(), value.assume_init_read()) }
        }));
        if end {
            return Ok(all);
        }
        position = Some(next);
    }
}

/// The elements of a per-CPU array from the first one on, in order: each `cpus` values side by
/// side, as many as the kernel has possible CPUs. Since Linux 5.13.
pub fn per_cpu_elements<V: Pod>(
    map: BorrowedFd<'_>,
    cpus: usize,
    mut visit: impl FnMut(&[V]),
) -> io::Result<()> {
    const { assert!(size_of::<V>().is_multiple_of(8), "the kernel pads values to 8 bytes") };
    const ROOM: usize = 1_024;
    let mut keys = vec![0_u32; ROOM];
    let mut values: Vec<MaybeUninit<V>> = vec![const { MaybeUninit::uninit() }; ROOM * cpus];
    let mut position: Option<u32> = None;
    loop {
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: position.as_ref().map_or(0, |position| ptr::from_ref(position) as u64),
            out_batch: ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: ROOM as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        let end = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        for element in values.chunks_exact(cpus).take(attr.count as usize) {
            // SAFETY: the kernel has written the first `count` elements whole, and `Pod` types
            // are valid for all bytes; `MaybeUninit` changes no layout.
            visit(unsafe { std::slice::from_raw_parts(element.as_ptr().cast(), cpus) });
        }
        if end {
            return Ok(());
        }
        position = Some(next);
    }
}

/// The value that `bytes` hold; `None` if they are too few.
pub fn read_plain<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as `T` has, and `Pod` types are valid for all bytes.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A BPF array that was made with `BPF_F_MMAPABLE`, in this process's memory: as much of it, from
/// its beginning, as was read or written. The kernel counts all that is mapped as resident.
#[derive(Debug)]
pub struct MappedArray<T> {
    map: OwnedFd,
    /// Invariant: addresses for `len` elements, of which the first `mapped` bytes are the map.
    elements: NonNull<T>,
    len: u32,
    mapped: Cell<usize>,
}

// SAFETY: the mapping belongs to the value alone, as far as this process goes.
unsafe impl<T: Send> Send for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// An array of the `len` elements of `map`.
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "the kernel pads elements to 8 bytes") };
        let array = Self {
            map: map.try_clone_to_owned()?,
            // SAFETY: new addresses, of the kernel's choice and without memory.
            elements: unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                let bytes = len as usize * size_of::<T>();
                mapping(libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0))?.cast()
            },
            len,
            mapped: Cell::new(0),
        };
        // Whether the map can be mapped at all is known from here on.
        array.map_up_to(1)?;
        Ok(array)
    }

    /// Where the element at `index` is; `None` if it is out of range.
    fn element(&self, index: u32) -> Option<NonNull<T>> {
        let end = (index as usize + 1) * size_of::<T>();
        if index >= self.len {
            return None;
        }
        if end > self.mapped.get() && self.map_up_to(end).is_err() {
            // The map can be mapped, so there is no memory for it, as for any other allocation.
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; MAPPED_AT_ONCE]>());
        }
        // SAFETY: within the addresses that `new` took.
        Some(unsafe { self.elements.add(index as usize) })
    }

    /// Maps at least the first `end` bytes, which are some of the array's.
    fn map_up_to(&self, end: usize) -> io::Result<()> {
        let end = end.next_multiple_of(MAPPED_AT_ONCE).min(self.bytes());
        let from = self.mapped.get();
        // SAFETY: the addresses are within those that `new` took, and nothing is there yet.
        unsafe {
            let _at = mapping(libc::mmap(
                self.elements.as_ptr().byte_add(from).cast(),
                end - from,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                self.map.as_raw_fd(),
                from as libc::off_t,
            ))?;
        }
        self.mapped.set(end);
        Ok(())
    }

    /// Lets go of the memory; what is read or written next is mapped again.
    pub fn unmap(&self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let at = self.elements.as_ptr().cast();
        // SAFETY: the addresses that `new` took; nothing borrows from them.
        if mapping(unsafe { libc::mmap(at, self.bytes(), libc::PROT_NONE, flags, -1, 0) }).is_ok() {
            self.mapped.set(0);
        }
    }

    /// The element at `index`; zero bytes if it is out of range.
    pub fn get(&self, index: u32) -> T {
        match self.element(index) {
            // SAFETY: within the mapping, which lives as long as `self`.
            Some(element) => unsafe { element.read_volatile() },
            // SAFETY: `Pod` types are valid for all bytes.
            None => unsafe { MaybeUninit::zeroed().assume_init() },
        }
    }

    /// Writes the element at `index`, if there is one. An element of eight bytes is written at
    /// once.
    pub fn set(&mut self, index: u32, value: T) {
        if let Some(element) = self.element(index) {
            // SAFETY: within the mapping, which lives as long as `self`.
            unsafe { element.write_volatile(value) }
        }
    }
}

impl<T> MappedArray<T> {
    const fn bytes(&self) -> usize {
        self.len as usize * size_of::<T>()
    }
}

/// What `mmap` has given.
fn mapping(address: *mut libc::c_void) -> io::Result<NonNull<libc::c_void>> {
    match NonNull::new(address) {
        Some(mapping) if address != libc::MAP_FAILED => Ok(mapping),
        _ => Err(io::Error::last_os_error()),
    }
}

impl MappedArray<u64> {
    /// Writes the byte at `index`, counted over all elements, if there is one; programs may write
    /// it and its neighbours meanwhile.
    pub fn set_byte(&mut self, index: u32, value: u8) {
        if let Some(word) = self.element(index / 8) {
            // SAFETY: within the mapping, which lives as long as `self`.
            unsafe { word.cast::<u8>().add(index as usize % 8).write_volatile(value) }
        }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the addresses that `new` took; nothing borrows from them.
        let _unmapped = unsafe { libc::munmap(self.elements.as_ptr().cast(), self.bytes()) };
    }
}

/// Opens the pinned object at `path`; `None` if there is none.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    match bpf(BPF_OBJ_GET, &mut attr) {
        // SAFETY: a new descriptor that nothing else owns.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets `link` run `program` from now on, in one atomic step. `ENOLINK` if what it was attached
/// to is gone. Since Linux 5.7.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let (link_fd, new_prog_fd) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(BPF_LINK_UPDATE, &mut Attr { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }).map(drop)
}

/// Detaches `link` from what it is attached to, for good. Since Linux 5.9.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    bpf(BPF_LINK_DETACH, &mut Attr { link_fd: link.as_raw_fd() as u32 }).map(drop)
}

/// The output of the iterator `program` over the elements of `map`. Since Linux 5.9.
pub fn map_iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    const BPF_TRACE_ITER: u32 = 28;
    #[repr(C)]
    struct LinkAttr {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        iter_info: u64,
        iter_info_len: u32,
        zero: u32,
    }
    #[repr(C)]
    struct IterAttr {
        link_fd: u32,
        flags: u32,
    }
    // The variant `map` of `union bpf_iter_link_info`, padded to the union's first size.
    let info = [map.as_raw_fd() as u32, 0, 0, 0];
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: info.as_ptr() as u64,
        iter_info_len: size_of_val(&info) as u32,
        zero: 0,
    };
    let link = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: a new descriptor that nothing else owns.
    let link = unsafe { OwnedFd::from_raw_fd(link as i32) };
    let mut attr = IterAttr { link_fd: link.as_raw_fd() as u32, flags: 0 };
    let file = bpf(BPF_ITER_CREATE, &mut attr)?;
    // SAFETY: as above; the iterator keeps its link.
    Ok(unsafe { File::from_raw_fd(file as i32) })
}

/// What a link is attached to: the first eight bytes behind the common part of
/// `struct bpf_link_info`, which are the cgroup's id, or the interface index in the low half.
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<u64> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = [0_u64; 16];
    let mut attr = Attr {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(|_| info[2])
}

/// Whether programs can be attached by tcx: asks what is attached to the loopback device of this
/// thread's network namespace. Of Linux 6.6, and of some older kernels of distributions.
pub fn has_tcx() -> io::Result<bool> {
    const BPF_TCX_INGRESS: u32 = 46;
    const LOOPBACK: u32 = 1;
    // `struct { … } query` of `union bpf_attr`, to its end, which the kernel writes to.
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        zero: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let query = Attr { target_ifindex: LOOPBACK, attach_type: BPF_TCX_INGRESS, ..Attr::default() };
    match bpf(BPF_PROG_QUERY, &mut { query }) {
        Ok(_) => Ok(true),
        // An attach type that the kernel does not know; some also know fewer fields.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns after every BPF program that was running at the call has ended (the command waits for
/// an RCU grace period). Takes milliseconds.
pub fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers are passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets glibc's allocator give memory back as soon as it is free: one arena for all threads, of
/// which one does the work, and large allocations in mappings of their own for ever. Left to
/// itself, glibc takes a large allocation that is freed as a sign to keep the next ones.
pub fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: both parameters are known to glibc, which checks the values.
    unsafe {
        let _kept = libc::mallopt(libc::M_ARENA_MAX, 1);
        let _kept = libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 17);
    }
}

/// Gives memory that is free back to the kernel. Takes milliseconds.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are passed, and it is safe with allocations on other threads.
    let _trimmed = unsafe { libc::malloc_trim(0) };
}

/// The cookie of this thread's network namespace, as programs see it. Since Linux 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the buffer and its length belong together.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
