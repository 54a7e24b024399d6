//! What crosses the link to bring a mirror up to date, and how long that takes: everything, and what comes after 1% was
//! changed; and how much of JSON values crosses it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Options;
use super::client::Client;
use super::load::put;
use super::support::cluster::{Cluster, Plan};
use super::support::link::Way;
use super::support::scrape::Metrics;
use super::support::wait_within;

/// About the size of a value.
const VALUE_BYTES: usize = 1024;
/// Those who write the content.
const WRITERS: usize = 16;
/// A copy of a gigabyte may take so long.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A record as applications keep them: names of fields repeat, half of what they hold does not.
fn json(rng: &mut StdRng) -> String {
    let mut record = String::with_capacity(VALUE_BYTES + 128);
    record.push('[');
    while record.len() < VALUE_BYTES {
        let (id, cents, active) = (rng.random::<u32>(), rng.random_range(0..1_000_000), rng.random_bool(0.8));
        let name: String = (0..12).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
        record += &format!(
            "{{\"id\":{id},\"customer\":\"{name}\",\"country\":\"DE\",\"active\":{active},\"balance_cents\":{cents}}},"
        );
    }
    record.pop();
    record + "]"
}

/// Writes JSON under these numbers of keys; gives how many bytes.
pub fn write(runtime: &tokio::runtime::Runtime, at: SocketAddr, keys: impl Iterator<Item = usize>, seed: u64) -> u64 {
    let keys: Vec<usize> = keys.collect();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let keys: Vec<usize> = keys.iter().copied().skip(writer).step_by(WRITERS).collect();
            tasks.spawn(async move {
                let (mut client, mut bytes) = (Client::connect(at).await, 0);
                let mut rng = StdRng::seed_from_u64(seed * 1000 + writer as u64);
                for key in keys {
                    let value = json(&mut rng);
                    bytes += value.len() as u64;
                    client.ask(&put(&format!("content/{key:08}"), value.as_bytes())).await.unwrap();
                }
                bytes
            });
        }
        let mut bytes = 0;
        while let Some(done) = tasks.join_next().await {
            bytes += done.unwrap();
        }
        bytes
    })
}

/// Writes until the log no longer has what follows `index`.
fn push_log_past(cluster: &Cluster, index: u64) {
    wait_within(PATIENCE, "the log to move on", || {
        for _ in 0..16 {
            cluster.put_until_done(0, "filler", &"x".repeat(512 << 10));
        }
        let first = Metrics::of(cluster.client(0)).sum("lifeboat_wal_first_index", &[]);
        if first > index as f64 { Ok(()) } else { Err(format!("it begins at {first}")) }
    });
}

fn applied(cluster: &Cluster, member: usize) -> u64 {
    cluster.status(member).unwrap()["applied_index"].as_u64().unwrap()
}

/// Starts a mirror and waits until it has everything. Gives seconds, and bytes on the link.
fn catch_up(cluster: &mut Cluster, mirror: usize) -> (f64, u64) {
    let before = cluster.link().bytes(Way::ToWest);
    let (began, wanted) = (Instant::now(), applied(cluster, 0));
    cluster.start_member(mirror);
    wait_within(PATIENCE, "the mirror to have everything", || {
        let at = cluster.status(mirror)?["applied_index"].as_u64().unwrap_or(0);
        if at >= wanted { Ok(()) } else { Err(format!("it is at {at} of {wanted}")) }
    });
    (began.elapsed().as_secs_f64(), cluster.link().bytes(Way::ToWest) - before)
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// How many keys make so many MiB.
pub fn keys_of(mib: usize) -> usize {
    mib * (1 << 20) / VALUE_BYTES
}

pub fn run(runtime: &tokio::runtime::Runtime, options: &Options) {
    let plan = Plan::new(1, 0).flag("--log", "warn").flag("--wal-keep-bytes", "16MiB");
    let mut cluster = plan.flag("--wal-segment-bytes", "4MiB").linked().start();
    let keys = keys_of(options.content_mib);
    let bytes = write(runtime, cluster.client(0), 0..keys, 1);
    println!("\nresync: {:.0} MiB of JSON in {keys} keys; the link is compressed and not delayed", mib(bytes));
    println!("| | MiB on the link | seconds |\n|---|--:|--:|");
    push_log_past(&cluster, 10);
    let mirror = cluster.add_member("mirror", "west");
    let (seconds, full) = catch_up(&mut cluster, mirror);
    println!("| a full copy | {:.1} | {seconds:.1} |", mib(full));
    cluster.wait_converged();
    cluster.stop(mirror);
    let at = applied(&cluster, 0);
    write(runtime, cluster.client(0), (0..keys).step_by(100), 2);
    push_log_past(&cluster, at + 1);
    let (seconds, delta) = catch_up(&mut cluster, mirror);
    println!("| after 1% was changed | {:.1} | {seconds:.1} |", mib(delta));
    println!("the second is {:.1}% of the first", delta as f64 * 100.0 / full as f64);
}

pub fn compression(runtime: &tokio::runtime::Runtime, options: &Options) {
    let plan = Plan::new(1, 1).flag("--log", "warn").flag("--wal-keep-bytes", "4MiB");
    let mut cluster = plan.flag("--wal-segment-bytes", "1MiB").linked().start();
    println!("\ncompression: JSON values of about {VALUE_BYTES} bytes\n| | payload MiB | on the link MiB | ratio |");
    println!("|---|--:|--:|--:|");
    let count = |cluster: &Cluster| {
        let metrics = Metrics::of(cluster.client(0));
        ["payload", "sent"].map(|what| metrics.sum(&format!("lifeboat_link_{what}_bytes_total"), &["member=\"n2\""]))
    };
    let print = |what: &str, before: [f64; 2], after: [f64; 2]| {
        let [payload, sent] = [after[0] - before[0], after[1] - before[1]];
        println!("| {what} | {:.1} | {:.1} | {:.1} |", mib(payload as u64), mib(sent as u64), payload / sent);
    };
    let keys = (options.seconds * 3000.0) as usize;
    let before = count(&cluster);
    write(runtime, cluster.client(0), 0..keys, 1);
    cluster.wait_converged();
    print("by log", before, count(&cluster));
    cluster.stop(1);
    let at = applied(&cluster, 0);
    write(runtime, cluster.client(0), keys..2 * keys, 2);
    push_log_past(&cluster, at + 1);
    let before = count(&cluster);
    catch_up(&mut cluster, 1);
    print("by copy", before, count(&cluster));
}
