//! The floors: below the read floor old versions may be gone, below the delta floor tombstones may be.
//!
//! Both are replicated: a record of the system, written by the leader like any other key, moves them, and the head
//! follows it on every member at the same position. They never go down, whatever a record says, and never beyond what
//! was applied before the record. What compaction does with a member's files follows them, on each member in its own
//! time, and is never seen: a tombstone below both floors counts as absent everywhere from the moment when the floors
//! moved, dropped or not.
//!
//! Proven by `store/tests/compaction.rs`.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::history::{Frame, Head, Point};
use crate::model::codec::DecodeError;
use crate::model::{KeySpace, Revision, WriteOp};

/// The key of the floors' record: JSON.
pub const FLOORS_KEY: &[u8] = b"floors";

/// How far back this history can be read, and continued by a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floors {
    /// Old versions below this revision may be gone.
    pub read: Revision,
    /// A catch-up from a position below this one must be a full copy.
    pub delta: u64,
}

/// A position, and the revision there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The position.
    pub position: u64,
    /// The revision after its frame.
    pub revision: Revision,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    read_floor: Revision,
    delta_floor: u64,
    /// The revision at the delta floor. A lower one is safe.
    #[serde(default)]
    delta_revision: Revision,
}

/// Moves the floors of a head, which stands before the frame with the record.
pub(super) fn take_record(head: &mut Head, value: &[u8]) -> Result<(), DecodeError> {
    let record: Record = serde_json::from_slice(value).map_err(|_| DecodeError { what: "record of the floors" })?;
    head.read_floor = head.read_floor.max(record.read_floor.min(head.revision));
    let delta_floor = record.delta_floor.min(head.next_position().saturating_sub(1));
    if delta_floor > head.delta_floor {
        head.delta_floor = delta_floor;
        head.delta_revision = head.delta_revision.max(record.delta_revision.min(head.revision));
    }
    Ok(())
}

impl Store {
    /// The floors, as the last applied entry left them.
    pub fn floors(&self) -> Floors {
        let body = self.inner.body();
        let head = &body.state.read().head;
        Floors { read: head.read_floor, delta: head.delta_floor }
    }

    /// The floors that compaction follows: those of what is sealed.
    pub fn sealed_floors(&self) -> Floors {
        let body = self.inner.body();
        let head = &body.state.read().sealed_head;
        Floors { read: head.read_floor, delta: head.delta_floor }
    }

    /// The operation that moves the floors up to `wanted`, or as far as this member has applied; none when neither would
    /// move. The leader proposes it in a command of its own.
    pub fn floors_op(&self, wanted: Floors) -> Result<Option<WriteOp>, StoreError> {
        let head = self.head();
        let read_floor = wanted.read.min(head.revision).max(head.read_floor);
        let mut delta_floor = wanted.delta.min(head.next_position().saturating_sub(1)).max(head.delta_floor);
        let mut delta_revision = head.delta_revision;
        if delta_floor > head.delta_floor {
            match self.frame_at(delta_floor)? {
                Some(frame) => delta_revision = frame.head().revision,
                // An install has just replaced the history; the next attempt will find the new one.
                None => delta_floor = head.delta_floor,
            }
        }
        if (read_floor, delta_floor) == (head.read_floor, head.delta_floor) {
            return Ok(None);
        }
        let record = Record { read_floor, delta_floor, delta_revision };
        let value = serde_json::to_vec(&record).expect("plain structures always become JSON").into();
        Ok(Some(WriteOp::Put { space: KeySpace::System, key: FLOORS_KEY.into(), value, lease: 0 }))
    }

    /// The last position whose frame is at or before a time of the log, in milliseconds since 1970, and the revision
    /// there; none when all of the history is later. Below the floors it may be an earlier one.
    pub fn at_time(&self, clock_ms: u64) -> Result<Option<Place>, StoreError> {
        let body = self.inner.body();
        let (tails, sealed) = {
            let state = body.state.read();
            if state.head.applied.is_some() && state.head.clock_ms <= clock_ms {
                return Ok(place(state.head.point()));
            }
            let at = state.sealed_head.point();
            let before = state.sealed_head.applied.is_some() && state.sealed_head.clock_ms <= clock_ms;
            (before.then(|| at.next_position..state.head.next_position()), state.sealed.clone())
        };
        let Some(tails) = tails else {
            let found = sealed.at_time(clock_ms, &self.inner.tables).map_err(StoreError::from);
            return Ok(place(self.inner.noticed(found)?));
        };
        // Between the last sealed frame, which is early enough, and the newest one, which is not.
        let (mut low, mut high) = (tails.start, tails.end);
        let mut found = sealed.segments().last().map_or(Point::default(), |segment| segment.info().end());
        while low < high {
            let middle = low.midpoint(high);
            match self.frame_at(middle)? {
                Some(frame) if frame.head().clock_ms <= clock_ms => (found, low) = (Frame::end(&frame), middle + 1),
                _ => high = middle,
            }
        }
        Ok(place(found))
    }
}

fn place(point: Point) -> Option<Place> {
    let position = point.next_position.checked_sub(1)?;
    Some(Place { position, revision: point.revision })
}
