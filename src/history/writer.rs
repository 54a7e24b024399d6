//! [`SegmentWriter`]: writes one segment, front to back, in large writes.
//!
//! The file exists for nobody until a MANIFEST names it. The caller syncs the directory and commits the MANIFEST.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::segment::{self, BLOCK_BYTES, HEADER_BYTES, SegmentInfo, TableEntry};
use super::{ChainHash, HistoryError, Point};
use crate::files::{Disk, DiskFile};
use crate::model::Revision;

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
    table: Vec<TableEntry>,
    buffer: Vec<u8>,
    written: u64,
    finished: bool,
}

impl std::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter").field("path", &self.path).field("at", &self.at).finish_non_exhaustive()
    }
}

impl SegmentWriter {
    /// Begins the segment with this id, whose first frame follows `start`.
    pub fn create(disk: &Arc<dyn Disk>, dir: &Path, id: u64, start: Point) -> Result<SegmentWriter, HistoryError> {
        let path = dir.join(SegmentInfo::file_name(id));
        let file = disk.create(&path).map_err(HistoryError::io("creating", path.display().to_string()))?;
        let buffer = segment::encode_header(id, start);
        let disk = disk.clone();
        let (at, table) = (start, Vec::new());
        Ok(SegmentWriter { disk, file, path, id, start, at, table, buffer, written: 0, finished: false })
    }

    /// Adds the bytes of the frame that follows, which the caller has checked.
    pub fn push(&mut self, frame: &[u8], revision: Revision, chain: ChainHash) -> Result<(), HistoryError> {
        let offset = self.bytes();
        let block = self.table.last().map_or(0, |entry| entry.offset);
        if self.table.is_empty() || offset - block >= BLOCK_BYTES || frame.len() as u64 >= BLOCK_BYTES {
            let entry = TableEntry { position: self.at.next_position, revision_before: self.at.revision, offset };
            self.table.push(entry);
        }
        self.buffer.extend_from_slice(frame);
        self.at = Point { next_position: self.at.next_position + 1, revision, chain };
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    /// How many bytes it has, without table and footer.
    pub fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Where it ends so far.
    pub fn end(&self) -> Point {
        self.at
    }

    fn write(&mut self) -> Result<(), HistoryError> {
        let bytes = mem::take(&mut self.buffer);
        let name = || self.path.display().to_string();
        self.file.write_all_at(&bytes, self.written).map_err(|e| HistoryError::io("writing", name())(e))?;
        self.written += bytes.len() as u64;
        self.buffer = bytes;
        self.buffer.clear();
        Ok(())
    }

    /// Writes table and footer, and makes the file's content durable. There must be at least one frame.
    pub fn finish(mut self) -> Result<SegmentInfo, HistoryError> {
        debug_assert!(self.bytes() > HEADER_BYTES as u64, "a segment has frames");
        let frames_end = self.bytes();
        let table = mem::take(&mut self.table);
        self.buffer.extend_from_slice(&segment::encode_table(&table));
        let footer = segment::encode_footer(self.id, table.len() as u32, self.at, frames_end);
        self.buffer.extend_from_slice(&footer);
        self.write()?;
        self.file.sync().map_err(HistoryError::io("syncing", self.path.display().to_string()))?;
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
        })
    }
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
