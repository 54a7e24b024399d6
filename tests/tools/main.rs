//! What people hold in their hands: the command, the Rust client, the examples, and the documentation as it is pasted.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod cli_tools;
mod client;
mod examples;
mod metrics_docs;
mod readme_tour;
