//! The lab: see `lab`. The embedded Kubernetes API: see `api`.
pub mod api;
