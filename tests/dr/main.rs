//! The disaster-recovery verbs, with real processes on both sides of a link between two sites: the planned switchover, the
//! forced failover, the fence, the way home and salvage, and the drill.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod drill;
mod failover;
mod failover_again;
mod failover_clients;
mod failover_copies;
mod failover_deaths;
mod failover_fenced;
mod failover_links;
mod failover_lobby;
mod failover_returns;
mod failover_two_orders;
mod failover_window;
mod plan;
mod salvage;
mod salvage_cut;
mod sequences;
mod switchover;
mod switchover_harms;
