//! The kernel programs in the kernel: made packets go through the real programs, over maps that
//! the real `apply` has filled. Needs root; attaches nothing and sends nothing.
//!
//! Socket hooks have no test run in the kernel, nor do the states of a checksum and of a VLAN tag
//! that only devices make (CHECKSUM_PARTIAL, CHECKSUM_COMPLETE, a tag beside the packet): the lab
//! has those.

#![expect(clippy::unwrap_used, reason = "a test")]

mod clients;
mod headers;
mod lifetime;
mod mutations;
mod names;
mod net;
mod outcomes;
mod packet;
mod parts;
mod plane;
mod ports;
mod races;
mod reject;
mod services;
mod size;
mod writer;
