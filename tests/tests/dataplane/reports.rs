//! Bug reports that users of Kubernetes proxies have filed, as tests of what is right.
//!
//! Each test names the reports that it comes from. `ports` are clients that use a port more than
//! once, `udp` sockets that live long, `firewalls` rules of others, `addresses` what addresses a
//! node may have, `flood` connections among many others.

mod addresses;
mod firewalls;
mod flood;
mod fragments;
mod ports;
mod udp;
