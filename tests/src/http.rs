//! Asking an agent over HTTP, as kubelets, load balancers and Prometheus do.

use crate::machine::Machine;
use anyhow::{Context, Result};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer may take; kubelets have less patience by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// The status code and the body that `from` gets.
pub fn get(from: &Machine, addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        let _ = stream.read_to_string(&mut response)?;
        Ok(response)
    };
    let response = from.netns().run(ask)?.with_context(|| format!("GET {path} of {addr}"))?;
    let (head, body) = response.split_once("\r\n\r\n").context("a whole response")?;
    let code = head.split(' ').nth(1).context("a status line")?.parse()?;
    Ok((code, body.to_owned()))
}
