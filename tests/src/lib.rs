//! The lab that tests, demo and benchmark stand on.
//!
//! [`Lab`] starts nodes, pods and clients as network namespaces joined by veths and a bridge,
//! each with a cgroup and a worker process that serves, asks, loads and runs programs in it.
//! Nothing it makes lies outside its own namespaces, cgroups and scratch directory, no packet
//! leaves it, and nothing is left when it ends, however it ends.

pub mod agent;
pub mod api;
pub mod bench;
pub mod cgroup;
pub mod cluster;
pub mod demo;
pub mod guard;
pub mod http;
pub mod kube_proxy;
pub mod metrics;
pub mod objects;
pub mod onlooker;
pub mod program;
pub mod sprint;
pub mod web;
pub mod worker;

mod bpffs;
mod lab;
mod machine;
mod netns;
mod network;
mod protocol;
mod traffic;

pub use agent::{Agent, AgentOptions};
pub use lab::{Lab, LabConfig, Node, Pod};
pub use machine::{Addrs, Machine, NameServer, RunningLoad, Server, Socket};
pub use netns::Netns;
pub use network::{Cni, FABRIC, POD_NETWORKS, RpFilter, Uplink};
pub use traffic::{
    Ask, Closing, ExecOutput, Failure, FailureKind, Failures, Latency, Load, LoadReport,
    NameExchange, Pattern, Reply, Serve, ServerReport, Transport,
};
