//! Lifeboat.
pub mod api;
pub mod config;
pub mod files;
pub mod model;
pub mod node;
