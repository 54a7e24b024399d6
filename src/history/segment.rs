//! Segments: immutable files of frames, written once by [`SegmentWriter`](super::SegmentWriter) and read here. Their
//! layout is described in [`super::layout`].
//!
//! The offset table is sparse: it has one entry for each block of about 4 KiB, so that the tables of a large history are
//! small. A look-up finds the block, reads it and steps over its frames; every frame that is stepped over is checked.
//!
//! An entry keeps the revision *before* its block: the frame that made revision R is in the last block that began below
//! R. At open, header, footer, tables and size are checked; frames are checked whenever they are read.
//!
//! A segment that compaction wrote may lack positions, and may have frames whose chain hash cannot be computed from them
//! any more. The chain is checked wherever a whole frame follows directly on what is known; for the rest the footer has
//! a digest over all frames as they lie there.
//!
//! Proven by the tests of the module `store` that flip every byte of small segments.

#[cfg(test)]
mod tests;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::blocks::Blocks;
use super::cache::ByteCache;
use super::frame::{Frame, FrameHead, MIN_FRAME_BYTES, chain_of};
use super::layout::{self, ENTRY_BYTES, Footer, Format, HEADER_BYTES, POINT_BYTES, TableEntry};
use super::{ChainHash, HistoryError, Point};
use crate::files::{Disk, DiskFile};
use crate::model::Revision;

/// A new block begins when the one before has at least so many bytes.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// How much a sequential scan reads at a time.
const SCAN_BYTES: u64 = 1 << 20;

/// What the MANIFEST says of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentInfo {
    /// Never used twice.
    pub id: u64,
    /// The file's name.
    pub file: String,
    /// The position of the first frame.
    pub first_position: u64,
    /// The position of the last frame.
    pub last_position: u64,
    /// The revision before the first frame.
    pub revision_before: Revision,
    /// The revision after the last frame.
    pub last_revision: Revision,
    /// The chain hash before the first frame.
    pub chain_before: ChainHash,
    /// The chain hash at the last frame.
    pub chain_after: ChainHash,
    /// The file's size.
    pub bytes: u64,
    /// Every version that was superseded at or below this revision is gone from the segment.
    #[serde(default)]
    pub thinned_to: Revision,
    /// Tombstones at or below this position may be gone from the segment.
    #[serde(default)]
    pub tombstones_gone_to: u64,
}

impl SegmentInfo {
    /// The name of the file of a segment.
    pub fn file_name(id: u64) -> String {
        format!("{id:016x}{SUFFIX}")
    }

    /// Where it begins.
    pub fn start(&self) -> Point {
        Point { next_position: self.first_position, revision: self.revision_before, chain: self.chain_before }
    }

    /// Where it ends.
    pub fn end(&self) -> Point {
        Point { next_position: self.last_position + 1, revision: self.last_revision, chain: self.chain_after }
    }
}

/// What is known of a damaged record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its position.
    pub position: u64,
    /// The revision that it made.
    pub revision: Option<Revision>,
    /// The first keys that it changes, as far as they can be read.
    pub keys: Vec<Bytes>,
}

/// So many keys of a damaged record are named.
const DESCRIBED_KEYS: usize = 8;

/// What the names of segment files end with.
pub const SUFFIX: &str = ".seg";

/// The offset tables of the segments used lately, bounded in bytes.
pub type TableCache = ByteCache<u64, Arc<OffsetTable>>;

/// The offset table of one segment.
#[derive(Debug)]
pub struct OffsetTable(Vec<TableEntry>);

/// An open segment. When it was replaced, its file is removed with the last user.
pub struct Segment {
    info: SegmentInfo,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    format: Format,
    footer: Footer,
    /// The chain hashes that are kept for ever, in order.
    points: Vec<Point>,
    removed_when_unused: AtomicBool,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.removed_when_unused.load(Ordering::Relaxed)
            && let Err(error) = self.disk.remove(&self.path)
        {
            // No MANIFEST names the file any more, so the next open removes it.
            tracing::warn!(file = %self.path.display(), %error, "could not remove a segment that was replaced");
        }
    }
}

impl Segment {
    /// Opens a segment and checks everything of it but its frames.
    pub fn open(disk: &Arc<dyn Disk>, dir: &Path, info: &SegmentInfo) -> Result<Segment, HistoryError> {
        let path = dir.join(&info.file);
        let name = path.display().to_string();
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(HistoryError::corrupt(name, 0, "the MANIFEST names this segment, and it is missing"));
            }
            Err(e) => return Err(HistoryError::io("opening", name)(e)),
        };
        let mut segment = Segment {
            info: info.clone(),
            file,
            path,
            disk: disk.clone(),
            format: Format::Two,
            footer: Footer::default(),
            points: Vec::new(),
            removed_when_unused: AtomicBool::new(false),
        };
        segment.check_size_and_ends()?;
        segment.points = segment.read_points()?;
        segment.read_table()?;
        Ok(segment)
    }

    fn check_size_and_ends(&mut self) -> Result<(), HistoryError> {
        let info = &self.info;
        let bytes = self.file.len().map_err(HistoryError::io("measuring", self.name()))?;
        let smallest = (HEADER_BYTES + 4 + Format::One.footer_bytes()) as u64;
        if bytes != info.bytes || bytes < smallest {
            let what = format!("it has {bytes} bytes, the MANIFEST says {}", info.bytes);
            return Err(self.corrupt(bytes.min(info.bytes), what));
        }
        let header = self.read(0, HEADER_BYTES)?;
        let Some(format) = Format::of_header(&header) else {
            return Err(self.corrupt(4, "unknown format version"));
        };
        if header != layout::encode_header(format, info.id, info.start()) {
            return Err(self.corrupt(0, "its header is not what the MANIFEST says"));
        }
        let footer_at = bytes.saturating_sub(format.footer_bytes() as u64);
        let bytes = self.read(footer_at, format.footer_bytes())?;
        let footer = Footer::decode(&bytes, format).map_err(|e| self.corrupt(footer_at, e.to_string()))?;
        if bytes != (Footer { id: info.id, end: info.end(), ..footer }).encode(format) {
            return Err(self.corrupt(footer_at, "its footer is not what the MANIFEST says"));
        }
        let points = match format {
            Format::One => 0,
            Format::Two => u64::from(footer.points) * POINT_BYTES as u64 + 4,
        };
        let tables = points + u64::from(footer.entries) * ENTRY_BYTES as u64 + 4;
        let frames = format == Format::Two || footer.entries > 0;
        let empty = footer.entries == 0 && footer.frames_end != HEADER_BYTES as u64;
        if !frames || empty || footer.frames_end.checked_add(tables) != Some(footer_at) {
            return Err(self.corrupt(footer_at, "its parts do not add up to its size"));
        }
        (self.format, self.footer) = (format, footer);
        Ok(())
    }

    fn read_points(&self) -> Result<Vec<Point>, HistoryError> {
        if self.format == Format::One {
            return Ok(Vec::new());
        }
        let at = self.footer.frames_end;
        let bytes = self.read(at, self.footer.points as usize * POINT_BYTES + 4)?;
        let points = layout::decode_points(&bytes).map_err(|e| self.corrupt(at, e.to_string()))?;
        let (start, end) = (self.info.start(), self.info.end());
        let inside = |p: &Point| p.next_position > start.next_position && p.next_position <= end.next_position;
        let ordered = points.windows(2).all(|pair| pair[0].next_position < pair[1].next_position);
        if !ordered || !points.iter().all(inside) {
            return Err(self.corrupt(at, "the points do not fit the segment"));
        }
        Ok(points)
    }

    fn read_table(&self) -> Result<OffsetTable, HistoryError> {
        let at = match self.format {
            Format::One => self.footer.frames_end,
            Format::Two => self.footer.frames_end + (self.points.len() * POINT_BYTES + 4) as u64,
        };
        let bytes = self.read(at, self.footer.entries as usize * ENTRY_BYTES + 4)?;
        let table = layout::decode_table(&bytes).map_err(|e| self.corrupt(at, e.to_string()))?;
        let start = self.info.start();
        let first = table.first().is_none_or(|first| {
            let exact = (first.position, first.revision_before) == (start.next_position, start.revision);
            let later = first.position >= start.next_position && first.revision_before >= start.revision;
            first.offset == HEADER_BYTES as u64 && (exact || (self.format == Format::Two && later))
        });
        let ordered = table.windows(2).all(|pair| {
            pair[0].position < pair[1].position
                && pair[0].revision_before <= pair[1].revision_before
                && pair[0].offset < pair[1].offset
        });
        if !first || !ordered || table.last().is_some_and(|e| e.offset >= self.footer.frames_end) {
            return Err(self.corrupt(at, "the offset table does not fit the segment"));
        }
        Ok(OffsetTable(table))
    }

    fn table(&self, cache: &TableCache) -> Result<Arc<OffsetTable>, HistoryError> {
        if let Some(table) = cache.get(&self.info.id, |_| true) {
            return Ok(table);
        }
        let table = Arc::new(self.read_table()?);
        cache.put(self.info.id, table.clone(), self.footer.entries as usize * ENTRY_BYTES);
        Ok(table)
    }

    /// What the MANIFEST says of it.
    pub fn info(&self) -> &SegmentInfo {
        &self.info
    }

    /// The file, as errors name it.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Removes the file when the last reader is done with it; for a segment that no MANIFEST names any more.
    pub fn remove_when_unused(&self) {
        self.removed_when_unused.store(true, Ordering::Relaxed);
    }

    /// Damage in this file.
    pub fn corrupt(&self, offset: u64, what: impl Into<String>) -> HistoryError {
        HistoryError::corrupt(self.name(), offset, what)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Bytes, HistoryError> {
        let mut bytes = vec![0; len];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes.into()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.corrupt(offset, "the file ends before what should be here"))
            }
            Err(e) => Err(HistoryError::io("reading", self.name())(e)),
        }
    }

    /// The frame that made a revision, which must be one of this segment's.
    pub fn frame_at_revision(
        &self,
        revision: Revision,
        cache: &TableCache,
        blocks: &mut Blocks,
    ) -> Result<Option<Frame>, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.revision_before < revision);
        let Some(block) = block.checked_sub(1) else { return Ok(None) };
        let frame = self.find_in_block(&table, block, blocks, |head| head.revision >= revision)?;
        Ok(frame.filter(|frame| frame.head().revision == revision && frame.head().makes_revision))
    }

    /// The frame at a position, which must be one of this segment's.
    pub fn frame_at_position(&self, position: u64, cache: &TableCache) -> Result<Option<Frame>, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.position <= position);
        let Some(block) = block.checked_sub(1) else { return Ok(None) };
        let frame = self.find_in_block(&table, block, &mut Blocks::default(), |head| head.log_id.index >= position)?;
        Ok(frame.filter(|frame| frame.position() == position))
    }

    fn read_block(&self, table: &OffsetTable, block: usize) -> Result<Bytes, HistoryError> {
        let offset = table.0[block].offset;
        let end = table.0.get(block + 1).map_or(self.footer.frames_end, |next| next.offset);
        self.read(offset, (end - offset) as usize)
    }

    fn find_in_block(
        &self,
        table: &OffsetTable,
        block: usize,
        blocks: &mut Blocks,
        wanted: impl Fn(&FrameHead) -> bool,
    ) -> Result<Option<Frame>, HistoryError> {
        let entry = table.0[block];
        let bytes = blocks.get(self.info.id, block, || self.read_block(table, block))?;
        let (mut at, mut position, mut before) = (0, entry.position, None);
        while at < bytes.len() {
            let offset = entry.offset + at as u64;
            let (head, len) = self.check(&bytes[at..], offset, position)?;
            if wanted(&head) {
                let frame = Frame::checked(bytes.slice(at..at + len), head);
                if frame.position() == position && !frame.is_thinned() {
                    let before = match before {
                        Some(chain) => Some(chain),
                        None => self.chain_before_block(table, block, blocks)?,
                    };
                    self.check_chain(&frame, before, offset)?;
                }
                return Ok(Some(frame));
            }
            before = Some(chain_of(&bytes[at..at + len]));
            at += len;
            position = head.log_id.index + 1;
        }
        Ok(None)
    }

    /// The chain hash before the first position of a block; none when nothing tells it any more.
    fn chain_before_block(
        &self,
        table: &OffsetTable,
        block: usize,
        blocks: &mut Blocks,
    ) -> Result<Option<ChainHash>, HistoryError> {
        let position = table.0[block].position;
        if position == self.info.first_position {
            return Ok(Some(self.info.chain_before));
        }
        if let Ok(at) = self.points.binary_search_by_key(&position, |point| point.next_position) {
            return Ok(Some(self.points[at].chain));
        }
        let Some(block) = block.checked_sub(1) else { return Ok(None) };
        let entry = table.0[block];
        let bytes = blocks.get(self.info.id, block, || self.read_block(table, block))?;
        let (mut at, mut from) = (0, entry.position);
        loop {
            let (head, len) = self.check(&bytes[at..], entry.offset + at as u64, from)?;
            from = head.log_id.index + 1;
            if at + len >= bytes.len() {
                return Ok((from == position).then(|| chain_of(&bytes[at..at + len])));
            }
            at += len;
        }
    }

    /// Checks a whole frame against the chain hash before it, when that is known. A checksum shows what the disk did to a
    /// frame; the chain also shows a frame that was changed together with its checksum.
    fn check_chain(&self, frame: &Frame, before: Option<ChainHash>, offset: u64) -> Result<(), HistoryError> {
        match before {
            Some(before) if frame.chain_after(before) != frame.chain() => {
                Err(self.corrupt(offset, "the chain hash does not follow"))
            }
            _ => Ok(()),
        }
    }

    /// Checks the frame at an offset, which must have this position, or a later one where positions may be missing.
    fn check(&self, bytes: &[u8], offset: u64, position: u64) -> Result<(FrameHead, usize), HistoryError> {
        let (head, len) = Frame::check(bytes).map_err(|e| self.corrupt(offset, e.to_string()))?;
        let found = head.log_id.index;
        let fits = match self.format {
            Format::One => found == position,
            Format::Two => found >= position && found <= self.info.last_position,
        };
        if !fits {
            let what = format!("the frame of position {found} lies where {position} should");
            return Err(self.corrupt(offset, what));
        }
        Ok((head, len))
    }

    /// Reads the frame at an offset, which must have this position, or a later one where positions may be missing.
    fn parse(&self, bytes: &Bytes, offset: u64, position: u64) -> Result<Frame, HistoryError> {
        let (head, len) = self.check(bytes, offset, position)?;
        Ok(Frame::checked(bytes.slice(..len), head))
    }

    /// The chain hash at one of this segment's positions; none when compaction has dropped it.
    pub fn chain_at(&self, position: u64, cache: &TableCache) -> Result<Option<ChainHash>, HistoryError> {
        if self.info.last_position == position {
            return Ok(Some(self.info.chain_after));
        }
        if let Ok(at) = self.points.binary_search_by_key(&(position + 1), |point| point.next_position) {
            return Ok(Some(self.points[at].chain));
        }
        Ok(self.frame_at_position(position, cache)?.map(|frame| frame.chain()))
    }

    /// The points that are kept for ever, in order; of an old format those that the caller finds by reading.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether its points are all of those that are kept for ever.
    pub fn keeps_points(&self) -> bool {
        self.format != Format::One
    }

    /// How many blocks of frames it has.
    pub fn blocks(&self) -> usize {
        self.footer.entries as usize
    }

    /// The frames of one block, counted from 0.
    pub fn block(&self, block: usize, cache: &TableCache) -> Result<Vec<Frame>, HistoryError> {
        let table = self.table(cache)?;
        let (entry, bytes) = (table.0[block], self.read_block(&table, block)?);
        let (mut frames, mut at, mut position) = (Vec::new(), 0, entry.position);
        while at < bytes.len() {
            let frame = self.parse(&bytes.slice(at..), entry.offset + at as u64, position)?;
            at += frame.bytes().len();
            position = frame.position() + 1;
            frames.push(frame);
        }
        Ok(frames)
    }

    /// The clock after its last frame.
    pub fn clock_after(&self, cache: &TableCache) -> Result<u64, HistoryError> {
        if self.format != Format::One {
            return Ok(self.footer.clock_ms);
        }
        let last = self.block(self.blocks() - 1, cache)?;
        Ok(last.last().map_or(0, |frame| frame.head().clock_ms))
    }

    /// The place behind the last frame at or before a time; its start when there is none.
    pub fn at_time(&self, clock_ms: u64, cache: &TableCache) -> Result<Point, HistoryError> {
        let table = self.table(cache)?;
        let (mut low, mut high) = (0, self.blocks());
        while low < high {
            let middle = low.midpoint(high);
            let first = self.find_in_block(&table, middle, &mut Blocks::default(), |_| true)?;
            if first.is_some_and(|frame| frame.head().clock_ms <= clock_ms) { low = middle + 1 } else { high = middle }
        }
        let Some(block) = low.checked_sub(1) else { return Ok(self.info.start()) };
        let frames = self.block(block, cache)?;
        let last = frames.iter().take_while(|frame| frame.head().clock_ms <= clock_ms).last();
        Ok(last.map_or(self.info.start(), Frame::end))
    }

    /// All frames from a position on, read sequentially; positions before this segment mean its first frame.
    pub fn scan(self: &Arc<Self>, from: u64, cache: &TableCache) -> Result<SegmentScan, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.position <= from).saturating_sub(1);
        let (offset, position) = match table.0.get(block) {
            Some(entry) => (entry.offset, entry.position),
            None => (self.footer.frames_end, self.info.first_position),
        };
        let (buffer, skipped) = (Bytes::new(), None);
        let before = (block == 0).then(|| self.info.start());
        let mut scan = SegmentScan { segment: self.clone(), buffer, offset, position, skipped, before, checks: true };
        while let Some(frame) = scan.next_frame()? {
            if frame.position() >= from {
                scan.skipped = Some(frame);
                break;
            }
        }
        Ok(scan)
    }

    /// The frames from about the one on that follows a revision, read sequentially; the first ones may be older.
    pub fn scan_about(self: &Arc<Self>, revision: Revision, cache: &TableCache) -> Result<SegmentScan, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.revision_before <= revision).saturating_sub(1);
        let (offset, position) = match table.0.get(block) {
            Some(entry) => (entry.offset, entry.position),
            None => (self.footer.frames_end, self.info.first_position),
        };
        let (buffer, skipped, before) = (Bytes::new(), None, None);
        Ok(SegmentScan { segment: self.clone(), buffer, offset, position, skipped, before, checks: true })
    }

    /// What is known of the record at an offset that is damaged: the position it should have, and what can be read of the
    /// rest although its checksum may not hold.
    pub fn describe(&self, offset: u64) -> Option<Described> {
        let table = self.read_table().ok()?;
        let block = table.0.partition_point(|entry| entry.offset <= offset).checked_sub(1)?;
        if offset >= self.footer.frames_end {
            return None;
        }
        let (entry, bytes) = (table.0[block], self.read_block(&table, block).ok()?);
        let (mut at, mut position, mut revision) = (0, entry.position, entry.revision_before);
        while let Some(Ok(len)) = Frame::peek_len(&bytes[at..]) {
            if entry.offset + (at + len) as u64 > offset {
                break;
            }
            let (head, _) = Frame::check(&bytes[at..]).ok()?;
            (position, revision) = (head.log_id.index + 1, head.revision);
            at += len;
        }
        let frame = Frame::parse_damaged(&bytes.slice(at..));
        // What the damaged record says of itself counts only as far as it fits.
        let last = table.0.get(block + 1).map_or(self.info.last_position + 1, |next| next.position);
        let fits = |frame: &Frame| (position..last).contains(&frame.position());
        match frame.filter(fits) {
            Some(frame) => {
                let ops = frame.ops().map_while(Result::ok).map(|op| op.key().1.clone());
                let keys = ops.take(DESCRIBED_KEYS).collect();
                Some(Described { position: frame.position(), revision: Some(frame.head().revision), keys })
            }
            None => Some(Described { position, revision: Some(revision + 1), keys: Vec::new() }),
        }
    }

    /// Lets the operating system forget what it keeps of the file in memory.
    pub fn forget_cached(&self) -> Result<(), HistoryError> {
        self.file.drop_cache().map_err(HistoryError::io("dropping the cache of", self.name()))
    }
}

/// Steps over a frame that must follow `at`: position, revision, and the chain unless the frame is thinned. With `holes`
/// frames may be missing before it.
pub fn follow(at: &mut Point, frame: &Frame, holes: bool) -> Result<(), &'static str> {
    let head = frame.head();
    let next = frame.position() == at.next_position;
    if !next && (!holes || frame.position() < at.next_position) {
        return Err("the frame has another position than follows");
    }
    let expected = if head.makes_revision {
        head.revision > at.revision
    } else if next {
        head.revision == at.revision
    } else {
        head.revision >= at.revision
    };
    if !expected {
        return Err("the frame has another revision than follows");
    }
    if frame.is_thinned() && !holes {
        return Err("the frame is thinned, where none can be");
    }
    if next && !frame.is_thinned() && frame.chain_after(at.chain) != frame.chain() {
        return Err("the chain hash does not follow");
    }
    *at = frame.end();
    Ok(())
}

/// Reads a segment's frames one after the other.
#[derive(Debug)]
pub struct SegmentScan {
    segment: Arc<Segment>,
    buffer: Bytes,
    /// The offset of the buffer's first byte.
    offset: u64,
    /// The lowest position that may come next.
    position: u64,
    /// A frame that was read and not given yet.
    skipped: Option<Frame>,
    /// The place behind the last frame; none before the first one of a scan that begins amid the segment.
    before: Option<Point>,
    /// Whether the chain is checked on the way; the caller does it otherwise.
    checks: bool,
}

impl SegmentScan {
    /// Where the next frame lies.
    fn offset(&self) -> u64 {
        self.offset - self.skipped.as_ref().map_or(0, |frame| frame.bytes().len() as u64)
    }

    /// The next frame, its checksum checked; none at the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, HistoryError> {
        if let Some(frame) = self.skipped.take() {
            return Ok(Some(frame));
        }
        let left = self.segment.footer.frames_end - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let wanted = match Frame::peek_len(&self.buffer) {
            None => MIN_FRAME_BYTES,
            Some(len) => len.map_err(|e| self.segment.corrupt(self.offset, e.to_string()))?,
        };
        if self.buffer.len() < wanted {
            if wanted as u64 > left {
                return Err(self.segment.corrupt(self.offset, "the frame reaches past the end of the frames"));
            }
            let chunk = left.min(SCAN_BYTES).max(wanted as u64);
            self.buffer = self.segment.read(self.offset, chunk as usize)?;
            return self.next_frame();
        }
        let frame = self.segment.parse(&self.buffer, self.offset, self.position)?;
        if self.checks && !frame.is_thinned() {
            let before = self.before.filter(|before| before.next_position == frame.position());
            self.segment.check_chain(&frame, before.map(|before| before.chain), self.offset)?;
        }
        self.before = Some(frame.end());
        self.offset += frame.bytes().len() as u64;
        self.position = frame.position() + 1;
        self.buffer = self.buffer.slice(frame.bytes().len()..);
        Ok(Some(frame))
    }
}
