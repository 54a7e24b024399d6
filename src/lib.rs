//! Lifeboat.
pub mod files;
pub mod model;
pub mod wal;
