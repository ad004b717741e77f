//! What may be said of the cluster zone's names: what the Corefile permits, and what the flags say.
//!
//! Pure functions of their texts. The names themselves are planned in `plan`, and answered in the
//! kernel; what the kernel passes goes to the cluster's DNS service.

pub mod corefile;
pub mod policy;
