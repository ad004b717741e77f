//! The vectors of the specification, and what they leave out: the kernel's part of what CoreDNS
//! answers, byte by byte.

extern crate std;
