//! The store: what the cluster holds, as this member has applied it.
//!
//! Place in the path of a write: `raft` hands committed entries to [`Store::apply`]; each becomes a frame of the history
//! and changes to the index. Reads come from any thread at any time and see only whole transactions.
//!
//! ```text
//!   apply ──> open tail + changes ──full──> frozen tail + changes ──seal──> segment + MANIFEST
//!                                                         └──────flush──> index
//!   read  ──> changes, newest first ──> index ──> the frame of that revision ──> older versions
//! ```
//!
//! Who calls what: one caller applies; one background thread calls [`Store::seal`] and [`Store::flush_index`] whenever
//! [`Store::needs_work`] (the waker tells it); anyone reads. The caller of apply waits while [`Store::has_room`] is
//! false; that is the bound on memory: two tails and [`StoreConfig::overlay_bytes`] of changes, plus one batch.
//!
//! Invariants:
//! - Every applied entry has exactly one frame, in memory or sealed, and [`Store::chain`] proves which.
//! - A tail is sealed only when its entries are durable in this member's wal.
//! - A change goes to the index only when its frame is sealed, so the index is never ahead of the MANIFEST.
//! - No lock is held across a read or a write of a file, except the one between seal, flush and install.
//! - Apply is deterministic: no clock, no chance, no async runtime, no map with a random order.
//!
//! What survives a crash: what is sealed. The rest is applied again from the wal, from [`Store::sealed`] on.
//!
//! What the store does not do: it knows neither Raft nor HTTP, starts no thread, and does not compact yet; the floors
//! have their place in [`Head`] and stay where they are.
//!
//! Proven by `store/tests`: a model of plain maps over thousands of steps with restarts, a power cut at every operation
//! of seals and installs, flips of every byte, and readers beside the writer.

mod apply;
mod error;
mod filter;
mod install;
mod overlay;
mod read;
mod recover;
mod seal;
mod snapshot;
mod state;
mod system;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::files::Disk;
use crate::history::{Frame, Head, HistoryError, Sealed, TableCache};
use crate::index::IndexKind;
use crate::model::{ChainHash, ClusterId, Entry, KeyMeta, KeySpace, LogId, Outcome, Revision, Timeline};

use apply::Applier;
pub use error::{ReadError, StoreError};
pub use install::{Installer, PreparedInstall};
pub use snapshot::SnapshotReader;
use state::Body;
pub use system::{CLUSTER_KEY, TIMELINES_KEY};

/// How much memory the store may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// A tail is full at so many bytes of frames; there are at most two. Also the size of a segment.
    pub tail_bytes: usize,
    /// So many bytes of changes wait for the index at most.
    pub overlay_bytes: usize,
    /// So many bytes of values from segments are kept.
    pub value_cache_bytes: usize,
    /// So many bytes of offset tables of segments are kept.
    pub table_cache_bytes: usize,
    /// The size of the filter that spares look-ups of keys that were never written; best at about a byte a key.
    pub filter_bytes: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            tail_bytes: 16 << 20,
            overlay_bytes: 64 << 20,
            value_cache_bytes: 64 << 20,
            table_cache_bytes: 16 << 20,
            filter_bytes: 8 << 20,
        }
    }
}

/// A key with its value and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value; empty when only keys were asked for.
    pub value: Bytes,
    /// Its revisions, version and lease.
    pub meta: KeyMeta,
}

/// Which keys to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeQuery {
    /// In which key space.
    pub space: KeySpace,
    /// The first key.
    pub start: Bytes,
    /// The first key that is not wanted any more; none for the end of the key space.
    pub end: Option<Bytes>,
    /// Go on behind this key: the last one of the page before.
    pub after: Option<Bytes>,
    /// At which revision; none for the newest. Give the revision of the first page to the following ones.
    pub at: Option<Revision>,
    /// At most so many keys (and at least one).
    pub limit: usize,
    /// No further key once keys and values have so many bytes.
    pub max_bytes: usize,
    /// Leave the values out.
    pub keys_only: bool,
}

impl RangeQuery {
    /// All keys of a space at the newest revision, on one page.
    pub fn all(space: KeySpace) -> RangeQuery {
        let (start, end, after, at) = (Bytes::new(), None, None, None);
        RangeQuery { space, start, end, after, at, limit: usize::MAX, max_bytes: usize::MAX, keys_only: false }
    }
}

/// A part of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangePage {
    /// The keys, in order.
    pub items: Vec<KeyValue>,
    /// Whether there is at least one more key in the range, at this revision.
    pub more: bool,
    /// The revision that was read.
    pub revision: Revision,
}

/// Figures about a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// The revision.
    pub revision: Revision,
    /// Keys that exist, in all key spaces.
    pub live_keys: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of all segments.
    pub history_bytes: u64,
    /// Bytes of memory of all tails.
    pub tail_bytes: u64,
    /// Changes that wait for the index.
    pub overlay_entries: u64,
    /// Their bytes of memory.
    pub overlay_bytes: u64,
    /// Bytes of values kept.
    pub value_cache_bytes: u64,
    /// Reads of a sealed newest value that found it in the cache.
    pub value_cache_hits: u64,
    /// Those that did not.
    pub value_cache_misses: u64,
    /// Look-ups of an offset table that found it in the cache.
    pub table_cache_hits: u64,
    /// Those that did not.
    pub table_cache_misses: u64,
    /// Entries applied by this process.
    pub applied_entries: u64,
    /// Tails sealed by this process.
    pub seals: u64,
    /// How long sealing took in total, in nanoseconds.
    pub seal_nanos: u64,
}

type Waker = Box<dyn Fn() + Send + Sync>;

/// A store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.inner.dir).field("applied", &self.applied()).finish_non_exhaustive()
    }
}

struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    kind: IndexKind,
    config: StoreConfig,
    body: RwLock<Arc<Body>>,
    /// Held by the one who applies. Taken before `work`.
    applying: Mutex<Applier>,
    /// Held by the one who seals, flushes or installs.
    work: Mutex<()>,
    next_segment_id: AtomicU64,
    tables: TableCache,
    counters: Counters,
    waker: RwLock<Option<Waker>>,
    /// Why nothing is written any more.
    failed: Mutex<Option<String>>,
}

#[derive(Default)]
struct Counters {
    applied_entries: AtomicU64,
    seals: AtomicU64,
    seal_nanos: AtomicU64,
}

impl Inner {
    fn body(&self) -> Arc<Body> {
        self.body.read().clone()
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.read() {
            waker();
        }
    }
}

impl Store {
    /// Opens the store whose history is in `dir`, or makes a new one. The store stands at [`Store::sealed`] then; what
    /// was applied after that must be applied again.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, index: IndexKind, config: StoreConfig) -> Result<Store, StoreError> {
        let tables = TableCache::new(config.table_cache_bytes, true);
        let (sealed, manifest) = Sealed::open(&disk, dir, &tables)?;
        let body = recover::body(&index, sealed, manifest.head, &tables, &config)?;
        let inner = Inner {
            disk,
            dir: dir.to_owned(),
            kind: index,
            config,
            body: RwLock::new(Arc::new(body)),
            applying: Mutex::default(),
            work: Mutex::default(),
            next_segment_id: AtomicU64::new(manifest.next_segment_id),
            tables,
            counters: Counters::default(),
            waker: RwLock::default(),
            failed: Mutex::default(),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The log id of the last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.inner.body().state.read().head.applied
    }

    /// The log id of the last sealed entry: what a restart finds.
    pub fn sealed(&self) -> Option<LogId> {
        self.inner.body().state.read().sealed_head.applied
    }

    /// The last applied membership entry: its log id and its payload.
    pub fn membership(&self) -> Option<(LogId, Bytes)> {
        let body = self.inner.body();
        let state = body.state.read();
        state.head.membership.as_ref().map(|record| (record.log_id, record.payload.clone()))
    }

    /// The state besides the keys, as one consistent copy.
    pub fn head(&self) -> Head {
        self.inner.body().state.read().head.clone()
    }

    /// The cluster's identity, once its first command is applied.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.body().state.read().head.cluster
    }

    /// The timelines, from the first to the current one.
    pub fn timelines(&self) -> Vec<Timeline> {
        self.inner.body().state.read().head.timelines.clone()
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.inner.body().state.read().head.revision
    }

    /// The clock: the highest of the leaders' times so far, in milliseconds since 1970.
    pub fn clock_ms(&self) -> u64 {
        self.inner.body().state.read().head.clock_ms
    }

    /// The last position and the chain hash there; none before the first entry.
    pub fn chain(&self) -> Option<(u64, ChainHash)> {
        let body = self.inner.body();
        let state = body.state.read();
        state.head.applied.map(|log_id| (log_id.index, state.head.chain))
    }

    /// The chain hash at a position; none when the history does not hold it (any more, or yet).
    pub fn chain_at(&self, position: u64) -> Result<Option<ChainHash>, StoreError> {
        let body = self.inner.body();
        let sealed = {
            let state = body.state.read();
            if let Some(chain) = state.tails().find_map(|tail| tail.chain_at(position)) {
                return Ok(Some(chain));
            }
            state.sealed.clone()
        };
        Ok(sealed.chain_at(position, &self.inner.tables)?)
    }

    /// The frame at a position; none when the history does not hold it.
    pub fn frame_at(&self, position: u64) -> Result<Option<Frame>, StoreError> {
        let body = self.inner.body();
        let (bytes, sealed) = {
            let state = body.state.read();
            let bytes = state.tails().find_map(|tail| tail.at_position(position)).cloned();
            (bytes, state.sealed.clone())
        };
        if let Some(bytes) = bytes {
            let corrupt = |e: crate::model::codec::DecodeError| {
                HistoryError::corrupt("the tail in memory", 0, format!("the frame of position {position}: {e}"))
            };
            return Ok(Some(Frame::parse(&bytes).map_err(corrupt)?));
        }
        match sealed.segment_of_position(position) {
            Some(segment) => Ok(segment.frame_at_position(position, &self.inner.tables)?),
            None => Ok(None),
        }
    }

    /// Below this revision, old versions may be gone.
    pub fn read_floor(&self) -> Revision {
        self.inner.body().state.read().head.read_floor
    }

    /// Applies entries, which must follow [`Store::applied`] without a hole; returns the outcome of each. One caller at
    /// a time, which waits while [`Store::has_room`] is false.
    ///
    /// After an error the entries before the failed one are applied and the caller must stop.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcome>, StoreError> {
        let inner = &*self.inner;
        let mut applier = inner.applying.lock();
        inner.check_not_failed()?;
        let body = inner.body();
        let applied = body.state.read().head.applied;
        check_order(applied, entries)?;
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut froze = false;
        for entry in entries {
            let (outcome, now) = applier.apply(&body, &inner.config, entry)?;
            froze |= now;
            outcomes.push(outcome);
        }
        inner.counters.applied_entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
        drop(applier);
        if froze {
            inner.wake();
        }
        Ok(outcomes)
    }

    /// Whether more may be applied; false while both tails are full or too many changes wait for the index.
    pub fn has_room(&self) -> bool {
        self.inner.body().state.read().has_room(&self.inner.config)
    }

    /// Seals the full tail, when there is one and all its entries, up to `durable_index`, are durable in the wal. Says
    /// whether it did.
    pub fn seal(&self, durable_index: u64) -> Result<bool, StoreError> {
        self.inner.seal(durable_index)
    }

    /// Seals everything whose entries are durable, also a tail that is not full: before a purge of the wal, or a stop.
    /// A tail that goes beyond `durable_index` is closed to new entries now, and sealed by a later call.
    pub fn seal_all(&self, durable_index: u64) -> Result<(), StoreError> {
        self.inner.seal_all(durable_index)
    }

    /// Moves the changes of sealed tails to the index.
    pub fn flush_index(&self) -> Result<(), StoreError> {
        self.inner.flush_index()
    }

    /// Whether there is something to seal or to flush.
    pub fn needs_work(&self) -> bool {
        !self.inner.body().state.read().frozen.is_empty()
    }

    /// Sets what is called, on the thread where it happens, when a tail becomes full and when room appears again. It
    /// should only notify: it is called between two steps of apply or of the background work.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        *self.inner.waker.write() = Some(waker);
    }

    /// Reads a key, at a revision or the newest.
    pub fn get(&self, space: KeySpace, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, ReadError> {
        self.inner.read(space, key, at, true)
    }

    /// Reads what is known of a key besides its value.
    pub fn get_meta(&self, space: KeySpace, key: &[u8], at: Option<Revision>) -> Result<Option<KeyMeta>, ReadError> {
        Ok(self.inner.read(space, key, at, false)?.map(|found| found.meta))
    }

    /// Reads a page of a range; all of it at one revision.
    pub fn range(&self, query: &RangeQuery) -> Result<RangePage, ReadError> {
        self.inner.read_range(query)
    }

    /// A full copy of the store as it is now.
    pub fn snapshot(&self) -> Result<SnapshotReader, StoreError> {
        Ok(SnapshotReader::new(&self.inner))
    }

    /// Begins to receive a full copy, beside what is there.
    pub fn begin_install(&self) -> Result<Installer, StoreError> {
        self.inner.check_not_failed()?;
        Ok(Installer::new(self.inner.clone()))
    }

    /// Replaces the whole content by a received copy. Readers see the old content or the new one, whole.
    pub fn install(&self, prepared: PreparedInstall) -> Result<(), StoreError> {
        self.inner.install(prepared)
    }

    /// Figures about the store.
    pub fn stats(&self) -> StoreStats {
        let inner = &*self.inner;
        let body = inner.body();
        let (value_cache_hits, value_cache_misses) = body.values.hits_and_misses();
        let (table_cache_hits, table_cache_misses) = inner.tables.hits_and_misses();
        let value_cache_bytes = body.values.bytes() as u64;
        let state = body.state.read();
        let waiting = state.frozen.iter().map(|frozen| frozen.changes.len()).sum::<usize>() + state.changes.len();
        StoreStats {
            revision: state.head.revision,
            live_keys: state.live_keys,
            segments: state.sealed.segments().len() as u64,
            history_bytes: state.sealed.bytes(),
            tail_bytes: state.tails().map(|tail| tail.bytes() as u64).sum(),
            overlay_entries: waiting as u64,
            overlay_bytes: state.overlay_bytes() as u64,
            value_cache_bytes,
            value_cache_hits,
            value_cache_misses,
            table_cache_hits,
            table_cache_misses,
            applied_entries: inner.counters.applied_entries.load(Ordering::Relaxed),
            seals: inner.counters.seals.load(Ordering::Relaxed),
            seal_nanos: inner.counters.seal_nanos.load(Ordering::Relaxed),
        }
    }

    /// A clean stop: seals and flushes what can be. Using the store afterwards is allowed, and pointless.
    pub fn close(&self, durable_index: u64) -> Result<(), StoreError> {
        self.seal_all(durable_index)?;
        self.flush_index()?;
        self.inner.body().index().settle()?;
        Ok(())
    }
}

/// Checks that entries follow each other and what was applied.
fn check_order(mut applied: Option<LogId>, entries: &[Entry]) -> Result<(), StoreError> {
    for entry in entries {
        let (got, expected) = (entry.log_id, applied.map_or(0, |log_id| log_id.index + 1));
        if got.index != expected || applied.is_some_and(|applied| got <= applied) {
            return Err(StoreError::NotNext { applied, expected, got });
        }
        applied = Some(got);
    }
    Ok(())
}
