//! Shunt's user space: the agent that keeps the kernel programs' maps true, and the command line
//! that reads them.
//!
//! Data flows one way: `source → model → plan → tables → apply`. `docs/ARCHITECTURE.md` has the
//! map.

pub mod agent;
pub mod apply;
pub mod cli;
pub mod config;
pub mod control;
pub mod dns;
pub mod glob;
pub mod health;
pub mod http;
pub mod loader;
pub mod metrics;
pub mod model;
pub mod nat;
pub mod netfilter;
pub mod pinned;
pub mod plan;
pub mod preflight;
pub mod show;
pub mod sockets;
pub mod source;
pub mod stale;
pub mod status;
pub mod sysctls;
pub mod tables;
pub mod tree;
