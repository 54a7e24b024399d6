//! Puts beside compaction: the same load in turn on three clusters. One never compacts; one keeps all of its history, so
//! that sealed segments are merged; one keeps a second of it and compacts the rest away. A round shares whatever else the
//! machine does, so the ratios within it say what compaction costs a client. The rounds go through all orders, because
//! whoever comes after another also pays for what the system still writes for that one, and a cluster's compaction is
//! waited for after its turn.
//!
//! A ratio says something only when compaction worked meanwhile. So all three seal small tails, of which enough for a merge
//! come together in every turn; and a kind of compaction that read nothing in any round ends the run as failed.

use std::time::{Duration, Instant};

use super::support::cluster::{Cluster, Plan};
use super::support::scrape::Metrics;
use super::{Operation, Options, Targets, fill, measure};

/// So many clients put.
const CLIENTS: usize = 64;
/// In which order the clusters are measured in each round.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]];
/// Compaction that has done nothing for so long has come to its end.
const AT_REST: Duration = Duration::from_secs(2);
/// A tail that is sealed several times a second, so that there are eight segments to merge in every turn.
const TAIL: [&str; 2] = ["--tail-bytes", "1MiB"];
/// It is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster does with its history.
const KINDS: [(&str, &[&str]); 3] = [
    ("no compaction", &["--history-keep-ms", "24h", "--compaction-percent", "0"]),
    ("merges", &["--history-keep-ms", "24h"]),
    ("keeps a second", &["--history-keep-ms", "1s", "--history-keep-revisions", "1000"]),
];

pub fn run(runtime: &tokio::runtime::Runtime, options: &Options) {
    let start = |flags: &[&'static str]| {
        let plan = flags
            .chunks(2)
            .chain([&TAIL[..]])
            .fold(Plan::new(3, 0).flag("--log", "warn"), |plan, f| plan.flag(f[0], f[1]));
        let cluster = plan.start();
        runtime.block_on(fill(&cluster));
        cluster
    };
    let clusters: Vec<Cluster> = KINDS.iter().map(|(_, flags)| start(flags)).collect();
    println!("\n| round | cluster | puts/s | ratio | compaction, read MiB/s | written MiB/s | freed MiB/s |");
    println!("|--:|---|--:|--:|--:|--:|--:|");
    let mut ratios = vec![Vec::new(); KINDS.len()];
    // In how many rounds each kind of compaction read anything.
    let mut worked = [0; KINDS.len()];
    for (round, order) in ORDERS.into_iter().enumerate() {
        let mut measured = [(0.0, [0.0; 3]); KINDS.len()];
        for at in order {
            let (before, began) = (work(&clusters[at]), Instant::now());
            let shape = measure(&clusters[at], options, Operation::Put, Targets::Leader, CLIENTS);
            let rate = runtime.block_on(shape).rate();
            let after = wait_for_rest(&clusters[at]);
            let seconds = began.elapsed().as_secs_f64();
            measured[at] = (rate, [0, 1, 2].map(|n| (after[n] - before[n]) / seconds / f64::from(1 << 20)));
        }
        for (at, (rate, work)) in measured.iter().enumerate() {
            let ratio = rate / measured[0].0;
            let (kind, round) = (KINDS[at].0, round + 1);
            println!(
                "| {round} | {kind} | {rate:.0} | {ratio:.2} | {:.1} | {:.1} | {:.1} |",
                work[0], work[1], work[2]
            );
            ratios[at].push(ratio);
            worked[at] += usize::from(work[0] > 0.0);
        }
    }
    for (kind, mut ratios) in KINDS.iter().map(|(kind, _)| kind).zip(ratios).skip(1) {
        ratios.sort_by(f64::total_cmp);
        let (least, median) = (ratios[0], (ratios[ORDERS.len() / 2 - 1] + ratios[ORDERS.len() / 2]) / 2.0);
        println!("{kind}: the median of the ratios is {median:.2}, the least {least:.2}");
    }
    let mut proves_nothing = false;
    for ((kind, _), worked) in KINDS.iter().zip(worked).skip(1) {
        println!("{kind}: compaction worked in {worked} of {} rounds", ORDERS.len());
        proves_nothing |= worked == 0;
    }
    if proves_nothing {
        eprintln!("compaction read nothing in any round of a kind, so its ratio says nothing");
        drop(clusters);
        std::process::exit(1);
    }
}

/// Waits until compaction has done all that there is to do; gives its work.
fn wait_for_rest(cluster: &Cluster) -> [f64; 3] {
    let began = Instant::now();
    let (mut last, mut since) = (work(cluster), Instant::now());
    while since.elapsed() < AT_REST && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(200));
        let now = work(cluster);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// What compaction has read, written and freed on all members.
fn work(cluster: &Cluster) -> [f64; 3] {
    ["read", "written", "reclaimed"].map(|what| {
        let name = format!("lifeboat_compaction_{what}_bytes_total");
        (0..cluster.len()).map(|member| Metrics::of(cluster.client(member)).sum(&name, &[])).sum()
    })
}
