//! What compaction keeps of a frame.
//!
//! The rule, for each key by itself: every version above the read floor stays, and the newest at or below it. If that
//! one is a tombstone, it stays until both floors have passed it *and* every older segment has been thinned up to it;
//! otherwise an older version, still lying there, would come back when the index is built again.
//!
//! Which version is the newest at or below the floor is found from the key's newest version: when that one is above the
//! floor, by the walk along the previous revisions, which reads only versions above the floor. Each walk is made once a
//! step for a key, as long as the answers fit in a cache; they cannot change, because versions at or below the floor do
//! not come any more. A key may have any number of versions above the floor, so whoever asks is asked back before each
//! of them is read ([`Walk`]) and can end the walk; a later one goes on from there.
//!
//! A walk may end at a version that names none before it because it was created over a tombstone below both floors *of
//! the time when it was applied*, which may be above those that are followed here. Compaction may take what comes of it,
//! since the floors that its MANIFEST names are at least those; whoever has promised lower ones must not.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::state::{Body, index_key, missing};
use super::super::{Inner, StoreError};
use crate::history::cache::ByteCache;
use crate::history::{Frame, FrameBuilder, FrameOp, Head};
use crate::index::IndexKey;
use crate::model::{EntryKind, Revision};

/// So many bytes of answers are kept.
const CACHE_BYTES: usize = 8 << 20;

/// What becomes of a frame.
pub(in crate::store) enum Thinned {
    /// It stays as it is.
    Same,
    /// It stays with fewer operations.
    Fewer(Frame),
    /// Nothing of it stays.
    Nothing,
}

/// What may be freed of something, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Garbage {
    /// All bytes.
    pub bytes: u64,
    /// Those that can go.
    pub free: u64,
    /// Those of tombstones that can go once older segments are thinned.
    pub blocked: u64,
}

/// Is asked before a walk reads one more version, and may end it.
pub(in crate::store) type Walk<'w> = dyn FnMut() -> ControlFlow<()> + 'w;

/// Why a frame was not judged.
#[derive(Debug)]
pub(in crate::store) enum Unjudged {
    /// The walk was ended.
    Ended,
    /// Something could not be read.
    Failed(StoreError),
}

impl<E: Into<StoreError>> From<E> for Unjudged {
    fn from(error: E) -> Unjudged {
        Unjudged::Failed(error.into())
    }
}

/// What is known of a key's newest version at or below the read floor.
#[derive(Debug, Clone, Copy)]
enum Newest {
    /// Its revision, or 0 when the key did not exist then; none for a key that the index has forgotten.
    Is(Option<Revision>),
    /// A walk was ended at this version, which is above the floor.
    At(Revision),
}

/// What becomes of a version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Drop,
    /// A tombstone that may go, and with it the key's entry in the index.
    Forget,
    /// A tombstone that may go once older segments are thinned.
    Blocked,
}

/// Decides what stays, by the floors that the MANIFEST names.
pub(in crate::store) struct Keeper {
    inner: Arc<Inner>,
    body: Arc<Body>,
    pub read_floor: Revision,
    pub tombstone_floor: Revision,
    pub delta_floor: u64,
    newest: ByteCache<IndexKey, Newest>,
    builder: FrameBuilder,
    /// Keys whose tombstones were taken out.
    pub forgotten: Vec<IndexKey>,
}

impl Keeper {
    pub fn new(inner: &Arc<Inner>, body: &Arc<Body>, head: &Head) -> Keeper {
        Keeper {
            inner: inner.clone(),
            body: body.clone(),
            read_floor: head.read_floor,
            tombstone_floor: head.tombstone_floor(),
            delta_floor: head.delta_floor,
            newest: ByteCache::new(CACHE_BYTES, true),
            builder: FrameBuilder::default(),
            forgotten: Vec::new(),
        }
    }

    /// Whose keys it judges.
    pub fn body(&self) -> &Arc<Body> {
        &self.body
    }

    /// Takes out of a frame what need not stay. All older segments are thinned up to `swept_to`.
    pub fn thin(&mut self, frame: &Frame, swept_to: Revision, walk: &mut Walk<'_>) -> Result<Thinned, Unjudged> {
        if frame.head().revision > self.read_floor {
            return Ok(Thinned::Same);
        }
        let ops = self.judged(frame, swept_to, walk)?;
        let stays = |fate: &Fate| matches!(fate, Fate::Keep | Fate::Blocked);
        let kept = ops.iter().filter(|(_, fate)| stays(fate)).count();
        if kept == 0 && self.may_go(frame) {
            self.forget(&ops);
            return Ok(Thinned::Nothing);
        }
        if kept == ops.len() {
            return Ok(Thinned::Same);
        }
        self.builder.start();
        for (op, _) in ops.iter().filter(|(_, fate)| stays(fate)) {
            self.builder.op(op);
        }
        self.forget(&ops);
        let thinned = self.builder.finish_thinned(frame);
        Ok(thinned.map(Thinned::Fewer).map_err(|e| damaged(frame, &e.to_string()))?)
    }

    /// How much of a frame could go.
    pub(super) fn weigh(&self, frame: &Frame, swept_to: Revision, walk: &mut Walk<'_>) -> Result<Garbage, Unjudged> {
        let bytes = frame.bytes().len() as u64;
        let mut garbage = Garbage { bytes, ..Garbage::default() };
        if frame.head().revision > self.read_floor {
            return Ok(garbage);
        }
        let ops = self.judged(frame, swept_to, walk)?;
        let (mut kept, mut blocked, mut free) = (0, 0, 0);
        for (op, fate) in &ops {
            let op_bytes = op_bytes(op);
            match fate {
                Fate::Keep => kept += op_bytes,
                Fate::Blocked => blocked += op_bytes,
                Fate::Drop | Fate::Forget => free += op_bytes,
            }
        }
        let rest = bytes.saturating_sub(kept + blocked + free);
        let may_go = self.may_go(frame);
        garbage.free = free + if kept + blocked == 0 && may_go { rest } else { 0 };
        garbage.blocked = blocked + if kept == 0 && blocked > 0 && may_go { rest } else { 0 };
        Ok(garbage)
    }

    /// Whether a frame at or below the read floor may go when nothing is left in it.
    fn may_go(&self, frame: &Frame) -> bool {
        frame.position() < self.delta_floor && frame.head().kind != EntryKind::Membership
    }

    fn forget(&mut self, ops: &[(FrameOp, Fate)]) {
        let forgotten = ops.iter().filter(|(_, fate)| *fate == Fate::Forget);
        self.forgotten.extend(forgotten.map(|(op, _)| key_of(op)));
    }

    /// The operations of a frame and what becomes of each; all of one key share their fate.
    fn judged(&self, frame: &Frame, swept_to: Revision, walk: &mut Walk<'_>) -> Result<Vec<(FrameOp, Fate)>, Unjudged> {
        let ops: Result<Vec<FrameOp>, _> = frame.ops().collect();
        let ops = ops.map_err(|e| damaged(frame, &e.to_string()))?;
        let revision = frame.head().revision;
        let deletes = |op: &FrameOp| matches!(op, FrameOp::Delete { .. });
        if let [op] = ops.as_slice() {
            let fate = self.fate(&key_of(op), revision, deletes(op), swept_to, walk)?;
            return Ok(ops.into_iter().map(|op| (op, fate)).collect());
        }
        // The last operation on a key is its version.
        let last: BTreeMap<IndexKey, bool> = ops.iter().map(|op| (key_of(op), deletes(op))).collect();
        let mut fates = BTreeMap::new();
        for (key, deleted) in last {
            let fate = self.fate(&key, revision, deleted, swept_to, walk)?;
            fates.insert(key, fate);
        }
        let with_fate = |op: FrameOp| {
            let fate = fates[&key_of(&op)];
            (op, fate)
        };
        Ok(ops.into_iter().map(with_fate).collect())
    }

    /// What becomes of the version that `revision`, at or below the floor, made of a key.
    fn fate(
        &self,
        key: &IndexKey,
        revision: Revision,
        deleted: bool,
        swept_to: Revision,
        walk: &mut Walk<'_>,
    ) -> Result<Fate, Unjudged> {
        let newest = self.newest_at_floor(key, walk)?;
        Ok(match newest {
            Some(newest) if newest != revision => Fate::Drop,
            Some(_) if !deleted => Fate::Keep,
            None if !deleted => Fate::Drop,
            _ if revision > self.tombstone_floor => Fate::Keep,
            _ if revision > swept_to => Fate::Blocked,
            _ => Fate::Forget,
        })
    }

    /// The newest version of a key at or below the read floor: its revision, or 0 when the key did not exist then; none
    /// when the index has forgotten the key, whose newest version is a tombstone below both floors then.
    fn newest_at_floor(&self, key: &IndexKey, walk: &mut Walk<'_>) -> Result<Option<Revision>, Unjudged> {
        let mut revision = match self.newest.get(key, |_| true) {
            Some(Newest::Is(known)) => return Ok(known),
            Some(Newest::At(reached)) => Some(reached),
            // What is not sealed may stand on floors that the MANIFEST does not know yet: a key that was created again
            // over a tombstone below them does not name the versions before.
            None => self.body.newest_sealed(key)?.map(|entry| entry.mod_revision),
        };
        while let Some(above) = revision.filter(|revision| *revision > self.read_floor) {
            if walk().is_break() {
                self.newest.put(key.clone(), Newest::At(above), key.len());
                return Err(Unjudged::Ended);
            }
            let link = self.inner.link(&self.body, key, above)?;
            revision = Some(link.ok_or_else(|| missing(above))?.1.op.previous());
        }
        self.newest.put(key.clone(), Newest::Is(revision), key.len());
        Ok(revision)
    }
}

fn key_of(op: &FrameOp) -> IndexKey {
    let (space, key) = op.key();
    index_key(space, key).into()
}

/// Roughly how many bytes an operation takes in a frame.
fn op_bytes(op: &FrameOp) -> u64 {
    let (key, value) = match op {
        FrameOp::Put { key, value, .. } => (key.len(), value.len()),
        FrameOp::Delete { key, .. } => (key.len(), 0),
    };
    (key + value + 8) as u64
}

fn damaged(frame: &Frame, what: &str) -> StoreError {
    let what = format!("the frame of position {}: {what}", frame.position());
    StoreError::Corrupt { file: "the history".into(), offset: 0, what }
}
