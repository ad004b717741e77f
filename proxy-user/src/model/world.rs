//! The world: what all changes so far add up to.

/// Not written yet.
#[derive(Debug)]
pub struct World;
/// Not written yet.
#[derive(Debug)]
pub struct Touched;
