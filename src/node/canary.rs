//! The canary: an entry that does nothing but carry the leader's time to every member.
//!
//! A member's applied clock ([`crate::store::Store::clock_ms`]) is the time of the newest entry that it shows, so its
//! distance from now is the age of what it shows, measured from end to end: through the log, the link and apply. When
//! nobody writes that clock would stand still. So the leader proposes a canary every `canary_interval`, while there is a
//! mirror to measure. A canary makes no revision, and no watcher hears of it.
//!
//! Bounds: one canary is under way at a time. What a crash loses: when the last one was sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::features::CANARIES;
use super::{Inner, Node};
use crate::model::{Command, MemberRole, Request, RequestCommand};

/// Before the first look, and between two while there is nobody to measure.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A canary that this member has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentCanary {
    /// The time in it, by this member's clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// The same moment, at the latest, by the clock that never jumps.
    pub sent: Instant,
    /// The term in which it was sent.
    pub term: u64,
}

/// The newest canary that this member has sent and that was committed.
#[derive(Default)]
pub struct LastCanary(Mutex<Option<SentCanary>>);

impl Node {
    /// The newest canary that this member sent in the term in which it leads; none when it does not lead.
    pub fn last_canary(&self) -> Option<SentCanary> {
        self.0.last_canary()
    }
}

impl Inner {
    /// The newest canary that this member sent in the term in which it leads; none when it does not lead.
    pub(super) fn last_canary(&self) -> Option<SentCanary> {
        let view = self.view();
        self.canary.0.lock().filter(|sent| view.leads && sent.term == view.term)
    }

    /// Whether there is anything to measure, and all members know canaries.
    fn wants_canary(&self) -> bool {
        let view = self.view();
        view.leads
            && view.members.iter().any(|member| member.role == MemberRole::Mirror)
            && self.store.feature_level() >= CANARIES
    }
}

/// Sends a canary every `interval` while this member leads a cluster with a mirror.
pub async fn run(inner: Arc<Inner>, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    loop {
        if inner.is_stopping() {
            return;
        }
        if !inner.wants_canary() {
            tokio::time::sleep(LOOK_AGAIN.min(interval)).await;
            continue;
        }
        let (term, sent) = (inner.view().term, Instant::now());
        let command = RequestCommand { time_ms: 0, idempotency: None, request: Request::Canary };
        match inner.propose_own(Command::Request(command)).await {
            Ok(_) => {
                // It is applied here before it is answered, so the store knows the time in it.
                let time_ms = inner.store.canary_ms().unwrap_or_default();
                *inner.canary.0.lock() = Some(SentCanary { time_ms, sent, term });
                inner.metrics.canaries.inc();
            }
            Err(error) => tracing::debug!(%error, "a canary was not sent"),
        }
        tokio::time::sleep(interval.saturating_sub(sent.elapsed()).max(Duration::from_millis(10))).await;
    }
}
