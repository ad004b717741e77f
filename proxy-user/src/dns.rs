//! DNS in user space: the cluster zone in memory, and the node's resolver over it.
//!
//! Reads the world from the side. What the kernel answers itself never comes here; what the
//! kernel passes is answered from the same objects, or asked of an upstream.

pub mod answer;
pub mod corefile;
pub mod policy;
pub mod server;
mod upstream;
pub mod zone;

#[cfg(test)]
mod tests;
