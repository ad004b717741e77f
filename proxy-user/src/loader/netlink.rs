//! Netlink, as far as rtnetlink does not reach: one request, and the messages of its answer.

use netlink_sys::{Socket, SocketAddr};
use std::io;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// The netlink protocol, such as `NETLINK_SOCK_DIAG`.
    pub(super) protocol: isize,
    /// The type of the message.
    pub(super) kind: u16,
    /// What is to be done with the object.
    pub(super) action: Action,
}

/// What a request does with its object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Lists all objects of its kind.
    List,
    /// Makes it; `EEXIST` if it is there.
    Create,
    /// Makes it, or replaces it in one step.
    Put,
    /// Removes it, by a kind of message that does.
    Remove,
}

impl Action {
    fn flags(self) -> u16 {
        match self {
            Self::List => NLM_F_DUMP,
            Self::Create => NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            Self::Put => NLM_F_ACK | NLM_F_CREATE,
            Self::Remove => NLM_F_ACK,
        }
    }
}

/// Sends `request` with `body`, and hands the body of each message of the answer to `take`.
pub(super) fn ask(request: Request, body: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut socket = Socket::new(request.protocol)?;
    let _own = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let flags = NLM_F_REQUEST | request.action.flags();
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend([request.kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend(body);
    let _sent = socket.send(&message, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((len, kind)) = word(rest, 0).zip(half(rest, 4)) {
            let Some(body) = rest.get(HEADER..len as usize) else { break };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return match word(body, 0).unwrap_or(0) as i32 {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                _ => take(body),
            }
            rest = rest.get((len as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The value of the first of `attributes` of type `kind`.
pub(super) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    const TYPE: u16 = 0x3fff;
    loop {
        let len = usize::from(half(attributes, 0)?);
        let value = attributes.get(4..len)?;
        if half(attributes, 2)? & TYPE == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

/// The word at `at`, in the machine's byte order.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The half word at `at`, in the machine's byte order.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// An attribute of type `kind`, padded.
pub(super) fn pack(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (4 + value.len()) as u16;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_padding_and_half_ones_are_not() {
        let mut bytes = pack(1, &[7]);
        bytes.extend([6_u16.to_ne_bytes(), 2_u16.to_ne_bytes(), [8, 9]].concat());
        assert_eq!(attribute(&bytes, 1), Some(&[7][..]));
        assert_eq!(attribute(&bytes, 2), Some(&[8, 9][..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&bytes[..13], 2), None);
    }
}
