//! [`Slot`]: what the feed and one watcher tell each other, without a lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::model::Revision;

/// Nothing waits to be sent.
const NOTHING: u64 = u64::MAX;
/// The reader waits for more.
const READER_WAITS: u64 = u64::MAX;

/// Why a watch ends that could go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// The reader did not take what was ready.
    Slow = 1,
    /// The member stops.
    Stopping = 2,
    /// The member cannot read its history.
    Failed = 3,
    /// A planned pause began that refuses reads.
    Maintenance = 4,
}

/// What the feed and one watcher tell each other.
#[derive(Debug)]
pub struct Slot {
    /// Nothing that concerns the watcher was found up to this revision since it last looked, and something behind it.
    pending_after: AtomicU64,
    wake: Notify,
    /// When the reader took something last and did not ask for more since, in milliseconds of the hub's time.
    taken_ms: AtomicU64,
    ending: AtomicU8,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            pending_after: AtomicU64::new(NOTHING),
            wake: Notify::new(),
            taken_ms: AtomicU64::new(READER_WAITS),
            ending: AtomicU8::new(0),
        }
    }
}

impl Slot {
    /// Something that concerns the watcher comes after `after`.
    pub fn mark(&self, after: Revision) {
        // Only the first of several matters: the watcher reads on from there.
        let _ = self.pending_after.compare_exchange(NOTHING, after, Ordering::AcqRel, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// What was marked since the last call.
    pub fn take_pending(&self) -> Option<Revision> {
        let after = self.pending_after.swap(NOTHING, Ordering::AcqRel);
        (after != NOTHING).then_some(after)
    }

    /// Whether something is marked.
    pub fn is_pending(&self) -> bool {
        self.pending_after.load(Ordering::Acquire) != NOTHING
    }

    /// Returns after a mark or an end; may return without one.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Ends the watch; the first reason stays.
    pub fn end(&self, why: Ending) {
        let _ = self.ending.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Why the watch ends, when it does.
    pub fn ending(&self) -> Option<Ending> {
        match self.ending.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Ending::Slow),
            2 => Some(Ending::Stopping),
            4 => Some(Ending::Maintenance),
            _ => Some(Ending::Failed),
        }
    }

    /// The reader wants more.
    pub fn reader_waits(&self) {
        self.taken_ms.store(READER_WAITS, Ordering::Relaxed);
    }

    /// The reader took something and has not asked for more yet.
    pub fn reader_took(&self, now_ms: u64) {
        self.taken_ms.store(now_ms, Ordering::Relaxed);
    }

    /// For how long the reader has not asked for more.
    pub fn stalled_ms(&self, now_ms: u64) -> u64 {
        match self.taken_ms.load(Ordering::Relaxed) {
            READER_WAITS => 0,
            taken => now_ms.saturating_sub(taken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_mark_stays_until_it_is_taken_and_wakes() {
        let slot = Slot::default();
        assert_eq!(slot.take_pending(), None);
        slot.mark(7);
        slot.mark(9);
        slot.woken().await;
        assert!(slot.is_pending());
        assert_eq!((slot.take_pending(), slot.take_pending()), (Some(7), None));
        slot.end(Ending::Slow);
        slot.end(Ending::Stopping);
        slot.woken().await;
        assert_eq!(slot.ending(), Some(Ending::Slow));
    }

    #[test]
    fn only_a_reader_that_does_not_ask_stalls() {
        let slot = Slot::default();
        assert_eq!(slot.stalled_ms(5000), 0, "it has not been given anything");
        slot.reader_took(1000);
        assert_eq!(slot.stalled_ms(5000), 4000);
        slot.reader_waits();
        assert_eq!(slot.stalled_ms(9000), 0);
    }
}
