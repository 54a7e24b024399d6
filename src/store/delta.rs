//! Deltas: how a member that was away catches up from where it stands, and when it cannot.
//!
//! ```text
//!   receiver                                             sender
//!   delta_position ──── where it stands, what it has ──> copy_for ──> SnapshotReader
//!   Installer   <─────────────── chunks ─────────────────────┘
//!   install
//! ```
//!
//! A delta from a point is right when the sender has the same chain hash there, so that both have applied the same, and
//! when no tombstone after it is gone there: none is above the sender's delta floor, and none is below it in files that
//! compaction has not written anew since. Then the receiver's own
//! frames and those of the delta together are a history: of every key they have the newest version, every version above
//! the read floor, and the deletions. The receiver's older frames stay as they are; its own compaction thins them.
//!
//! The same holds for a copy that was cut: what came is continued like any history, from its last point, also by another
//! sender and with a newer end. A full copy that was cut below the delta floor begins again.
//!
//! Proven by `store/tests/delta.rs`.

use serde::{Deserialize, Serialize};

use super::snapshot::{Moment, SnapshotReader};
use super::{Store, StoreError};
use crate::history::Point;
use crate::model::LogId;

/// Where a receiver stands. Sent to the member that shall help it to catch up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRequest {
    /// The end of what it has.
    pub at: Point,
    /// The end of what it has of a copy that was cut.
    pub staged: Option<Point>,
}

/// Whether a member can send what comes after a point.
#[derive(Debug)]
pub enum DeltaAnswer {
    /// It can.
    Reader(Box<SnapshotReader>),
    /// No: tombstones after the point may be gone.
    BelowFloor {
        /// The lowest position from which it can.
        floor: u64,
    },
    /// No: the histories differ at the point.
    Diverged,
    /// No: the point is beyond what this member has applied.
    Ahead {
        /// What it has applied.
        applied: Option<LogId>,
    },
}

impl Store {
    /// Where this member stands, for a request. Seals what is durable in the wal first, because a delta begins at the end
    /// of what is sealed. What is applied and sealed from now on until the copy begins to arrive makes a delta useless; after
    /// that it is only sent in vain.
    pub fn delta_position(&self, durable_index: u64) -> Result<DeltaRequest, StoreError> {
        self.seal_all(durable_index)?;
        let _work = self.inner.work.lock();
        let at = self.inner.body().state.read().sealed_head.point();
        let staging = self.inner.staging.lock();
        let usable = staging.as_ref().filter(|staging| staging.base == Point::default() || staging.base == at);
        Ok(DeltaRequest { at, staged: usable.map(|staging| staging.head.point()) })
    }

    /// The history after a point, or why it cannot be had from here. After the point 0 it is a full copy.
    pub fn delta(&self, from: Point) -> Result<DeltaAnswer, StoreError> {
        self.inner.noticed(self.delta_from(from))
    }

    fn delta_from(&self, from: Point) -> Result<DeltaAnswer, StoreError> {
        let moment = Moment::of(&self.inner);
        let Some(position) = from.next_position.checked_sub(1) else {
            return Ok(DeltaAnswer::Reader(Box::new(SnapshotReader::new(&self.inner, moment, Point::default()))));
        };
        if from.next_position > moment.head.next_position() {
            return Ok(DeltaAnswer::Ahead { applied: moment.head.applied });
        }
        // Below the floor a tombstone may be gone; as long as no file from there on was written anew, none is.
        let below = position < moment.head.delta_floor;
        if below && moment.sealed.lacks_tombstones_from(from.next_position) {
            return Ok(DeltaAnswer::BelowFloor { floor: moment.head.delta_floor });
        }
        match moment.chain_before(from.next_position, &self.inner)? {
            Some(chain) if chain == from.chain => {
                Ok(DeltaAnswer::Reader(Box::new(SnapshotReader::new(&self.inner, moment, from))))
            }
            Some(_) => Ok(DeltaAnswer::Diverged),
            None if below => Ok(DeltaAnswer::BelowFloor { floor: moment.head.delta_floor }),
            None => {
                let what = format!("no frame of position {position}, which is above the delta floor");
                Err(StoreError::Corrupt { file: "the history".into(), offset: 0, what })
            }
        }
    }

    /// The shortest copy that brings a receiver up to here: the rest of what it began to receive, a delta, or a full copy.
    pub fn copy_for(&self, request: &DeltaRequest) -> Result<SnapshotReader, StoreError> {
        let mut best: Option<Box<SnapshotReader>> = None;
        for from in request.staged.into_iter().chain([request.at]) {
            if let DeltaAnswer::Reader(reader) = self.delta(from)?
                && best.as_ref().is_none_or(|best| reader.len_bytes() < best.len_bytes())
            {
                best = Some(reader);
            }
        }
        match best {
            Some(reader) => Ok(*reader),
            None => self.snapshot(),
        }
    }
}
