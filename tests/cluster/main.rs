//! Voters as real processes: how a cluster is founded, what it promises while members die, and how members come and go.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod disk_full;
mod founding;
mod linearizability;
mod members;
mod processes;
mod rolling;
