//! Lifeboat.
pub mod files;
pub mod history;
pub mod index;
pub mod model;
pub mod store;
