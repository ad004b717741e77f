//! Frontends: the addresses at which services are reached.
//!
//! A frontend is (address, port, protocol, scope). Its value is one word, read once, that names
//! a slot range; everything else about the service stands in the range's header.

use crate::addr::{Addr, Port, Proto, mix};

/// What the address of a frontend stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// The address belongs to the service: a ClusterIP, an external IP, a load balancer's VIP.
    Service,
    /// A NodePort. The key's address is the unspecified one of the family, and the frontend is
    /// reached at every node address that [`crate::node::NodeAddr`] accepts.
    Node,
    /// All of a ClusterIP that is no frontend of its own: other ports, other protocols. The key
    /// has no port, and whoever asks is refused.
    Address,
}

/// The key of a frontend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    /// The service's address, or the unspecified address of the family for a NodePort.
    pub addr: Addr,
    /// The frontend's port.
    pub port: Port,
    /// The transport protocol.
    pub proto: Proto,
    scope: u8,
}

impl FrontendKey {
    /// The frontend of an address that belongs to a service.
    #[inline(always)]
    pub const fn service(addr: Addr, port: Port, proto: Proto) -> Self {
        Self { addr, port, proto, scope: 0 }
    }

    /// The NodePort `port` in the family of `addr`, whose other bits do not matter.
    #[inline(always)]
    pub const fn node_port(addr: Addr, port: Port, proto: Proto) -> Self {
        Self { addr: addr.unspecified(), port, proto, scope: 1 }
    }

    /// What `addr` has beside its frontends.
    #[inline(always)]
    pub const fn address(addr: Addr) -> Self {
        Self { addr, port: Port::new(0), proto: Proto(0), scope: 2 }
    }

    /// What the address stands for.
    #[inline(always)]
    pub const fn scope(&self) -> Scope {
        match self.scope {
            0 => Scope::Service,
            1 => Scope::Node,
            _ => Scope::Address,
        }
    }

    /// A digest of the key that its value repeats.
    ///
    /// The kernel may hand an element of a hash map to another key while a program still reads
    /// it. A value whose tag is not the tag of the key that was looked up belongs to another
    /// frontend, and the reader looks up once more.
    #[inline(always)]
    pub const fn tag(&self) -> u16 {
        let ports = (self.port.network() as u32) << 16 | (self.proto.0 as u32) << 8;
        let digest = mix(self.addr.digest(), ports | self.scope as u32);
        (digest ^ (digest >> 16)) as u16
    }
}

/// Properties of a frontend, apart from its slot range.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FrontendFlags(pub u16);

impl FrontendFlags {
    /// No property set: a ClusterIP with the policy `Cluster`.
    pub const NONE: Self = Self(0);
    /// `internalTrafficPolicy: Local` on a ClusterIP: every caller gets the local set.
    pub const INTERNAL_LOCAL: Self = Self(1);
    /// `externalTrafficPolicy: Local`: callers that are neither a pod nor this node get the
    /// local set.
    pub const EXTERNAL_LOCAL: Self = Self(1 << 1);
    /// A NodePort.
    pub const NODE_PORT: Self = Self(1 << 2);
    /// An address of `spec.externalIPs`.
    pub const EXTERNAL_IP: Self = Self(1 << 3);
    /// An address of `status.loadBalancer.ingress`.
    pub const LOAD_BALANCER: Self = Self(1 << 4);
    /// No port of the service: whoever asks is refused, whatever endpoints there are.
    pub const REFUSED: Self = Self(1 << 5);
    /// Only the service's [sources](crate::source::Source) are let in.
    pub const RESTRICTED: Self = Self(1 << 6);
    /// With `RESTRICTED`: this node is one of the sources.
    pub const ADMITS_NODE: Self = Self(1 << 7);

    /// Both sets of flags.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the address is a ClusterIP: given to one Service by the cluster itself.
    #[inline(always)]
    pub const fn is_cluster_ip(self) -> bool {
        self.0 & (Self::NODE_PORT.0 | Self::EXTERNAL_IP.0 | Self::LOAD_BALANCER.0) == 0
    }

    /// The kind of frontend, in Kubernetes' own words.
    pub const fn kind(self) -> &'static str {
        if self.has(Self::NODE_PORT) {
            "NodePort"
        } else if self.has(Self::EXTERNAL_IP) {
            "ExternalIP"
        } else if self.has(Self::LOAD_BALANCER) {
            "LoadBalancer"
        } else {
            "ClusterIP"
        }
    }
}

/// The value of a frontend: one word, so that a reader never sees half of it.
///
/// Bits 0–31 are the index of the range's header in the slot array, 32–47 the tag of the key,
/// 48–63 the flags.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FrontendValue(pub u64);

impl FrontendValue {
    /// No frontend. Element 0 of the slot array begins no range, so no value is zero.
    pub const NONE: Self = Self(0);

    /// Whether this is no frontend.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The value that publishes the range at `range` under `key`.
    pub const fn new(key: &FrontendKey, range: u32, flags: FrontendFlags) -> Self {
        Self(range as u64 | (key.tag() as u64) << 32 | (flags.0 as u64) << 48)
    }

    /// The index of the range's header in the slot array.
    #[inline(always)]
    pub const fn range(self) -> u32 {
        self.0 as u32
    }

    /// The tag of the key that this value was written for.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The frontend's properties.
    #[inline(always)]
    pub const fn flags(self) -> FrontendFlags {
        FrontendFlags((self.0 >> 48) as u16)
    }
}

const _: () = assert!(size_of::<FrontendKey>() == 20 && size_of::<FrontendValue>() == 8);
crate::plain_data!(FrontendKey, FrontendValue);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u32, port: u16) -> FrontendKey {
        FrontendKey::service(Addr::from_v4_word(last.to_be()), Port::new(port), Proto::TCP)
    }

    #[test]
    fn value_keeps_its_three_parts_apart() {
        let key = key(0x0a60_0001, 443);
        let flags = FrontendFlags::NODE_PORT.with(FrontendFlags::EXTERNAL_LOCAL);
        let value = FrontendValue::new(&key, 0xdead_beef, flags);
        assert_eq!(value.range(), 0xdead_beef);
        assert_eq!(value.tag(), key.tag());
        assert_eq!(value.flags(), flags);
    }

    #[test]
    fn neighbouring_keys_rarely_share_a_tag() {
        let mut same = 0;
        for a in 0..2000 {
            same += u32::from(key(0x0a60_0000 + a, 80).tag() == key(0x0a60_0001 + a, 80).tag());
            same += u32::from(key(0x0a60_0000 + a, 80).tag() == key(0x0a60_0000 + a, 81).tag());
        }
        assert!(same <= 2, "{same} of 4000 neighbours share a tag");
    }

    #[test]
    fn scope_and_family_make_different_keys() {
        let v4 = FrontendKey::node_port(Addr::from_v4_word(7), Port::new(30000), Proto::UDP);
        let v6 = FrontendKey::node_port(Addr::from_words([1; 4]), Port::new(30000), Proto::UDP);
        assert_ne!(v4, v6);
        assert_eq!(v4.scope(), Scope::Node);
        assert_ne!(v4, FrontendKey::service(Addr::UNSPECIFIED_V4, Port::new(30000), Proto::UDP));
    }
}
