//! DNS queries over one UDP socket, as fast as they are answered; every reply is checked. Of many at
//! once, all go with one system call, so that the asking is the smaller part of the work.

use super::one::bound;
use super::{PATIENCE, batch};
use crate::sprint::{NameSprint, Question, SprintReport};
use crate::traffic::Failure;
use crate::worker::latency::Histogram;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

/// A DNS message's header.
const HEADER: usize = 12;
/// The head of an address record whose owner is a pointer to the question.
const RECORD: usize = 12;

pub(super) fn run(sprint: &NameSprint) -> io::Result<SprintReport> {
    let socket = bound(sprint.to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut report = SprintReport::default();
    let mut latency = Histogram::default();
    let each = sprint.questions.iter().cycle().take(sprint.questions.len().max(sprint.at_once));
    let mut queries: Vec<_> = each.map(|question| question.query.clone()).collect();
    let mut checks: Vec<_> = sprint.questions.iter().map(Check::new).collect();
    let mut replies = vec![[0; 1232]; batch::MOST];
    let mut next = 0_u16;
    let started = Instant::now();
    while started.elapsed() < sprint.duration {
        let begun = Instant::now();
        let asked = if sprint.at_once == 1 {
            in_turn(&socket, &mut queries, &mut checks, &mut next)
        } else {
            at_once(&socket, &mut queries, &mut checks, &mut replies, &mut next)
        };
        match asked {
            Ok(count) => report.count += count as u64,
            Err(error) => {
                report.failed += 1;
                let _ = report.failure.get_or_insert(Failure::from_io("ask for names", &error));
                // What comes late would be taken for the next reply.
                break;
            }
        }
        latency.add(begun.elapsed());
    }
    report.elapsed = started.elapsed();
    // Of many at once, none has a time of its own.
    if sprint.at_once == 1 {
        report.latency = latency.latency();
    }
    Ok(report)
}

/// Asks all questions, each when the one before it is answered.
fn in_turn(
    socket: &UdpSocket,
    queries: &mut [Vec<u8>],
    checks: &mut [Check<'_>],
    next: &mut u16,
) -> io::Result<usize> {
    let mut reply = [0; 4096];
    for (query, check) in queries.iter_mut().zip(checks) {
        ask(socket, query, *next)?;
        let length = receive(socket, &mut reply)?;
        if number_of(&reply) != *next {
            return Err(io::Error::other("a reply to another query"));
        }
        *next = next.wrapping_add(1);
        check.holds(&reply[..length])?;
    }
    Ok(queries.len())
}

/// Sends all of `queries` at once, whose questions are those of `checks` again and again, and takes
///  the replies in any order.
fn at_once(
    socket: &UdpSocket,
    queries: &mut [Vec<u8>],
    checks: &mut [Check<'_>],
    replies: &mut [[u8; 1232]],
    next: &mut u16,
) -> io::Result<usize> {
    for (number, query) in queries.iter_mut().enumerate() {
        query[..2].copy_from_slice(&next.wrapping_add(number as u16).to_be_bytes());
    }
    batch::send(socket, queries)?;
    let kinds = checks.len();
    let mut missing = queries.len();
    while missing > 0 {
        let most = missing.min(replies.len());
        let (count, lengths) = batch::receive(socket, &mut replies[..most])?;
        for (reply, length) in replies.iter().zip(lengths).take(count) {
            let number = usize::from(number_of(reply).wrapping_sub(*next));
            if number >= queries.len() {
                return Err(io::Error::other("a reply to another query"));
            }
            checks[number % kinds].holds(&reply[..length])?;
        }
        missing -= count;
    }
    *next = next.wrapping_add(queries.len() as u16);
    Ok(queries.len())
}

/// The number of the query that a reply is to.
fn number_of(reply: &[u8]) -> u16 {
    u16::from_be_bytes([reply[0], reply[1]])
}

// The system calls themselves: what the C library does around them is a twentieth of a query that
// the kernel answers.

fn ask(socket: &UdpSocket, query: &mut [u8], number: u16) -> io::Result<()> {
    query[..2].copy_from_slice(&number.to_be_bytes());
    send(socket, query, SendFlags::empty())?;
    Ok(())
}

fn receive(socket: &UdpSocket, reply: &mut [u8]) -> io::Result<usize> {
    let (length, _) = recv(socket, reply, RecvFlags::empty())?;
    Ok(length)
}

/// What a reply must say.
struct Check<'a> {
    question: &'a [u8],
    /// How each record begins: its owner is the question's name; type and class are its too.
    head: [u8; 6],
    code: u8,
    count: usize,
    digest: u128,
    /// The last reply that was right, but for its number. Most are alike.
    right: Vec<u8>,
}

impl<'a> Check<'a> {
    fn new(question: &'a Question) -> Self {
        let name = question.query[HEADER..].iter().position(|byte| *byte == 0).unwrap_or_default();
        let question_end = HEADER + name + 5;
        let mut head = [0xc0, HEADER as u8, 0, 0, 0, 0];
        head[2..].copy_from_slice(&question.query[question_end - 4..question_end]);
        let digests = question.addrs.iter().map(|addr| match addr {
            IpAddr::V4(v4) => digest(&v4.octets()),
            IpAddr::V6(v6) => digest(&v6.octets()),
        });
        Self {
            question: &question.query[HEADER..question_end],
            head,
            code: question.code,
            count: question.addrs.len(),
            digest: digests.fold(0, u128::wrapping_add),
            right: Vec::new(),
        }
    }

    /// An error if `reply` is not it: a whole reply to the question, with all addresses.
    fn holds(&mut self, reply: &[u8]) -> io::Result<()> {
        let message = reply.get(2..).unwrap_or_default();
        if !message.is_empty() && message == self.right {
            return Ok(());
        }
        if self.read(reply) == Some((self.code, self.count, self.digest)) {
            // Several come in another order each time.
            if self.count < 2 {
                self.right.clear();
                self.right.extend_from_slice(message);
            }
            return Ok(());
        }
        let (code, count) = (self.code, self.count);
        let head = &reply[..reply.len().min(120)];
        Err(io::Error::other(format!("not code {code} with {count} addresses: {head:02x?}")))
    }

    /// The code, the number of addresses, and their digest.
    fn read(&self, reply: &[u8]) -> Option<(u8, usize, u128)> {
        let is_whole = reply.get(2)? & 0x82 == 0x80;
        let rest = reply.get(HEADER..)?.strip_prefix(self.question)?;
        if !is_whole {
            return None;
        }
        let count = usize::from(u16::from_be_bytes([reply[6], reply[7]]));
        let (mut rest, mut sum) = (rest, 0_u128);
        for _ in 0..count {
            let (head, after) = rest.split_first_chunk::<RECORD>()?;
            let (data, after) = after.split_at_checked(usize::from(head[RECORD - 1]))?;
            if head[..6] != self.head {
                return None;
            }
            sum = sum.wrapping_add(digest(data));
            rest = after;
        }
        Some((reply[3] & 0xf, count, sum))
    }
}

/// A number for an address, so that the sum of several says which they are.
fn digest(addr: &[u8]) -> u128 {
    let value = match addr.first_chunk::<4>() {
        Some(v4) if addr.len() == 4 => u128::from(1 << 32 | u64::from(u32::from_be_bytes(*v4))),
        _ => addr.iter().fold(1, |value, byte| value << 8 | u128::from(*byte)),
    };
    value.wrapping_mul(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_must_be_whole_and_have_all_addresses_in_any_order() {
        let question = b"\x01a\x00\x00\x01\x00\x01";
        let message = |flags: [u8; 2], addrs: &[u8]| {
            let mut message =
                vec![0, 0, flags[0], flags[1], 0, 1, 0, addrs.len() as u8, 0, 0, 0, 0];
            message.extend(question);
            for addr in addrs {
                message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, *addr]);
            }
            message
        };
        let query = message([1, 0], &[]);
        let addrs = [1, 2].map(|last| IpAddr::from([10, 0, 0, last])).to_vec();
        let asked = Question { query, code: 0, addrs };
        let holds = |reply: Vec<u8>| Check::new(&asked).holds(&reply).is_ok();
        assert!(holds(message([0x85, 0], &[1, 2])) && holds(message([0x85, 0x80], &[2, 1])));
        for (flags, addrs) in [
            ([0x85, 0], &[1, 1][..]),
            ([0x85, 0], &[1]),
            ([0x85, 0], &[1, 2, 3]),
            ([0x85, 3], &[1, 2]),
            ([0x87, 0], &[1, 2]),
            ([0x05, 0], &[1, 2]),
        ] {
            assert!(!holds(message(flags, addrs)), "{flags:?} {addrs:?}");
        }
        let mut cut = message([0x85, 0], &[1, 2]);
        cut.truncate(cut.len() - 1);
        assert!(!holds(cut));
    }

    #[test]
    fn nobody_there_is_a_failure_and_not_a_wait() {
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
        let query = vec![0; 17];
        let questions = vec![Question { query, code: 0, addrs: Vec::new() }];
        let duration = std::time::Duration::from_secs(1);
        let sprint = NameSprint { to: nobody, questions, at_once: 1, duration };
        let report = run(&sprint).unwrap();
        assert_eq!((report.count, report.failed), (0, 1));
    }
}
