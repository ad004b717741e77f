//! Sources: who may connect to the load balancer's addresses of a service
//! (`spec.loadBalancerSourceRanges`).

use crate::addr::Addr;
use crate::service::ServiceId;

/// An address as the source of connections to a service; prefixes of it are the keys of a trie.
///
/// The service stands first and is always part of the prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source {
    /// The service.
    pub service: ServiceId,
    /// The address, or the first bits of one.
    pub addr: Addr,
}

impl Source {
    /// How many bits the service takes; those of the address follow.
    pub const SERVICE_BITS: u32 = u32::BITS;
    /// How many bits a whole source has.
    pub const BITS: u32 = Self::SERVICE_BITS + Addr::BITS;
}

const _: () = assert!(size_of::<Source>() == 20);
crate::plain_data!(Source);
