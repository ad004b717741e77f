//! What the programs know of the node itself: its addresses and its devices.

use crate::addr::Addr;

/// What an address of this node is good for; the value under an [`Addr`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct NodeAddr(pub u32);

impl NodeAddr {
    /// An address of this node.
    pub const LOCAL: Self = Self(1);
    /// An address of this node at which NodePorts are reached.
    pub const NODE_PORT: Self = Self(1 | 1 << 1);

    /// Whether NodePorts are reached at the address.
    #[inline(always)]
    pub const fn accepts_node_ports(self) -> bool {
        self.0 & 1 << 1 != 0
    }
}

/// A device that the packet path is attached to; the value under its interface index.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Device {
    /// The source address of SNAT for IPv4 packets that leave by this device.
    pub snat_v4: Addr,
    /// The source address of SNAT for IPv6 packets that leave by this device.
    pub snat_v6: Addr,
    /// [`Device::POD`] and more for the node's side of a pod's veth; for a device of the node,
    /// [`Device::LOCAL`] or 0.
    pub pod: u32,
    /// The id of the pod's network namespace in the node's own, negative if there is none.
    pub netns: i32,
}

impl Device {
    /// The node's side of a pod's veth.
    pub const POD: u32 = 1;
    /// With [`Device::POD`]: the pod's queries of names pass.
    pub const NAMES_OFF: u32 = 1 << 1;
    /// What comes in by the device is from pods as far as traffic policies care, although more
    /// than one sender may be behind it: `--detect-local-mode` names it.
    pub const LOCAL: u32 = 1 << 2;

    /// Whether the pod behind the device has its queries of names answered.
    #[inline(always)]
    pub const fn answers_names(&self) -> bool {
        self.pod & (Self::POD | Self::NAMES_OFF) == Self::POD
    }

    /// The SNAT address for packets of the family of `addr`; unspecified if there is none.
    #[inline(always)]
    pub const fn snat_addr(&self, addr: Addr) -> Addr {
        if addr.is_v4() { self.snat_v4 } else { self.snat_v6 }
    }
}

/// An address of the link layer: the bridge's that a device is a port of, under the device's
/// interface index.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct LinkAddr {
    /// The address, as frames have it.
    pub bytes: [u8; 6],
    zero: u16,
}

impl LinkAddr {
    /// The address of these bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self { bytes, zero: 0 }
    }
}

const _: () = assert!(size_of::<NodeAddr>() == 4 && size_of::<Device>() == 40);
const _: () = assert!(size_of::<LinkAddr>() == 8);
crate::plain_data!(NodeAddr, Device, LinkAddr);
