//! Which segments a step of compaction takes.
//!
//! Three reasons, the first that applies:
//!
//! 1. *Garbage.* Of the segments of which at least [`CompactLimits::garbage_percent`] can go, the one with the most, with
//!    its neighbours as far as they have half as large a share and the step stays within its bound.
//! 2. *Size.* The first [`CompactLimits::merge_segments`] or more adjacent segments of the smallest size class that has
//!    so many, so that the number of segments grows with the logarithm of what was written. Each class is eight times
//!    the one before, so a byte is written anew a few times at most.
//! 3. *Tombstones* that only wait for older segments to be thinned: the oldest of these segments, when the tombstones are
//!    worth it, that is when reading everything that has to be thinned costs at most sixteen times what it frees.
//!
//! A step is chosen only when what it is expected to write fits in [`CompactLimits::room_bytes`]; while that is little,
//! only the first and the third reason count.
//!
//! How much of a segment can go is estimated from some of its blocks, chosen evenly, by the rule that compaction itself
//! follows; of a small segment all blocks are looked at. An estimate is made again when a floor has moved over a
//! sixteenth of the segment's revisions, so that a history at rest costs nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::CompactLimits;
use super::thin::{Garbage, Keeper, Unjudged, Walk};
use crate::history::{Point, Sealed, Segment, TableCache};
use crate::model::Revision;

/// How many blocks of a segment are looked at.
const SAMPLE_BLOCKS: usize = 16;
/// The smallest size class, as a part of what a step may take.
const CLASS_DIVISOR: u64 = 4096;
const CLASS_FACTOR: u64 = 8;
/// So many bytes are read and written to free one of a tombstone.
const TOMBSTONE_COST: u64 = 16;
/// An estimate holds until a floor has moved over this part of the segment's revisions.
const ESTIMATE_PART: u64 = 16;

/// Which segments a step takes.
pub(super) enum Choice {
    /// These.
    Run(Range<usize>),
    /// None that there is room for.
    LacksRoom,
    /// None.
    Nothing,
}

/// What is known of the segments, by their ids.
#[derive(Debug, Default)]
pub(in crate::store) struct Estimates {
    known: BTreeMap<u64, Estimate>,
}

#[derive(Debug, Clone, Copy)]
struct Estimate {
    garbage: Garbage,
    read_floor: Revision,
    /// Up to which of the segment's revisions tombstones were below both floors.
    tombstones: Revision,
    /// Up to which of the segment's revisions all older segments were thinned.
    swept_to: Revision,
}

impl Estimates {
    /// The segments of the next step; those before and behind a `held` point stay apart. Also how many bytes can go from all segments.
    pub(super) fn choose(
        &mut self,
        sealed: &Sealed,
        held: &[Point],
        keeper: &Keeper,
        tables: &TableCache,
        limits: &CompactLimits,
        walk: &mut Walk<'_>,
    ) -> Result<(Choice, u64), Unjudged> {
        let segments = sealed.segments();
        let ids: Vec<u64> = segments.iter().map(|segment| segment.info().id).collect();
        self.known.retain(|id, _| ids.contains(id));
        let mut weighed = Vec::with_capacity(segments.len());
        let mut swept_to = Revision::MAX;
        for segment in segments {
            weighed.push(self.estimate(segment, keeper, swept_to, tables, walk)?);
            swept_to = swept_to.min(segment.info().thinned_to);
        }
        let free = weighed.iter().map(|garbage| garbage.free).sum();
        let bytes: Vec<u64> = segments.iter().map(|segment| segment.info().bytes).collect();
        let apart: Vec<bool> = segments.iter().map(|segment| held.contains(&segment.info().start())).collect();
        let chosen = |limits: &CompactLimits| {
            most_garbage(&weighed, &bytes, &apart, limits)
                .or_else(|| smallest(&bytes, &apart, limits))
                .or_else(|| unswept(segments, &weighed, keeper, &bytes, &apart, limits))
        };
        let choice = match chosen(limits) {
            Some(run) => Choice::Run(run),
            None if chosen(&CompactLimits { room_bytes: u64::MAX, ..*limits }).is_some() => Choice::LacksRoom,
            None => Choice::Nothing,
        };
        Ok((choice, free))
    }

    /// Less could go from these segments than was estimated; expects less the next time.
    pub(super) fn disappointed(&mut self, run: &[Arc<Segment>]) {
        for segment in run {
            if let Some(known) = self.known.get_mut(&segment.info().id) {
                known.garbage.free /= 2;
            }
        }
    }

    fn estimate(
        &mut self,
        segment: &Arc<Segment>,
        keeper: &Keeper,
        swept_to: Revision,
        tables: &TableCache,
        walk: &mut Walk<'_>,
    ) -> Result<Garbage, Unjudged> {
        let info = segment.info();
        if info.revision_before > keeper.read_floor {
            return Ok(Garbage::default());
        }
        let part = (info.last_revision - info.revision_before) / ESTIMATE_PART;
        // A read floor far above the segment still frees versions in it, as it passes those that came after them.
        let tombstones = keeper.tombstone_floor.min(info.last_revision);
        let swept = swept_to.min(info.last_revision);
        if let Some(known) = self.known.get(&info.id)
            && keeper.read_floor.saturating_sub(known.read_floor) <= part
            && tombstones.saturating_sub(known.tombstones) <= part
            && known.swept_to >= swept
        {
            return Ok(known.garbage);
        }
        let garbage = sample(segment, keeper, swept_to, tables, walk)?;
        self.known.insert(info.id, Estimate { garbage, read_floor: keeper.read_floor, tombstones, swept_to: swept });
        Ok(garbage)
    }
}

/// Estimates how much of a segment can go.
fn sample(
    segment: &Segment,
    keeper: &Keeper,
    swept_to: Revision,
    tables: &TableCache,
    walk: &mut Walk<'_>,
) -> Result<Garbage, Unjudged> {
    let blocks = segment.blocks();
    let looked_at = blocks.min(SAMPLE_BLOCKS);
    let mut seen = Garbage::default();
    for n in 0..looked_at {
        for frame in segment.block(n * blocks / looked_at, tables)? {
            let garbage = keeper.weigh(&frame, swept_to, walk)?;
            seen.bytes += garbage.bytes;
            seen.free += garbage.free;
            seen.blocked += garbage.blocked;
        }
    }
    let bytes = segment.info().bytes;
    let scaled = |part: u64| (u128::from(part) * u128::from(bytes) / u128::from(seen.bytes.max(1))) as u64;
    Ok(Garbage { bytes, free: scaled(seen.free), blocked: scaled(seen.blocked) })
}

impl Garbage {
    /// What stays.
    fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.free)
    }
}

fn most_garbage(weighed: &[Garbage], bytes: &[u64], apart: &[bool], limits: &CompactLimits) -> Option<Range<usize>> {
    let share = |at: usize| weighed[at].free * 100 / weighed[at].bytes.max(1);
    let percent = u64::from(limits.garbage_percent.max(1));
    let worth = (0..weighed.len()).filter(|at| share(*at) >= percent && weighed[*at].left() <= limits.room_bytes);
    let seed = worth.max_by_key(|at| weighed[*at].free)?;
    let (mut run, mut total, mut left) = (seed..seed + 1, bytes[seed], weighed[seed].left());
    loop {
        let fits = |at: usize, total: u64, left: u64| {
            share(at) * 2 >= percent
                && total + bytes[at] <= limits.step_bytes
                && left + weighed[at].left() <= limits.room_bytes
        };
        if run.end < bytes.len() && !apart[run.end] && fits(run.end, total, left) {
            (total, left) = (total + bytes[run.end], left + weighed[run.end].left());
            run.end += 1;
        } else if run.start > 0 && !apart[run.start] && fits(run.start - 1, total, left) {
            run.start -= 1;
            (total, left) = (total + bytes[run.start], left + weighed[run.start].left());
        } else {
            return Some(run);
        }
    }
}

fn smallest(bytes: &[u64], apart: &[bool], limits: &CompactLimits) -> Option<Range<usize>> {
    if limits.room_bytes < limits.step_bytes {
        return None;
    }
    let wanted = limits.merge_segments.max(2);
    let mut class_bytes = (limits.step_bytes / CLASS_DIVISOR).max(1);
    while class_bytes <= limits.step_bytes {
        let mut run = 0..0;
        let mut total = 0;
        for (at, segment_bytes) in bytes.iter().enumerate() {
            if *segment_bytes > class_bytes {
                if run.len() >= wanted {
                    return Some(run);
                }
                (run, total) = (at + 1..at + 1, 0);
            } else if total + segment_bytes > limits.step_bytes || apart[at] {
                if run.len() >= wanted {
                    return Some(run);
                }
                (run, total) = (at..at + 1, *segment_bytes);
            } else {
                run.end = at + 1;
                total += segment_bytes;
            }
        }
        if run.len() >= wanted {
            return Some(run);
        }
        class_bytes = class_bytes.saturating_mul(CLASS_FACTOR);
    }
    None
}

fn unswept(
    segments: &[Arc<Segment>],
    weighed: &[Garbage],
    keeper: &Keeper,
    bytes: &[u64],
    apart: &[bool],
    limits: &CompactLimits,
) -> Option<Range<usize>> {
    let blocked: u64 = weighed.iter().map(|garbage| garbage.blocked).sum();
    let last = weighed.iter().rposition(|garbage| garbage.blocked > 0)?;
    let needed = segments[last].info().last_revision.min(keeper.tombstone_floor);
    let is_unswept = |at: &usize| segments[*at].info().thinned_to < needed;
    let cost: u64 = (0..last).filter(is_unswept).map(|at| bytes[at]).sum();
    if cost > blocked.saturating_mul(TOMBSTONE_COST) {
        return None;
    }
    let first = (0..last).find(is_unswept)?;
    let (mut end, mut total, mut left) = (first + 1, bytes[first], weighed[first].left());
    if left > limits.room_bytes {
        return None;
    }
    while end < last
        && is_unswept(&end)
        && !apart[end]
        && total + bytes[end] <= limits.step_bytes
        && left + weighed[end].left() <= limits.room_bytes
    {
        (total, left) = (total + bytes[end], left + weighed[end].left());
        end += 1;
    }
    Some(first..end)
}
