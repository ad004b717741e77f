//! Who is compared: the direct path, Shunt, and what kube-proxy makes of the same Services.

use crate::kube_proxy::Mode;
use clap::ValueEnum;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// One of those who are compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(super) enum Contender {
    /// No proxy: clients go to the pods themselves. The limit.
    Direct,
    /// The agent of this workspace.
    Shunt,
    /// kube-proxy's rules for its mode iptables, in nf_tables (the tool of today's images).
    Iptables,
    /// The same rules in x_tables.
    IptablesLegacy,
    /// kube-proxy's rules for its mode nftables.
    Nftables,
    /// A real kube-proxy, in its mode iptables.
    KubeProxyIptables,
    /// A real kube-proxy, in its mode nftables.
    KubeProxyNftables,
}

impl Contender {
    /// Those that there are with a kube-proxy or without one.
    pub(super) fn field(kube_proxy: bool) -> Vec<Self> {
        let mut field = vec![Self::Direct, Self::Shunt];
        field.extend(if kube_proxy {
            &[Self::KubeProxyIptables, Self::KubeProxyNftables][..]
        } else {
            &[Self::Iptables, Self::IptablesLegacy, Self::Nftables]
        });
        field
    }

    /// As it stands in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Shunt => "shunt",
            Self::Iptables => "iptables",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
            Self::KubeProxyIptables => "kube-proxy-iptables",
            Self::KubeProxyNftables => "kube-proxy-nftables",
        }
    }

    /// As it stands where there is little room.
    pub(super) const fn short(self) -> &'static str {
        match self {
            Self::Iptables => "ipt",
            Self::IptablesLegacy => "legacy",
            Self::Nftables => "nft",
            Self::KubeProxyIptables => "kp-ipt",
            Self::KubeProxyNftables => "kp-nft",
            _ => self.name(),
        }
    }

    /// The mode of its kube-proxy, if it is a real one.
    pub(super) const fn kube_proxy(self) -> Option<Mode> {
        match self {
            Self::KubeProxyIptables => Some(Mode::Iptables),
            Self::KubeProxyNftables => Some(Mode::Nftables),
            _ => None,
        }
    }

    /// Whether it is kube-proxy in its mode nftables, or its rules.
    pub(super) const fn is_nftables(self) -> bool {
        matches!(self, Self::Nftables | Self::KubeProxyNftables)
    }

    /// Whether it is kube-proxy in its mode iptables, or its rules.
    pub(super) const fn is_iptables(self) -> bool {
        matches!(self, Self::Iptables | Self::IptablesLegacy | Self::KubeProxyIptables)
    }

    /// Whether it is a text of rules that the bench makes itself.
    pub(super) const fn is_made_of_rules(self) -> bool {
        matches!(self, Self::Iptables | Self::IptablesLegacy | Self::Nftables)
    }

    /// Whether the Kubernetes API knows its Services: Shunt may come to the place of the direct
    /// path.
    pub(super) const fn is_published(self) -> bool {
        !self.is_made_of_rules()
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Contender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Contender {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_str(&String::deserialize(deserializer)?, false).map_err(D::Error::custom)
    }
}
