//! Snapshots: a consistent full copy of the store as a stream of bytes.
//!
//! ```text
//! header   magic LBSN │ u32 format │ u32 length │ u32 crc32c over the twelve bytes before and the content
//!          │ content: the head as JSON
//! frames   all of them from position 0, as they lie in the segments, each with its own checksum and chain hash
//! footer   u32 0 (no frame has this length) │ u64 number of frames │ 16 bytes chain │ u32 crc32c of these 28 bytes
//! ```
//!
//! A reader holds its segments and the frames of the tails as they were; the store goes on meanwhile.

use std::sync::Arc;

use bytes::Bytes;

use super::{Inner, StoreError};
use crate::history::{Head, Point, Sealed};
use crate::model::ChainHash;
use crate::model::codec::Reader;

pub(super) const MAGIC: &[u8; 4] = b"LBSN";
pub(super) const FORMAT: u32 = 1;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const FOOTER_BYTES: usize = 32;
/// A chunk has about so many bytes, or one frame.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads a snapshot, chunk by chunk.
pub struct SnapshotReader {
    inner: Arc<Inner>,
    head: Head,
    /// The sealed frames that were not read yet.
    sealed: crate::history::sealed::SealedScan,
    tail: std::vec::IntoIter<Bytes>,
    len_bytes: u64,
    stage: Stage,
    frames: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Frames,
    Footer,
    Done,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("applied", &self.head.applied).finish_non_exhaustive()
    }
}

impl SnapshotReader {
    pub(super) fn new(inner: &Arc<Inner>) -> SnapshotReader {
        let body = inner.body();
        let (head, sealed, tail): (Head, Arc<Sealed>, Vec<Bytes>) = {
            let state = body.state.read();
            // Sharing the frames of two tails takes some milliseconds at worst.
            let frozen = state.frozen.iter().filter_map(|frozen| frozen.tail.as_deref());
            let tail = frozen.chain([&state.open]).flat_map(|tail| tail.frames().cloned()).collect();
            (state.head.clone(), state.sealed.clone(), tail)
        };
        let tail_bytes: u64 = tail.iter().map(|bytes| bytes.len() as u64).sum();
        let len_bytes = sealed.bytes() + tail_bytes + (HEADER_BYTES + FOOTER_BYTES) as u64;
        let (stage, frames) = (Stage::Header, 0);
        SnapshotReader {
            inner: inner.clone(),
            head,
            sealed: sealed.scan(0),
            tail: tail.into_iter(),
            len_bytes,
            stage,
            frames,
        }
    }

    /// The state that the snapshot holds, besides the keys.
    pub fn meta(&self) -> &Head {
        &self.head
    }

    /// Roughly how many bytes all chunks have.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The next chunk; none after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self.stage {
            Stage::Header => {
                self.stage = Stage::Frames;
                Ok(Some(encode_header(&self.head).into()))
            }
            Stage::Frames => {
                let chunk = self.frames()?;
                if !chunk.is_empty() {
                    return Ok(Some(chunk.into()));
                }
                self.stage = Stage::Footer;
                self.next_chunk()
            }
            Stage::Footer => {
                self.stage = Stage::Done;
                Ok(Some(encode_footer(self.frames, self.head.chain).into()))
            }
            Stage::Done => Ok(None),
        }
    }

    fn frames(&mut self) -> Result<Vec<u8>, StoreError> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let bytes = match self.sealed.next_frame(&self.inner.tables)? {
                Some(frame) => frame.bytes().clone(),
                None => match self.tail.next() {
                    Some(bytes) => bytes,
                    None => break,
                },
            };
            chunk.extend_from_slice(&bytes);
            self.frames += 1;
        }
        Ok(chunk)
    }
}

fn encode_header(head: &Head) -> Vec<u8> {
    let content = serde_json::to_vec(head).expect("plain structures with string keys always become JSON");
    let mut out = Vec::with_capacity(HEADER_BYTES + content.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&out), &content);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&content);
    out
}

fn encode_footer(frames: u64, chain: ChainHash) -> Vec<u8> {
    let mut out = Vec::with_capacity(FOOTER_BYTES);
    out.extend_from_slice(&0u32.to_le_bytes());
    out.extend_from_slice(&frames.to_le_bytes());
    out.extend_from_slice(&chain.0);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// How long the header at the front of `bytes` is; none when its length is not there yet.
pub(super) fn header_len(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    /// A head is small; a length beyond this is damage and must not be waited for.
    const MAX_HEADER_BYTES: usize = 64 << 20;
    if bytes.len() < HEADER_BYTES {
        return Ok(None);
    }
    if !bytes.starts_with(MAGIC) {
        return Err("this is not a snapshot");
    }
    if bytes[4..8] != FORMAT.to_le_bytes() {
        return Err("unknown format version");
    }
    let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    if length > MAX_HEADER_BYTES { Err("the header's length is impossible") } else { Ok(Some(HEADER_BYTES + length)) }
}

/// Reads a whole header.
pub(super) fn decode_header(bytes: &[u8]) -> Result<Head, String> {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[HEADER_BYTES..]);
    if bytes[12..16] != checksum.to_le_bytes() {
        return Err("the header's checksum does not match".into());
    }
    serde_json::from_slice(&bytes[HEADER_BYTES..]).map_err(|e| format!("malformed header: {e}"))
}

/// Checks a whole footer against where the frames ended.
pub(super) fn check_footer(bytes: &Bytes, frames: u64, end: Point) -> Result<(), String> {
    let mut reader = Reader::new(bytes.slice(4..));
    let named = reader.u64("footer").map_err(|e| e.to_string())?;
    if bytes[28..] != crc32c::crc32c(&bytes[..28]).to_le_bytes() {
        return Err("the footer's checksum does not match".into());
    }
    if named != frames || bytes[12..28] != end.chain.0 {
        return Err(format!("it holds {frames} frames up to chain {}, the footer says otherwise", end.chain));
    }
    Ok(())
}
