//! System calls for BPF that aya has no word for. Takes and gives plain Rust; decides nothing.

#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: u32 = 10;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    input_size: u32,
    output_size: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
    context_input_size: u32,
    context_output_size: u32,
    context_input: u64,
    context_output: u64,
}

/// `struct __sk_buff`, which a test run takes and gives, with room for what later kernels add.
#[repr(C)]
struct Context {
    before: [u32; 8],
    priority: u32,
    ingress_interface: u32,
    interface: u32,
    after: [u32; 53],
}

impl Context {
    const fn at(interface: u32) -> Self {
        let (before, after) = ([0; 8], [0; 53]);
        Self { before, priority: 0, ingress_interface: 0, interface, after }
    }
}

/// What a test run gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    /// The average time of a run.
    pub(super) took: Duration,
    /// The packet's priority in the end.
    pub(super) priority: u32,
}

/// Attaches a program that does nothing to connect(2) in `cgroup`. Gives the program and the
/// link; it is detached when the link is closed.
pub(super) fn attach_empty(cgroup: &File) -> io::Result<(OwnedFd, OwnedFd)> {
    let program = load_empty(CGROUP_SOCK_ADDR, CONNECT4)?;
    let mut link = Link {
        program: program.as_raw_fd() as u32,
        target: cgroup.as_raw_fd() as u32,
        attach_type: CONNECT4,
        flags: 0,
    };
    let link = open(LINK_CREATE, &mut link)?;
    Ok((program, link))
}

/// A program of the packet path that does nothing.
pub(super) fn empty_classifier() -> io::Result<OwnedFd> {
    load_empty(SCHED_CLS, 0)
}

fn load_empty(program_type: u32, expected_attach_type: u32) -> io::Result<OwnedFd> {
    // `r0 = 1; exit`: let the connection be.
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    let license = c"GPL";
    let mut load = Load {
        program_type,
        instruction_count: 2,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        kernel_version: 0,
        flags: 0,
        name: *b"shunt_bench\0\0\0\0\0",
        interface: 0,
        expected_attach_type,
    };
    open(PROG_LOAD, &mut load)
}

/// Runs a program of the packet path on `packet`, as if it had come in by the device with the
/// index `interface` of the calling thread's network namespace, `repeat` times.
pub(super) fn test_run(
    program: impl AsFd,
    packet: &[u8],
    interface: u32,
    repeat: u32,
) -> io::Result<Ran> {
    let input = Context::at(interface);
    let mut output = Context::at(0);
    let mut attr = TestRun {
        program: program.as_fd().as_raw_fd() as u32,
        result: 0,
        input_size: packet.len() as u32,
        output_size: 0,
        input: packet.as_ptr() as u64,
        output: 0,
        repeat,
        duration: 0,
        context_input_size: size_of::<Context>() as u32,
        context_output_size: size_of::<Context>() as u32,
        context_input: (&raw const input) as u64,
        context_output: (&raw mut output) as u64,
    };
    let _ = bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(Ran { took: Duration::from_nanos(attr.duration.into()), priority: output.priority })
}

fn open<A>(command: libc::c_long, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the commands that come here give a new file descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` lives during the call and its size is given; the addresses in it are those
    // of values that live in the caller.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
