//! Lifeboat.
pub mod api;
pub mod files;
pub mod model;
pub mod node;
