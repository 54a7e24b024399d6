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
//! - No lock is held across a read or a write of a file, except those between seal, flush, install and compaction.
//! - Apply is deterministic: no clock, no chance, no async runtime, no map with a random order.
//!
//! What survives a crash: what is sealed. The rest is applied again from the wal, from [`Store::sealed`] on.
//!
//! What the store does not do: it knows neither Raft nor HTTP, starts no thread, and chooses no floors.
//!
//! Proven by `store/tests`: a model of plain maps over thousands of steps with restarts, a power cut at every operation
//! of seals and installs, flips of every byte, and readers beside the writer.

mod apply;
mod changes;
mod check;
mod compact;
mod delta;
mod digest;
mod error;
mod filter;
mod floors;
mod fork;
mod install;
mod overlay;
mod parse;
mod read;
mod records;
mod recover;
mod request;
mod rescue;
mod rewind;
mod scrub;
mod seal;
mod sequence;
mod snapshot;
mod staging;
mod state;
mod stream;
mod system;
#[cfg(test)]
mod tests;
mod timelines;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::files::Disk;
use crate::history::sealed::SealedScan;
use crate::history::segment::SUFFIX;
pub use crate::history::{Frame, FrameOp, Head, Point};
use crate::history::{HistoryError, Sealed, Staging, TableCache};
use crate::index::IndexKind;
use crate::model::{ChainHash, ClusterId, Entry, KeyMeta, KeySpace, LogId, Outcome, Revision};

use apply::Applier;
pub use changes::{
    ChangesPage, ChangesQuery, KeyChange, PREVIOUS_VALUES_BYTES, PreviousVersion, PutVersion, Transaction,
};
pub use check::CopyCheck;
pub use compact::{CompactLimits, CompactReport};
pub use delta::{DeltaAnswer, DeltaRequest};
pub use digest::{ContentDigest, DigestRange, KeyDigest};
use error::AsDamage;
pub use error::{ReadError, StoreError};
pub use floors::{FLOORS_KEY, Floors, Place};
pub use fork::Forked;
pub use install::{Installer, PreparedInstall};
pub use records::{EventRecord, LeaseRecord, RecordStats, SystemRecord, WrittenRecord, event_op, forget_event_op};
pub use rescue::Rescued;
pub use rewind::{Promised, Rewound};
pub use scrub::{Described, ScrubStep};
pub use sequence::{SequenceJump, SequenceRecord};
pub use snapshot::SnapshotReader;
use state::Body;
pub use state::KeptIndex;
pub use system::{CLUSTER_KEY, MAINTENANCE_KEY, SWITCHOVER_KEY, TIMELINES_KEY, set_feature_level};

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
    /// The read floor.
    pub read_floor: Revision,
    /// The delta floor.
    pub delta_floor: u64,
    /// Steps of compaction by this process.
    pub compactions: u64,
    /// Bytes that compaction read.
    pub compact_read_bytes: u64,
    /// Bytes that compaction wrote.
    pub compact_written_bytes: u64,
    /// By how many bytes compaction has made the segments smaller.
    pub reclaimed_bytes: u64,
    /// How many of the bytes of all segments compaction could free now, as estimated from samples when it last looked.
    pub garbage_bytes: u64,
    /// Bytes of a copy that is being received.
    pub staging_bytes: u64,
}

type Waker = Box<dyn Fn() + Send + Sync>;
type DamageHook = Box<dyn Fn(&StoreError) + Send + Sync>;

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
    // The locks are taken in the order in which they stand here; that of the body comes after them.
    /// Held by the one who compacts, for a whole step.
    compacting: Mutex<compact::Estimates>,
    /// Held by the one who applies.
    applying: Mutex<Applier>,
    /// Held by the one who seals, flushes, installs, or commits anything else; by a compaction for its commit only.
    work: Mutex<()>,
    /// What the MANIFEST says of a copy that is being received; changed only with a MANIFEST, under `work`.
    staging: Mutex<Option<Staging>>,
    /// Where the deltas begin that are being received or wait to be installed: a segment ends there until they are.
    held_bases: Mutex<Vec<Point>>,
    next_segment_id: AtomicU64,
    tables: TableCache,
    counters: Counters,
    waker: RwLock<Option<Waker>>,
    /// Told of damage, by whoever meets it.
    damage_hook: RwLock<Option<DamageHook>>,
    /// Why nothing is written any more.
    failed: Mutex<Option<String>>,
}

#[derive(Default)]
struct Counters {
    applied_entries: AtomicU64,
    seals: AtomicU64,
    seal_nanos: AtomicU64,
    compactions: AtomicU64,
    compact_read_bytes: AtomicU64,
    compact_written_bytes: AtomicU64,
    reclaimed_bytes: AtomicU64,
    garbage_bytes: AtomicU64,
}

impl Inner {
    fn body(&self) -> Arc<Body> {
        self.body.read().clone()
    }

    /// Tells of damage that a result carries, and gives the result on.
    fn noticed<T, E: AsDamage>(&self, result: Result<T, E>) -> Result<T, E> {
        if let Err(error) = &result
            && let Some(damage) = error.as_damage()
            && let Some(hook) = &*self.damage_hook.read()
        {
            hook(damage);
        }
        result
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
        Store::open_with(None, disk, dir, index, config)
    }

    /// The same with the index that [`Store::close_to_reopen`] of a store on the same directory has left.
    pub fn open_with(
        kept: Option<KeptIndex>,
        disk: Arc<dyn Disk>,
        dir: &Path,
        index: IndexKind,
        config: StoreConfig,
    ) -> Result<Store, StoreError> {
        let tables = TableCache::new(config.table_cache_bytes, true);
        let (sealed, manifest) = Sealed::open(&disk, dir, &tables)?;
        let began = std::time::Instant::now();
        let body = recover::body(&index, kept, sealed, manifest.head, &tables, &config)?;
        tracing::debug!(took = ?began.elapsed(), "the index is open and agrees with the history");
        let inner = Inner {
            disk,
            dir: dir.to_owned(),
            kind: index,
            config,
            body: RwLock::new(Arc::new(body)),
            compacting: Mutex::default(),
            applying: Mutex::default(),
            work: Mutex::default(),
            staging: Mutex::new(manifest.staging),
            held_bases: Mutex::default(),
            next_segment_id: AtomicU64::new(manifest.next_segment_id),
            tables,
            counters: Counters::default(),
            waker: RwLock::default(),
            damage_hook: RwLock::default(),
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

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.inner.body().state.read().head.revision
    }

    /// The clock: the highest of the leaders' times so far, in milliseconds since 1970.
    pub fn clock_ms(&self) -> u64 {
        self.inner.body().state.read().head.clock_ms
    }

    /// The time in the newest canary that this process has applied; none before the first. What a member shows is at most
    /// as old as that time, by the leader's clock.
    pub fn canary_ms(&self) -> Option<u64> {
        self.inner.body().state.read().canary_ms
    }

    /// The last position and the chain hash there; none before the first entry.
    pub fn chain(&self) -> Option<(u64, ChainHash)> {
        let body = self.inner.body();
        let state = body.state.read();
        state.head.applied.map(|log_id| (log_id.index, state.head.chain))
    }

    /// The chain hash at a position; none when the history does not hold it (any more, or yet). Those of
    /// [`Store::common_points`] are there for ever.
    pub fn chain_at(&self, position: u64) -> Result<Option<ChainHash>, StoreError> {
        let body = self.inner.body();
        let sealed = {
            let state = body.state.read();
            if let Some(chain) = state.tails().find_map(|tail| tail.chain_at(position)) {
                return Ok(Some(chain));
            }
            state.sealed.clone()
        };
        self.inner.noticed(sealed.chain_at(position, &self.inner.tables).map_err(StoreError::from))
    }

    /// The place behind a position whose chain hash is known here, with its revision; none when it is not.
    pub fn point_at(&self, position: u64) -> Result<Option<Point>, StoreError> {
        if let Some(frame) = self.frame_at(position)? {
            return Ok(Some(frame.end()));
        }
        let body = self.inner.body();
        let sealed = body.state.read().sealed.clone();
        let Some(segment) = sealed.segment_of_position(position) else { return Ok(None) };
        let end = [segment.info().end()];
        let mut points = segment.points().iter().chain(&end);
        Ok(points.find(|point| point.next_position == position + 1).copied())
    }

    /// The frame at a position; none when the history does not hold it. Below both floors it may be gone, and at or below
    /// the read floor it may lack operations.
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
            Some(segment) => {
                let found = segment.frame_at_position(position, &self.inner.tables).map_err(StoreError::from);
                self.inner.noticed(found)
            }
            None => Ok(None),
        }
    }

    /// The sealed frames from a position on, one after the other. Those that are not sealed are not among them.
    pub fn sealed_frames(&self, from: u64) -> SealedFrames {
        let scan = self.inner.body().state.read().sealed.scan(from);
        SealedFrames { inner: self.inner.clone(), scan }
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
            let (outcome, now) = inner.noticed(applier.apply(inner, &body, entry))?;
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
        self.inner.noticed(self.inner.seal(durable_index))
    }

    /// Seals everything whose entries are durable, also a tail that is not full: before a purge of the wal, or a stop.
    /// A tail that goes beyond `durable_index` is closed to new entries now, and sealed by a later call.
    pub fn seal_all(&self, durable_index: u64) -> Result<(), StoreError> {
        self.inner.noticed(self.inner.seal_all(durable_index))
    }

    /// Moves the changes of sealed tails to the index.
    pub fn flush_index(&self) -> Result<(), StoreError> {
        self.inner.noticed(self.inner.flush_index())
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

    /// Sets what is called with every error that says that the history is damaged, on the thread that met the damage and
    /// perhaps under locks of the store: it must only take note.
    pub fn set_damage_hook(&self, hook: Box<dyn Fn(&StoreError) + Send + Sync>) {
        *self.inner.damage_hook.write() = Some(hook);
    }

    /// Damage is nobody's business any more.
    fn tell_nobody(&self) {
        self.inner.damage_hook.write().take();
    }

    /// Reads a key, at a revision or the newest.
    pub fn get(&self, space: KeySpace, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, ReadError> {
        self.inner.noticed(self.inner.read(space, key, at, true))
    }

    /// Reads what is known of a key besides its value.
    pub fn get_meta(&self, space: KeySpace, key: &[u8], at: Option<Revision>) -> Result<Option<KeyMeta>, ReadError> {
        Ok(self.inner.noticed(self.inner.read(space, key, at, false))?.map(|found| found.meta))
    }

    /// Reads a page of a range; all of it at one revision.
    pub fn range(&self, query: &RangeQuery) -> Result<RangePage, ReadError> {
        self.inner.noticed(self.inner.read_range(query))
    }

    /// A full copy of the store as it is now.
    pub fn snapshot(&self) -> Result<SnapshotReader, StoreError> {
        let moment = snapshot::Moment::of(&self.inner);
        Ok(SnapshotReader::new(&self.inner, moment, Point::default()))
    }

    /// The same in the form that members of the first release know; none when it cannot say what this history is.
    pub fn snapshot_for_first_release(&self) -> Result<Option<SnapshotReader>, StoreError> {
        Ok(self.snapshot()?.for_first_release())
    }

    /// Begins to receive a copy, full or a delta, beside what is there. Which it is, and whether it goes on after what is
    /// kept of an earlier one, its header says.
    pub fn begin_install(&self) -> Result<Installer, StoreError> {
        self.inner.check_not_failed()?;
        Ok(Installer::new(self.inner.clone()))
    }

    /// Takes over a received copy: a full one in the place of the whole content, a delta behind what is there. Readers see
    /// the old content or the new one, whole.
    pub fn install(&self, prepared: PreparedInstall) -> Result<(), StoreError> {
        self.inner.install(prepared)
    }

    /// Does one bounded step of compaction, when one is worth it: writes some adjacent segments anew as one, without what
    /// is below the floors. Tells `pace` now and then how many bytes it has read and written since the last time; `pace`
    /// may sleep, and ends the step without effect when it breaks.
    ///
    /// Call it again until the report says that there was nothing to do. After an error that is not
    /// [`StoreError::Stopped`] nothing has changed and the store goes on.
    pub fn compact(
        &self,
        limits: CompactLimits,
        pace: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<CompactReport, StoreError> {
        self.inner.noticed(self.inner.compact(limits, pace))
    }

    /// Whether nothing is written any more, because a write failed after which the disk's content is unknown.
    pub fn has_stopped(&self) -> bool {
        self.inner.failed.lock().is_some()
    }

    /// Positions and chain hashes that are kept for ever: every 4,096th position and the ends of segments up to `upto`,
    /// and the last applied position when it is not beyond it. In order. Two members find what they have in common by
    /// searching these.
    pub fn common_points(&self, upto: u64) -> Result<Vec<(u64, ChainHash)>, StoreError> {
        let body = self.inner.body();
        let (sealed, head) = {
            let state = body.state.read();
            (state.sealed.clone(), state.head.point())
        };
        let points = sealed.points(upto, &self.inner.tables).map_err(StoreError::from);
        let mut points = self.inner.noticed(points)?;
        if head.next_position <= upto.saturating_add(1) && points.last().is_none_or(|last| *last != head) {
            points.push(head);
        }
        points.retain(|point| point.next_position > 0);
        Ok(points.into_iter().map(|point| (point.next_position - 1, point.chain)).collect())
    }

    /// Forgets what is kept of a copy that did not come to its end.
    pub fn discard_staging(&self) -> Result<(), StoreError> {
        self.inner.discard_staging()
    }

    /// Figures about the store.
    pub fn stats(&self) -> StoreStats {
        let inner = &*self.inner;
        let body = inner.body();
        let (value_cache_hits, value_cache_misses) = body.values.hits_and_misses();
        let (table_cache_hits, table_cache_misses) = inner.tables.hits_and_misses();
        let value_cache_bytes = body.values.bytes() as u64;
        let staged = |staging: &Staging| staging.segments.iter().map(|segment| segment.bytes).sum();
        let staging_bytes = inner.staging.lock().as_ref().map_or(0, staged);
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
            read_floor: state.head.read_floor,
            delta_floor: state.head.delta_floor,
            compactions: inner.counters.compactions.load(Ordering::Relaxed),
            compact_read_bytes: inner.counters.compact_read_bytes.load(Ordering::Relaxed),
            compact_written_bytes: inner.counters.compact_written_bytes.load(Ordering::Relaxed),
            reclaimed_bytes: inner.counters.reclaimed_bytes.load(Ordering::Relaxed),
            garbage_bytes: inner.counters.garbage_bytes.load(Ordering::Relaxed),
            staging_bytes,
        }
    }

    /// Writes nothing any more, for whoever else still holds this store: its directory is about to become another's.
    /// Waits for what is being committed.
    pub fn abandon(&self, why: &str) {
        self.tell_nobody();
        let _work = self.inner.work.lock();
        self.inner.failed.lock().get_or_insert_with(|| why.to_owned());
    }

    /// Gives no segment an id that is or was a segment's in another directory: somebody may still be about to remove a
    /// file of it by its name.
    pub fn avoid_ids_of(&self, dir: &Path) -> Result<(), StoreError> {
        let names = self.inner.disk.list(dir).map_err(HistoryError::io("listing", dir.display().to_string()))?;
        let ids = names.iter().filter_map(|name| u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok());
        // The files of the highest ids may be gone already.
        const FURTHER: u64 = 1 << 20;
        let above = ids.max().unwrap_or(0) + FURTHER;
        self.inner.next_segment_id.fetch_max(above, Ordering::Relaxed);
        Ok(())
    }

    /// A clean stop: seals and flushes what can be. Using the store afterwards is allowed, and pointless.
    pub fn close(&self, durable_index: u64) -> Result<(), StoreError> {
        self.seal_all(durable_index)?;
        self.flush_index()?;
        self.inner.body().index().settle()?;
        Ok(())
    }

    /// A clean stop before another store is opened on this directory in this process: seals what can be, writes nothing any
    /// more, and leaves the index open. A store that has failed leaves none.
    pub fn close_to_reopen(&self, durable_index: u64, why: &str) -> Result<KeptIndex, StoreError> {
        self.seal_all(durable_index)?;
        self.flush_index()?;
        // What the next store writes to the index is nothing that this one's history has; to it that would be damage.
        self.tell_nobody();
        let _work = self.inner.work.lock();
        self.inner.check_not_failed()?;
        self.inner.failed.lock().get_or_insert_with(|| why.to_owned());
        Ok(self.inner.body().keep_index())
    }
}

/// Reads sealed frames one after the other.
pub struct SealedFrames {
    inner: Arc<Inner>,
    scan: SealedScan,
}

impl SealedFrames {
    /// The next frame; none at the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, StoreError> {
        self.inner.noticed(self.scan.next_frame(&self.inner.tables).map_err(StoreError::from))
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
