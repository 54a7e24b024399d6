//! Scrub: reading the sealed history from the disk, byte by byte, to find what has been damaged before a reader meets it.
//!
//! A scrub goes segment by segment, so that its work can be bounded and the store goes on meanwhile: seals add segments
//! behind it, and a compaction that replaces what it stands in leaves the old files until it has moved on. It trusts no
//! cache: each file is opened anew by its name, the operating system forgets what it kept of it, and the offset table is
//! read again. What a step checks is described at [`Segment::scrub`](crate::history::Segment::scrub); the first step also
//! compares the MANIFEST on the disk with what the store works with.
//!
//! What it cannot find: a thinned frame that was changed together with its own checksum and its segment's digest, since
//! nothing in the member itself says what was there. [`digest`](super::digest) finds that, by another member.
//!
//! Proven by `store/tests/scrub.rs`: every flipped byte, swapped segments, forged records.

use std::ops::ControlFlow;

use super::{Inner, Store, StoreError};
use crate::history::HistoryError;
use crate::history::manifest::{MANIFEST, Manifest};

pub use crate::history::segment::Described;

/// What a step of a scrub did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubStep {
    /// The position from which the next step goes on; none when all is read.
    pub next: Option<u64>,
    /// How many bytes this step has read.
    pub bytes: u64,
    /// How many bytes the segments have that were not read yet.
    pub left: u64,
    /// Whether `pace` has ended the step.
    pub ended_early: bool,
}

impl Store {
    /// Reads the segment that holds `from`, or the first one behind it, and checks everything of it. Tells `pace` now and
    /// then how many bytes it has read since the last time; `pace` may sleep, and may end the step.
    pub fn scrub(&self, from: u64, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<ScrubStep, StoreError> {
        self.inner.noticed(self.inner.scrub(from, pace))
    }

    /// What is known of the record at an offset of a segment's file, for people; none when it is no record.
    pub fn describe(&self, file: &str, offset: u64) -> Option<Described> {
        let body = self.inner.body();
        let sealed = body.state.read().sealed.clone();
        sealed.segments().iter().find(|segment| segment.name() == file)?.describe(offset)
    }

    /// Lets the operating system forget what it keeps of the segments in memory, so that what is read next is read from
    /// the disk.
    pub fn forget_cached(&self) -> Result<(), StoreError> {
        let body = self.inner.body();
        let sealed = body.state.read().sealed.clone();
        Ok(sealed.segments().iter().try_for_each(|segment| segment.forget_cached())?)
    }
}

impl Inner {
    fn scrub(&self, from: u64, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<ScrubStep, StoreError> {
        if from == 0 {
            self.check_manifest()?;
        }
        let sealed = {
            let body = self.body();
            let state = body.state.read();
            state.sealed.clone()
        };
        let segments = sealed.segments();
        let at = segments.partition_point(|segment| segment.info().last_position < from);
        let Some(segment) = segments.get(at) else { return Ok(ScrubStep::default()) };
        let left = segments[at + 1..].iter().map(|segment| segment.info().bytes).sum();
        let (bytes, next) = (segment.info().bytes, segment.info().end().next_position);
        match segment.scrub(pace)? {
            true => Ok(ScrubStep { next: (at + 1 < segments.len()).then_some(next), bytes, left, ended_early: false }),
            false => Ok(ScrubStep { next: Some(from), bytes: 0, left: left + bytes, ended_early: true }),
        }
    }

    /// Compares the MANIFEST on the disk with what the store works with.
    fn check_manifest(&self) -> Result<(), StoreError> {
        let path = self.dir.join(MANIFEST);
        let damaged = |what: &str| HistoryError::corrupt(path.display().to_string(), 0, what);
        // Nobody commits another one meanwhile.
        let _work = self.work.lock();
        self.check_not_failed()?;
        if let Ok(file) = self.disk.open(&path) {
            file.drop_cache().map_err(HistoryError::io("dropping the cache of", path.display().to_string()))?;
        }
        let found = Manifest::load(self.disk.as_ref(), &self.dir)?;
        let found = found.ok_or_else(|| damaged("it is missing"))?;
        let body = self.body();
        let state = body.state.read();
        if found.segments != state.sealed.infos() || found.head != *state.sealed_head {
            return Err(damaged("it names other segments than those that were committed").into());
        }
        Ok(())
    }
}
