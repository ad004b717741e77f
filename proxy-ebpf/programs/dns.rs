//! Answers pods' queries of names, on the node's side of their veths.
//!
//! Takes a packet that comes from a pod; if it is a query that the tables answer, it becomes its
//! own reply and goes back by the device that it came by, to the pod that asked. Everything else
//! goes on unchanged to the DNS service: the program fails open. What a message says and what is
//! known of its name is decided in [`proxy_ebpf::dns`].
//!
//! The steps are global functions: the verifier checks each once and by itself. They take
//! numbers and the context, find the query in [`work`], and give the number of an outcome, or
//! [`GO`].

use crate::ETHERNET;
use crate::maps::{
    DEVICES, DNS_BURST, DNS_INTERVAL, DNS_NAMES, DNS_RECORDS, DNS_SHARES, DNS_VALUES, POD_ADDRS,
    count_dns, nanoseconds, random, work, zone,
};
use crate::packet::{self, Skb, is_unfinished_field};
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, tcx_action_base::TCX_NEXT};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect_peer, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use core::ptr;
use proxy_ebpf::checksum::Sum;
use proxy_ebpf::dns::datagram::{Datagram, UDP_CHECKSUM, UDP_LEN, Unread};
use proxy_ebpf::dns::decide::{Lookup, Names};
use proxy_ebpf::dns::reply::Records;
use proxy_ebpf::dns::{Kind, LONGEST, NameKey, Outcome, PORT, READ, Work};
use proxy_ebpf::node::Device;
use proxy_ebpf::packet::answer;
use proxy_ebpf::{Addr, Port, Proto};

/// No outcome yet: on to the next step.
const GO: u32 = u32::MAX;

/// What stands for a checksum that is not made yet.
const PLACEHOLDER: u16 = 1;

/// How many bytes are summed up at once.
const CHUNK: usize = 64;

/// `pkt_type` of a packet that the link has sent to this host, to all, or to many
/// (linux/if_packet.h).
const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

/// The hook.
#[inline(always)]
pub(crate) fn at_ingress(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (mut outcome, mut kind) = (receive(ctx), Kind::Other);
    if outcome == GO {
        outcome = dns_name();
    }
    if outcome == GO {
        outcome = dns_question();
        if let Some(work) = work() {
            kind = Kind::of(work.question.kind);
        }
    }
    if outcome == GO {
        outcome = dns_decide();
    }
    let answers = outcome <= Outcome::NoName as u32;
    if answers {
        let written = dns_write(outcome);
        let sent = if written == GO { dns_send(skb) } else { written };
        outcome = if sent == GO { outcome } else { sent };
    }
    count_dns(kind, outcome);
    if outcome == Outcome::Failed as u32 {
        return TC_ACT_SHOT;
    }
    if outcome > Outcome::NoName as u32 {
        return TCX_NEXT;
    }
    send_back(ctx)
}

/// Gives the reply to the pod behind the device that the query came by: without another look at
/// the packet and another turn in a queue, if the device is one end of a pair.
#[inline(always)]
fn send_back(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid; the verifier checks the accesses.
    let (ifindex, cast) = unsafe { ((*skb).ifindex, (*skb).pkt_type) };
    let has_peer = work().is_some_and(|work| work.has_peer);
    // The other end does not compare the packet's link-layer address with its own.
    // SAFETY: the context is valid.
    let for_host = || cast == PACKET_HOST || unsafe { bpf_skb_change_type(skb, PACKET_HOST) } == 0;
    if has_peer && for_host() {
        // SAFETY: no preconditions; since Linux 5.10.
        return unsafe { bpf_redirect_peer(ifindex, 0) as i32 };
    }
    packet::send_back(ctx)
}

/// Checks that the packet is a datagram to the DNS service that the program may answer, and loads
/// the query.
#[inline(always)]
fn receive(ctx: &TcContext) -> u32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the whole program; the verifier checks the accesses.
    let (protocol, vlan, ifindex) =
        unsafe { ((*skb).protocol, (*skb).vlan_present, (*skb).ifindex) };
    // SAFETY: as above.
    let (cast, gso) = unsafe { ((*skb).pkt_type, (*skb).gso_size) };
    let (Some(zone), Some(work)) = (zone(), work()) else { return Outcome::Off as u32 };
    let protocol = u16::from_be(protocol as u16);
    let datagram = match Datagram::read(&Skb(ctx), protocol, ETHERNET, ctx.len() as usize) {
        Ok(datagram) => datagram,
        Err(Unread::NotQuery) => return Outcome::NotQuery as u32,
        Err(Unread::Odd) => return Outcome::Malformed as u32,
    };
    if !zone.serves(datagram.dst) {
        return Outcome::NotQuery as u32;
    }
    if vlan != 0 || gso != 0 || cast == PACKET_BROADCAST || cast == PACKET_MULTICAST {
        return Outcome::Malformed as u32;
    }
    work.datagram = datagram;
    let now = nanoseconds();
    // SAFETY: one word is read; elements change only when a device does.
    let device = unsafe { DEVICES.get(ifindex) };
    if !zone.answers(now) || !device.is_some_and(Device::answers_names) {
        return Outcome::Off as u32;
    }
    // SAFETY: one word is read; elements change only when an address moves to another device.
    if unsafe { POD_ADDRS.get(&work.datagram.src) } != Some(&ifindex) {
        return Outcome::NotPod as u32;
    }
    work.has_peer = device.is_some_and(|device| device.netns >= 0);
    if !has_share(ifindex, now) {
        return Outcome::Limited as u32;
    }
    load(skb, work)
}

/// Loads the beginning of the query.
#[inline(always)]
fn load(skb: *mut __sk_buff, work: &mut Work) -> u32 {
    let len = work.datagram.len as usize;
    if len == 0 {
        return Outcome::Malformed as u32;
    }
    let len = if len > READ { READ } else { len };
    // The verifier of Linux 6.1 follows this form.
    let len = ((len - 1) & (READ - 1)) + 1;
    let (from, to) = (work.datagram.udp + UDP_LEN as u32, work.query.as_mut_ptr());
    // SAFETY: the buffer has more than `READ` bytes, and the kernel checks the packet's.
    match unsafe { bpf_skb_load_bytes(skb.cast(), from, to.cast(), len as u32) } {
        0 => GO,
        _ => Outcome::Malformed as u32,
    }
}

/// Whether the pod behind the device may have another answer. It has a share of so many a second,
/// and may take some ahead: the generic cell rate algorithm, which keeps one number for each pod.
///
/// Two CPUs that do this at once may give one answer too many.
#[inline(always)]
fn has_share(ifindex: u32, now: u64) -> bool {
    let interval = DNS_INTERVAL.load();
    if interval == 0 {
        return true;
    }
    let Some(used) = DNS_SHARES.get_ptr_mut(ifindex) else {
        return DNS_SHARES.insert(ifindex, now + interval, 0).is_ok();
    };
    // SAFETY: the kernel keeps the element's memory until the program ends; reads and writes of
    // one word are whole.
    let until = unsafe { ptr::read_volatile(used) };
    let until = if until > now { until } else { now } + interval;
    if until - now > DNS_BURST.load() {
        return false;
    }
    // SAFETY: as above.
    unsafe { ptr::write_volatile(used, until) };
    true
}

/// Finds the labels of the name in question.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn dns_name() -> u32 {
    let Some(work) = work() else { return Outcome::Off as u32 };
    match work.read_name(work.datagram.len as usize) {
        Ok(()) => GO,
        Err(outcome) => outcome as u32,
    }
}

/// Reads the question.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn dns_question() -> u32 {
    let (Some(zone), Some(work)) = (zone(), work()) else { return Outcome::Off as u32 };
    match work.read_question(work.datagram.len as usize, zone) {
        Ok(()) => GO,
        Err(outcome) => outcome as u32,
    }
}

/// Finds what is known of the name.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn dns_decide() -> u32 {
    let (Some(zone), Some(work)) = (zone(), work()) else { return Outcome::Off as u32 };
    work.decide(zone, &KernelNames) as u32
}

/// Writes the reply for an outcome that is an answer.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn dns_write(outcome: u32) -> u32 {
    let (Some(zone), Some(work)) = (zone(), work()) else { return Outcome::Off as u32 };
    let outcome = match outcome {
        0 => Outcome::Addresses,
        1 => Outcome::NoData,
        _ => Outcome::NoName,
    };
    match work.write(outcome, zone, &KernelNames, random()) {
        Ok(()) => GO,
        Err(outcome) => outcome as u32,
    }
}

/// The tables as the decision reads them.
struct KernelNames;

impl Names for KernelNames {
    #[inline(always)]
    fn name(&self, key: &NameKey) -> Lookup {
        let Some(number) = DNS_NAMES.get_ptr(key) else { return Lookup::Absent };
        // SAFETY: the kernel keeps the element's memory until this program returns; it may give
        // the element to another name meanwhile, which the tag in the value tells.
        let number = unsafe { ptr::read_volatile(number) };
        let Some(value) = DNS_VALUES.get_ptr(number) else { return Lookup::Unsure };
        // SAFETY: array elements stay where they are; one read of one word.
        let value = unsafe { ptr::read_volatile(value) };
        if value.tag() == key.tag() { Lookup::Found(value) } else { Lookup::Unsure }
    }
}

impl Records for KernelNames {
    #[inline(always)]
    fn record(&self, index: u32) -> Option<Addr> {
        DNS_RECORDS.get(index).copied()
    }
}

/// Makes the packet its own reply.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn dns_send(skb: *mut __sk_buff) -> u32 {
    let Some(work) = work() else { return Outcome::Off as u32 };
    match become_reply(&TcContext::new(skb), work) {
        Some(()) => GO,
        None => Outcome::Failed as u32,
    }
}

#[inline(always)]
fn become_reply(ctx: &TcContext, work: &mut Work) -> Option<()> {
    let udp = work.datagram.udp as usize;
    let query = udp + UDP_LEN;
    let message = work.question.end as usize + work.reply.len();
    if !resize(ctx, query + message) {
        return None;
    }
    let len = work.reply.len();
    if len == 0 {
        return None;
    }
    let len = ((len - 1) & (size_of_val(&work.reply.tail) - 1)) + 1;
    let (tail, from) = (query + work.question.end as usize, work.reply.tail.as_ptr());
    // SAFETY: the buffer has at least `len` bytes, and the kernel checks the packet's.
    if unsafe { bpf_skb_store_bytes(ctx.skb.skb, tail as u32, from.cast(), len as u32, 0) } != 0 {
        return None;
    }
    write_headers(ctx, work, message)
}

/// Gives the packet `len` bytes. Nothing has changed in it if this fails.
#[inline(always)]
fn resize(ctx: &TcContext, len: usize) -> bool {
    // A packet that grows loses the sum that a device has made of it (CHECKSUM_COMPLETE), and
    // which every edit would have to keep right.
    let old = ctx.len() as usize;
    // SAFETY: the context is valid; the kernel checks the length.
    let change = |len: usize| unsafe { bpf_skb_change_tail(ctx.skb.skb, len as u32, 0) } == 0;
    (len > old || change(old + 1)) && change(len)
}

/// Writes all headers of the reply, a message of `len` bytes from whom the query was for to whom
/// it is from.
#[inline(always)]
fn write_headers(ctx: &TcContext, work: &Work, len: usize) -> Option<()> {
    let Datagram { src: asker, dst: service, port, udp, .. } = work.datagram;
    let (udp, len) = (udp as usize, len + UDP_LEN);
    let length = (len as u16).to_be();
    let ports = [Port::new(PORT).network(), port.network()];
    let [flags, questions, answers, authorities, additional] = work.reply.header;
    let header = [
        words(ports),
        words([length, PLACEHOLDER]),
        words([work.id(), flags]),
        words([questions, answers]),
        words([authorities, additional]),
    ];
    if asker.is_v4() {
        let mut headers = [0; 10];
        headers[..5].copy_from_slice(&answer::ipv4(service, asker, Proto::UDP, len));
        headers[5..].copy_from_slice(&header);
        ctx.store(ETHERNET, &headers, 0).ok()?;
    } else {
        let mut headers = [0; 15];
        headers[..10].copy_from_slice(&answer::ipv6(service, asker, Proto::UDP, len));
        headers[10..].copy_from_slice(&header);
        ctx.store(ETHERNET, &headers, 0).ok()?;
    }
    let pseudo = answer::pseudo_header(service, asker, Proto::UDP, len);
    let checksum = if is_unfinished_field(ctx, udp + UDP_CHECKSUM, PLACEHOLDER)? {
        !pseudo.checksum()
    } else if asker.is_v4() {
        // None, which is allowed in IPv4 (RFC 768).
        0
    } else {
        let message = sum_bytes(ctx.skb.skb, udp + UDP_LEN, (len - UDP_LEN) as i64);
        let header = pseudo.plus(ports[0].into()).plus(ports[1].into()).plus(length.into());
        match header.and(Sum::ZERO.plus(message)).checksum() {
            0 => 0xffff,
            sum => sum,
        }
    };
    ctx.store(udp + UDP_CHECKSUM, &checksum, 0).ok()?;
    let [d0, d1, d2, s0, s1, s2]: [u16; 6] = ctx.load(0).ok()?;
    ctx.store(0, &[s0, s1, s2, d0, d1, d2], 0).ok()
}

/// Two halves as they follow each other in memory.
#[inline(always)]
const fn words([first, second]: [u16; 2]) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The sum of `left` bytes of the packet from `offset` on, as the kernel's helpers give it. A
/// global function: the verifier checks it once and by itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sum_bytes(skb: *mut __sk_buff, mut offset: usize, mut left: i64) -> u32 {
    let mut sum = 0;
    for _ in 0..(LONGEST as usize).div_ceil(CHUNK) {
        if left <= 0 {
            break;
        }
        let len = left.min(CHUNK as i64) as u32;
        let mut bytes = [0_u32; CHUNK / 4];
        let to = bytes.as_mut_ptr();
        // SAFETY: the buffer has at least `len` bytes, and the kernel checks the packet's.
        if unsafe { bpf_skb_load_bytes(skb.cast(), offset as u32, to.cast(), len) } != 0 {
            return 0;
        }
        // SAFETY: the buffer has `CHUNK` bytes, a multiple of four.
        sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, to, CHUNK as u32, sum) as u32 };
        offset += CHUNK;
        left -= CHUNK as i64;
    }
    sum
}
