//! The cost of verification: puts at half of the rate that saturates, without it and beside one after the other, in turn;
//! and how fast one goes when nothing else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::Options;
use super::client::cpu_seconds;
use super::load::{median, puts};
use super::support::cluster::Plan;
use super::support::http;

pub fn run(runtime: &tokio::runtime::Runtime, options: &Options) {
    let plan = Plan::new(3, 1).flag("--log", "warn");
    let cluster = match &options.verify_bytes_per_second {
        Some(rate) => plan.flag("--verify-bytes-per-second", rate),
        None => plan,
    }
    .start();
    let members: Vec<u32> = (0..4).filter_map(|at| cluster.member(at).process_id()).collect();
    let cpu = || members.iter().map(|process| cpu_seconds(*process)).sum::<f64>();
    let leader = cluster.client(cluster.wait_leader());
    let verify = move || {
        // Line by line: one that takes long says now and then how far it is, and the last line is the report.
        let lines = http::Request::new("GET", "/v1/verify").send(leader).expect(200);
        let report = lines.text().lines().last().expect("a report");
        serde_json::from_str::<serde_json::Value>(report).expect("JSON")
    };
    let most = runtime.block_on(puts(leader, options.clients, options.seconds, None)).per_second;
    cluster.wait_converged();
    let before = cpu();
    let report = verify();
    let scrubbed =
        report["members"].as_array().unwrap().iter().filter_map(|m| m["scrubbed_bytes"].as_f64()).sum::<f64>();
    println!("\nalone: {:.0} MiB scrubbed, {:.2} s of CPU of all members", scrubbed / 1048576.0, cpu() - before);
    println!(
        "\nverification: {} keys, {} bytes of content on 4 members in {} s",
        report["keys"], report["bytes"], report["seconds"]
    );
    println!("agreed: {}, complete: {}", report["agreed"], report["complete"]);
    println!("\n| round | beside | puts/s of {:.0} wanted | p50 ms | p99 ms | CPU s | verifications |", most / 2.0);
    println!("|--:|---|--:|--:|--:|--:|--:|");
    let (mut rates, mut tails, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let mut measured = Vec::new();
        for verifies in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let (stop, counted) = (done.clone(), count.clone());
            let beside = verifies.then(|| {
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // Reported even if it is still under way at the end: the bound of its pace is what costs.
                        verify();
                        counted.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(100));
                    }
                })
            });
            let before = cpu();
            let load = runtime.block_on(puts(leader, options.clients, options.seconds, Some(most / 2.0)));
            let used = cpu() - before;
            done.store(true, Ordering::Relaxed);
            beside.into_iter().for_each(|thread| thread.join().unwrap());
            let name = if verifies { "verification" } else { "nothing" };
            let (p50, p99) = (load.millis(0.5), load.millis(0.99));
            let count = count.load(Ordering::Relaxed);
            println!("| {round} | {name} | {:.0} | {p50:.2} | {p99:.2} | {used:.2} | {count} |", load.per_second);
            assert_eq!(load.errors, 0);
            measured.push((verifies, load.per_second, p99, used));
        }
        measured.sort_by_key(|(verifies, ..)| *verifies);
        rates.push(measured[1].1 / measured[0].1);
        tails.push(measured[1].2 / measured[0].2);
        costs.push(measured[1].3 / measured[0].3);
    }
    let (rate, tail, cost) = (median(rates), median(tails), median(costs));
    println!("beside verification: rate × {rate:.2}, p99 × {tail:.2}, CPU × {cost:.2} (medians of the rounds)");
}
