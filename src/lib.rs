//! Lifeboat: a Raft-replicated key-value store whose disaster recovery is built in. A map of the crate.
//!
//! ```text
//! cli ──> http ──> node ──> raft ──┬──> store ──> history, index
//!                                  └──> wal
//!          api: wire types, known to the edge, the client and the command line
//!          model, files: the words and the file layer that all share
//! ```
//!
//! The way of a write: [`http`] (the edge) → [`node`] (queue; a follower forwards to the leader) → [`raft`] → [`wal`]
//! (one fdatasync for all that waits) → a majority → [`store`] (apply: each entry becomes a frame of the [`history`] and
//! changes to the [`index`]) → the answer with its revision. Dependencies point down only; a test holds them to it.
//! `docs/architecture.md` tells the rest.

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod crash_points;
pub mod files;
pub mod history;
pub mod http;
pub mod index;
pub mod metrics;
pub mod model;
pub mod node;
pub mod raft;
pub mod store;
pub mod wal;
