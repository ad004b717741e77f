//! What agents of other versions have left on the node.

use super::Agent;
use crate::loader;

impl Agent {
    /// Ends what agents of other layouts have left, now that everything is served without it.
    pub(super) fn remove_other_layouts(&self) {
        match loader::remove_other_layouts(&self.bpffs_root) {
            Ok(removed) => {
                for layout in removed {
                    tracing::info!(layout, "removed what an agent of another version had left");
                }
            }
            Err(error) => tracing::warn!("what another version has left stays: {error}"),
        }
    }
}
