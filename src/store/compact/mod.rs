//! Compaction: writes sealed segments anew, merged, and without what the floors have passed.
//!
//! One call does one bounded step: [`choose`] takes some adjacent segments, [`thin`] decides frame by frame what stays,
//! and one new segment takes their place with one MANIFEST. The caller loops and sets the pace.
//!
//! Runs beside apply, reads and seals: it takes the store's `work` lock for its commit only. Readers, snapshots and
//! cursors that hold the old segments finish on them; the files go with the last of them. It follows the floors of the
//! *sealed* head, which the MANIFEST holds, so that a restart never finds less than its floors promise.
//!
//! A frame keeps its position, its revision and its chain hash. Frames with nothing left in them go once both floors
//! have passed them (the last ones and memberships stay); the chain hashes at every 4,096th position and at the ends of
//! all segments stay as points.
//!
//! Nothing is merged over the place where a delta begins that is being received (see [`staging`](super::staging)).
//!
//! The old files go only when the new one is there, so a step takes room before it makes any. It writes no more than the
//! caller allows; a step that would need more, or does, leaves everything as it was.
//!
//! Memory: the table of one segment, a cache of bounded size, and a batch of keys.
//!
//! A crash leaves the old segments or the new one. An index may have forgotten tombstones of a step that did not come to
//! its end; that makes no difference, as tombstones below both floors count as absent.
//!
//! Proven by `store/tests/compaction.rs`: the model with steps of compaction thrown in, members that compact and members
//! that do not, power cuts at every operation, flipped bytes, and readers beside it.

mod choose;
mod thin;

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::install::Files;
use super::state::Body;
use super::{Inner, StoreError};
use crate::history::sealed::Item;
use crate::history::{POINT_EVERY, Point, Sealed, Segment, SegmentInfo, SegmentWriter};
use crate::model::Revision;

use choose::Choice;
pub(super) use choose::Estimates;
use thin::Unjudged;
pub(super) use thin::{Keeper, Thinned};

/// The pace is asked after about so many bytes.
const PACE_BYTES: u64 = 1 << 20;
/// What is written is made durable after about so many bytes, so that the pace sees what the disk takes for it.
const SYNC_BYTES: u64 = 4 << 20;
/// Reading one version of a key on a walk counts as so many bytes.
const WALK_BYTES: u64 = 4 << 10;
/// So many keys are forgotten by the index in one go.
const FORGET_KEYS: usize = 512;

/// What one step of compaction may take, and when it is worth it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactLimits {
    /// A step reads segments of at most so many bytes, or a single larger one. No segment grows beyond it by merging.
    pub step_bytes: u64,
    /// A segment of which so many percent can go is written anew.
    pub garbage_percent: u8,
    /// So many adjacent segments of about one size are merged.
    pub merge_segments: usize,
    /// A step writes at most so many bytes beside what is there. When that is less than `step_bytes`, segments are not
    /// merged for their number's sake: a step must make room.
    pub room_bytes: u64,
}

impl Default for CompactLimits {
    fn default() -> CompactLimits {
        CompactLimits { step_bytes: 256 << 20, garbage_percent: 25, merge_segments: 8, room_bytes: u64::MAX }
    }
}

/// What a step of compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactReport {
    /// How many segments became one; 0 when nothing was worth a step, or when it was ended early.
    pub segments: usize,
    /// How many bytes they had.
    pub read_bytes: u64,
    /// How many bytes the new one has.
    pub written_bytes: u64,
    /// Whether the pace, an install in between, or a lack of room ended the step without effect.
    pub ended_early: bool,
    /// Whether there is a step that waits for room.
    pub lacks_room: bool,
}

/// What came of writing adjacent segments as one.
enum Written {
    Segment(SegmentInfo),
    /// The pace has ended it.
    Ended,
    /// It took more than was expected, and more than there is room for.
    LacksRoom,
}

/// Tells the pace of what was read and written.
struct Pace<'p> {
    tell: &'p dyn Fn(u64) -> ControlFlow<()>,
    untold: u64,
}

impl Pace<'_> {
    fn is_due(&self) -> bool {
        self.untold >= PACE_BYTES
    }

    fn tell(&mut self) -> ControlFlow<()> {
        (self.tell)(mem::take(&mut self.untold))
    }

    /// A walk reads one more version.
    fn walk(&mut self) -> ControlFlow<()> {
        self.untold += WALK_BYTES;
        if self.is_due() { self.tell() } else { ControlFlow::Continue(()) }
    }
}

impl Inner {
    pub(super) fn compact(
        self: &Arc<Self>,
        limits: CompactLimits,
        pace: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<CompactReport, StoreError> {
        let mut estimates = self.compacting.lock();
        self.check_not_failed()?;
        let body = self.body();
        let (sealed, head) = {
            let state = body.state.read();
            (state.sealed.clone(), state.sealed_head.clone())
        };
        let mut keeper = Keeper::new(self, &body, &head);
        let mut pace = Pace { tell: pace, untold: 0 };
        let early = CompactReport { ended_early: true, ..CompactReport::default() };
        // What begins to be received during the step is seen when it is committed.
        let held = self.held_bases.lock().clone();
        let mut walk = || pace.walk();
        let (chosen, free) = match estimates.choose(&sealed, &held, &keeper, &self.tables, &limits, &mut walk) {
            Ok(chosen) => chosen,
            Err(Unjudged::Ended) => return Ok(early),
            Err(Unjudged::Failed(error)) => return Err(error),
        };
        self.counters.garbage_bytes.store(free, Ordering::Relaxed);
        let lacks_room = CompactReport { lacks_room: true, ..CompactReport::default() };
        let chosen = match chosen {
            Choice::Run(chosen) => chosen,
            Choice::LacksRoom => return Ok(lacks_room),
            Choice::Nothing => return Ok(CompactReport::default()),
        };
        let (older, run) = (&sealed.segments()[..chosen.start], &sealed.segments()[chosen.clone()]);
        let mut files = Files { inner: self.clone(), infos: Vec::new() };
        let info = match self.rewrite(&mut keeper, older, run, limits.room_bytes, &mut pace)? {
            Written::Segment(info) => info,
            Written::Ended => return Ok(early),
            Written::LacksRoom => {
                estimates.disappointed(run);
                return Ok(CompactReport { ended_early: true, ..lacks_room });
            }
        };
        files.infos.push(info.clone());
        self.forget(&body, &mut keeper)?;
        self.sync_dir().map_err(|e| self.fail(e))?;
        let segment = Arc::new(Segment::open(&self.disk, &self.dir, &info)?);
        if !self.take_the_place(&body, run, segment, &mut files)? {
            return Ok(early);
        }
        let read_bytes = run.iter().map(|segment| segment.info().bytes).sum();
        self.counters.compactions.fetch_add(1, Ordering::Relaxed);
        self.counters.compact_read_bytes.fetch_add(read_bytes, Ordering::Relaxed);
        self.counters.compact_written_bytes.fetch_add(info.bytes, Ordering::Relaxed);
        self.counters.reclaimed_bytes.fetch_add(read_bytes.saturating_sub(info.bytes), Ordering::Relaxed);
        let segments = run.len();
        Ok(CompactReport { segments, read_bytes, written_bytes: info.bytes, ..CompactReport::default() })
    }

    /// Writes what stays of adjacent segments as one.
    fn rewrite(
        &self,
        keeper: &mut Keeper,
        older: &[Arc<Segment>],
        run: &[Arc<Segment>],
        room_bytes: u64,
        pace: &mut Pace<'_>,
    ) -> Result<Written, StoreError> {
        let swept_to = older.iter().map(|segment| segment.info().thinned_to).min().unwrap_or(Revision::MAX);
        let clock_ms = older.last().map_or(Ok(0), |segment| segment.clock_after(&self.tables))?;
        let id = self.next_segment_id.fetch_add(1, Ordering::Relaxed);
        let start = run[0].info().start();
        let mut writer = SegmentWriter::create(&self.disk, &self.dir, id, start, clock_ms)?;
        let body = keeper.body().clone();
        let mut written = 0;
        for segment in run {
            let mut items = Sealed::of(vec![segment.clone()]).items(0);
            while let Some(item) = items.next_item(&self.tables)? {
                match item {
                    Item::Point(point) => writer.point(point),
                    Item::Frame(frame) => {
                        pace.untold += frame.bytes().len() as u64;
                        let thinned = match keeper.thin(&frame, swept_to, &mut || pace.walk()) {
                            Ok(thinned) => thinned,
                            Err(Unjudged::Ended) => return Ok(Written::Ended),
                            Err(Unjudged::Failed(error)) => return Err(error),
                        };
                        match thinned {
                            Thinned::Same => writer.push(&frame)?,
                            Thinned::Fewer(thinned) => writer.push(&thinned)?,
                            Thinned::Nothing if frame.position().is_multiple_of(POINT_EVERY) => {
                                writer.point(frame.end());
                            }
                            Thinned::Nothing => {}
                        }
                    }
                }
                if keeper.forgotten.len() >= FORGET_KEYS {
                    self.forget(&body, keeper)?;
                }
                pace.untold += writer.bytes() - written;
                written = writer.bytes();
                if written > room_bytes {
                    return Ok(Written::LacksRoom);
                }
                if pace.is_due() {
                    writer.sync_every(SYNC_BYTES).map_err(|error| self.not_written(error))?;
                    if pace.tell().is_break() {
                        return Ok(Written::Ended);
                    }
                }
            }
            writer.point(segment.info().end());
        }
        let mut info = self.finish_segment(writer)?;
        info.thinned_to = keeper.read_floor;
        let gone_before = run.iter().map(|segment| segment.info().tombstones_gone_to).max().unwrap_or(0);
        // Not the keeper's: a tombstone above that one is gone too when its key was created again and sealed meanwhile,
        // over floors that had passed it. What is sealed now knows these floors.
        let delta_floor = body.state.read().sealed_head.delta_floor;
        info.tombstones_gone_to = gone_before.max(delta_floor);
        Ok(Written::Segment(info))
    }

    /// Lets the index forget the keys whose tombstones were taken out.
    fn forget(&self, body: &Body, keeper: &mut Keeper) -> Result<(), StoreError> {
        let mut keys = mem::take(&mut keeper.forgotten);
        keys.sort_unstable();
        let _work = self.work.lock();
        self.check_not_failed()?;
        body.forget_tombstones(&keys, keeper.tombstone_floor).map_err(|e| self.fail(e))
    }

    /// Commits the new segment; false when the old ones are not the content any more.
    fn take_the_place(
        &self,
        body: &Arc<Body>,
        run: &[Arc<Segment>],
        segment: Arc<Segment>,
        files: &mut Files,
    ) -> Result<bool, StoreError> {
        let _work = self.work.lock();
        self.check_not_failed()?;
        if !Arc::ptr_eq(&self.body(), body) {
            return Ok(false);
        }
        let (sealed, head) = {
            let state = body.state.read();
            (state.sealed.clone(), state.sealed_head.clone())
        };
        // A delta that is being received begins in the middle of them.
        let inside = |base: &Point| run[1..].iter().any(|segment| segment.info().start() == *base);
        if self.held_bases.lock().iter().any(inside) {
            return Ok(false);
        }
        let Some(sealed) = sealed.replaced(run, segment) else { return Ok(false) };
        // From here on the file belongs to the MANIFEST, even if its commit fails half-way.
        mem::take(&mut files.infos);
        let staging = self.staging.lock().clone();
        self.commit(sealed.infos(), &head, staging).map_err(|e| self.fail(e))?;
        body.state.write().sealed = Arc::new(sealed);
        for old in run {
            old.remove_when_unused();
        }
        Ok(true)
    }
}
