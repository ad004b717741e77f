//! System calls for programs that count or tag. Takes and gives plain Rust; decides nothing.

#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use super::{Direction, Place};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`; egress is the next.
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE` and `BPF_F_AFTER`, which without another program mean first and last.
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// `union bpf_attr` of the commands below, as far as they need it.
#[repr(C)]
#[derive(Default)]
struct Attr([u64; 8]);

/// The index of a device in the namespace of the calling thread.
pub(super) fn index(device: &str) -> io::Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: the name ends in a zero and lives during the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Makes an array of one number.
pub(super) fn make_counter() -> io::Result<OwnedFd> {
    // map_type, key_size, value_size, max_entries
    open(MAP_CREATE, &mut attr(&[ARRAY, 4, 8, 1]))
}

/// Loads a program that adds one to the number in `counter` and lets the packet go on.
pub(super) fn load_counter(counter: &OwnedFd) -> io::Result<OwnedFd> {
    load(&[
        insn(0x62, 10, 0, -4, 0),                 // *(u32 *)(r10 - 4) = 0
        insn(0xbf, 2, 10, 0, 0),                  // r2 = r10
        insn(0x07, 2, 0, 0, -4),                  // r2 += -4
        insn(0x18, 1, 1, 0, counter.as_raw_fd()), // r1 = map
        0,                                        // (second half)
        insn(0x85, 0, 0, 0, 1),                   // r0 = bpf_map_lookup_elem(r1, r2)
        insn(0x15, 0, 0, 2, 0),                   // if r0 == 0 goto +2
        insn(0xb7, 1, 0, 0, 1),                   // r1 = 1
        insn(0xdb, 0, 1, 0, 0),                   // lock *(u64 *)(r0 + 0) += r1
        insn(0xb7, 0, 0, 0, -1),                  // r0 = TCX_NEXT
        insn(0x95, 0, 0, 0, 0),                   // exit
    ])
}

/// Loads a program that gives the packet a tag of IEEE 802.1Q and lets it go on.
pub(super) fn load_tagger(tag: u16) -> io::Result<OwnedFd> {
    let ethernet_type = 0x8100_u16.to_be();
    load(&[
        insn(0xb7, 2, 0, 0, ethernet_type.into()), // r2 = the tag's type, in network byte order
        insn(0xb7, 3, 0, 0, tag.into()),           // r3 = tag
        insn(0x85, 0, 0, 0, 18),                   // r0 = bpf_skb_vlan_push(r1, r2, r3)
        insn(0xb7, 0, 0, 0, -1),                   // r0 = TCX_NEXT
        insn(0x95, 0, 0, 0, 0),                    // exit
    ])
}

/// An instruction of BPF (`struct bpf_insn`).
fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    u64::from(code)
        | u64::from(dst) << 8
        | u64::from(src) << 12
        | u64::from(offset as u16) << 16
        | u64::from(imm as u32) << 32
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = attr(&[SCHED_CLS, instructions.len() as u32]);
    attr.0[1] = instructions.as_ptr() as u64;
    attr.0[2] = license.as_ptr() as u64;
    open(PROG_LOAD, &mut attr)
}

/// Attaches a program to the device `index`; it is detached when the link is closed.
pub(super) fn attach(
    program: &OwnedFd,
    index: u32,
    direction: Direction,
    place: Place,
) -> io::Result<OwnedFd> {
    let hook = TCX_INGRESS + u32::from(direction == Direction::Egress);
    let place = if place == Place::First { BEFORE } else { AFTER };
    open(LINK_CREATE, &mut attr(&[program.as_raw_fd() as u32, index, hook, place]))
}

/// The number in `counter`.
pub(super) fn read(counter: &OwnedFd) -> io::Result<u64> {
    let (key, mut value) = (0_u32, 0_u64);
    let mut attr = attr(&[counter.as_raw_fd() as u32]);
    attr.0[1] = (&raw const key) as u64;
    attr.0[2] = (&raw mut value) as u64;
    let _ = bpf(MAP_LOOKUP, &mut attr)?;
    Ok(value)
}

/// An attribute that begins with `words`.
fn attr(words: &[u32]) -> Attr {
    let mut attr = Attr::default();
    for (to, pair) in attr.0.iter_mut().zip(words.chunks(2)) {
        let word = |index: usize| pair.get(index).map_or([0; 4], |word| word.to_ne_bytes());
        let ([a, b, c, d], [e, f, g, h]) = (word(0), word(1));
        *to = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    }
    attr
}

fn open(command: libc::c_long, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the commands that come here give a new file descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` lives during the call and its size is given; the addresses in it are those
    // of values that live in the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
