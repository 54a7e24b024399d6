//! Changes: the cursor by revision that watches read.
//!
//! [`Store::changes`] gives the transactions after a revision, in order and each one whole, from the tails or from the
//! segments. Above the read floor the history holds every operation, so what is not in a page did not happen. Below it
//! operations may be gone, therefore the floor is looked at before reading and again afterwards: a page is only given
//! out when nothing that it should hold can have been thinned meanwhile.
//!
//! A page is bounded in transactions and bytes, and has at least one transaction when there is one. Records of the system
//! are no changes; they only move the revision.
//!
//! Proven by `store/tests/changes.rs` (against plain maps, with seals, restarts, installs and a moving floor).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::state::{Body, index_key, missing};
use super::timelines::check_not_left;
use super::{Inner, ReadError, Store, StoreError};
use crate::history::{Frame, FrameOp, Sealed};
use crate::index::IndexEntry;
use crate::model::{KeyMeta, KeySpace, Revision};

/// The previous items of one transaction are given with their values until these have so many bytes; the others come
/// without: one deletion of a range may have replaced far more than fits into memory.
pub const PREVIOUS_VALUES_BYTES: usize = 8 << 20;

impl Store {
    /// The leader's time inside the frame at a position, in milliseconds since 1970. Where compaction has taken the frame away
    /// it is the time at the end of the segment before, which is no later; none when there is none.
    pub fn clock_at(&self, position: u64) -> Result<Option<u64>, StoreError> {
        if let Some(frame) = self.frame_at(position)? {
            return Ok(Some(frame.head().clock_ms));
        }
        let sealed = self.inner.body().state.read().sealed.clone();
        self.inner.noticed(sealed.clock_before(position, &self.inner.tables).map_err(StoreError::from))
    }
}

/// Which changes to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangesQuery {
    /// Those after this revision.
    pub after: Revision,
    /// Of at most so many transactions.
    pub max_transactions: usize,
    /// No further transaction once those read take so many bytes, previous values included.
    pub max_bytes: usize,
    /// Also read what each change replaced.
    pub previous: bool,
}

/// A part of the changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangesPage {
    /// The transactions that changed keys of clients, in order.
    pub transactions: Vec<Transaction>,
    /// There are no others up to this revision. The next page begins after it.
    pub upto: Revision,
}

/// What one transaction changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its revision.
    pub revision: Revision,
    /// The store's clock after it, in milliseconds since 1970.
    pub time_ms: u64,
    /// The changes, in the order in which they were made. At least one.
    pub changes: Vec<KeyChange>,
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The key.
    pub key: Bytes,
    /// What was written; none when the key was deleted.
    pub put: Option<PutVersion>,
    /// What was replaced or deleted, when that was asked for and the key existed.
    pub previous: Option<PreviousVersion>,
}

/// A value that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutVersion {
    /// The value.
    pub value: Bytes,
    /// The key's revisions, version and lease.
    pub meta: KeyMeta,
}

/// A value that was replaced or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousVersion {
    /// The value; none beyond [`PREVIOUS_VALUES_BYTES`].
    pub value: Option<Bytes>,
    /// The key's revisions, version and lease then.
    pub meta: KeyMeta,
}

impl Store {
    /// Reads the changes after a revision.
    pub fn changes(&self, query: &ChangesQuery) -> Result<ChangesPage, ReadError> {
        let result = self.inner.read_changes(query);
        let floor = self.read_floor();
        // What was read, or missed, may be a part of what was thinned meanwhile.
        if query.after < floor { Err(ReadError::Compacted { floor }) } else { self.inner.noticed(result) }
    }

    /// The revision of the newest change of a key, its deletion too; none when no change is known. A deletion is known
    /// at least for as long as its revision is not below the read floor.
    pub fn last_change(&self, space: KeySpace, key: &[u8]) -> Result<Option<Revision>, ReadError> {
        let newest = self.inner.body().newest(&index_key(space, key))?;
        Ok(newest.as_ref().map(|entry: &IndexEntry| entry.mod_revision))
    }
}

#[cfg(test)]
impl Store {
    /// Moves the read floor by hand, without thinning anything.
    pub(crate) fn set_read_floor(&self, floor: Revision) {
        self.inner.body().state.write().head.read_floor = floor;
    }
}

impl Inner {
    fn read_changes(&self, query: &ChangesQuery) -> Result<ChangesPage, ReadError> {
        let body = self.body();
        let (frames, upto) = self.frames_after(&body, query)?;
        let mut page = ChangesPage { transactions: Vec::new(), upto };
        let (mut bytes, mut read, mut last) = (0, 0, query.after);
        for frame in frames {
            if read == query.max_transactions || (bytes >= query.max_bytes && read > 0) {
                // Not the number before this frame's: that may lie between two timelines.
                page.upto = last;
                break;
            }
            read += 1;
            last = frame.head().revision;
            bytes += frame.bytes().len();
            let (changes, previous_bytes) = self.changes_of(&body, &frame, query.previous)?;
            bytes += previous_bytes;
            if !changes.is_empty() {
                let (revision, time_ms) = (frame.head().revision, frame.head().clock_ms);
                page.transactions.push(Transaction { revision, time_ms, changes });
            }
        }
        Ok(page)
    }

    /// Frames that made a revision, in order, from the first after the one asked for, and the revision up to which none
    /// is missing.
    fn frames_after(&self, body: &Body, query: &ChangesQuery) -> Result<(Vec<Frame>, Revision), ReadError> {
        let after = query.after;
        let mut room = Room { frames: query.max_transactions.saturating_add(1), bytes: query.max_bytes.max(1) };
        let place = {
            let state = body.state.read();
            let (current, floor) = (state.head.revision, state.head.read_floor);
            if after > current {
                return Err(ReadError::Future { current });
            }
            if after < floor {
                return Err(ReadError::Compacted { floor });
            }
            check_not_left(&state.head, after)?;
            let tails: Vec<_> = state.tails().collect();
            let in_memory = tails.last().map_or(current, |oldest| oldest.start().revision);
            if after < in_memory {
                Place::Sealed { sealed: state.sealed.clone(), upto: in_memory }
            } else {
                // Only gathered here: nothing is parsed while whoever applies may be waiting for the lock.
                let newer = tails.iter().rev().flat_map(|tail| tail.after_revision(after));
                let frames: Vec<Bytes> = newer.take_while(|bytes| room.take(bytes.len())).cloned().collect();
                Place::Memory { frames, upto: current }
            }
        };
        let (frames, upto) = match place {
            Place::Memory { frames, upto } => (frames.iter().map(parse).collect::<Result<_, _>>()?, upto),
            Place::Sealed { sealed, upto } => {
                let mut frames = Vec::new();
                let mut scan = sealed.scan_about(after, &self.tables)?;
                while let Some(frame) = scan.next_frame(&self.tables)? {
                    let head = frame.head();
                    if !head.makes_revision || head.revision <= after {
                        continue;
                    }
                    if !room.take(frame.bytes().len()) {
                        break;
                    }
                    frames.push(frame);
                }
                (frames, upto)
            }
        };
        let last = |frame: &Frame| frame.head().revision;
        let upto = if room.is_full() { frames.last().map_or(upto, last) } else { upto };
        Ok((frames, upto))
    }

    /// The changes of clients' keys in a frame, and how many bytes their previous values have.
    fn changes_of(&self, body: &Body, frame: &Frame, previous: bool) -> Result<(Vec<KeyChange>, usize), StoreError> {
        let revision = frame.head().revision;
        let corrupt = |e| StoreError::Corrupt {
            file: "the history".into(),
            offset: 0,
            what: format!("the frame of revision {revision}: {e}"),
        };
        let mut changes: Vec<KeyChange> = Vec::new();
        // Where the frame changed a key before: that is what a further change of it replaces.
        let mut places: HashMap<Bytes, usize> = HashMap::new();
        let mut values_bytes = 0;
        for op in frame.ops() {
            let op = op.map_err(corrupt)?;
            if op.key().0 != KeySpace::User {
                continue;
            }
            let key = op.key().1.clone();
            let replaced = match (previous, places.get(&key)) {
                (false, _) => None,
                (true, Some(place)) => changes[*place].put.as_ref().map(|put| (put.value.clone(), put.meta)),
                (true, None) => self.replaced_version(body, &key, &op)?,
            };
            let previous_version = replaced.map(|(value, meta)| {
                let fits = values_bytes < PREVIOUS_VALUES_BYTES;
                values_bytes += if fits { value.len() } else { 0 };
                PreviousVersion { value: fits.then_some(value), meta }
            });
            if previous {
                places.insert(key.clone(), changes.len());
            }
            let put = match op {
                FrameOp::Delete { .. } => None,
                FrameOp::Put { value, create_revision, version, lease, .. } => {
                    let meta = KeyMeta { create_revision, mod_revision: revision, version, lease };
                    Some(PutVersion { value, meta })
                }
            };
            changes.push(KeyChange { key, put, previous: previous_version });
        }
        Ok((changes, values_bytes))
    }

    /// The version that the first operation of a frame on a key replaced; none when the key did not exist.
    fn replaced_version(&self, body: &Body, key: &Bytes, op: &FrameOp) -> Result<Option<(Bytes, KeyMeta)>, StoreError> {
        // A first version replaces nothing or a tombstone, which may be gone.
        if op.previous() == 0 || matches!(op, FrameOp::Put { version: 1, .. }) {
            return Ok(None);
        }
        let name = index_key(KeySpace::User, key);
        let Some((_, link)) = self.link(body, &name, op.previous())? else { return Err(missing(op.previous())) };
        match link.op {
            FrameOp::Delete { .. } => Ok(None),
            FrameOp::Put { value, create_revision, version, lease, .. } => {
                let meta = KeyMeta { create_revision, mod_revision: op.previous(), version, lease };
                Ok(Some((value, meta)))
            }
        }
    }
}

/// Where the frames after a revision lie, and up to which revision.
enum Place {
    Memory { frames: Vec<Bytes>, upto: Revision },
    Sealed { sealed: Arc<Sealed>, upto: Revision },
}

/// How much more a page takes. The frame with which the bytes run out is the last that is taken.
struct Room {
    frames: usize,
    bytes: usize,
}

impl Room {
    /// Whether another frame is taken. The first always is.
    fn take(&mut self, bytes: usize) -> bool {
        if self.is_full() {
            return false;
        }
        self.frames -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }

    fn is_full(&self) -> bool {
        self.frames == 0 || self.bytes == 0
    }
}

fn parse(bytes: &Bytes) -> Result<Frame, StoreError> {
    Frame::parse(bytes).map_err(|e| StoreError::Corrupt {
        file: "the tail in memory".into(),
        offset: 0,
        what: format!("a frame of a change: {e}"),
    })
}
