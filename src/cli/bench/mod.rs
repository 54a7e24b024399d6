//! `lifeboat bench`: how fast a cluster is, for one kind of operation.
//!
//! So many clients do one operation after the other; with `--rate` each begins its next one at its time, whether the
//! last has been answered or not yet, and the time of an answer counts from when it should have begun: a cluster that
//! stands still for a second is seen by all who would have asked. Keys are written beforehand where they are read.
//!
//! Writes carry no idempotency key unless that is asked for: the members keep each key's outcome for a day and refuse
//! more when they are full, and a benchmark would fill them in no time.

mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args, ValueEnum};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Ticker, json, line};
use super::text::{duration, size};
use crate::client::{Client, Error};
use report::Report;

/// Clients that write the keys before they are read.
const FILLERS: u64 = 32;
/// Results that wait to be counted.
const RESULTS: usize = 16 * 1024;
/// Between two looks at how far it is.
const TICK: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    /// Writes of random keys
    Put,
    /// Linearizable reads of random keys
    Get,
    /// Stale reads of random keys, from all endpoints
    GetStale,
    /// Nine reads to one write
    Mixed,
    /// Transactions: compare a key's existence, write it and read another one
    Txn,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::GetStale => "get-stale",
            Operation::Mixed => "mixed",
            Operation::Txn => "txn",
        }
    }
}

/// `lifeboat bench`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("length").args(["seconds", "count"]))]
#[command(after_help = "The keys are PREFIX and eight digits; they stay. Writes carry no idempotency key unless \
    --idempotent is given:\nmembers keep the outcome of every key for a day, at most max_outcomes of them.")]
pub struct BenchArgs {
    /// What is measured
    operation: Operation,
    /// How many clients at once
    #[arg(long, short, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// The size of a value
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256")]
    size: u64,
    /// How many different keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// For so long
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    seconds: Duration,
    /// So many operations
    #[arg(long)]
    count: Option<u64>,
    /// So many operations a second, all clients together; as many as can be when it is left out
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// What the keys begin with
    #[arg(long, default_value = "bench/")]
    prefix: String,
    /// Writes carry an idempotency key
    #[arg(long)]
    idempotent: bool,
    /// Do not write the keys before they are read
    #[arg(long)]
    no_fill: bool,
    /// Makes the choice of keys repeatable
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    connect: Connect,
}

/// How one operation went.
struct Sample {
    took: Duration,
    error: Option<Error>,
}

/// What all clients share.
struct Plan {
    operation: Operation,
    value: Bytes,
    prefix: String,
    keys: u64,
    idempotent: bool,
    begin: Instant,
    end: Option<Instant>,
    /// Between two operations of one client.
    interval: Option<Duration>,
    /// Operations that are yet to be begun.
    left: AtomicU64,
}

/// Measures and reports.
pub async fn bench(args: BenchArgs) -> Result<Exit, Trouble> {
    // Whoever asks first says whether there is a cluster at all.
    let client = args.connect.client()?;
    client.status().await?;
    let ticker = Ticker::new();
    let value = random_value(args.size as usize);
    if !args.no_fill && args.operation != Operation::Put {
        fill(&client, &args, &value, &ticker).await?;
    }
    let begin = Instant::now();
    let plan = Arc::new(Plan {
        operation: args.operation,
        value,
        prefix: args.prefix.clone(),
        keys: args.keys,
        idempotent: args.idempotent,
        begin,
        end: args.count.is_none().then(|| begin + args.seconds),
        interval: args.rate.map(|rate| Duration::from_secs_f64(args.clients as f64 / rate as f64)),
        left: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
    });
    let (samples, mut results) = mpsc::channel(RESULTS);
    let mut workers = JoinSet::new();
    let seed = args.seed.unwrap_or_else(rand::random);
    for number in 0..args.clients {
        let client = client_of(&args, &client, number)?;
        workers.spawn(work(plan.clone(), client, number, seed ^ (number + 1), samples.clone()));
    }
    drop(samples);
    let mut report = Report::new(args.operation.name(), args.clients, args.size, args.rate)?;
    let mut ticks = tokio::time::interval_at(begin + TICK, TICK);
    loop {
        tokio::select! {
            sample = results.recv() => match sample {
                Some(Sample { took, error }) => report.add(took, error.as_ref()),
                None => break,
            },
            _ = ticks.tick() => ticker.say(&report.progress(begin.elapsed())),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
        }
    }
    workers.abort_all();
    ticker.clear();
    report.finish(begin.elapsed());
    match args.connect.format() {
        Format::Json => json(&report.document())?,
        Format::Plain => report.plain().iter().try_for_each(|text| line(text))?,
        Format::Table => report.table().iter().try_for_each(|text| line(text))?,
    }
    Ok(if report.succeeded() == 0 { Exit::Failed } else { Exit::Done })
}

/// Stale reads are spread over the endpoints, all else goes where the client thinks best.
fn client_of(args: &BenchArgs, shared: &Client, number: u64) -> Result<Client, Trouble> {
    if args.operation != Operation::GetStale {
        return Ok(shared.clone());
    }
    let endpoints = shared.endpoints();
    let mine = &endpoints[number as usize % endpoints.len()];
    Ok(shared.at(mine)?)
}

fn random_value(size: usize) -> Bytes {
    let mut value = vec![0; size];
    rand::rng().fill_bytes(&mut value);
    // Text, so that it travels as it is in JSON too.
    value.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
    value.into()
}

fn key_of(prefix: &str, number: u64) -> Bytes {
    format!("{prefix}{number:08}").into()
}

/// Writes every key once.
async fn fill(client: &Client, args: &BenchArgs, value: &Bytes, ticker: &Ticker) -> Result<(), Trouble> {
    let done = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for first in 0..FILLERS.min(args.keys) {
        let (client, prefix, value, done) = (client.clone(), args.prefix.clone(), value.clone(), done.clone());
        let keys = args.keys;
        workers.spawn(async move {
            for number in (first..keys).step_by(FILLERS as usize) {
                // Written twice, it is as written once; so no key is needed to repeat it.
                let mut tries = 0;
                while let Err(error) = client.put(key_of(&prefix, number), value.clone()).idempotent(false).await {
                    tries += 1;
                    if !error.is_unknown() || tries > 5 {
                        return Err(error);
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(Ok(result)) => result?,
                Some(Err(error)) => return Err(Trouble::new(Exit::Failed, error.to_string())),
                None => break,
            },
            _ = ticks.tick() => {
                ticker.say(&format!("writing keys: {} of {}", done.load(Ordering::Relaxed), args.keys));
            }
        }
    }
    ticker.clear();
    Ok(())
}

/// One client.
async fn work(plan: Arc<Plan>, client: Client, number: u64, seed: u64, samples: mpsc::Sender<Sample>) {
    let mut rng = StdRng::seed_from_u64(seed);
    // The clients begin one after the other within the first interval, not all at once.
    let mut due = plan.interval.map(|interval| plan.begin + interval.mul_f64(rng.random_range(0.0..1.0)));
    loop {
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        if plan.end.is_some_and(|end| Instant::now() >= end)
            || plan.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            return;
        }
        let begun = due.unwrap_or_else(Instant::now);
        let error = operate(&plan, &client, &mut rng, number).await.err();
        if samples.send(Sample { took: begun.elapsed(), error }).await.is_err() {
            return;
        }
        due = due.zip(plan.interval).map(|(due, interval)| due + interval);
    }
}

async fn operate(plan: &Plan, client: &Client, rng: &mut StdRng, number: u64) -> Result<(), Error> {
    let mut key = || key_of(&plan.prefix, rng.random_range(0..plan.keys));
    let key_here = key();
    let put = |key: Bytes| client.put(key, plan.value.clone()).idempotent(plan.idempotent);
    match plan.operation {
        Operation::Put => put(key_here).await.map(drop),
        Operation::Get => client.get(key_here).await.map(drop),
        Operation::GetStale => client.get(key_here).stale().await.map(drop),
        Operation::Mixed => match rng.random_range(0..10) {
            0 => put(key_here).await.map(drop),
            _ => client.get(key_here).await.map(drop),
        },
        Operation::Txn => {
            let other = key();
            let mark = key_of(&format!("{}mark/", plan.prefix), number);
            let txn = client.txn().if_present(key_here).then_put(mark, plan.value.clone()).then_get(other.clone());
            txn.else_get(other).idempotent(plan.idempotent).await.map(drop)
        }
    }
}
