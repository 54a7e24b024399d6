//! What the tests that drive real processes share: a cluster of child processes, an HTTP client that hides nothing, a
//! recorder of histories with its judge, and the seed.
//!
//! - [`address`]: loopback addresses that no other test uses, and a bound on how many members run at once.
//! - [`cluster`]: start, stop, kill, pause and resume members; wait for a condition with a deadline.
//! - [`http`]: HTTP/1.1 over a plain socket, so that a test knows what was sent and can send what no library would.
//! - [`history`]: operations with the times they began and ended, and the question whether they are linearizable.
//! - [`workload`]: concurrent clients that record such a history while faults happen.
//!
//! Every random choice comes from one seed. It is printed when a test fails, and `LIFEBOAT_TEST_SEED` sets it. The
//! interleaving of real processes is not repeated by a seed; the choices of the test are.

// Each test binary compiles this module and uses a part of it.
#![allow(dead_code)]

pub mod address;
pub mod cluster;
pub mod history;
pub mod http;
pub mod scrape;
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
