//! What the tests that drive real processes share: a cluster of child processes, an HTTP client that hides nothing, a
//! recorder of histories with its judge, and the seed.
//!
//! - [`address`]: loopback addresses that no other test uses, and a bound on how many members run at once.
//! - [`cluster`]: start, stop, kill, pause and resume members; wait for a condition with a deadline.
//! - [`http`]: HTTP/1.1 over a plain socket, so that a test knows what was sent and can send what no library would.
//! - [`damage`]: real damage to the files of a member.
//! - [`dr`]: forced failover, the fence and the way home, as a test orders and sees them.
//! - [`gate`]: a proxy before one member that lets so many requests through and holds the rest.
//! - [`history`]: operations with the times they began and ended, and the question whether they are linearizable.
//! - [`link`]: the link between two sites: a proxy that delays, stalls, cuts and counts.
//! - [`mirrors`]: how the members of a cluster follow, in each place where it is shown.
//! - [`salvage`]: `lifeboat salvage` as a test runs it, and salvage files that a test makes.
//! - [`schema`]: whether a JSON document is what a JSON schema says.
//! - [`switchover`]: the planned switchover, as a test orders and sees it.
//! - [`timelines`]: the history of clients over a forced failover, judged timeline by timeline.
//! - [`tour`]: commands of the documentation, pasted into a shell.
//! - [`watch`]: a watch read event by event, and one that goes on elsewhere when it breaks.
//! - [`webhook`]: a receiver of webhooks.
//! - [`workload`]: concurrent clients that record such a history while faults happen.
//!
//! Every random choice comes from one seed. It is printed when a test fails, and `LIFEBOAT_TEST_SEED` sets it. The
//! interleaving of real processes is not repeated by a seed; the choices of the test are.

// Each test binary compiles this module and uses a part of it.
#![allow(dead_code)]

pub mod address;
pub mod cluster;
pub mod damage;
pub mod dr;
pub mod gate;
pub mod history;
pub mod http;
pub mod link;
pub mod mirrors;
pub mod salvage;
pub mod schema;
pub mod scrape;
pub mod switchover;
pub mod timelines;
pub mod tour;
pub mod watch;
pub mod webhook;
pub mod workload;

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// How long a test waits for a condition before it fails. Generous: the machine may be slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two looks at a condition that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The seed of one test. Prints itself when the test fails.
pub struct Seed {
    test: &'static str,
    value: u64,
}

impl Seed {
    /// The seed from `LIFEBOAT_TEST_SEED`, or a fresh one.
    pub fn for_test(test: &'static str) -> Seed {
        let value = match std::env::var("LIFEBOAT_TEST_SEED") {
            Ok(text) => text.trim().parse().expect("LIFEBOAT_TEST_SEED is a decimal number"),
            Err(_) => rand::random(),
        };
        Seed { test, value }
    }

    /// A generator for one purpose; another `stream` gives independent numbers.
    pub fn rng(&self, stream: u64) -> StdRng {
        StdRng::seed_from_u64(self.value ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed with LIFEBOAT_TEST_SEED={}", self.test, self.value);
        }
    }
}

/// Looks until `check` gives something, or fails with `what` and the last reason after [`PATIENCE`].
pub fn wait_for<T>(what: &str, check: impl FnMut() -> Result<T, String>) -> T {
    wait_within(PATIENCE, what, check)
}

/// [`wait_for`] with a patience of its own.
pub fn wait_within<T>(patience: Duration, what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match check() {
            Ok(found) => return found,
            Err(reason) if start.elapsed() > patience => {
                panic!("waited {patience:?} in vain for {what}: {reason}")
            }
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Waits until a member shows so many events of the cluster of each of these kinds: each is a revision of its own, made in
/// the background, so whoever counts revisions waits for those that a start makes.
pub fn wait_cluster_events(member: std::net::SocketAddr, wanted: &[(&str, usize)]) {
    wait_for("events of the cluster", || {
        let events = cluster_events(member)?;
        let count = |kind: &str| events.iter().filter(|event| event["kind"] == *kind).count();
        match wanted.iter().find(|(kind, number)| count(kind) < *number) {
            Some((kind, number)) => Err(format!("{} of {number} {kind} in {events:?}", count(kind))),
            None => Ok(()),
        }
    });
}

/// The events of the cluster that a member shows, the oldest first.
pub fn cluster_events(member: std::net::SocketAddr) -> Result<Vec<serde_json::Value>, String> {
    let answer = http::Request::new("GET", "/v1/events").try_send(member).map_err(|failure| failure.to_string())?;
    if answer.status != 200 {
        return Err(answer.to_string());
    }
    let events = answer.json()["events"].as_array().cloned().ok_or("no list of events")?;
    Ok(events.into_iter().filter(|event| event["scope"] == "cluster").collect())
}
