//! The feed: reads what was applied, once for all watchers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::encode::Batch;
use super::slot::Ending;
use super::{PAGE_BYTES, PAGE_TRANSACTIONS, Shared};
use crate::api::EndReason;
use crate::model::{LogId, Revision};
use crate::store::{ChangesQuery, ReadError};

/// Readers that take nothing are looked for at least so often.
const SWEEP_MAX: Duration = Duration::from_secs(1);
/// And so often in the time that they have.
const SWEEPS_PER_TIMEOUT: u32 = 4;

/// After a round in which many were woken the feed lets so much time pass for each of them, so that under many writes
/// they are sent several changes at once, and leave the processor to those who write. The first change after a quiet time
/// waits for nothing.
const PAUSE_PER_WAKE: Duration = Duration::from_micros(20);
/// Shorter pauses are not worth a timer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What one step of the feed came to.
enum Step {
    /// So many were woken, and there may be more.
    Woke(usize),
    /// Everything that was applied is in the ring.
    CaughtUp,
    /// Nobody watches.
    Idle,
}

/// Starts the feed on a thread of its own: reading and encoding must hold up neither Raft nor the replies to clients.
pub fn start(shared: Arc<Shared>, applied: watch::Receiver<Option<LogId>>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let thread = std::thread::Builder::new().name("watch-feed".into());
    thread.spawn(move || runtime.block_on(run(&shared, applied)))?;
    Ok(())
}

async fn run(shared: &Shared, mut applied: watch::Receiver<Option<LogId>>) {
    let pause = (shared.limits.slow_timeout / SWEEPS_PER_TIMEOUT).clamp(Duration::from_millis(1), SWEEP_MAX);
    let mut next_sweep = Instant::now() + pause;
    while !shared.is_stopped() {
        // Seen before reading, so that what is applied from now on wakes this loop again.
        applied.borrow_and_update();
        let step = shared.step();
        if Instant::now() >= next_sweep {
            shared.end_stalled();
            next_sweep = Instant::now() + pause;
        }
        match step {
            Step::Woke(count) => {
                let pause = PAUSE_PER_WAKE.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)).min(PAUSE_MAX);
                if pause >= PAUSE_MIN {
                    tokio::time::sleep(pause).await;
                }
            }
            Step::Idle => shared.feed.notified().await,
            Step::CaughtUp => tokio::select! {
                changed = applied.changed() => if changed.is_err() {
                    // Nothing will be applied any more.
                    shared.stop();
                },
                () = shared.feed.notified() => {}
                () = tokio::time::sleep_until(next_sweep) => {}
            },
        }
    }
}

impl Shared {
    fn step(&self) -> Step {
        let previous = {
            let mut watchers = self.watchers.lock();
            if watchers.registry.len() == 0 {
                watchers.feeding = false;
                let mut ring = self.ring.write();
                let end = ring.end();
                ring.restart(end);
                return Step::Idle;
            }
            watchers.previous_wanted > 0
        };
        let after = self.ring.read().end();
        if self.store.revision() == after {
            return Step::CaughtUp;
        }
        let query = ChangesQuery { after, max_transactions: PAGE_TRANSACTIONS, max_bytes: PAGE_BYTES, previous };
        match self.store.changes(&query) {
            Ok(page) => Step::Woke(self.publish(Batch::encode(after, &page, previous, |_, _| true))),
            Err(ReadError::Compacted { floor }) => {
                tracing::info!(after, floor, "the read floor has overtaken the feed of the watches");
                self.leave_gap(after);
                Step::Woke(0)
            }
            Err(error) => {
                tracing::error!(%error, "the changes for watches cannot be read");
                self.fail(after);
                Step::Woke(0)
            }
        }
    }

    /// Puts a batch into the ring and wakes everybody whom it concerns; says how many these are.
    fn publish(&self, batch: Batch) -> usize {
        let batch = Arc::new(batch);
        let mut watchers = self.watchers.lock();
        self.ring.write().push(batch.clone());
        let woken = watchers.registry.concerned(batch.keys(), |slot| slot.mark(batch.after));
        self.scanned.store(batch.upto, Ordering::Release);
        woken
    }

    /// Goes on at the newest revision. What lies between is not in the ring; everybody finds out in the history whether
    /// anything of it is lost.
    fn leave_gap(&self, after: Revision) {
        let watchers = self.watchers.lock();
        let at = self.store.revision();
        self.ring.write().restart(at);
        watchers.registry.for_each(|slot| slot.mark(after));
        self.scanned.store(at, Ordering::Release);
    }

    /// Ends all watches: what comes after a revision cannot be read. Who watches from now on begins behind it.
    fn fail(&self, after: Revision) {
        let mut watchers = self.watchers.lock();
        let at = self.store.revision().max(after);
        self.ring.write().restart(at);
        watchers.registry.remove_if(|slot| {
            slot.end(Ending::Failed);
            true
        });
        self.scanned.store(at, Ordering::Release);
    }

    /// Ends the watches whose readers have not taken what is ready for too long.
    fn end_stalled(&self) {
        let (now_ms, limit_ms) = (self.now_ms(), self.limits.slow_timeout.as_millis() as u64);
        self.watchers.lock().registry.remove_if(|slot| {
            let stalled = slot.stalled_ms(now_ms) > limit_ms;
            if stalled {
                slot.end(Ending::Slow);
                self.count_end(EndReason::Slow);
            }
            stalled
        });
    }
}
