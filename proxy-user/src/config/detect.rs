//! How pods are told from outsiders: a mode, and for two of them the interface that they need.
//!
//! Takes the values of the settings, gives the mode or what is wrong with them. An interface
//! without its mode is refused, since it would do nothing; `--cluster-cidr` is not, for the
//! resolver goes by it in every mode.

use super::{ConfigError, Values, value};
use crate::model::DetectLocal;

const BRIDGE: &str = "pod-bridge-interface";
const PREFIX: &str = "pod-interface-name-prefix";

impl Values {
    /// The mode of `--detect-local-mode`, with its interface.
    pub(super) fn detect_local(&self) -> Result<DetectLocal, ConfigError> {
        let bridge = self.optional(BRIDGE, value::interface)?;
        let prefix = self.optional(PREFIX, value::interface)?;
        let needs = |mode, missing| ConfigError::NoInterface { mode, missing };
        let mode = self.read("detect-local-mode", value::detect_local)?;
        if mode != "BridgeInterface" && bridge.is_some() {
            let unused = self.origin(BRIDGE);
            return Err(ConfigError::OtherMode { unused, mode: "BridgeInterface" });
        }
        if mode != "InterfaceNamePrefix" && prefix.is_some() {
            let unused = self.origin(PREFIX);
            return Err(ConfigError::OtherMode { unused, mode: "InterfaceNamePrefix" });
        }
        match mode {
            "NodeCIDR" => Ok(DetectLocal::NodeCidr),
            "BridgeInterface" => bridge
                .map(DetectLocal::BridgeInterface)
                .ok_or_else(|| needs(mode, "pod-bridge-interface NAME")),
            "InterfaceNamePrefix" => prefix
                .map(DetectLocal::InterfaceNamePrefix)
                .ok_or_else(|| needs(mode, "pod-interface-name-prefix PREFIX")),
            _ => Ok(DetectLocal::ClusterCidr),
        }
    }
}
