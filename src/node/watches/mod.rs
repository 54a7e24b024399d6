//! Watches: telling many readers what changed, in order, without asking the store once for each of them.
//!
//! Place in the path of a write: behind it. When entries were applied, one feed on a thread of its own reads their frames
//! once, encodes each change once, and puts the text into a ring; whoever applies only changes a number and waits for
//! nobody. Every watcher is a cursor.
//!
//! ```text
//!   applied ──> feed ──> Ring (newest changes as JSON, bounded) ──> Watcher ──> body of a reply
//!                 │                                                    │
//!                 └── marks the slots of those concerned ── wakes ──>  └── behind the ring: pages of the history
//! ```
//!
//! Invariants:
//! - A watcher's revision only grows, and everything that concerns it up to there was handed to its reader once, each
//!   transaction whole. What is in neither the ring nor the history any more ends the watch; nothing is skipped.
//! - Whoever is registered while the ring ends at E is marked for every change after E that concerns it. So a watcher
//!   that is not marked has nothing to send up to [`Shared::scanned`].
//! - A reader costs no more memory than one chunk here, and no reader slows the feed, another reader or a writer.
//!
//! Bounds: [`WatchLimits::max_watchers`] (further ones are refused), [`WatchLimits::buffer_bytes`] of the ring,
//! [`HISTORY_READS`] reads of the history at a time, and [`WatchLimits::slow_timeout`] for a reader that takes nothing.
//!
//! Without watchers the feed sleeps and the ring is empty. Nothing here survives a restart; the history does, and with it
//! every cursor, on any member.
//!
//! Proven by `tests.rs` here: random watchers beside a model, with slow readers, restarts and installs; over real
//! processes by `tests/api/watch.rs`.

mod encode;
mod feed;
mod ring;
mod scope;
mod slot;
#[cfg(test)]
mod tests;
mod watcher;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::{Notify, Semaphore, watch};

use crate::api::EndReason;
use crate::model::{LogId, Revision};
use crate::store::{ReadError, Store};

pub use encode::{Framing, View};
pub use scope::{Kinds, Scope};
pub use slot::Ending;
pub use watcher::{Pace, WatchCut, Watcher};

use ring::Ring;
use scope::Registry;
use slot::Slot;

/// So many watchers read the history at the same time; the others wait.
const HISTORY_READS: usize = 4;
/// The feed and whoever reads the history take pages of so many bytes of frames, or of so many transactions.
const PAGE_BYTES: usize = 256 << 10;
const PAGE_TRANSACTIONS: usize = 2048;

/// The bounds of watching.
#[derive(Debug, Clone)]
pub struct WatchLimits {
    /// More watchers are refused.
    pub max_watchers: usize,
    /// So many bytes of the newest changes are kept encoded.
    pub buffer_bytes: usize,
    /// A reader that takes nothing for longer, although there is something, is ended.
    pub slow_timeout: Duration,
}

/// Why there is no watch.
#[derive(Debug, Error)]
pub enum WatchError {
    /// As many watch already as may.
    #[error("{max_watchers} watchers are there already")]
    TooMany {
        /// How many may.
        max_watchers: usize,
    },
    /// The member stops.
    #[error("the member is stopping")]
    Stopping,
    /// The changes after the revision asked for cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Figures about the watchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchStats {
    /// How many there are, waiting reads of one key included.
    pub watchers: u64,
    /// How many there may be.
    pub max_watchers: u64,
    /// How many were refused.
    pub refused: u64,
    /// Events of changes that were handed to readers.
    pub events: u64,
    /// Watches that the member ended, by reason.
    pub ended: Vec<(&'static str, u64)>,
    /// Bytes of the ring.
    pub buffer_bytes: u64,
    /// What it may take.
    pub buffer_bytes_max: u64,
    /// Pages that were read from the history for watchers behind the ring.
    pub history_reads: u64,
}

/// All watchers of a member. Cloning gives another handle; with the last one watching ends.
#[derive(Clone)]
pub struct WatchHub {
    shared: Arc<Shared>,
    _stop: Arc<StopWhenDropped>,
}

impl std::fmt::Debug for WatchHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchHub").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

struct StopWhenDropped(Arc<Shared>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the feed and the watchers share.
struct Shared {
    store: Store,
    limits: WatchLimits,
    /// Taken before `ring`.
    watchers: Mutex<Watchers>,
    ring: RwLock<Ring>,
    /// Up to here the feed has marked everybody who is concerned.
    scanned: AtomicU64,
    /// Wakes the feed when there are watchers, or when it shall end.
    feed: Notify,
    stopped: AtomicBool,
    history: Arc<Semaphore>,
    began: Instant,
    counts: Counts,
}

#[derive(Default)]
struct Watchers {
    registry: Registry,
    /// Whether the feed fills the ring.
    feeding: bool,
    /// How many want what each change replaced.
    previous_wanted: usize,
}

#[derive(Default)]
struct Counts {
    refused: AtomicU64,
    events: AtomicU64,
    history_reads: AtomicU64,
    ended: [AtomicU64; EndReason::ALL.len()],
    cut: AtomicU64,
}

impl WatchHub {
    /// Begins to serve watchers of `store`; `applied` changes whenever something was applied to it.
    pub fn start(
        store: Store,
        applied: watch::Receiver<Option<LogId>>,
        limits: WatchLimits,
    ) -> std::io::Result<WatchHub> {
        let shared = Arc::new(Shared {
            ring: RwLock::new(Ring::new(limits.buffer_bytes)),
            store,
            limits,
            watchers: Mutex::default(),
            scanned: AtomicU64::new(0),
            feed: Notify::new(),
            stopped: AtomicBool::new(false),
            history: Arc::new(Semaphore::new(HISTORY_READS)),
            began: Instant::now(),
            counts: Counts::default(),
        });
        feed::start(shared.clone(), applied)?;
        Ok(WatchHub { _stop: Arc::new(StopWhenDropped(shared.clone())), shared })
    }

    /// Begins a watch: after `since`, or after the newest revision.
    pub fn watch(&self, view: View, since: Option<Revision>, heartbeat: Duration) -> Result<Watcher, WatchError> {
        let (subscription, ring_end) = Shared::subscribe(&self.shared, view.scope.clone(), view.previous)?;
        let store = &self.shared.store;
        let (floor, current) = (store.read_floor(), store.revision());
        match since {
            Some(since) if since < floor => return Err(ReadError::Compacted { floor }.into()),
            Some(since) if since > current => return Err(ReadError::Future { current }.into()),
            Some(since) => store.check_not_left(since)?,
            None => {}
        }
        Ok(Watcher::new(subscription, view, since.unwrap_or(current), ring_end, heartbeat))
    }

    /// Waits for changes of one key.
    pub fn wait_for_key(&self, key: bytes::Bytes) -> Result<KeyWait, WatchError> {
        Ok(KeyWait(Shared::subscribe(&self.shared, Scope::Key(key), false)?.0))
    }

    /// Ends all watches because the member stops, and refuses new ones.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Ends all watches because a planned pause has begun; new ones are for others to refuse.
    pub fn pause(&self) {
        self.shared.watchers.lock().registry.for_each(|slot| slot.end(Ending::Maintenance));
    }

    /// Figures about the watchers.
    pub fn stats(&self) -> WatchStats {
        let shared = &*self.shared;
        let counts = &shared.counts;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut ended: Vec<_> =
            EndReason::ALL.iter().zip(&counts.ended).map(|(reason, count)| (reason.as_str(), load(count))).collect();
        ended.push(("cut", load(&counts.cut)));
        WatchStats {
            watchers: shared.watchers.lock().registry.len() as u64,
            max_watchers: shared.limits.max_watchers as u64,
            refused: load(&counts.refused),
            events: load(&counts.events),
            ended,
            buffer_bytes: shared.ring.read().bytes() as u64,
            buffer_bytes_max: shared.limits.buffer_bytes as u64,
            history_reads: load(&counts.history_reads),
        }
    }
}

impl Shared {
    /// Registers for the changes of a scope. From the revision on that is returned, none is missed.
    fn subscribe(shared: &Arc<Shared>, scope: Scope, previous: bool) -> Result<(Subscription, Revision), WatchError> {
        let mut watchers = shared.watchers.lock();
        // Under the lock, so that whoever comes after the stop is refused and whoever came before is ended.
        if shared.is_stopped() {
            return Err(WatchError::Stopping);
        }
        let max_watchers = shared.limits.max_watchers;
        if watchers.registry.len() >= max_watchers {
            shared.counts.refused.fetch_add(1, Ordering::Relaxed);
            return Err(WatchError::TooMany { max_watchers });
        }
        let mut ring = shared.ring.write();
        if !watchers.feeding {
            watchers.feeding = true;
            let at = shared.store.revision();
            ring.restart(at);
            shared.scanned.store(at, Ordering::Release);
            shared.feed.notify_one();
        }
        let slot = Arc::new(Slot::default());
        let id = watchers.registry.add(&scope, slot.clone());
        watchers.previous_wanted += usize::from(previous);
        let subscription = Subscription { shared: shared.clone(), slot, scope, id, previous };
        Ok((subscription, ring.end()))
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn stop(&self) {
        let watchers = self.watchers.lock();
        self.stopped.store(true, Ordering::Release);
        watchers.registry.for_each(|slot| slot.end(Ending::Stopping));
        self.feed.notify_one();
    }

    /// The time that slots are measured by.
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn count_end(&self, reason: EndReason) {
        if let Some(at) = EndReason::ALL.iter().position(|known| *known == reason) {
            self.counts.ended[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One watcher's place among all; given up when dropped.
struct Subscription {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    scope: Scope,
    id: u64,
    previous: bool,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watchers = self.shared.watchers.lock();
        watchers.registry.remove(&self.scope, self.id);
        watchers.previous_wanted -= usize::from(self.previous);
    }
}

/// Waits for changes of one key.
pub struct KeyWait(Subscription);

impl std::fmt::Debug for KeyWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyWait").field(&self.0.scope).finish()
    }
}

impl KeyWait {
    /// Returns once the key has changed since the last call, or since the wait began, with the revision up to which it had
    /// not; an error when watching ends.
    pub async fn changed(&self) -> Result<Revision, Ending> {
        let slot = &self.0.slot;
        loop {
            if let Some(ending) = slot.ending() {
                return Err(ending);
            }
            if let Some(after) = slot.take_pending() {
                return Ok(after);
            }
            slot.woken().await;
        }
    }

    /// Up to which revision the key has not changed since the last call of [`KeyWait::changed`], or since the wait began;
    /// none when it has.
    pub fn quiet_up_to(&self) -> Option<Revision> {
        // In this order: a change is marked before what was scanned moves past it.
        let scanned = self.0.shared.scanned.load(Ordering::Acquire);
        (!self.0.slot.is_pending()).then_some(scanned)
    }
}
