//! Reading addresses and ranges as Kubernetes does, and refusing those that nothing can use.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr};

/// Reads an address that a Service captures, or says why it cannot be one.
///
/// Kubernetes lets a ClusterIP or a VIP be link-local, and clouds do so.
pub(super) fn virtual_ip(text: &str) -> Result<IpAddr, &'static str> {
    let addr = parse(text).ok_or("it is not an IP address")?;
    if addr.is_unspecified() {
        Err("it is the unspecified address")
    } else if addr.is_loopback() {
        Err("it is a loopback address")
    } else if addr.is_multicast() {
        Err("it is a multicast address")
    } else {
        Ok(addr)
    }
}

/// Reads an address of an endpoint or of `spec.externalIPs`, or says why it cannot be one.
///
/// What Kubernetes refuses there (`ValidateNonSpecialIP` in pkg/apis/core/validation) is refused
/// again: older API servers let it in, and a manifest on disk was never checked.
pub(super) fn unicast_ip(text: &str) -> Result<IpAddr, &'static str> {
    let addr = virtual_ip(text)?;
    let link_local = match addr {
        IpAddr::V4(addr) => addr.is_link_local() || addr.is_broadcast(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    };
    if link_local { Err("it is a link-local address") } else { Ok(addr) }
}

/// Reads an address: a mapped IPv4 address is IPv4, and leading zeros are decimal, as in Go's
/// `ParseIPSloppy`, by which Kubernetes reads what old objects hold.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| parse_padded(text)).map(|addr: IpAddr| addr.to_canonical())
}

fn parse_padded(text: &str) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet =
            parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// Reads a range, without the host bits; an address alone is the range of itself.
pub(super) fn range(text: &str) -> Option<IpNetwork> {
    let text = text.trim();
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (parse(addr)?, Some(prefix.parse().ok()?)),
        None => (parse(text)?, None),
    };
    let prefix = prefix.unwrap_or(if addr.is_ipv4() { 32 } else { 128 });
    let network = IpNetwork::new(addr, prefix).ok()?;
    IpNetwork::new(network.network(), prefix).ok()
}
