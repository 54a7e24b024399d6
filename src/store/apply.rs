//! Apply: every committed entry becomes one frame and changes to the keys.
//!
//! Deterministic: what is written depends on the entries alone, never on batches, seals, flushes, caches, time or
//! chance. Values and keys are copied into the frame, and everything kept afterwards shares the frame's memory; so no
//! buffer of the network or of the wal is kept by what was in it.
//!
//! A transaction: all guards are evaluated against the state before it. Then the operations are done in order, and each
//! sees what those before it did. All share one revision, the next; an operation that deletes nothing leaves no trace,
//! and when none leaves a trace there is no revision. A key that one transaction writes twice keeps the last value,
//! has its version counted for each put, and one version at that revision.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::state::{Body, index_end, index_key};
use super::{StoreConfig, StoreError, system};
use crate::history::{Frame, FrameBuilder, FrameHead, FrameOp, FrameOutcome};
use crate::index::{IndexEntry, IndexError, IndexKey};
use crate::model::codec::DecodeError;
use crate::model::{
    ChainHash, Command, Entry, EntryKind, Guard, KeyMeta, KeySpace, LogId, OpResult, Outcome, Revision, WriteCommand,
    WriteOp,
};

/// A range delete of more keys than this is refused, because one frame has to hold them all. Part of the format: every
/// member must refuse the same, for ever.
pub(super) const MAX_RANGE_DELETE_KEYS: usize = 100_000;
/// The same for the bytes of these keys.
const MAX_RANGE_DELETE_BYTES: usize = 32 << 20;
/// How many keys a range delete looks at in one step.
const SCAN_ENTRIES: usize = 1024;

/// What apply keeps from one entry to the next so as not to allocate.
#[derive(Default)]
pub(super) struct Applier {
    builder: FrameBuilder,
    changes: Changes,
    key: Vec<u8>,
}

/// What went wrong with one entry.
enum Failure {
    Entry(DecodeError),
    Index(IndexError),
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Failure {
        Failure::Entry(error)
    }
}

impl From<IndexError> for Failure {
    fn from(error: IndexError) -> Failure {
        Failure::Index(error)
    }
}

/// Where the store stands before an entry.
struct Before {
    revision: Revision,
    clock_ms: u64,
    chain: ChainHash,
    founded: bool,
}

/// What an entry comes to.
struct Done {
    outcome: Outcome,
    frame_outcome: FrameOutcome,
    time_ms: u64,
    system: bool,
}

impl Applier {
    /// Applies one entry, which follows the last one. Returns its outcome and whether a tail became full.
    pub fn apply(&mut self, body: &Body, config: &StoreConfig, entry: &Entry) -> Result<(Outcome, bool), StoreError> {
        let failed = |failure| match failure {
            Failure::Entry(source) => StoreError::Entry { log_id: entry.log_id, source },
            Failure::Index(error) => error.into(),
        };
        let before = {
            let head = &body.state.read().head;
            let founded = head.cluster.is_some();
            Before { revision: head.revision, clock_ms: head.clock_ms, chain: head.chain, founded }
        };
        self.builder.start();
        self.changes.clear();
        let done = self.perform(body, &before, entry).map_err(failed)?;
        let frame = self.finish(&before, entry.kind, entry.log_id, &done).map_err(|e| failed(e.into()))?;
        let froze = self.publish(body, config, &frame, done.system).map_err(|e| failed(e.into()))?;
        Ok((done.outcome, froze))
    }

    fn perform(&mut self, body: &Body, before: &Before, entry: &Entry) -> Result<Done, Failure> {
        let nothing = Done { outcome: Outcome::None, frame_outcome: FrameOutcome::None, time_ms: 0, system: false };
        match entry.kind {
            EntryKind::Blank => Ok(nothing),
            EntryKind::Membership => {
                self.builder.membership(&entry.payload);
                Ok(nothing)
            }
            EntryKind::Command => match Command::decode(&entry.payload)? {
                Command::Write(write) => self.write(body, before, write),
                Command::Found { time_ms, .. } if before.founded => {
                    Ok(Done { frame_outcome: FrameOutcome::Refused, time_ms, ..nothing })
                }
                Command::Found { time_ms, cluster, timeline } => {
                    let timelines = [system::first_timeline(timeline)];
                    let records = [
                        (system::CLUSTER_KEY, system::cluster_value(cluster)),
                        (system::TIMELINES_KEY, system::timelines_value(&timelines)),
                    ];
                    for (key, value) in records {
                        let key = Bytes::from_static(key);
                        self.put(body, before.revision + 1, KeySpace::System, key, value, 0)?;
                    }
                    Ok(Done { frame_outcome: FrameOutcome::Written, time_ms, system: true, ..nothing })
                }
            },
        }
    }

    fn write(&mut self, body: &Body, before: &Before, write: WriteCommand) -> Result<Done, Failure> {
        let time_ms = write.time_ms;
        for (at, Guard { key, condition }) in write.guards.iter().enumerate() {
            let current = self.newest(body, KeySpace::User, key)?.and_then(|entry| entry.meta());
            if !condition.holds(current.map(|meta| meta.mod_revision)) {
                let outcome = Outcome::Refused { revision: before.revision, guard: at, current };
                return Ok(Done { outcome, frame_outcome: FrameOutcome::Refused, time_ms, system: false });
            }
        }
        let revision = before.revision + 1;
        let mut results = Vec::with_capacity(write.ops.len());
        let mut system = false;
        for op in write.ops {
            results.push(match op {
                WriteOp::Put { space, key, value, lease } => {
                    system |= space == KeySpace::System;
                    self.put(body, revision, space, key, value, lease)?
                }
                WriteOp::Delete { space, key } => {
                    let previous = self.delete(body, revision, space, key)?;
                    OpResult::Deleted { count: u64::from(previous.is_some()), previous }
                }
                WriteOp::DeleteRange { space, start, end } => {
                    let Some(count) = self.delete_range(body, revision, space, &start, end.as_deref())? else {
                        self.builder.start();
                        self.changes.clear();
                        let outcome = Outcome::TooLarge { revision: before.revision };
                        return Ok(Done { outcome, frame_outcome: FrameOutcome::Refused, time_ms, system: false });
                    };
                    OpResult::Deleted { count, previous: None }
                }
            });
        }
        let revision = if self.builder.is_empty() { before.revision } else { revision };
        let outcome = Outcome::Written { revision, results };
        Ok(Done { outcome, frame_outcome: FrameOutcome::Written, time_ms, system })
    }

    fn newest(&mut self, body: &Body, space: KeySpace, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        self.key.clear();
        self.key.push(space as u8);
        self.key.extend_from_slice(key);
        body.newest(&self.key)
    }

    /// The key's version before this frame and its version now, after the operations so far.
    fn versions(
        &mut self,
        body: &Body,
        space: KeySpace,
        key: &[u8],
    ) -> Result<(Option<IndexEntry>, Option<IndexEntry>), IndexError> {
        self.key.clear();
        self.key.push(space as u8);
        self.key.extend_from_slice(key);
        if let Some(change) = self.changes.get(&self.key) {
            return Ok((change.before, Some(change.now)));
        }
        let before = body.newest(&self.key)?;
        Ok((before, before))
    }

    fn put(
        &mut self,
        body: &Body,
        revision: Revision,
        space: KeySpace,
        key: Bytes,
        value: Bytes,
        lease: u64,
    ) -> Result<OpResult, IndexError> {
        let (before, now) = self.versions(body, space, &key)?;
        let replaced = now.and_then(|entry| entry.meta());
        let (create_revision, version) = match &replaced {
            Some(meta) => (meta.create_revision, meta.version + 1),
            None => (revision, 1),
        };
        let meta = KeyMeta { create_revision, mod_revision: revision, version, lease };
        let previous = before.map_or(0, |entry| entry.mod_revision);
        self.builder.op(&FrameOp::Put { space, key, value, create_revision, version, lease, previous });
        self.changes.set(&self.key, IndexEntry::value(meta), before);
        Ok(OpResult::Put { meta, previous: replaced.map(|meta| meta.mod_revision) })
    }

    /// Deletes a key; returns the revision of the deleted value, none when there was none.
    fn delete(
        &mut self,
        body: &Body,
        revision: Revision,
        space: KeySpace,
        key: Bytes,
    ) -> Result<Option<Revision>, IndexError> {
        let (before, now) = self.versions(body, space, &key)?;
        let Some(deleted) = now.and_then(|entry| entry.meta()) else { return Ok(None) };
        self.tombstone(revision, space, key, before);
        Ok(Some(deleted.mod_revision))
    }

    /// Writes the deletion of the key whose index key lies in `self.key`.
    fn tombstone(&mut self, revision: Revision, space: KeySpace, key: Bytes, before: Option<IndexEntry>) {
        let previous = before.map_or(0, |entry| entry.mod_revision);
        self.builder.op(&FrameOp::Delete { space, key, previous });
        self.changes.set(&self.key, IndexEntry::tombstone(revision), before);
    }

    /// Deletes all keys of a range, in their order; returns how many, or none when they are too many.
    fn delete_range(
        &mut self,
        body: &Body,
        revision: Revision,
        space: KeySpace,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> Result<Option<u64>, IndexError> {
        let (mut start, end) = (index_key(space, start), index_end(space, end));
        // What the operations before this one changed, as the scan does not see it.
        let mut doomed: BTreeMap<IndexKey, Option<IndexEntry>> = BTreeMap::new();
        for change in self.changes.list.iter().filter(|change| change.now.live.is_some()) {
            if *change.key >= *start && *change.key < *end {
                doomed.insert(change.key.clone(), change.before);
            }
        }
        let mut bytes: usize = doomed.keys().map(|key| key.len()).sum();
        loop {
            let chunk = body.scan(&start, &end, SCAN_ENTRIES)?;
            for (key, entry) in chunk.entries {
                if entry.live.is_some() && self.changes.get(&key).is_none() {
                    bytes += key.len();
                    doomed.insert(key, Some(entry));
                }
            }
            if doomed.len() > MAX_RANGE_DELETE_KEYS || bytes > MAX_RANGE_DELETE_BYTES {
                return Ok(None);
            }
            match chunk.next {
                Some(next) => start = next,
                None => break,
            }
        }
        let count = doomed.len() as u64;
        for (key, before) in doomed {
            self.key.clear();
            self.key.extend_from_slice(&key);
            let key = Bytes::from(key).slice(1..);
            self.tombstone(revision, space, key, before);
        }
        Ok(Some(count))
    }

    fn finish(&mut self, before: &Before, kind: EntryKind, log_id: LogId, done: &Done) -> Result<Frame, DecodeError> {
        let makes_revision = kind == EntryKind::Command && !self.builder.is_empty();
        let head = FrameHead {
            kind,
            outcome: done.frame_outcome,
            makes_revision,
            log_id,
            clock_ms: before.clock_ms.max(done.time_ms),
            revision: before.revision + u64::from(makes_revision),
        };
        self.builder.finish(head, before.chain)
    }

    /// Shows the frame and its changes to readers, in one step. Says whether the open tail was frozen.
    fn publish(&mut self, body: &Body, config: &StoreConfig, frame: &Frame, system: bool) -> Result<bool, DecodeError> {
        let mut state = body.state.write();
        let state = &mut *state;
        if system {
            // On a copy, because a record that cannot be read must leave no trace.
            let mut head = state.head.clone();
            system::advance(&mut head, frame, true)?;
            state.head = head;
        } else {
            system::advance(&mut state.head, frame, false)?;
        }
        for Change { key, .. } in self.changes.list.iter().filter(|change| change.before.is_none()) {
            body.filter.add(key);
        }
        for Change { key, before, now } in self.changes.list.drain(..) {
            let lived = before.is_some_and(|entry| entry.live.is_some());
            state.live_keys = state.live_keys + u64::from(now.live.is_some()) - u64::from(lived);
            state.changes.set(key, now, before);
        }
        state.open.push(frame);
        Ok(state.freeze_if_full(config))
    }
}

/// What the operations of one entry changed so far.
#[derive(Default)]
struct Changes {
    list: Vec<Change>,
    /// Where each key is in the list, once the list is long.
    places: BTreeMap<IndexKey, usize>,
}

struct Change {
    key: IndexKey,
    before: Option<IndexEntry>,
    now: IndexEntry,
}

/// Lists up to this length are searched from front to back.
const SHORT_LIST: usize = 8;

impl Changes {
    fn clear(&mut self) {
        self.list.clear();
        self.places.clear();
    }

    fn place(&self, key: &[u8]) -> Option<usize> {
        if self.list.len() <= SHORT_LIST {
            self.list.iter().position(|change| *change.key == *key)
        } else {
            self.places.get(key).copied()
        }
    }

    fn get(&self, key: &[u8]) -> Option<&Change> {
        self.place(key).map(|at| &self.list[at])
    }

    fn set(&mut self, key: &[u8], now: IndexEntry, before: Option<IndexEntry>) {
        if let Some(at) = self.place(key) {
            self.list[at].now = now;
            return;
        }
        self.list.push(Change { key: key.into(), before, now });
        match self.list.len() {
            0..=SHORT_LIST => {}
            len if len == SHORT_LIST + 1 => {
                let places = self.list.iter().enumerate().map(|(at, change)| (change.key.clone(), at));
                self.places = places.collect();
            }
            len => {
                self.places.insert(key.into(), len - 1);
            }
        }
    }
}
