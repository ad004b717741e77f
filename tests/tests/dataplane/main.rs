//! Services over real sockets and packets: what pods, nodes and outsiders reach, and what both
//! ends see of each other. Each fact holds for IPv4 and IPv6 by the same lines.
//!
//! `socket_path` and `packet_path` take the two ways to a ClusterIP, `node_port` the nodes'
//! addresses, `matrix` all of them in every shape of network, `beside` others that look at the same
//! packets, `takeover` kube-proxy before and after; `endpoints` and `policy` are what decides
//! between backends, `clients` who stays with one, `flows` how clients may use their ports,
//! `packets` what packets it takes and gives, `counters` what an operator is told of it. `inputs`,
//! `conditions`, `topology`, `addresses`, `changes` and `udp` are what Kubernetes objects say,
//! asked by everyone over both paths at once.

mod addresses;
mod beside;
mod changes;
mod clients;
mod conditions;
mod conntrack;
mod counters;
mod endpoints;
mod everyone;
mod flows;
mod inputs;
mod matrix;
mod node_port;
mod packet_path;
mod packets;
mod policy;
mod reports;
mod scene;
mod socket_path;
mod stale_udp;
mod takeover;
mod topology;
mod udp;
