//! [`SegmentWriter`]: writes one segment, front to back, in large writes.
//!
//! The file exists for nobody until a MANIFEST names it. The caller syncs the directory and commits the MANIFEST.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::{self, Footer, Format, HEADER_BYTES, POINT_EVERY, TableEntry};
use super::segment::{BLOCK_BYTES, SegmentInfo};
use super::{Frame, HistoryError, Point};
use crate::files::{Disk, DiskFile};

/// Bytes are gathered up to here before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// A segment that is being written. Unless it is finished, dropping it removes the file.
pub struct SegmentWriter {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    id: u64,
    start: Point,
    at: Point,
    clock_ms: u64,
    frames: u64,
    /// Of all frames before `hashed`, an offset in `buffer`: large pieces are hashed several times faster than frames.
    digest: blake3::Hasher,
    hashed: usize,
    points: Vec<Point>,
    table: Vec<TableEntry>,
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
    finished: bool,
}

impl std::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter").field("path", &self.path).field("at", &self.at).finish_non_exhaustive()
    }
}

impl SegmentWriter {
    /// Begins the segment with this id, whose first frame follows `start`, where the clock stood at `clock_ms`.
    pub fn create(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        id: u64,
        start: Point,
        clock_ms: u64,
    ) -> Result<SegmentWriter, HistoryError> {
        let path = dir.join(SegmentInfo::file_name(id));
        let file = disk.create(&path).map_err(HistoryError::io("creating", path.display().to_string()))?;
        Ok(SegmentWriter {
            disk: disk.clone(),
            file,
            path,
            id,
            start,
            at: start,
            clock_ms,
            frames: 0,
            digest: blake3::Hasher::new(),
            hashed: HEADER_BYTES,
            points: Vec::new(),
            table: Vec::new(),
            buffer: layout::encode_header(Format::Two, id, start),
            written: 0,
            synced: 0,
            finished: false,
        })
    }

    /// Adds the frame that follows, which the caller has checked. Positions before it that were not added are left out.
    pub fn push(&mut self, frame: &Frame) -> Result<(), HistoryError> {
        debug_assert!(frame.position() >= self.at.next_position);
        let (bytes, head) = (frame.bytes(), frame.head());
        let offset = self.bytes();
        let block = self.table.last().map_or(0, |entry| entry.offset);
        if self.table.is_empty() || offset - block >= BLOCK_BYTES || bytes.len() as u64 >= BLOCK_BYTES {
            let entry = TableEntry { position: self.at.next_position, revision_before: self.at.revision, offset };
            self.table.push(entry);
        }
        self.buffer.extend_from_slice(bytes);
        self.frames += 1;
        self.clock_ms = head.clock_ms;
        self.at = frame.end();
        if frame.position().is_multiple_of(POINT_EVERY) {
            self.keep(self.at);
        }
        if self.buffer.len() >= WRITE_BYTES {
            self.hash();
            self.write()?;
        }
        Ok(())
    }

    /// Goes on to a later point without the frames before it, and keeps its chain hash for ever.
    pub fn point(&mut self, point: Point) {
        debug_assert!(point.next_position >= self.at.next_position);
        self.at = point;
        self.keep(point);
    }

    fn keep(&mut self, point: Point) {
        if self.points.last().is_none_or(|last| last.next_position < point.next_position) {
            self.points.push(point);
        }
    }

    /// How many bytes it has, without tables and footer.
    pub fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Where it ends so far.
    pub fn end(&self) -> Point {
        self.at
    }

    /// Makes durable what is written so far, once that is `at_least` bytes more than before. Syncing a large file only
    /// at its end would hold up everything else that is synced then.
    pub fn sync_every(&mut self, at_least: u64) -> Result<(), HistoryError> {
        if self.written - self.synced >= at_least {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), HistoryError> {
        self.file.sync().map_err(HistoryError::io("syncing", self.path.display().to_string()))?;
        self.synced = self.written;
        Ok(())
    }

    fn hash(&mut self) {
        self.digest.update(&self.buffer[self.hashed..]);
        self.hashed = self.buffer.len();
    }

    fn write(&mut self) -> Result<(), HistoryError> {
        let bytes = mem::take(&mut self.buffer);
        let name = || self.path.display().to_string();
        self.file.write_all_at(&bytes, self.written).map_err(|e| HistoryError::io("writing", name())(e))?;
        self.written += bytes.len() as u64;
        self.buffer = bytes;
        self.buffer.clear();
        self.hashed = 0;
        Ok(())
    }

    /// Writes tables and footer, and makes the file's content durable. It must cover at least one position.
    pub fn finish(mut self) -> Result<SegmentInfo, HistoryError> {
        debug_assert!(self.at.next_position > self.start.next_position, "a segment covers positions");
        debug_assert!(self.bytes() >= HEADER_BYTES as u64);
        self.hash();
        let footer = Footer {
            entries: self.table.len() as u32,
            id: self.id,
            end: self.at,
            frames_end: self.bytes(),
            points: self.points.len() as u32,
            frames: self.frames,
            clock_ms: self.clock_ms,
            digest: first_half(&self.digest),
        };
        self.buffer.extend_from_slice(&layout::encode_points(&self.points));
        self.buffer.extend_from_slice(&layout::encode_table(&self.table));
        self.buffer.extend_from_slice(&footer.encode(Format::Two));
        self.write()?;
        self.sync()?;
        self.finished = true;
        Ok(SegmentInfo {
            id: self.id,
            file: SegmentInfo::file_name(self.id),
            first_position: self.start.next_position,
            last_position: self.at.next_position - 1,
            revision_before: self.start.revision,
            last_revision: self.at.revision,
            chain_before: self.start.chain,
            chain_after: self.at.chain,
            bytes: self.written,
            thinned_to: 0,
            tombstones_gone_to: 0,
        })
    }
}

/// The digest that a footer holds.
pub(super) fn first_half(hasher: &blake3::Hasher) -> [u8; 16] {
    *hasher.finalize().as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.disk.remove(&self.path)
        {
            // The next open removes what no MANIFEST names.
            tracing::warn!(file = %self.path.display(), %error, "could not remove an unfinished segment");
        }
    }
}
