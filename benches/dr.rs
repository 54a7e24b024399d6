//! What mirrors cost and how far they lag: `make bench-dr`, or `cargo bench --bench dr -- --only lag,fixed`.
//!
//! Member processes on loopback; between the sites lies the proxy of the tests (`tests/support/link.rs`), which delays and
//! counts. Members, proxy and load share one machine, so read ratios, and compare only what one run gave.
//!
//! - `lag`: a mirror 50 ms of round trip away, under as many puts as three voters take: the lag that the mirror shows, and
//!   the time from the reply to a put until a stale read at the mirror has it. The goal is one second.
//! - `fixed`: puts at half of the rate that saturates, with no mirror, with one far away, with one whose link stands still,
//!   in turn. The goal: rate and p99 within 5% of those without.
//! - `resync`: what a mirror costs that comes back after 1% was changed, against a full copy.
//! - `compression`: JSON values, by log and by copy.
//! - `verify`: what verification costs.
//! - `switchover`: the write pause of a planned move at 5 ms between the sites, and what a client that retries as it is told
//!   notices. The goals: 100 ms or less, and no failed request.
//! - `force`: a forced failover with a gigabyte, from the command to the first accepted write (the goal: 2 s or less); then the
//!   way home of the old primary with 1% stranded and 1% changed, and the move back.

#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

#[path = "parts/client.rs"]
mod client;
#[path = "parts/dr/failover.rs"]
mod failover;
#[path = "parts/dr/fixed.rs"]
mod fixed;
#[path = "parts/dr/lag.rs"]
mod lag;
#[path = "parts/dr/load.rs"]
mod load;
#[path = "parts/dr/resync.rs"]
mod resync;
#[path = "parts/dr/verify.rs"]
mod verify;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(about = "Measures mirrors on this machine")]
struct Options {
    /// Only these
    #[arg(long, value_delimiter = ',', default_value = "lag,fixed,resync,compression,verify,switchover,force")]
    only: Vec<Part>,
    /// How long each load runs while it is measured
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How many clients put at once
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How often the fixed loads are measured in turn
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// The round trip to the mirror of `lag`
    #[arg(long, default_value_t = 50)]
    lag_round_trip_ms: u64,
    /// The round trip to the mirror of `fixed`
    #[arg(long, default_value_t = 100)]
    fixed_round_trip_ms: u64,
    /// The content of `resync` and `force`
    #[arg(long, default_value_t = 1024)]
    content_mib: usize,
    /// How fast members read in `verify`, if not as fast as they do by default
    #[arg(long)]
    verify_bytes_per_second: Option<String>,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Lag,
    Fixed,
    Resync,
    Compression,
    Verify,
    Switchover,
    Force,
}

fn main() {
    let options = Options::parse();
    if !options.bench {
        println!("nothing is measured in a test run; use `cargo bench --bench dr`");
        return;
    }
    println!("{}", client::machine());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for part in &options.only {
        match part {
            Part::Lag => lag::run(&runtime, &options),
            Part::Fixed => fixed::run(&runtime, &options),
            Part::Resync => resync::run(&runtime, &options),
            Part::Compression => resync::compression(&runtime, &options),
            Part::Verify => verify::run(&runtime, &options),
            Part::Switchover => failover::switchover(&options),
            Part::Force => failover::force(&runtime, &options),
        }
    }
}
