//! How far a mirror is behind under as many puts as the voters take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Options;
use super::client::Client;
use super::load::{histogram, put, puts};
use super::support::cluster::Plan;
use super::support::scrape::Metrics;

/// Between two looks at the mirror.
const EVERY: Duration = Duration::from_millis(200);
/// Between two reads of a marker that is not there yet.
const POLL: Duration = Duration::from_millis(2);

pub fn run(runtime: &tokio::runtime::Runtime, options: &Options) {
    let cluster = Plan::new(3, 1).flag("--log", "warn").linked().start();
    cluster.link().delay(Duration::from_millis(options.lag_round_trip_ms) / 2);
    let (leader, mirror) = (cluster.client(cluster.wait_leader()), cluster.client(3));
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let shown = std::thread::spawn(move || {
        let mut shown = histogram();
        while !stop.load(Ordering::Relaxed) {
            // Unknown for a moment after the start: that is no figure.
            let metrics = Metrics::of(mirror);
            if metrics.has("lifeboat_lag_seconds") {
                shown.saturating_record((metrics.sum("lifeboat_lag_seconds", &[]) * 1e6) as u64);
            }
            std::thread::sleep(EVERY);
        }
        shown
    });
    let stop = done.clone();
    let seen = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut writer, mut reader) = (Client::connect(leader).await, Client::connect(mirror).await);
            let mut seen = histogram();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                writer.ask(&put(&format!("marker/{number}"), b"x")).await.unwrap();
                let replied = Instant::now();
                let read = format!("GET /v1/kv/marker/{number}?consistency=stale HTTP/1.1\r\nHost: bench\r\n\r\n");
                while reader.ask(read.as_bytes()).await.is_err() {
                    tokio::time::sleep(POLL).await;
                }
                seen.saturating_record(replied.elapsed().as_micros() as u64);
                tokio::time::sleep(EVERY).await;
            }
            seen
        })
    });
    let load = runtime.block_on(puts(leader, options.clients, options.seconds, None));
    done.store(true, Ordering::Relaxed);
    let (shown, seen) = (shown.join().unwrap(), seen.join().unwrap());
    let seconds = |micros: u64| micros as f64 / 1e6;
    println!(
        "\nlag: a mirror {} ms of round trip away, {:.0} puts/s by {} clients, p99 {:.1} ms, {} errors",
        options.lag_round_trip_ms,
        load.per_second,
        options.clients,
        load.millis(0.99),
        load.errors,
    );
    println!("| | samples | p50 s | p99 s | longest s |\n|---|--:|--:|--:|--:|");
    for (what, times) in [("lag that the mirror shows", &shown), ("from a reply until the mirror has it", &seen)] {
        let (p50, p99) = (seconds(times.value_at_quantile(0.5)), seconds(times.value_at_quantile(0.99)));
        println!("| {what} | {} | {p50:.3} | {p99:.3} | {:.3} |", times.len(), seconds(times.max()));
    }
}
