//! The kernel programs in the kernel: made packets go through the real programs, over maps that
//! the real `apply` has filled. Needs root; attaches nothing and sends nothing.
//!
//! Socket hooks have no test run in the kernel, nor has a VLAN tag that only a device makes, beside
//! the packet: the lab has those. What NAT makes of the numbers is the lab's too.

#![expect(clippy::unwrap_used, reason = "a test")]

mod clients;
mod headers;
mod mutations;
mod names;
mod nat;
mod net;
mod outcomes;
mod packet;
mod plane;
mod races;
mod refusals;
mod services;
mod size;
mod writer;
