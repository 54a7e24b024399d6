//! The HTTP edge.
pub mod peer;
