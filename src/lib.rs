//! Lifeboat.
pub mod files;
pub mod model;
