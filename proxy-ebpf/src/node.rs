//! What the programs know of the node itself: its addresses and its devices.

/// What an address of this node is good for; the value under an [`Addr`](crate::Addr).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct NodeAddr(pub u32);

impl NodeAddr {
    /// An address of this node, at which they are not.
    pub const OWN: Self = Self(1 << 1);
    /// An address of this node at which NodePorts are reached.
    pub const NODE_PORT: Self = Self(1);

    /// Whether NodePorts are reached at the address.
    #[inline(always)]
    pub const fn accepts_node_ports(self) -> bool {
        self.0 & Self::NODE_PORT.0 != 0
    }
}

/// Properties of a device.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct DeviceFlags(pub u32);

impl DeviceFlags {
    /// A device of the node, or one that the programs know nothing of.
    pub const NODE: Self = Self(0);
    /// The node's side of a pod's veth.
    pub const POD: Self = Self(1);
    /// With `POD`: the pod's queries of names pass.
    pub const NAMES_OFF: Self = Self(1 << 1);
    /// What comes in by the device is from pods as far as traffic policies care, although more
    /// than one sender may be behind it: `--detect-local-mode` names it.
    pub const LOCAL: Self = Self(1 << 2);
    /// With `POD`: the device is a port of a bridge whose frames netfilter does not see. A backend
    /// on the same bridge answers the pod directly, past the translation.
    pub const UNSEEN_BRIDGE: Self = Self(1 << 3);

    /// A device of the node that a default route leads to.
    pub const UPLINK: Self = Self(1 << 4);

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

    /// Whether what comes in by the device is from a pod, as far as traffic policies care.
    #[inline(always)]
    pub const fn leads_to_pods(self) -> bool {
        self.0 & (Self::POD.0 | Self::LOCAL.0) != 0
    }
}

/// A device that the programs are attached to; the value under its interface index.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    /// What the device is.
    pub flags: DeviceFlags,
    /// The id of the pod's network namespace in the node's own, negative if there is none.
    pub netns: i32,
}

impl Device {
    /// Whether the pod behind the device has its queries of names answered.
    #[inline(always)]
    pub const fn answers_names(&self) -> bool {
        self.flags.has(DeviceFlags::POD) && !self.flags.has(DeviceFlags::NAMES_OFF)
    }
}

const _: () = assert!(size_of::<NodeAddr>() == 4 && size_of::<Device>() == 8);
crate::plain_data!(NodeAddr, DeviceFlags, Device);
