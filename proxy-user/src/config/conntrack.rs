//! The settings of conntrack, under kube-proxy's names.

use super::value;
use super::{ConfigError, Values};
use std::path::PathBuf;
use std::time::Duration;

/// How the kernel's conntrack is to be set. A time of zero leaves the kernel's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConntrackConfig {
    /// How many entries there can be for each CPU; zero leaves the kernel's number.
    pub max_per_core: u32,
    /// How many there can be at least.
    pub min: u32,
    /// How long an established TCP connection may be idle.
    pub tcp_established: Duration,
    /// How long a TCP connection that one end has closed is remembered.
    pub tcp_close_wait: Duration,
    /// Whether TCP packets outside the window are taken for valid.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow without an answer is remembered.
    pub udp: Duration,
    /// How long a UDP flow that was answered is remembered.
    pub udp_stream: Duration,
    /// Where the kernel's settings are.
    pub sysctl_root: PathBuf,
}

impl ConntrackConfig {
    pub(super) fn read(values: &Values) -> Result<Self, ConfigError> {
        let duration = |name| values.read(name, value::duration);
        Ok(Self {
            max_per_core: values.read("conntrack-max-per-core", value::count)?,
            min: values.read("conntrack-min", value::count)?,
            tcp_established: duration("conntrack-tcp-timeout-established")?,
            tcp_close_wait: duration("conntrack-tcp-timeout-close-wait")?,
            tcp_be_liberal: values.read("conntrack-tcp-be-liberal", value::truth)?,
            udp: duration("conntrack-udp-timeout")?,
            udp_stream: duration("conntrack-udp-timeout-stream")?,
            sysctl_root: values.read("sysctl-root", value::absolute_path)?,
        })
    }
}
