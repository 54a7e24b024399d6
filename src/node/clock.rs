//! The leader's clock: milliseconds since 1970 that never run backwards within a process.
//!
//! Time enters the system here and nowhere else: apply reads no clock, it takes the time in the entry and keeps the
//! larger of that and its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The clock.
#[derive(Debug, Default)]
pub struct Clock {
    latest_ms: AtomicU64,
}

impl Clock {
    /// The time, at least as late as any time it gave before.
    pub fn now_ms(&self) -> u64 {
        // A clock before 1970 counts as 1970; the largest time seen carries on from there.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.latest_ms.fetch_max(now, Ordering::Relaxed).max(now)
    }
}
