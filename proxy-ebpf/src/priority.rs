//! What the program at ingress tells netfilter of a packet: a number in `skb->priority`.
//!
//! The program chooses and the kernel's NAT translates; this number is all that passes between
//! them. The nat/prerouting chain of the table `shunt` reads it for the first packet of each
//! connection, and nobody else does: the kernel clears or overwrites it before a packet leaves the
//! node. The tag in the top byte tells it from a priority that somebody else has set.

use crate::slot::BackendId;

/// A value of `skb->priority`, in the byte order of the machine.
///
/// Bits 24–31 are [`Priority::TAG`], bit 23 is [`Priority::HIDE`], bit 22 tells a refusal from a
/// backend, bits 0–21 are the [`BackendId`] or the kind of refusal.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Priority(pub u32);

impl Priority {
    /// The bits that tell Shunt's numbers from others.
    pub const TAG_MASK: u32 = 0xff00_0000;
    /// What these bits are in Shunt's numbers.
    pub const TAG: u32 = 0x5300_0000;
    /// The backend is to see the node's address instead of the client's.
    pub const HIDE: u32 = 1 << 23;
    /// The bits of the backend's id. A refusal has a number that no backend has.
    pub const BACKEND_MASK: u32 = 0x007f_ffff;
    /// The connection is to be refused at once: nobody serves it.
    pub const REFUSE: Self = Self(Self::TAG | 1 << 22);
    /// The connection is to be dropped silently.
    pub const DROP: Self = Self(Self::TAG | 1 << 22 | 1);
    /// How many backends have a number of their own; ids are below it.
    pub const BACKENDS: u32 = 1 << 22;

    /// The number that leads to `backend`, with or without the client's address.
    #[inline(always)]
    pub const fn backend(backend: BackendId, hide: bool) -> Self {
        Self(Self::TAG | if hide { Self::HIDE } else { 0 } | backend.0 & (Self::BACKENDS - 1))
    }

    /// Whether the number is one of Shunt's.
    #[inline(always)]
    pub const fn is_tagged(self) -> bool {
        self.0 & Self::TAG_MASK == Self::TAG
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_is_never_a_refusal_and_always_tagged() {
        for id in [0, 1, 77, Priority::BACKENDS - 1] {
            for hide in [false, true] {
                let priority = Priority::backend(BackendId(id), hide);
                assert!(priority.is_tagged());
                assert_eq!(priority.0 & Priority::BACKEND_MASK, id);
                assert_eq!(priority.0 & Priority::HIDE != 0, hide);
                assert!(priority != Priority::REFUSE && priority != Priority::DROP);
            }
        }
        const { assert!(Priority::REFUSE.0 & Priority::BACKEND_MASK >= Priority::BACKENDS) };
        assert!(!Priority(0).is_tagged() && !Priority(7).is_tagged());
    }
}
