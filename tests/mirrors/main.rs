//! Members that follow: their states and what is measured of them, how they catch up, and whether all hold the same.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod compaction;
mod delta;
mod following;
mod links;
mod quarantine;
mod seed;
mod states;
mod verify;
