//! The timelines of a history, and which revisions belong to it.
//!
//! They are a record of the history itself ([`system`]), begun by an entry ([`BeginTimeline`](crate::model::BeginTimeline)), so
//! every copy and every replay has them. Proven by `store/tests/timelines.rs`.

use bytes::Bytes;

use super::{Head, ReadError, Store, system};
use crate::model::{KeySpace, Revision, Timeline, left_behind};

impl Store {
    /// Refuses a revision that left a process and that the history does not contain: one of a branch that was left behind.
    pub fn check_not_left(&self, revision: Revision) -> Result<(), ReadError> {
        check_not_left(&self.inner.body().state.read().head, revision)
    }

    /// What is kept of how a timeline began.
    pub fn timeline_record(&self, number: u64) -> Result<Option<Bytes>, ReadError> {
        let found = self.get(KeySpace::System, &system::timeline_key(number), None)?;
        Ok(found.map(|found| found.value))
    }

    /// The timelines, from the first to the current one.
    pub fn timelines(&self) -> Vec<Timeline> {
        self.inner.body().state.read().head.timelines.clone()
    }
}

/// Rule 10: a revision that lies between a fork and the base behind it belongs to a branch that was left behind.
pub(super) fn check_not_left(head: &Head, revision: Revision) -> Result<(), ReadError> {
    match left_behind(&head.timelines, revision) {
        Some((fork, base)) => Err(ReadError::Diverged { fork, base }),
        None => Ok(()),
    }
}
