//! Puts at half of the rate that saturates: without a mirror, with one far away, with one whose link stands still.
//!
//! Two clusters, both with a link, so that their voters are connected alike: one has no mirror, the other has one. A round
//! measures all three kinds, one after the other, and begins with another kind each time; the ratios within a round say what
//! the mirror costs. A link that stood still is healed after its turn, and the mirror caught up, before the next begins.

use std::time::Duration;

use super::Options;
use super::load::{Measured, median, puts};
use super::support::cluster::{Cluster, Plan};

const KINDS: [&str; 3] = ["no mirror", "a mirror far away", "a mirror whose link stands still"];

pub fn run(runtime: &tokio::runtime::Runtime, options: &Options) {
    let alone = Plan::new(3, 0).flag("--log", "warn").linked().start();
    let mirrored = Plan::new(3, 1).flag("--log", "warn").linked().start();
    let leader = |cluster: &Cluster| cluster.client(cluster.wait_leader());
    let full = runtime.block_on(puts(leader(&alone), options.clients, options.seconds, None)).per_second;
    let rate = full / 2.0;
    println!(
        "\nfixed: {full:.0} puts/s saturate; {rate:.0} a second by {} clients; the mirror is {} ms of round trip away",
        options.clients, options.fixed_round_trip_ms
    );
    println!("| round | | puts/s | p50 ms | p99 ms | errors | rate, ratio | p99, ratio |");
    println!("|--:|---|--:|--:|--:|--:|--:|--:|");
    let mut ratios = vec![(Vec::new(), Vec::new()); KINDS.len()];
    for round in 0..options.rounds {
        let mut measured: [Option<Measured>; KINDS.len()] = Default::default();
        for turn in 0..KINDS.len() {
            let kind = (round + turn) % KINDS.len();
            let cluster = if kind == 0 { &alone } else { &mirrored };
            cluster.wait_converged();
            let link = mirrored.link();
            link.delay(Duration::from_millis(options.fixed_round_trip_ms) / 2);
            if kind == 2 {
                link.stall();
            }
            measured[kind] =
                Some(runtime.block_on(puts(leader(cluster), options.clients, options.seconds, Some(rate))));
            link.clean();
        }
        let measured = measured.map(|measured| measured.unwrap());
        for (kind, one) in measured.iter().enumerate() {
            let ratio = (one.per_second / measured[0].per_second, one.millis(0.99) / measured[0].millis(0.99));
            println!(
                "| {} | {} | {:.0} | {:.2} | {:.2} | {} | {:.3} | {:.3} |",
                round + 1,
                KINDS[kind],
                one.per_second,
                one.millis(0.5),
                one.millis(0.99),
                one.errors,
                ratio.0,
                ratio.1
            );
            ratios[kind].0.push(ratio.0);
            ratios[kind].1.push(ratio.1);
        }
    }
    for (kind, (rates, p99s)) in KINDS.iter().zip(ratios).skip(1) {
        println!(
            "{kind}: the medians of the ratios are {:.3} for the rate, {:.3} for p99",
            median(rates),
            median(p99s)
        );
    }
}
