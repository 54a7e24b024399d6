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

use super::overlay::Base;
use super::state::{Body, index_end, index_key};
use super::{Inner, StoreError, records, system};
use crate::history::{Frame, FrameBuilder, FrameHead, FrameOp, FrameOutcome};
use crate::index::{IndexEntry, IndexError, IndexKey};
use crate::model::codec::DecodeError;
use crate::model::{
    BeginTimeline, ChainHash, Command, Entry, EntryKind, Guard, KeyMeta, KeySpace, LogId, OpResult, Outcome, Revision,
    Timeline, WriteCommand, WriteOp, base_revision,
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
    /// A tombstone at or below this revision counts as absent: some members have dropped it, and others have not.
    tombstone_floor: Revision,
}

/// What went wrong with one entry.
pub(super) enum Failure {
    Entry(DecodeError),
    Store(StoreError),
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Failure {
        Failure::Entry(error)
    }
}

impl From<IndexError> for Failure {
    fn from(error: IndexError) -> Failure {
        Failure::Store(error.into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

/// The timeline that an entry begins; none when it was meant for another branch of history.
fn branch(cx: &Context, before: &Before, at: LogId, begin: &BeginTimeline) -> Option<Timeline> {
    let state = cx.body.state.read();
    let parent = state.head.timelines.last().filter(|current| current.id == begin.parent)?;
    Some(Timeline {
        number: parent.number + 1,
        id: begin.id,
        parent: Some(parent.id),
        fork_position: at.index.checked_sub(1)?,
        fork_revision: before.revision,
        base_revision: base_revision(before.revision, begin.offset)?,
    })
}

/// What apply reads besides the entry.
pub(super) struct Context<'s> {
    pub inner: &'s Inner,
    pub body: &'s Body,
}

impl Context<'_> {
    /// The value of a key's newest version; none when the key is deleted.
    pub fn value(&self, index_key: &[u8], newest: IndexEntry) -> Result<Option<Bytes>, StoreError> {
        match newest.meta() {
            Some(meta) => self.inner.newest_value(self.body, index_key, meta).map(Some),
            None => Ok(None),
        }
    }
}

/// How much the range deletes of one command have deleted, as one frame holds it all.
#[derive(Default)]
pub(super) struct DeleteBudget {
    keys: usize,
    bytes: usize,
}

/// Where the store stands before an entry.
pub(super) struct Before {
    /// The term of the entry.
    pub term: u64,
    pub revision: Revision,
    pub clock_ms: u64,
    chain: ChainHash,
    founded: bool,
}

/// What an entry comes to.
pub(super) struct Done {
    pub outcome: Outcome,
    pub frame_outcome: FrameOutcome,
    pub time_ms: u64,
    /// Whether it may have changed records that the head follows.
    pub system: bool,
    /// Whether it is a canary.
    pub canary: bool,
    /// The revision that it makes, when that is not the next one.
    pub jump: Option<Revision>,
}

impl Applier {
    /// Applies one entry, which follows the last one. Returns its outcome and whether a tail became full.
    pub fn apply(&mut self, inner: &Inner, body: &Body, entry: &Entry) -> Result<(Outcome, bool), StoreError> {
        let failed = |failure| match failure {
            Failure::Entry(source) => StoreError::Entry { log_id: entry.log_id, source },
            Failure::Store(error) => error,
        };
        let cx = Context { inner, body };
        let before = {
            let head = &body.state.read().head;
            self.tombstone_floor = head.tombstone_floor();
            let founded = head.cluster.is_some();
            Before {
                term: entry.log_id.term,
                revision: head.revision,
                clock_ms: head.clock_ms,
                chain: head.chain,
                founded,
            }
        };
        self.forget();
        let done = self.perform(&cx, &before, entry).map_err(failed)?;
        let frame = self.finish(&before, entry.kind, entry.log_id, &done).map_err(|e| failed(e.into()))?;
        let froze = self.publish(&cx, &frame, &done).map_err(|e| failed(e.into()))?;
        Ok((done.outcome, froze))
    }

    fn perform(&mut self, cx: &Context, before: &Before, entry: &Entry) -> Result<Done, Failure> {
        let nothing = Done {
            outcome: Outcome::None,
            frame_outcome: FrameOutcome::None,
            time_ms: 0,
            system: false,
            canary: false,
            jump: None,
        };
        match entry.kind {
            EntryKind::Blank => Ok(nothing),
            EntryKind::Membership => {
                self.builder.membership(&entry.payload);
                Ok(nothing)
            }
            EntryKind::Command => match Command::decode(&entry.payload)? {
                Command::Write(write) => self.write(cx, before, write),
                Command::Request(request) => self.request(cx, before, request),
                Command::Found { time_ms, .. } if before.founded => {
                    Ok(Done { frame_outcome: FrameOutcome::Refused, time_ms, ..nothing })
                }
                Command::Found { time_ms, cluster, timeline } => {
                    let timelines = [Timeline::first(timeline)];
                    let records = [
                        (system::CLUSTER_KEY, system::cluster_value(cluster)),
                        (system::TIMELINES_KEY, system::timelines_value(&timelines)),
                    ];
                    for (key, value) in records {
                        let key = Bytes::from_static(key);
                        self.put(cx, before.revision + 1, KeySpace::System, key, value, 0)?;
                    }
                    Ok(Done { frame_outcome: FrameOutcome::Written, time_ms, system: true, ..nothing })
                }
                Command::Begin(begin) => {
                    let Some(timeline) = branch(cx, before, entry.log_id, &begin) else {
                        return Ok(Done { frame_outcome: FrameOutcome::Refused, time_ms: begin.time_ms, ..nothing });
                    };
                    let (number, base) = (timeline.number, timeline.base_revision);
                    let mut timelines = cx.body.state.read().head.timelines.clone();
                    timelines.push(timeline);
                    let (key, value) = (Bytes::from_static(system::TIMELINES_KEY), system::timelines_value(&timelines));
                    self.put(cx, base, KeySpace::System, key, value, 0)?;
                    self.put(cx, base, KeySpace::System, system::timeline_key(number), begin.record, 0)?;
                    Ok(Done {
                        frame_outcome: FrameOutcome::Written,
                        time_ms: begin.time_ms,
                        system: true,
                        jump: Some(base),
                        ..nothing
                    })
                }
            },
        }
    }

    fn write(&mut self, cx: &Context, before: &Before, write: WriteCommand) -> Result<Done, Failure> {
        let time_ms = write.time_ms;
        let refused = |outcome| Done {
            outcome,
            frame_outcome: FrameOutcome::Refused,
            time_ms,
            system: false,
            canary: false,
            jump: None,
        };
        if let Some(outcome) = self.check_guards(cx, before, &write.guards)? {
            return Ok(refused(outcome));
        }
        let system = write.ops.iter().any(|op| matches!(op, WriteOp::Put { space: KeySpace::System, .. }));
        let Some(results) = self.write_ops(cx, before.revision + 1, write.ops)? else {
            self.forget();
            return Ok(refused(Outcome::TooLarge { revision: before.revision }));
        };
        let outcome = Outcome::Written { revision: self.revision_after(before), results };
        Ok(Done { outcome, frame_outcome: FrameOutcome::Written, time_ms, system, canary: false, jump: None })
    }

    /// The refusal, when a guard does not hold.
    pub(super) fn check_guards(
        &mut self,
        cx: &Context,
        before: &Before,
        guards: &[Guard],
    ) -> Result<Option<Outcome>, IndexError> {
        for (at, Guard { key, condition }) in guards.iter().enumerate() {
            let current = self.newest(cx, KeySpace::User, key)?.and_then(|entry| entry.meta());
            if !condition.holds(current.map(|meta| meta.mod_revision)) {
                return Ok(Some(Outcome::Refused { revision: before.revision, guard: at, current }));
            }
        }
        Ok(None)
    }

    /// Does operations, each of which sees what those before it did; none when they delete too much.
    pub(super) fn write_ops(
        &mut self,
        cx: &Context,
        revision: Revision,
        ops: Vec<WriteOp>,
    ) -> Result<Option<Vec<OpResult>>, Failure> {
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                WriteOp::Put { space, key, value, lease } => self.put(cx, revision, space, key, value, lease)?,
                WriteOp::Delete { space, key } => {
                    let previous = self.delete(cx, revision, space, key)?;
                    OpResult::Deleted { count: u64::from(previous.is_some()), previous }
                }
                WriteOp::DeleteRange { space, start, end } => {
                    let mut budget = DeleteBudget::default();
                    match self.delete_range(cx, revision, space, &start, end.as_deref(), &mut budget)? {
                        Some(count) => OpResult::Deleted { count, previous: None },
                        None => return Ok(None),
                    }
                }
            });
        }
        Ok(Some(results))
    }

    /// The revision after the operations so far: a new one if they changed anything.
    pub(super) fn revision_after(&self, before: &Before) -> Revision {
        before.revision + u64::from(!self.builder.is_empty())
    }

    /// Leaves no trace of the operations so far.
    pub(super) fn forget(&mut self) {
        self.builder.start();
        self.changes.clear();
    }

    /// The newest version of a key by its index key, when the operations so far changed it.
    pub(super) fn changed(&self, index_key: &[u8]) -> Option<IndexEntry> {
        self.changes.get(index_key).map(|change| change.now)
    }

    /// What the operations so far changed from `start` on, up to and without `end`; in no order.
    pub(super) fn changed_within<'s>(
        &'s self,
        start: &'s [u8],
        end: &'s [u8],
    ) -> impl Iterator<Item = (&'s [u8], IndexEntry)> {
        let within = move |change: &&Change| *change.key >= *start && *change.key < *end;
        self.changes.list.iter().filter(within).map(|change| (&*change.key, change.now))
    }

    fn newest(&mut self, cx: &Context, space: KeySpace, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        self.key.clear();
        self.key.push(space as u8);
        self.key.extend_from_slice(key);
        cx.body.newest(&self.key)
    }

    /// The key's version before this frame and its version now, after the operations so far.
    pub(super) fn versions(
        &mut self,
        cx: &Context,
        space: KeySpace,
        key: &[u8],
    ) -> Result<(Option<IndexEntry>, Option<IndexEntry>), IndexError> {
        self.key.clear();
        self.key.push(space as u8);
        self.key.extend_from_slice(key);
        if let Some(change) = self.changes.get(&self.key) {
            return Ok((change.before, Some(change.now)));
        }
        let before = cx.body.newest(&self.key)?;
        Ok((before, before))
    }

    pub(super) fn put(
        &mut self,
        cx: &Context,
        revision: Revision,
        space: KeySpace,
        key: Bytes,
        value: Bytes,
        lease: u64,
    ) -> Result<OpResult, IndexError> {
        let (before, now) = self.versions(cx, space, &key)?;
        let replaced = now.and_then(|entry| entry.meta());
        let (create_revision, version) = match &replaced {
            Some(meta) => (meta.create_revision, meta.version + 1),
            None => (revision, 1),
        };
        let meta = KeyMeta { create_revision, mod_revision: revision, version, lease };
        let previous = self.previous(before);
        let hung_on = replaced.as_ref().map_or(0, |meta| meta.lease);
        // Keys on leases are few, so the others pay nothing for them.
        let moved = (space == KeySpace::User && hung_on != lease).then(|| key.clone());
        self.builder.op(&FrameOp::Put { space, key, value, create_revision, version, lease, previous });
        self.changes.set(&self.key, IndexEntry::value(meta), before);
        if let Some(key) = moved {
            self.take_off(cx, revision, hung_on, &key)?;
            if lease != 0 {
                self.put(cx, revision, KeySpace::System, records::leased_key(lease, &key), Bytes::new(), 0)?;
            }
        }
        Ok(OpResult::Put { meta, previous: replaced.map(|meta| meta.mod_revision) })
    }

    /// Takes a key off the lease that it hangs on.
    fn take_off(&mut self, cx: &Context, revision: Revision, lease: u64, key: &[u8]) -> Result<(), IndexError> {
        if lease != 0 {
            self.delete(cx, revision, KeySpace::System, records::leased_key(lease, key))?;
        }
        Ok(())
    }

    /// Deletes a key; returns the revision of the deleted value, none when there was none.
    pub(super) fn delete(
        &mut self,
        cx: &Context,
        revision: Revision,
        space: KeySpace,
        key: Bytes,
    ) -> Result<Option<Revision>, IndexError> {
        let (before, now) = self.versions(cx, space, &key)?;
        let Some(deleted) = now.and_then(|entry| entry.meta()) else { return Ok(None) };
        self.tombstone(revision, space, key.clone(), before);
        if space == KeySpace::User {
            self.take_off(cx, revision, deleted.lease, &key)?;
        }
        Ok(Some(deleted.mod_revision))
    }

    /// The revision of a key's version before the frame, as its operations name it.
    fn previous(&self, before: Option<IndexEntry>) -> Revision {
        let before = before.filter(|entry| !entry.is_tombstone_at_or_below(self.tombstone_floor));
        before.map_or(0, |entry| entry.mod_revision)
    }

    /// Writes the deletion of the key whose index key lies in `self.key`.
    fn tombstone(&mut self, revision: Revision, space: KeySpace, key: Bytes, before: Option<IndexEntry>) {
        let previous = self.previous(before);
        self.builder.op(&FrameOp::Delete { space, key, previous });
        self.changes.set(&self.key, IndexEntry::tombstone(revision), before);
    }

    /// Deletes all keys of a range, in their order; returns how many, or none when they are too many.
    pub(super) fn delete_range(
        &mut self,
        cx: &Context,
        revision: Revision,
        space: KeySpace,
        start: &[u8],
        end: Option<&[u8]>,
        budget: &mut DeleteBudget,
    ) -> Result<Option<u64>, IndexError> {
        let (mut start, end) = (index_key(space, start), index_end(space, end));
        // Each with its version before this frame, and its lease. First what the operations before this one changed, as
        // the scan does not see it.
        let mut doomed: BTreeMap<IndexKey, (Option<IndexEntry>, u64)> = BTreeMap::new();
        for change in &self.changes.list {
            if let Some(live) = change.now.live
                && *change.key >= *start
                && *change.key < *end
            {
                doomed.insert(change.key.clone(), (change.before, live.lease));
            }
        }
        budget.bytes += doomed.keys().map(|key| key.len()).sum::<usize>();
        loop {
            let chunk = cx.body.scan(&start, &end, SCAN_ENTRIES)?;
            for (key, entry) in chunk.entries {
                if let Some(live) = entry.live
                    && self.changes.get(&key).is_none()
                {
                    budget.bytes += key.len();
                    doomed.insert(key, (Some(entry), live.lease));
                }
            }
            if budget.keys + doomed.len() > MAX_RANGE_DELETE_KEYS || budget.bytes > MAX_RANGE_DELETE_BYTES {
                return Ok(None);
            }
            match chunk.next {
                Some(next) => start = next,
                None => break,
            }
        }
        let count = doomed.len();
        budget.keys += count;
        for (key, (before, lease)) in doomed {
            self.key.clear();
            self.key.extend_from_slice(&key);
            let key = Bytes::from(key).slice(1..);
            self.tombstone(revision, space, key.clone(), before);
            if space == KeySpace::User {
                self.take_off(cx, revision, lease, &key)?;
            }
        }
        Ok(Some(count as u64))
    }

    fn finish(&mut self, before: &Before, kind: EntryKind, log_id: LogId, done: &Done) -> Result<Frame, DecodeError> {
        let makes_revision = kind == EntryKind::Command && !self.builder.is_empty();
        let head = FrameHead {
            kind,
            outcome: done.frame_outcome,
            makes_revision,
            log_id,
            clock_ms: before.clock_ms.max(done.time_ms),
            revision: done.jump.unwrap_or(before.revision + u64::from(makes_revision)),
        };
        self.builder.finish(head, before.chain)
    }

    /// Shows the frame and its changes to readers, in one step. Says whether the open tail was frozen.
    fn publish(&mut self, cx: &Context, frame: &Frame, done: &Done) -> Result<bool, DecodeError> {
        let body = cx.body;
        let mut state = body.state.write();
        let state = &mut *state;
        if done.system {
            // On a copy, because a record that cannot be read must leave no trace.
            let mut head = state.head.clone();
            system::advance(&mut head, frame, true)?;
            state.head = head;
        } else {
            system::advance(&mut state.head, frame, false)?;
        }
        if done.canary {
            state.canary_ms = Some(frame.head().clock_ms);
        }
        for Change { key, .. } in self.changes.list.iter().filter(|change| change.before.is_none()) {
            body.filter.add(key);
        }
        for Change { key, before, now } in self.changes.list.drain(..) {
            let lived = before.is_some_and(|entry| entry.live.is_some());
            state.live_keys = state.live_keys + u64::from(now.live.is_some()) - u64::from(lived);
            state.counted.take(&key, before, now);
            let droppable = before.is_some_and(|entry| entry.is_tombstone_at_or_below(self.tombstone_floor));
            let base = if droppable { Base::AskIndex } else { Base::Known(before) };
            state.changes.set(key, now, base);
        }
        state.open.push(frame);
        Ok(state.freeze_if_full(&cx.inner.config))
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
