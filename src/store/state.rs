//! What readers and the writer share: [`Body`], and the [`State`] under its lock.
//!
//! A body is a whole store content: segments, tails, changes and index. An install makes a new body and swaps it in;
//! readers that began on the old one finish on it, whole.
//!
//! The lock is held for look-ups in memory only, never across a read of a file or of the index. That works because a
//! change is found in an overlay *until after* the index holds it: whoever looks in the overlays first and in the index
//! then, misses nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::filter::KeyFilter;
use super::overlay::Overlay;
use super::records::Counted;
use super::{StoreConfig, StoreError};
use crate::history::cache::ByteCache;
use crate::history::{Blocks, Frame, Head, Sealed, Segment, TableCache, Tail};
use crate::index::{Index, IndexEntry, IndexError, IndexKey, IndexKind, IndexMeta};
use crate::model::{KeySpace, Revision};

/// No more overlays than this wait for the index; a look-up passes through all of them.
const MAX_FROZEN: usize = 4;

/// The content of a store.
pub(super) struct Body {
    pub state: RwLock<State>,
    /// What the index says of itself; changed only by whoever holds the store's `work` lock.
    pub index_meta: Mutex<IndexMeta>,
    /// Newest values, by index key, each with its revision. It belongs to the body because after an install the same
    /// revision may be another value.
    pub values: ByteCache<IndexKey, (Revision, Bytes)>,
    /// Every key that was ever written, deleted ones too.
    pub filter: Arc<KeyFilter>,
    index: Option<Arc<dyn Index>>,
    kind: IndexKind,
    generation: u64,
    replaced: AtomicBool,
}

/// The open index that a closed store leaves to the next one that this process opens on the same directory. It holds what
/// its record says, because this process wrote all of it: it needs no scan, which takes seconds for millions of keys.
pub struct KeptIndex {
    pub(super) generation: u64,
    pub(super) index: Arc<dyn Index>,
    pub(super) meta: IndexMeta,
    pub(super) filter: Arc<KeyFilter>,
}

/// What changes with every applied entry.
pub(super) struct State {
    pub head: Head,
    pub sealed_head: Arc<Head>,
    pub sealed: Arc<Sealed>,
    /// Oldest first; those whose tail is sealed come before the one whose tail is not.
    pub frozen: VecDeque<Frozen>,
    pub open: Tail,
    pub changes: Overlay,
    pub live_keys: u64,
    pub counted: Counted,
    /// The time in the newest canary that was applied to this content since it was opened.
    pub canary_ms: Option<u64>,
}

/// A full tail and what it changed.
pub(super) struct Frozen {
    /// None when it is sealed.
    pub tail: Option<Arc<Tail>>,
    pub changes: Arc<Overlay>,
    /// The state after its last frame.
    pub head: Arc<Head>,
}

impl State {
    pub fn new(head: Head, sealed: Sealed, live_keys: u64, counted: Counted) -> State {
        State {
            open: Tail::new(head.point()),
            sealed_head: Arc::new(head.clone()),
            head,
            sealed: Arc::new(sealed),
            frozen: VecDeque::new(),
            changes: Overlay::default(),
            live_keys,
            counted,
            canary_ms: None,
        }
    }

    /// The newest version of a key, when it is not in the index yet.
    pub fn changed(&self, key: &[u8]) -> Option<IndexEntry> {
        let frozen = || self.frozen.iter().rev().find_map(|frozen| frozen.changes.get(key));
        self.changes.get(key).or_else(frozen)
    }

    /// The tails, newest first.
    pub fn tails(&self) -> impl Iterator<Item = &Tail> {
        let frozen = self.frozen.iter().rev().filter_map(|frozen| frozen.tail.as_deref());
        std::iter::once(&self.open).chain(frozen)
    }

    pub fn overlay_bytes(&self) -> usize {
        self.changes.bytes() + self.frozen.iter().map(|frozen| frozen.changes.bytes()).sum::<usize>()
    }

    fn open_is_full(&self, config: &StoreConfig) -> bool {
        self.open.bytes() >= config.tail_bytes || self.changes.bytes() >= config.overlay_bytes / 4
    }

    fn can_freeze(&self, config: &StoreConfig) -> bool {
        self.frozen.len() < MAX_FROZEN
            && self.frozen.iter().all(|frozen| frozen.tail.is_none())
            && self.overlay_bytes() < config.overlay_bytes / 4 * 3
    }

    pub fn has_room(&self, config: &StoreConfig) -> bool {
        !self.open_is_full(config) || self.can_freeze(config)
    }

    /// Freezes the open tail when it is full and may be frozen; says whether it did.
    pub fn freeze_if_full(&mut self, config: &StoreConfig) -> bool {
        let now = self.open_is_full(config) && self.can_freeze(config);
        if now {
            self.freeze();
        }
        now
    }

    /// Freezes the open tail.
    pub fn freeze(&mut self) {
        let next = Tail::new(self.open.end());
        let tail = Some(Arc::new(std::mem::replace(&mut self.open, next)));
        let changes = Arc::new(std::mem::take(&mut self.changes));
        self.frozen.push_back(Frozen { tail, changes, head: Arc::new(self.head.clone()) });
    }

    /// The frozen tail that is not sealed; there is at most one, unless a tail was frozen early for a clean stop.
    pub fn unsealed(&self) -> Option<(usize, Arc<Tail>, Arc<Head>)> {
        let mut frozen = self.frozen.iter().enumerate();
        frozen.find_map(|(at, frozen)| Some((at, frozen.tail.clone()?, frozen.head.clone())))
    }
}

/// Where the frame of a revision lies.
pub(super) enum FrameSource {
    Memory(Bytes),
    Segment(Arc<Segment>),
}

impl Body {
    pub fn new(
        state: State,
        index: Arc<dyn Index>,
        meta: IndexMeta,
        filter: Arc<KeyFilter>,
        (kind, generation): (IndexKind, u64),
        value_cache_bytes: usize,
    ) -> Body {
        Body {
            filter,
            state: RwLock::new(state),
            index_meta: Mutex::new(meta),
            values: ByteCache::new(value_cache_bytes, false),
            index: Some(index),
            kind,
            generation,
            replaced: AtomicBool::new(false),
        }
    }

    pub fn index(&self) -> &dyn Index {
        self.index.as_deref().expect("only drop takes the index away")
    }

    /// The index for the next body on the same history. The caller sees to it that nothing is written to it meanwhile.
    pub fn keep_index(&self) -> KeptIndex {
        KeptIndex {
            generation: self.generation,
            index: self.index.clone().expect("only drop takes the index away"),
            meta: *self.index_meta.lock(),
            filter: self.filter.clone(),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Another body took this one's place: its index goes with the last reader, and so do the segments that the new one
    /// does not have.
    pub fn replaced_by(&self, new: &Sealed) {
        self.replaced.store(true, Ordering::Relaxed);
        for segment in self.state.read().sealed.segments() {
            if !new.segments().iter().any(|kept| Arc::ptr_eq(kept, segment)) {
                segment.remove_when_unused();
            }
        }
    }

    /// The newest version of a key.
    pub fn newest(&self, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        if !self.filter.may_hold(key) {
            return Ok(None);
        }
        let changed = self.state.read().changed(key);
        if changed.is_some() { Ok(changed) } else { self.index().get(key) }
    }

    /// The newest sealed version of a key: what a restart finds.
    pub fn newest_sealed(&self, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        let changed = {
            let state = self.state.read();
            let sealed = state.frozen.iter().rev().filter(|frozen| frozen.tail.is_none());
            sealed.filter_map(|frozen| frozen.changes.get(key)).next()
        };
        if changed.is_some() { Ok(changed) } else { self.index().get(key) }
    }

    /// Where the frame that made a revision lies; none when there is no such frame.
    pub fn frame_source(&self, revision: Revision) -> Option<FrameSource> {
        let state = self.state.read();
        if let Some(bytes) = state.tails().find_map(|tail| tail.at_revision(revision)) {
            return Some(FrameSource::Memory(bytes.clone()));
        }
        state.sealed.segment_of_revision(revision).cloned().map(FrameSource::Segment)
    }

    /// The frame that made a revision; none when compaction has dropped it. Revisions only come from the index and from
    /// other frames, so for one that the floor has not passed the caller must take that for damage.
    pub fn frame(
        &self,
        revision: Revision,
        tables: &TableCache,
        blocks: &mut Blocks,
    ) -> Result<Option<Frame>, StoreError> {
        match self.frame_source(revision) {
            Some(source) => source.frame(revision, tables, blocks),
            None => Ok(None),
        }
    }

    /// Forgets tombstones that are below both floors, so that the index does not keep them. Other versions of these keys
    /// stay. The caller holds the store's `work` lock.
    pub fn forget_tombstones(&self, keys: &[IndexKey], floor: Revision) -> Result<(), IndexError> {
        let mut meta = self.index_meta.lock();
        let mut after = *meta;
        let mut forgotten: Vec<&[u8]> = Vec::with_capacity(keys.len());
        for key in keys {
            // What waits for the index is written over it, and counts on what the index holds.
            if self.state.read().changed(key).is_some() {
                continue;
            }
            if let Some(entry) = self.index().get(key)?
                && entry.is_tombstone_at_or_below(floor)
            {
                after.contents.remove(key, &entry);
                forgotten.push(key);
            }
        }
        if !forgotten.is_empty() {
            self.index().remove(&forgotten, &after)?;
            *meta = after;
        }
        Ok(())
    }

    /// A chunk of the newest versions of the keys from `start` on, up to and without `end`, in order, and where the next
    /// chunk begins.
    pub fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<ScanChunk, IndexError> {
        let mut entries: BTreeMap<IndexKey, IndexEntry> = BTreeMap::new();
        // What one layer did not give because of the limit lies behind its last key; so does the end of this chunk.
        let mut horizon: Option<IndexKey> = None;
        let mut cut_at = |key: &IndexKey| {
            if horizon.as_ref().is_none_or(|horizon| key < horizon) {
                horizon = Some(key.clone());
            }
        };
        {
            let state = self.state.read();
            let frozen = state.frozen.iter().map(|frozen| frozen.changes.as_ref());
            for changes in frozen.chain([&state.changes]) {
                let mut taken = 0;
                for (key, entry) in changes.range(start, end).take(limit) {
                    entries.insert(key.clone(), entry);
                    taken += 1;
                    if taken == limit {
                        cut_at(key);
                    }
                }
            }
        }
        let indexed = self.index().scan(start, Some(end), limit)?;
        if indexed.len() == limit
            && let Some((key, _)) = indexed.last()
        {
            cut_at(key);
        }
        for (key, entry) in indexed {
            entries.entry(key).or_insert(entry);
        }
        if let Some(horizon) = &horizon {
            let after = [horizon, [0].as_slice()].concat();
            drop(entries.split_off(after.as_slice()));
            return Ok(ScanChunk { entries, next: Some(after) });
        }
        Ok(ScanChunk { entries, next: None })
    }
}

/// A part of a scan over keys.
pub(super) struct ScanChunk {
    pub entries: BTreeMap<IndexKey, IndexEntry>,
    /// Where the next part begins; none after the last.
    pub next: Option<Vec<u8>>,
}

impl FrameSource {
    pub fn frame(
        &self,
        revision: Revision,
        tables: &TableCache,
        blocks: &mut Blocks,
    ) -> Result<Option<Frame>, StoreError> {
        match self {
            FrameSource::Memory(bytes) => Frame::parse(bytes).map(Some).map_err(|e| StoreError::Corrupt {
                file: "the tail in memory".into(),
                offset: 0,
                what: format!("the frame of revision {revision}: {e}"),
            }),
            FrameSource::Segment(segment) => Ok(segment.frame_at_revision(revision, tables, blocks)?),
        }
    }
}

pub(super) fn missing(revision: Revision) -> StoreError {
    StoreError::Corrupt {
        file: "the history".into(),
        offset: 0,
        what: format!("revision {revision}, which a key refers to, is not there"),
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // The index must be closed before its files go.
        self.index = None;
        if self.replaced.load(Ordering::Relaxed)
            && let Err(error) = self.kind.remove(self.generation)
        {
            tracing::warn!(%error, "could not remove an index that was replaced");
        }
    }
}

/// The index key of a key.
pub(super) fn index_key(space: KeySpace, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(space as u8);
    out.extend_from_slice(key);
    out
}

/// The first index key behind a key, or behind the key space.
pub(super) fn index_end(space: KeySpace, end: Option<&[u8]>) -> Vec<u8> {
    match end {
        Some(end) => index_key(space, end),
        None => vec![space as u8 + 1],
    }
}
