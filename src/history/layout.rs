//! The layout of segment files: header, tables and footer as bytes.
//!
//! ```text
//! header (64 bytes)  magic LBSG │ u32 format │ u64 segment id │ u64 first position │ u64 revision before
//!                    │ 16 bytes chain before │ zeros │ u32 crc32c
//! frames             one after the other; positions may be missing (compaction drops frames that hold nothing)
//! points             entries of (u64 next position, u64 revision, 16 bytes chain), then u32 crc32c
//! offset table       entries of (u64 position, u64 revision before, u64 offset), then u32 crc32c
//! footer (96 bytes)  magic LBSF │ u32 entries of the offset table │ u64 segment id │ u64 last position
//!                    │ u64 last revision │ 16 bytes chain after │ u64 end of the frames │ u32 points │ u64 frames
//!                    │ u64 clock after │ 16 bytes BLAKE3 over all frames │ u32 crc32c
//! ```
//!
//! The points are the chain hashes that are kept for ever, whatever compaction drops: at every 4,096th position, and at
//! the ends of the segments that were merged into this one.
//!
//! Format 1 is still read: it has neither points nor what follows the end of the frames in the footer, which has 64
//! bytes there, and all its positions are present.

use bytes::Bytes;

use super::{ChainHash, Point};
use crate::model::Revision;
use crate::model::codec::{DecodeError, Reader};

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const ENTRY_BYTES: usize = 24;
pub(super) const POINT_BYTES: usize = 32;
const HEADER_MAGIC: &[u8; 4] = b"LBSG";
const FOOTER_MAGIC: &[u8; 4] = b"LBSF";
/// A chain hash is kept for ever at every position that is a multiple of this.
pub const POINT_EVERY: u64 = 4096;

/// How the file is laid out; the number in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    One = 1,
    Two = 2,
}

impl Format {
    /// What a header says; none when it is no format that this program knows.
    pub fn of_header(header: &[u8]) -> Option<Format> {
        match header.get(4..8)? {
            [1, 0, 0, 0] => Some(Format::One),
            [2, 0, 0, 0] => Some(Format::Two),
            _ => None,
        }
    }

    pub fn footer_bytes(self) -> usize {
        match self {
            Format::One => 64,
            Format::Two => 96,
        }
    }
}

pub(super) fn encode_header(format: Format, id: u64, start: Point) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(HEADER_MAGIC);
    out.extend_from_slice(&(format as u32).to_le_bytes());
    for field in [id, start.next_position, start.revision] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&start.chain.0);
    finish_fixed(out, HEADER_BYTES)
}

/// What a footer says. The fields from `points` on are 0 in format 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Footer {
    pub entries: u32,
    pub id: u64,
    pub end: Point,
    pub frames_end: u64,
    pub points: u32,
    pub frames: u64,
    pub clock_ms: u64,
    pub digest: [u8; 16],
}

impl Footer {
    pub fn encode(&self, format: Format) -> Vec<u8> {
        let mut out = Vec::with_capacity(format.footer_bytes());
        out.extend_from_slice(FOOTER_MAGIC);
        out.extend_from_slice(&self.entries.to_le_bytes());
        for field in [self.id, self.end.next_position - 1, self.end.revision] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.end.chain.0);
        out.extend_from_slice(&self.frames_end.to_le_bytes());
        if format == Format::Two {
            out.extend_from_slice(&self.points.to_le_bytes());
            out.extend_from_slice(&self.frames.to_le_bytes());
            out.extend_from_slice(&self.clock_ms.to_le_bytes());
            out.extend_from_slice(&self.digest);
        }
        finish_fixed(out, format.footer_bytes())
    }

    /// Reads the fields; the caller checks the rest by encoding them again.
    pub fn decode(bytes: &Bytes, format: Format) -> Result<Footer, DecodeError> {
        const WHAT: &str = "footer";
        let mut reader = Reader::new(bytes.slice(4.min(bytes.len())..));
        let (entries, id) = (reader.u32(WHAT)?, reader.u64(WHAT)?);
        let next_position = reader.u64(WHAT)?.checked_add(1).ok_or(DecodeError { what: WHAT })?;
        let revision = reader.u64(WHAT)?;
        let mut footer = Footer {
            entries,
            id,
            end: Point { next_position, revision, chain: read_chain(&mut reader)? },
            frames_end: reader.u64(WHAT)?,
            ..Footer::default()
        };
        if format == Format::Two {
            (footer.points, footer.frames, footer.clock_ms) = (reader.u32(WHAT)?, reader.u64(WHAT)?, reader.u64(WHAT)?);
            footer.digest.copy_from_slice(&reader.take(16, WHAT)?);
        }
        Ok(footer)
    }
}

fn read_chain(reader: &mut Reader) -> Result<ChainHash, DecodeError> {
    let mut chain = ChainHash::default();
    chain.0.copy_from_slice(&reader.take(16, "chain hash")?);
    Ok(chain)
}

fn finish_fixed(mut out: Vec<u8>, size: usize) -> Vec<u8> {
    out.resize(size - 4, 0);
    finish_checksum(out)
}

fn finish_checksum(mut out: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// One entry of an offset table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableEntry {
    /// No frame of the block has a lower position.
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
    finish_checksum(out)
}

pub(super) fn decode_table(bytes: &Bytes) -> Result<Vec<TableEntry>, DecodeError> {
    let mut reader = checked(bytes, "offset table: checksum does not match")?;
    let mut table = Vec::with_capacity(reader.remaining() / ENTRY_BYTES);
    while reader.remaining() > 0 {
        table.push(TableEntry {
            position: reader.u64("position")?,
            revision_before: reader.u64("revision")?,
            offset: reader.u64("offset")?,
        });
    }
    Ok(table)
}

pub(super) fn encode_points(points: &[Point]) -> Vec<u8> {
    let mut out = Vec::with_capacity(points.len() * POINT_BYTES + 4);
    for point in points {
        put_point(&mut out, point);
    }
    finish_checksum(out)
}

pub(super) fn decode_points(bytes: &Bytes) -> Result<Vec<Point>, DecodeError> {
    let mut reader = checked(bytes, "points: checksum does not match")?;
    let mut points = Vec::with_capacity(reader.remaining() / POINT_BYTES);
    while reader.remaining() > 0 {
        points.push(read_point(&mut reader)?);
    }
    Ok(points)
}

/// Appends a point.
pub fn put_point(out: &mut Vec<u8>, point: &Point) {
    out.extend_from_slice(&point.next_position.to_le_bytes());
    out.extend_from_slice(&point.revision.to_le_bytes());
    out.extend_from_slice(&point.chain.0);
}

/// Reads what [`put_point`] wrote.
pub fn read_point(reader: &mut Reader) -> Result<Point, DecodeError> {
    let (next_position, revision) = (reader.u64("point")?, reader.u64("point")?);
    Ok(Point { next_position, revision, chain: read_chain(reader)? })
}

/// What lies before a checksum that holds.
fn checked(bytes: &Bytes, what: &'static str) -> Result<Reader, DecodeError> {
    let content = bytes.slice(..bytes.len().saturating_sub(4));
    if bytes[content.len()..] != crc32c::crc32c(&content).to_le_bytes() {
        return Err(DecodeError { what });
    }
    Ok(Reader::new(content))
}
