//! The contract between Shunt's kernel programs and its user space.
//!
//! Map keys and values, and the decisions that both sides must take alike: which frontend an
//! address is, which backend a connection gets, whether the client is hidden. Everything here is `no_std`, free of I/O and tested on the host; the programs are in `../programs`.
//!
//! Invariants that hold for every type that lies in a map: `repr(C)`, integers and arrays only,
//! padding is a named zero field, the size is asserted. Addresses and ports are in network byte
//! order inside their types; everything else is in the byte order of the machine.

#![no_std]

pub mod addr;
pub mod affinity;
pub mod checksum;
pub mod choose;
pub mod dns;
pub mod filter;
pub mod frontend;
pub mod maps;
pub mod node;
pub mod outcome;
pub mod packet;
pub mod priority;
pub mod service;
pub mod slot;
pub mod socket;
pub mod source;

pub use addr::{Addr, End, Port, Proto};

/// Tells aya that the listed types are plain data, which it may copy to and from maps.
macro_rules! plain_data {
    ($($type:ty),+ $(,)?) => {
        $(
            #[cfg(feature = "user")]
            // SAFETY: `repr(C)`, only integers and arrays of integers, and no implicit padding
            // (its size is asserted where it is defined).
            unsafe impl aya::Pod for $type {}
        )+
    };
}
use plain_data;
