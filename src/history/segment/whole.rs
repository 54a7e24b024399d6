//! Checking a segment as a whole: every frame, the chain as far as it can be computed, and the digest over all frames.
//!
//! At open of the newest segment ([`Segment::verify`]) and by a scrub ([`Segment::scrub`]), which trusts nothing that is open
//! already. What it costs of the processor is the chain: one BLAKE3 hash a frame, each of a few hundred bytes, which cannot be
//! taken together. The digest over all frames can, and costs a tenth of that when it is fed in large pieces.
//!
//! Proven by `store/tests/scrub.rs`: every flipped byte, swapped segments, forged records.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{OffsetTable, Segment, SegmentScan, TableCache, follow};
use crate::history::layout::Format;
use crate::history::layout::HEADER_BYTES;
use crate::history::{HistoryError, writer};

/// A digest over frames is fed so much at a time: BLAKE3 takes many kilobytes at once several times faster than frame by
/// frame.
const DIGEST_BYTES: usize = 128 << 10;
/// Who scrubs is told at least as often as this: the pause that it makes then is short.
const TELL_BYTES: u64 = 256 << 10;

impl Segment {
    /// Checks every frame, the chain as far as it can be computed, and the digest over all frames.
    pub fn verify(self: &Arc<Self>, cache: &TableCache) -> Result<(), HistoryError> {
        let table = self.table(cache)?;
        self.verify_frames(&table, &mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// Checks the file anew, as it lies on the disk under its name: that it is the very segment which the MANIFEST names,
    /// its tables, every frame, the chain as far as it can be computed, the points, and the digest over all frames. Tells
    /// `pace` now and then how many bytes it has read since the last time; false when `pace` has ended it.
    pub fn scrub(&self, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<bool, HistoryError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // By its name: what is open already may be another file than the one that a restart would find.
        if let Ok(file) = self.disk.open(&self.path) {
            file.drop_cache().map_err(HistoryError::io("dropping the cache of", self.name()))?;
        }
        let fresh = Arc::new(Segment::open(&self.disk, dir, &self.info)?);
        let table = fresh.read_table()?;
        fresh.verify_frames(&table, pace)
    }

    fn verify_frames(
        self: &Arc<Self>,
        table: &OffsetTable,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<bool, HistoryError> {
        let mut scan = SegmentScan {
            segment: self.clone(),
            buffer: Bytes::new(),
            offset: HEADER_BYTES as u64,
            position: self.info.first_position,
            skipped: None,
            before: None,
            checks: false,
        };
        let mut at = self.info.start();
        let (mut frames, mut digest, mut told) = (0, blake3::Hasher::new(), 0);
        let mut undigested = Vec::with_capacity(DIGEST_BYTES);
        let mut blocks = table.0.iter().peekable();
        loop {
            let offset = scan.offset();
            let Some(frame) = scan.next_frame()? else { break };
            if let Some(entry) = blocks.next_if(|entry| entry.offset <= offset) {
                let revisions = at.revision..=frame.head().revision;
                let positions = at.next_position..=frame.position();
                if entry.offset != offset
                    || !positions.contains(&entry.position)
                    || !revisions.contains(&entry.revision_before)
                {
                    return Err(self.corrupt(offset, "the offset table does not lead to the frame"));
                }
            }
            let known = self.points.binary_search_by_key(&(frame.position() + 1), |point| point.next_position);
            follow(&mut at, &frame, self.format != Format::One).map_err(|what| self.corrupt(offset, what))?;
            if known.is_ok_and(|known| self.points[known] != at) {
                return Err(self.corrupt(offset, "the frame does not agree with the points of the segment"));
            }
            frames += 1;
            undigested.extend_from_slice(frame.bytes());
            if undigested.len() >= DIGEST_BYTES {
                digest.update(&undigested);
                undigested.clear();
            }
            if offset - told >= TELL_BYTES {
                if pace(offset - told).is_break() {
                    return Ok(false);
                }
                told = offset;
            }
        }
        if blocks.next().is_some() {
            return Err(self.corrupt(self.footer.frames_end, "the offset table has more blocks than there are"));
        }
        let (complete, end) = (at.next_position == self.info.end().next_position, self.info.end());
        if (complete || self.format == Format::One) && at != end || at.revision > end.revision {
            return Err(self.corrupt(self.footer.frames_end, "the frames do not end where the MANIFEST says"));
        }
        digest.update(&undigested);
        let written = (self.footer.frames, self.footer.digest);
        if self.format != Format::One && (frames, writer::first_half(&digest)) != written {
            return Err(self.corrupt(self.footer.frames_end, "the frames are not those that were written"));
        }
        Ok(pace(self.info.bytes - told).is_continue())
    }
}
