//! Segments: immutable files of frames, written once by [`SegmentWriter`](super::SegmentWriter) and read here.
//!
//! ```text
//! header (64 bytes)  magic LBSG │ u32 format │ u64 segment id │ u64 first position │ u64 revision before
//!                    │ 16 bytes chain before │ zeros │ u32 crc32c
//! frames             one after the other
//! offset table       entries of (u64 position, u64 revision before, u64 offset), then u32 crc32c
//! footer (64 bytes)  magic LBSF │ u32 number of entries │ u64 segment id │ u64 last position │ u64 last revision
//!                    │ 16 bytes chain after │ u64 end of the frames │ zeros │ u32 crc32c
//! ```
//!
//! The table is sparse: it has one entry for each block of about 4 KiB, so that the tables of a large history are small.
//! A look-up finds the block, reads it and steps over its frames; every frame that is stepped over is checked.
//!
//! An entry keeps the revision *before* its block: the frame that made revision R is in the last block that began below
//! R. At open, header, footer, table and size are checked; frames are checked whenever they are read.
//!
//! Proven by the tests of the module `store` that flip every byte of a small segment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cache::ByteCache;
use super::frame::{Frame, FrameHead, MIN_FRAME_BYTES};
use super::{ChainHash, HistoryError, Point};
use crate::files::{Disk, DiskFile};
use crate::model::Revision;
use crate::model::codec::{DecodeError, Reader};

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const FOOTER_BYTES: usize = 64;
pub(super) const ENTRY_BYTES: usize = 24;
pub(super) const FORMAT: u32 = 1;
const HEADER_MAGIC: &[u8; 4] = b"LBSG";
const FOOTER_MAGIC: &[u8; 4] = b"LBSF";
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

/// What the names of segment files end with.
pub const SUFFIX: &str = ".seg";

pub(super) fn encode_header(id: u64, start: Point) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(HEADER_MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    for field in [id, start.next_position, start.revision] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&start.chain.0);
    finish_fixed(out, HEADER_BYTES)
}

pub(super) fn encode_footer(id: u64, entries: u32, end: Point, frames_end: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(FOOTER_BYTES);
    out.extend_from_slice(FOOTER_MAGIC);
    out.extend_from_slice(&entries.to_le_bytes());
    for field in [id, end.next_position - 1, end.revision] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&end.chain.0);
    out.extend_from_slice(&frames_end.to_le_bytes());
    finish_fixed(out, FOOTER_BYTES)
}

fn finish_fixed(mut out: Vec<u8>, size: usize) -> Vec<u8> {
    out.resize(size - 4, 0);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// One entry of an offset table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableEntry {
    pub position: u64,
    pub revision_before: Revision,
    pub offset: u64,
}

pub(super) fn encode_table(entries: &[TableEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY_BYTES + 4);
    for entry in entries {
        for field in [entry.position, entry.revision_before, entry.offset] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

fn decode_table(bytes: &Bytes) -> Result<Vec<TableEntry>, DecodeError> {
    let (entries, checksum) = bytes.split_at(bytes.len().saturating_sub(4));
    if checksum != crc32c::crc32c(entries).to_le_bytes() {
        return Err(DecodeError { what: "offset table: checksum does not match" });
    }
    let mut reader = Reader::new(bytes.slice(..entries.len()));
    let mut table = Vec::with_capacity(entries.len() / ENTRY_BYTES);
    while reader.remaining() > 0 {
        table.push(TableEntry {
            position: reader.u64("position")?,
            revision_before: reader.u64("revision")?,
            offset: reader.u64("offset")?,
        });
    }
    Ok(table)
}

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
    frames_end: u64,
    entries: usize,
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
            frames_end: 0,
            entries: 0,
            removed_when_unused: AtomicBool::new(false),
        };
        segment.check_size_and_ends()?;
        segment.read_table()?;
        Ok(segment)
    }

    fn check_size_and_ends(&mut self) -> Result<(), HistoryError> {
        let info = &self.info;
        let bytes = self.file.len().map_err(HistoryError::io("measuring", self.name()))?;
        let smallest = (HEADER_BYTES + MIN_FRAME_BYTES + ENTRY_BYTES + 4 + FOOTER_BYTES) as u64;
        if bytes != info.bytes || bytes < smallest {
            let what = format!("it has {bytes} bytes, the MANIFEST says {}", info.bytes);
            return Err(self.corrupt(bytes.min(info.bytes), what));
        }
        if self.read(0, HEADER_BYTES)? != encode_header(info.id, info.start()) {
            return Err(self.corrupt(0, "its header is not what the MANIFEST says"));
        }
        let footer_at = bytes - FOOTER_BYTES as u64;
        let footer = self.read(footer_at, FOOTER_BYTES)?;
        let malformed = |e: DecodeError| self.corrupt(footer_at, e.to_string());
        let entries = Reader::new(footer.slice(4..)).u32("footer").map_err(malformed)?;
        let frames_end = Reader::new(footer.slice(48..)).u64("footer").map_err(malformed)?;
        if footer != encode_footer(info.id, entries, info.end(), frames_end) {
            return Err(self.corrupt(footer_at, "its footer is not what the MANIFEST says"));
        }
        let table_bytes = u64::from(entries) * ENTRY_BYTES as u64 + 4;
        if entries == 0 || frames_end.checked_add(table_bytes) != Some(footer_at) {
            return Err(self.corrupt(footer_at, "its parts do not add up to its size"));
        }
        (self.frames_end, self.entries) = (frames_end, entries as usize);
        Ok(())
    }

    fn read_table(&self) -> Result<OffsetTable, HistoryError> {
        let bytes = self.read(self.frames_end, self.entries * ENTRY_BYTES + 4)?;
        let table = decode_table(&bytes).map_err(|e| self.corrupt(self.frames_end, e.to_string()))?;
        let start = self.info.start();
        let first =
            TableEntry { position: start.next_position, revision_before: start.revision, offset: HEADER_BYTES as u64 };
        let ordered = table.windows(2).all(|pair| {
            pair[0].position < pair[1].position
                && pair[0].revision_before <= pair[1].revision_before
                && pair[0].offset < pair[1].offset
        });
        if table.first() != Some(&first) || !ordered || table.last().is_some_and(|e| e.offset >= self.frames_end) {
            return Err(self.corrupt(self.frames_end, "the offset table does not fit the segment"));
        }
        Ok(OffsetTable(table))
    }

    fn table(&self, cache: &TableCache) -> Result<Arc<OffsetTable>, HistoryError> {
        if let Some(table) = cache.get(&self.info.id, |_| true) {
            return Ok(table);
        }
        let table = Arc::new(self.read_table()?);
        cache.put(self.info.id, table.clone(), self.entries * ENTRY_BYTES);
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
    pub fn frame_at_revision(&self, revision: Revision, cache: &TableCache) -> Result<Option<Frame>, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.revision_before < revision);
        let Some(block) = block.checked_sub(1) else { return Ok(None) };
        let frame = self.find_in_block(&table, block, |head| head.revision >= revision)?;
        Ok(frame.filter(|frame| frame.head().revision == revision && frame.head().makes_revision))
    }

    /// The frame at a position, which must be one of this segment's.
    pub fn frame_at_position(&self, position: u64, cache: &TableCache) -> Result<Option<Frame>, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.position <= position);
        let Some(block) = block.checked_sub(1) else { return Ok(None) };
        let frame = self.find_in_block(&table, block, |head| head.log_id.index >= position)?;
        Ok(frame.filter(|frame| frame.position() == position))
    }

    fn find_in_block(
        &self,
        table: &OffsetTable,
        block: usize,
        wanted: impl Fn(&FrameHead) -> bool,
    ) -> Result<Option<Frame>, HistoryError> {
        let entry = table.0[block];
        let end = table.0.get(block + 1).map_or(self.frames_end, |next| next.offset);
        let bytes = self.read(entry.offset, (end - entry.offset) as usize)?;
        let (mut at, mut position) = (0, entry.position);
        while at < bytes.len() {
            let (head, len) = self.check(&bytes[at..], entry.offset + at as u64, position)?;
            if wanted(&head) {
                return Ok(Some(Frame::checked(bytes.slice(at..at + len), head)));
            }
            at += len;
            position += 1;
        }
        Ok(None)
    }

    /// Checks the frame at an offset, which must have this position.
    fn check(&self, bytes: &[u8], offset: u64, position: u64) -> Result<(FrameHead, usize), HistoryError> {
        let (head, len) = Frame::check(bytes).map_err(|e| self.corrupt(offset, e.to_string()))?;
        if head.log_id.index != position {
            let what = format!("the frame of position {} lies where {position} should", head.log_id.index);
            return Err(self.corrupt(offset, what));
        }
        Ok((head, len))
    }

    /// Reads the frame at an offset, which must have this position.
    fn parse(&self, bytes: &Bytes, offset: u64, position: u64) -> Result<Frame, HistoryError> {
        let (head, len) = self.check(bytes, offset, position)?;
        Ok(Frame::checked(bytes.slice(..len), head))
    }

    /// All frames from a position on, read sequentially; positions before this segment mean its first frame.
    pub fn scan(self: &Arc<Self>, from: u64, cache: &TableCache) -> Result<SegmentScan, HistoryError> {
        let table = self.table(cache)?;
        let block = table.0.partition_point(|entry| entry.position <= from).saturating_sub(1);
        let entry = table.0[block];
        let mut scan =
            SegmentScan { segment: self.clone(), buffer: Bytes::new(), offset: entry.offset, position: entry.position };
        while scan.position < from {
            if scan.next_frame()?.is_none() {
                break;
            }
        }
        Ok(scan)
    }

    /// Checks every frame and the chain.
    pub fn verify(self: &Arc<Self>, cache: &TableCache) -> Result<(), HistoryError> {
        let mut scan = self.scan(0, cache)?;
        let mut at = self.info.start();
        loop {
            let offset = scan.offset;
            let Some(frame) = scan.next_frame()? else { break };
            follow(&mut at, &frame).map_err(|what| self.corrupt(offset, what))?;
        }
        if at != self.info.end() {
            return Err(self.corrupt(self.frames_end, "the frames do not end where the MANIFEST says"));
        }
        Ok(())
    }
}

/// Steps over a frame that must follow `at`: position, revision and chain.
pub fn follow(at: &mut Point, frame: &Frame) -> Result<(), &'static str> {
    let head = frame.head();
    if frame.position() != at.next_position {
        return Err("the frame has another position than follows");
    }
    let expected = if head.makes_revision { head.revision > at.revision } else { head.revision == at.revision };
    if !expected {
        return Err("the frame has another revision than follows");
    }
    if frame.chain_after(at.chain) != frame.chain() {
        return Err("the chain hash does not follow");
    }
    *at = Point { next_position: at.next_position + 1, revision: head.revision, chain: frame.chain() };
    Ok(())
}

/// Reads a segment's frames one after the other.
#[derive(Debug)]
pub struct SegmentScan {
    segment: Arc<Segment>,
    buffer: Bytes,
    /// The offset of the buffer's first byte.
    offset: u64,
    position: u64,
}

impl SegmentScan {
    /// The next frame, its checksum checked; none at the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, HistoryError> {
        let left = self.segment.frames_end - self.offset;
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
        self.offset += frame.bytes().len() as u64;
        self.position += 1;
        self.buffer = self.buffer.slice(frame.bytes().len()..);
        Ok(Some(frame))
    }
}
