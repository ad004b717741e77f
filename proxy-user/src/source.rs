//! The source: where Services, EndpointSlices and the own Node come from.
//!
//! Kubernetes objects go in, [`Change`](crate::model::Change)s come out; the types of Kubernetes
//! stop here.

pub mod convert;
