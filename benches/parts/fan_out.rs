//! Many watchers of one prefix on the leader, and one client that puts: what a delivery costs, how long after the reply to
//! a put its last watcher has it, and what the watchers cost the client.
//!
//! Three rows: puts as fast as one client can without watchers; the same with them; and puts at a fixed pace with them,
//! which is where the times mean something, because nothing queues.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::cluster::Cluster;
use super::{Client, KEYS, LONGEST_MICROS, Operation, Options, cpu_seconds, request};

/// What every event of a change begins with, in lines of JSON.
const EVENT: &[u8] = b"{\"type\":\"change\",\"revision\":";

/// What happened to one put.
#[derive(Clone, Copy, Default)]
struct Put {
    replied: Option<Instant>,
    deliveries: usize,
    last_delivery: Option<Instant>,
}

/// The puts since a revision.
struct Puts {
    base: u64,
    watchers: usize,
    puts: Vec<Put>,
}

impl Puts {
    fn of(&mut self, revision: u64) -> &mut Put {
        let at = (revision - self.base) as usize;
        if self.puts.len() <= at {
            self.puts.resize(at + 1, Put::default());
        }
        &mut self.puts[at]
    }
}

pub async fn run(cluster: &Cluster, options: &Options) {
    println!(
        "\n| watchers | puts | puts/s | deliveries/s | last delivery p50 ms | p99 ms | CPU µs/put | CPU µs/delivery |"
    );
    println!("|--:|---|--:|--:|--:|--:|--:|--:|");
    let alone = measure(cluster, options, 0, None).await;
    println!("{}", alone.line(0.0));
    for &watchers in &options.watchers {
        for pace in [None, Some(options.paced_puts_per_second)] {
            let row = measure(cluster, options, watchers, pace).await;
            println!("{}", row.line(alone.cpu_micros_per_put()));
        }
    }
}

struct Row {
    watchers: usize,
    pace: Option<f64>,
    seconds: f64,
    puts: usize,
    deliveries: usize,
    /// From the reply to a put to its last delivery; 0 when the delivery was first.
    last_delivery: Histogram<u64>,
    cpu_seconds: f64,
}

impl Row {
    fn cpu_micros_per_put(&self) -> f64 {
        self.cpu_seconds * 1e6 / (self.puts as f64).max(1.0)
    }

    fn line(&self, cpu_micros_per_put_alone: f64) -> String {
        let millis = |quantile| match self.last_delivery.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.2}", self.last_delivery.value_at_quantile(quantile) as f64 / 1000.0),
        };
        // What the members would have used without watchers is not the deliveries'.
        let spent = self.cpu_seconds * 1e6 - self.puts as f64 * cpu_micros_per_put_alone;
        let delivery = match self.deliveries {
            0 => "-".to_owned(),
            count => format!("{:.2}", spent / count as f64),
        };
        let pace = self.pace.map_or("as fast as can be".to_owned(), |pace| format!("{pace} a second"));
        format!(
            "| {} | {pace} | {:.0} | {:.0} | {} | {} | {:.0} | {delivery} |",
            self.watchers,
            self.puts as f64 / self.seconds,
            self.deliveries as f64 / self.seconds,
            millis(0.5),
            millis(0.99),
            self.cpu_micros_per_put(),
        )
    }
}

async fn measure(cluster: &Cluster, options: &Options, watchers: usize, pace: Option<f64>) -> Row {
    let leader = cluster.client(cluster.wait_leader());
    let processes: Vec<u32> = (0..cluster.len()).map(|member| cluster.member(member).process_id().unwrap()).collect();
    let base = cluster.wait_converged();
    let puts = Arc::new(Mutex::new(Puts { base, watchers, puts: Vec::new() }));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let request = format!(
            "GET /v1/watch?prefix=bench/&since={base} HTTP/1.1\r\nHost: bench\r\nAccept: application/x-ndjson\r\n\r\n"
        );
        let mut stream = TcpStream::connect(leader).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // The first event is there when the member has taken the watch in.
        let mut head = vec![0; 4096];
        let count = stream.read(&mut head).await.unwrap();
        assert!(head[..count].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head[..count]));
        tasks.spawn(watch(stream, puts.clone()));
    }
    let mut client = Client::connect(leader).await;
    let cpu = || processes.iter().map(|&process| cpu_seconds(process)).sum::<f64>();
    let (before, start) = (cpu(), Instant::now());
    let mut count = 0;
    while start.elapsed().as_secs_f64() < options.seconds {
        if let Some(pace) = pace {
            tokio::time::sleep_until((start + Duration::from_secs_f64(count as f64 / pace)).into()).await;
        }
        client.ask(&request(Operation::Put, count * 7919 % KEYS)).await.unwrap();
        let replied = Instant::now();
        let revision = revision_of(&client.buffer, b"{\"revision\":").expect("a put tells its revision");
        puts.lock().unwrap().of(revision).replied = Some(replied);
        count += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    // What was put in the time is delivered to its end, and counted.
    while puts.lock().unwrap().puts.iter().map(|put| put.deliveries).sum::<usize>() < count * watchers {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all_seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu() - before;
    tasks.abort_all();
    let mut last_delivery = Histogram::new_with_bounds(1, LONGEST_MICROS, 3).unwrap();
    let puts = puts.lock().unwrap();
    for put in &puts.puts {
        if let (Some(replied), Some(last)) = (put.replied, put.last_delivery) {
            last_delivery.saturating_record(last.saturating_duration_since(replied).as_micros() as u64);
        }
    }
    // Deliveries that outlast the puts are part of what the pace was.
    let deliveries = (count * watchers) as f64 * seconds / all_seconds;
    Row { watchers, pace, seconds, puts: count, deliveries: deliveries as usize, last_delivery, cpu_seconds }
}

/// Notes every event that comes.
async fn watch(mut stream: TcpStream, puts: Arc<Mutex<Puts>>) {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await.unwrap();
        assert!(count > 0, "the watch was cut");
        filled += count;
        let now = Instant::now();
        let mut rest = &buffer[..filled];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, tail) = rest.split_at(end + 1);
            if line.starts_with(EVENT) {
                let revision = revision_of(line, EVENT).expect("a revision behind its name");
                let mut puts = puts.lock().unwrap();
                let watchers = puts.watchers;
                let put = puts.of(revision);
                put.deliveries += 1;
                if put.deliveries == watchers {
                    put.last_delivery = Some(now);
                }
            }
            rest = tail;
        }
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
        if filled == buffer.len() {
            buffer.resize(filled * 2, 0);
        }
    }
}

/// The number behind the first `name`.
fn revision_of(bytes: &[u8], name: &[u8]) -> Option<u64> {
    let at = bytes.windows(name.len()).position(|window| window == name)? + name.len();
    let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}
