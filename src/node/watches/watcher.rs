//! [`Watcher`]: one reader's cursor, from the ring while it keeps up and from the history while it does not.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::time::{Instant, Sleep};

use super::encode::{Batch, View, render_event};
use super::ring::Found;
use super::slot::{Ending, Slot};
use super::{PAGE_BYTES, PAGE_TRANSACTIONS, Shared, Subscription};
use crate::api::{EndEvent, EndReason, WatchEvent};
use crate::model::Revision;
use crate::store::{ChangesQuery, ReadError};

/// A reader is handed its events in pieces of about so many bytes; an event is never split over two.
const CHUNK_BYTES: usize = 32 << 10;
/// So often a quiet watch looks whether the member is still as new as its reader wants.
const FRESH_LOOK: Duration = Duration::from_millis(100);
/// At most so many batches of the ring are looked at in one step.
const STEP_BATCHES: usize = 64;

/// The stream ends here without its last event: the member cannot read its history.
#[derive(Debug, Error)]
#[error("the watch was cut: {0}")]
pub struct WatchCut(String);

/// One reader's cursor.
pub struct Watcher {
    subscription: Subscription,
    view: Arc<View>,
    /// Everything up to here was handed to the reader.
    at: Revision,
    /// Whether there may be more behind `at`, whatever is marked.
    more: bool,
    stage: Stage,
    heartbeat: Duration,
    heartbeat_due: Instant,
    /// Fires at `heartbeat_due` or before.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether what the member has is as new as the reader wants; none when the reader takes what there is.
    fresh: Option<Fresh>,
}

/// Says whether what a member has is new enough.
pub type Fresh = Box<dyn Fn() -> bool + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Open,
    Ended,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("at", &self.at).field("view", &self.view).finish_non_exhaustive()
    }
}

/// Tells the hub how fast a reader takes what it is given.
#[derive(Clone)]
pub struct Pace {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Pace {
    /// The reader wants more.
    pub fn waits(&self) {
        self.slot.reader_waits();
    }

    /// The reader was given something.
    pub fn took(&self) {
        self.slot.reader_took(self.shared.now_ms());
    }
}

/// What a step of the cursor came to.
enum Step {
    /// Something to send.
    Chunk(Vec<u8>),
    /// Nothing to send yet.
    Nothing,
}

impl Watcher {
    /// A cursor after `at`; what comes after `ring_end` will be marked.
    pub(super) fn new(
        subscription: Subscription,
        view: View,
        at: Revision,
        ring_end: Revision,
        heartbeat: Duration,
    ) -> Watcher {
        Watcher {
            subscription,
            view: Arc::new(view),
            at,
            more: at < ring_end,
            stage: Stage::New,
            heartbeat,
            heartbeat_due: Instant::now() + heartbeat,
            timer: None,
            fresh: None,
        }
    }

    /// Ends the watch when what the member has is not new enough any more.
    pub fn only_while(mut self, fresh: Fresh) -> Watcher {
        self.fresh = Some(fresh);
        self
    }

    /// Everything up to here was handed to the reader.
    pub fn revision(&self) -> Revision {
        self.at
    }

    /// How the reader's pace is told.
    pub fn pace(&self) -> Pace {
        Pace { slot: self.subscription.slot.clone(), shared: self.subscription.shared.clone() }
    }

    /// The next piece of the stream: whole events. None after the last.
    pub async fn next(&mut self) -> Option<Result<Bytes, WatchCut>> {
        let piece = match self.stage {
            Stage::Ended => return None,
            Stage::New => {
                self.stage = Stage::Open;
                Ok(self.event(&WatchEvent::Open { revision: self.at }))
            }
            Stage::Open => self.piece().await,
        };
        if piece.is_err() {
            self.stage = Stage::Ended;
            self.subscription.shared.counts.cut.fetch_add(1, Ordering::Relaxed);
        }
        self.heartbeat_due = Instant::now() + self.heartbeat;
        Some(piece)
    }

    async fn piece(&mut self) -> Result<Bytes, WatchCut> {
        loop {
            match self.subscription.slot.ending() {
                None => {}
                Some(Ending::Failed) => return Err(WatchCut("the changes cannot be read".to_owned())),
                Some(Ending::Slow) => {
                    let limit = self.subscription.shared.limits.slow_timeout;
                    let detail = format!("what was ready was not taken within {limit:?}; continue with since");
                    return Ok(self.end(EndReason::Slow, None, detail));
                }
                Some(Ending::Stopping) => {
                    let detail = "the member is stopping; continue on another with since";
                    return Ok(self.end(EndReason::Stopping, None, detail.to_owned()));
                }
                Some(Ending::Maintenance) => {
                    let detail = "a planned pause has begun; continue with since when it is over";
                    return Ok(self.end(EndReason::Maintenance, None, detail.to_owned()));
                }
            }
            if self.fresh.as_ref().is_some_and(|fresh| !fresh()) {
                let detail = "this member lags more than max_lag; continue on another with since";
                return Ok(self.end(EndReason::Lagging, None, detail.to_owned()));
            }
            if !self.more {
                // Nothing that concerns this watcher lies between what it has sent and what is marked.
                let Some(after) = self.subscription.slot.take_pending() else {
                    if self.fresh.is_some() {
                        match tokio::time::timeout(FRESH_LOOK, self.wait()).await {
                            Ok(true) | Err(_) => continue,
                            Ok(false) => return Ok(self.heartbeat()),
                        }
                    }
                    if self.wait().await {
                        continue;
                    }
                    return Ok(self.heartbeat());
                };
                self.at = self.at.max(after);
                self.more = true;
            }
            match self.step().await {
                Ok(Step::Chunk(chunk)) => return Ok(chunk.into()),
                Ok(Step::Nothing) if Instant::now() >= self.heartbeat_due => return Ok(self.heartbeat()),
                // Others may have something to send meanwhile.
                Ok(Step::Nothing) => tokio::task::yield_now().await,
                Err(ReadError::Compacted { floor }) => {
                    let detail = format!("changes after revision {} are no longer kept; read the keys anew", self.at);
                    return Ok(self.end(EndReason::Compacted, Some(floor), detail));
                }
                Err(error @ ReadError::Diverged { .. }) => {
                    return Ok(self.end(EndReason::Diverged, None, error.to_string()));
                }
                Err(ReadError::Future { current }) => {
                    let detail = format!("the history ends at revision {current}");
                    return Ok(self.end(EndReason::Diverged, None, detail));
                }
                Err(ReadError::Store(error)) => {
                    tracing::error!(%error, "a watch was cut");
                    return Err(WatchCut(error.to_string()));
                }
            }
        }
    }

    /// Goes on from the ring, or from the history when the ring does not have what comes next.
    async fn step(&mut self) -> Result<Step, ReadError> {
        let found = self.subscription.shared.ring.read().after(self.at, STEP_BATCHES);
        match found {
            Found::Nothing => {
                self.more = false;
                Ok(Step::Nothing)
            }
            Found::Batches(batches) if !self.view.previous || batches.first().is_none_or(|b| b.has_previous) => {
                Ok(self.render(&batches))
            }
            Found::Gone | Found::Batches(_) => self.read_history().await,
        }
    }

    fn render(&mut self, batches: &[Arc<Batch>]) -> Step {
        let (mut out, mut events) = (Vec::new(), 0);
        for batch in batches.iter().take_while(|batch| !self.view.previous || batch.has_previous) {
            let (upto, rendered) = batch.render(self.at, &self.view, CHUNK_BYTES, &mut out);
            (self.at, events) = (upto, events + rendered);
            if upto < batch.upto {
                break;
            }
        }
        self.sent(events, out)
    }

    /// Reads what comes next from the history, in one page.
    async fn read_history(&mut self) -> Result<Step, ReadError> {
        let shared = self.subscription.shared.clone();
        let reading = shared.history.clone().acquire_owned().await.expect("this semaphore is never closed");
        shared.counts.history_reads.fetch_add(1, Ordering::Relaxed);
        let (store, view, after) = (shared.store.clone(), self.view.clone(), self.at);
        let read = tokio::task::spawn_blocking(move || {
            // Held by the one who reads: the watcher may go away meanwhile.
            let _reading = reading;
            let previous = view.previous;
            let query = ChangesQuery { after, max_transactions: PAGE_TRANSACTIONS, max_bytes: PAGE_BYTES, previous };
            let page = store.changes(&query)?;
            let mut out = Vec::new();
            let (upto, events) = Batch::encode_for(after, &page, &view).render(after, &view, usize::MAX, &mut out);
            Ok::<_, ReadError>((upto, events, out))
        });
        let (upto, events, out) = match read.await {
            Ok(read) => read?,
            // Only the end of the runtime, or a panic, keeps a reading thread from answering.
            Err(error) => {
                self.subscription.slot.end(Ending::Failed);
                tracing::error!(%error, "a read of the history for a watch was lost");
                return Ok(Step::Nothing);
            }
        };
        self.at = upto;
        Ok(self.sent(events, out))
    }

    fn sent(&self, events: u64, out: Vec<u8>) -> Step {
        if events == 0 {
            return Step::Nothing;
        }
        self.subscription.shared.counts.events.fetch_add(events, Ordering::Relaxed);
        Step::Chunk(out)
    }

    /// Waits for a wake-up; false when it is time for a heartbeat.
    async fn wait(&mut self) -> bool {
        let due = self.heartbeat_due;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            tokio::select! {
                biased;
                () = self.subscription.slot.woken() => return true,
                () = timer.as_mut() => {
                    // It was set before the last piece was sent: a timer is not moved for each of them.
                    if Instant::now() >= due {
                        timer.as_mut().reset(Instant::now() + self.heartbeat);
                        return false;
                    }
                    timer.as_mut().reset(due);
                }
            }
        }
    }

    fn heartbeat(&mut self) -> Bytes {
        // In this order: who was not marked by the time the feed got there has nothing to send up to there.
        let scanned = self.subscription.shared.scanned.load(Ordering::Acquire);
        if !self.more && !self.subscription.slot.is_pending() {
            self.at = self.at.max(scanned);
        }
        self.event(&WatchEvent::Heartbeat { revision: self.at })
    }

    fn end(&mut self, reason: EndReason, floor: Option<Revision>, detail: String) -> Bytes {
        self.stage = Stage::Ended;
        // Who is too slow was counted when it was found so: its reader may never come to this.
        if reason != EndReason::Slow {
            self.subscription.shared.count_end(reason);
        }
        self.event(&WatchEvent::End(EndEvent { reason, revision: self.at, floor, detail }))
    }

    fn event(&self, event: &WatchEvent) -> Bytes {
        render_event(self.view.framing, event)
    }
}
