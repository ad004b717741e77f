//! What a process on a node says at /metrics.

use crate::lab::Node;
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::TcpStream;

/// The text at port 10249 of the node's loopback, where kube-proxy and Shunt both have it.
pub fn text(node: &Node) -> Result<String> {
    node.netns().run(|| -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", 10249)).context("ask for metrics")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// The largest value of those whose name begins with `name`.
pub fn value(text: &str, name: &str) -> Option<f64> {
    let of = |line: &str| line.rsplit(' ').next()?.parse().ok();
    text.lines().filter(|line| line.starts_with(name)).filter_map(of).reduce(f64::max)
}
