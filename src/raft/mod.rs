//! Raft by openraft, and everything that openraft is told to use: the log over [`crate::wal`], the machine over
//! [`crate::store`], the network over HTTP, and the fence in front of it all.
//!
//! ```text
//! node ── proposals ──> openraft ──> log::Log ──> wal          (fdatasync, then io_completed)
//!                          │  └────> network ──> peers         (append_stream: the wal's bytes, pipelined)
//!                          └───────> machine::Machine ──> store (apply; outcomes go back to the proposer)
//! peers ──> service ──> fence ──> openraft
//! ```
//!
//! Nobody but this module and `node` knows openraft, whose version is pinned exactly: its interfaces change between
//! alphas. What was learned about it stands beside the code that depends on it.

pub mod append_stream;
pub mod copy;
pub mod fence;
pub mod link;
pub mod log;
pub mod machine;
pub mod network;
pub mod peer_http;
pub mod service;
pub mod types;
pub mod wire;
