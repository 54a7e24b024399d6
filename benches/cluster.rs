//! How fast a cluster of three members is: puts, linearizable gets and stale gets, with few and with many clients.
//!
//! `make bench`, or `cargo bench --bench cluster -- --seconds 5 --clients 1,64 --only put`. Three member processes on
//! loopback, values of 256 bytes; clients keep one connection each and send their next request when the last one is
//! answered. They ask either only the leader, or all members in equal parts. The generator of the load shares the
//! machine with the members, so it is kept as cheap as can be: plain sockets on one thread, requests prepared
//! beforehand, answers looked at just enough to see their end and that they are good.
//!
//! Then one client puts while many watchers of one prefix are told of it (`--only watch`), and puts are measured beside
//! compaction (`--only compaction`); see `parts/`.
//!
//! What is printed for each shape: operations a second, the time of an answer (p50, p99, the longest), CPU seconds of
//! every member and of the generator, CPU microseconds of all members together for one operation, and the peak
//! resident memory of every member during the shape. The machine matters: it is named first.

#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

#[path = "parts/client.rs"]
mod client;
#[path = "parts/compaction.rs"]
mod compaction;
#[path = "parts/fan_out.rs"]
mod fan_out;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use client::{Client, cpu_seconds, machine};
use hdrhistogram::Histogram;
use support::cluster::{Cluster, Plan};

/// How many keys the clients write and read.
const KEYS: usize = 10_000;
/// The size of every value.
const VALUE_BYTES: usize = 256;
/// An answer that takes longer is counted as this long.
const LONGEST_MICROS: u64 = 60_000_000;

#[derive(Parser)]
#[command(about = "Measures a cluster of three members on this machine")]
struct Options {
    /// How long each shape is measured
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long each shape runs before it is measured
    #[arg(long, default_value_t = 1.0)]
    warm_up_seconds: f64,
    /// How many clients at once; several numbers make several shapes
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    clients: Vec<usize>,
    /// Only these operations
    #[arg(long, value_delimiter = ',', default_value = "put,get,stale,watch,compaction")]
    only: Vec<Operation>,
    /// Whom the clients ask
    #[arg(long, value_delimiter = ',', default_value = "leader,all")]
    at: Vec<Targets>,
    /// How many watchers of one prefix; several numbers make several shapes
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    watchers: Vec<usize>,
    /// How many puts a second the watchers are also given
    #[arg(long, default_value_t = 50.0)]
    paced_puts_per_second: f64,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    /// Writes of random keys
    Put,
    /// Linearizable reads of random keys
    Get,
    /// Stale reads of random keys
    Stale,
    /// Puts by one client that many watchers are told of
    Watch,
    /// Puts beside compaction and without it
    Compaction,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get, linearizable",
            Operation::Stale => "get, stale",
            Operation::Watch => "watch",
            Operation::Compaction => "compaction",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Targets {
    /// The leader only
    Leader,
    /// All members in equal parts
    All,
}

impl Targets {
    fn name(self) -> &'static str {
        match self {
            Targets::Leader => "leader",
            Targets::All => "all",
        }
    }
}

fn main() {
    let options = Options::parse();
    if !options.bench {
        println!("nothing is measured in a test run; use `cargo bench --bench cluster`");
        return;
    }
    println!("{}; values of {VALUE_BYTES} bytes, {KEYS} keys\n", machine());
    let cluster = Plan::new(3, 0).flag("--log", "warn").start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fill(&cluster));
    println!("{}", Row::header());
    let simple = |operation: &&Operation| !matches!(operation, Operation::Watch | Operation::Compaction);
    for &operation in options.only.iter().filter(simple) {
        for &at in &options.at {
            for &clients in &options.clients {
                let row = runtime.block_on(measure(&cluster, &options, operation, at, clients));
                println!("{}", row.line());
            }
        }
    }
    if options.only.contains(&Operation::Watch) {
        runtime.block_on(fan_out::run(&cluster, &options));
    }
    drop(cluster);
    if options.only.contains(&Operation::Compaction) {
        compaction::run(&runtime, &options);
    }
}

/// Every key exists before it is read or replaced.
async fn fill(cluster: &Cluster) {
    const AT_ONCE: usize = 64;
    let leader = cluster.client(cluster.wait_leader());
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..AT_ONCE {
        tasks.spawn(async move {
            let mut client = Client::connect(leader).await;
            for key in (first..KEYS).step_by(AT_ONCE) {
                client.ask(&request(Operation::Put, key)).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// The whole bytes of one request.
fn request(operation: Operation, key: usize) -> Vec<u8> {
    let key = format!("/v1/kv/bench/{key:08}");
    match operation {
        Operation::Put | Operation::Watch | Operation::Compaction => {
            let head = format!("PUT {key} HTTP/1.1\r\nHost: bench\r\nContent-Length: {VALUE_BYTES}\r\n\r\n");
            [head.as_bytes(), &[b'v'; VALUE_BYTES]].concat()
        }
        Operation::Get => format!("GET {key} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes(),
        Operation::Stale => format!("GET {key}?consistency=stale HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes(),
    }
}

/// What one shape gave.
struct Row {
    operation: Operation,
    at: Targets,
    clients: usize,
    seconds: f64,
    times: Histogram<u64>,
    errors: Vec<String>,
    member_cpu_seconds: Vec<f64>,
    generator_cpu_seconds: f64,
    peak_memory_mib: Vec<f64>,
}

async fn measure(cluster: &Cluster, options: &Options, operation: Operation, at: Targets, clients: usize) -> Row {
    let leader = cluster.wait_leader();
    // The first column is the leader's.
    let members: Vec<usize> = std::iter::once(leader).chain((0..cluster.len()).filter(|&m| m != leader)).collect();
    let processes: Vec<u32> = members.iter().map(|&member| cluster.member(member).process_id().unwrap()).collect();
    let start = Instant::now() + Duration::from_secs_f64(options.warm_up_seconds);
    let end = start + Duration::from_secs_f64(options.seconds);

    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let target = match at {
            Targets::Leader => leader,
            // The leader comes last, so that a single client asks somebody else.
            Targets::All => members[(number + 1) % members.len()],
        };
        tasks.spawn(work(cluster.client(target), operation, number, start, end));
    }
    tokio::time::sleep_until(start.into()).await;
    for &process in &processes {
        forget_peak_memory(process);
    }
    let before: Vec<f64> = processes.iter().map(|&process| cpu_seconds(process)).collect();
    let generator_before = cpu_seconds(std::process::id());
    tokio::time::sleep_until(end.into()).await;
    let seconds = options.seconds + end.elapsed().as_secs_f64();
    let generator_cpu_seconds = cpu_seconds(std::process::id()) - generator_before;
    let member_cpu_seconds = processes.iter().zip(before).map(|(&process, was)| cpu_seconds(process) - was).collect();
    let peak_memory_mib = processes.iter().map(|&process| peak_memory_mib(process)).collect();

    let mut times = Histogram::new_with_bounds(1, LONGEST_MICROS, 3).unwrap();
    let mut errors = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (client_times, client_errors) = done.unwrap();
        times.add(client_times).unwrap();
        errors.extend(client_errors);
    }
    Row { operation, at, clients, seconds, times, errors, member_cpu_seconds, generator_cpu_seconds, peak_memory_mib }
}

/// One client: asks from now on, and counts what is answered between `start` and `end`.
async fn work(
    target: SocketAddr,
    operation: Operation,
    number: usize,
    start: Instant,
    end: Instant,
) -> (Histogram<u64>, Vec<String>) {
    // Prepared requests for keys all over the key space, in an order that differs from client to client.
    const PREPARED: usize = 64;
    let requests: Vec<Vec<u8>> =
        (0..PREPARED).map(|n| request(operation, (number * 7919 + n * 1_000_003) % KEYS)).collect();
    let mut times = Histogram::new_with_bounds(1, LONGEST_MICROS, 3).unwrap();
    let mut errors = Vec::new();
    let mut client = Client::connect(target).await;
    for request in requests.iter().cycle() {
        let asked = Instant::now();
        if asked >= end {
            break;
        }
        let answer = client.ask(request).await;
        let answered = Instant::now();
        match answer {
            Ok(()) if answered >= start && answered < end => {
                times.saturating_record((answered - asked).as_micros() as u64);
            }
            Ok(()) => {}
            Err(error) => {
                errors.push(error);
                client = Client::connect(target).await;
            }
        }
    }
    (times, errors)
}

impl Row {
    /// Answers a second.
    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }

    fn header() -> String {
        let titles = [
            "operation",
            "asked",
            "clients",
            "per second",
            "p50 ms",
            "p99 ms",
            "max ms",
            "errors",
            "CPU s: leader, others",
            "CPU µs/op",
            "generator CPU s",
            "peak MiB: leader, others",
        ];
        let rule = "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";
        format!("| {} |\n{rule}", titles.join(" | "))
    }

    fn line(&self) -> String {
        let count = self.times.len() as f64;
        let millis = |micros: u64| format!("{:.2}", micros as f64 / 1000.0);
        let list = |numbers: &[f64], digits: usize| {
            numbers.iter().map(|number| format!("{number:.digits$}")).collect::<Vec<_>>().join(", ")
        };
        let cpu: f64 = self.member_cpu_seconds.iter().sum();
        let cells = [
            self.operation.name().to_string(),
            self.at.name().to_string(),
            self.clients.to_string(),
            format!("{:.0}", count / self.seconds),
            millis(self.times.value_at_quantile(0.5)),
            millis(self.times.value_at_quantile(0.99)),
            millis(self.times.max()),
            self.errors.len().to_string(),
            list(&self.member_cpu_seconds, 2),
            format!("{:.1}", cpu * 1e6 / count.max(1.0)),
            format!("{:.2}", self.generator_cpu_seconds),
            list(&self.peak_memory_mib, 0),
        ];
        let mut line = format!("| {} |", cells.join(" | "));
        if let Some(error) = self.errors.first() {
            line += &format!("\n\nthe first error: {error}\n");
        }
        line
    }
}

/// The most memory that a process had resident since [`forget_peak_memory`].
fn peak_memory_mib(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Where the kernel does not allow it, the peak is that of the whole life of the process.
fn forget_peak_memory(process: u32) {
    let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
}
