//! What the HTTP API promises over faults, leader changes and restarts; `http_contract` has what one member shows.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod docs;
mod events;
mod idempotency;
mod leases;
mod maintenance;
mod sequences;
mod watch;
mod watch_floors;
