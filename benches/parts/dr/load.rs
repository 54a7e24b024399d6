//! Puts: as many as there can be, or so many a second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::client::Client;

/// How many keys are written.
const KEYS: usize = 10_000;
/// The size of every value.
const VALUE_BYTES: usize = 256;
/// An answer that takes longer is counted as this long.
const LONGEST_MICROS: u64 = 60_000_000;
/// A load runs for so long before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// What a load gave.
pub struct Measured {
    pub per_second: f64,
    pub times: Histogram<u64>,
    pub errors: usize,
}

impl Measured {
    pub fn millis(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// A histogram of microseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_MICROS, 3).unwrap()
}

/// The whole bytes of a put.
pub fn put(path: &str, value: &[u8]) -> Vec<u8> {
    let head = format!("PUT /v1/kv/{path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n", value.len());
    [head.as_bytes(), value].concat()
}

/// Puts by so many clients at one member, so many a second all together, or as fast as each is answered. With a rate the
/// time of an answer counts from when its put was due: one that comes late makes the next ones late too.
pub async fn puts(target: SocketAddr, clients: usize, seconds: f64, per_second: Option<f64>) -> Measured {
    let start = Instant::now() + WARM_UP;
    let end = start + Duration::from_secs_f64(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let every = per_second.map(|rate| Duration::from_secs_f64(clients as f64 / rate));
        tasks.spawn(work(target, number, clients, every, start, end));
    }
    let (mut times, mut errors) = (histogram(), 0);
    while let Some(done) = tasks.join_next().await {
        let (client_times, client_errors) = done.unwrap();
        times.add(client_times).unwrap();
        errors += client_errors;
    }
    Measured { per_second: times.len() as f64 / seconds, times, errors }
}

async fn work(
    target: SocketAddr,
    number: usize,
    clients: usize,
    every: Option<Duration>,
    start: Instant,
    end: Instant,
) -> (Histogram<u64>, usize) {
    let key = |n: usize| format!("bench/{:08}", (number * 7919 + n * 1_000_003) % KEYS);
    let requests: Vec<Vec<u8>> = (0..64).map(|n| put(&key(n), &[b'v'; VALUE_BYTES])).collect();
    let (mut times, mut errors) = (histogram(), 0);
    let mut client = Client::connect(target).await;
    // Not all at the same moment.
    let mut due = Instant::now() + every.unwrap_or_default().mul_f64(number as f64 / clients as f64);
    for request in requests.iter().cycle() {
        match every {
            Some(every) => {
                tokio::time::sleep_until(due.into()).await;
                due += every;
            }
            None => due = Instant::now(),
        }
        let asked = every.map_or(due, |every| due - every);
        if asked >= end {
            break;
        }
        let answer = client.ask(request).await;
        let answered = Instant::now();
        match answer {
            Ok(()) if asked >= start && answered < end => {
                times.saturating_record((answered - asked).as_micros() as u64);
            }
            Ok(()) => {}
            Err(_) => {
                errors += 1;
                client = Client::connect(target).await;
            }
        }
    }
    (times, errors)
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    if figures.len().is_multiple_of(2) { (figures[half - 1] + figures[half]) / 2.0 } else { figures[half] }
}
