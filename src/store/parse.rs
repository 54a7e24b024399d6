//! Reading a copy: from bytes, cut anywhere, to its pieces, each of them checked.
//!
//! Checked here is what can be seen without a store: every checksum, and by the digests that nothing was left out up to a
//! mark and up to the end. Whether the frames follow each other is for those who know where they begin. Used by
//! [`Installer`](super::Installer) and [`CopyCheck`](super::CopyCheck), and proven by their tests.

use bytes::{Bytes, BytesMut};

use super::StoreError;
use super::stream::{Header, Special, digest};
use crate::history::{Frame, Point};
use crate::model::ChainHash;

/// A piece of a copy.
pub(super) enum Piece {
    Header(Box<Header>),
    Frame(Frame),
    Point(Point),
    /// All came that was sent so far.
    Mark,
    /// All came; the chain hash at the last frame.
    Footer(ChainHash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Items,
    Done,
    Failed,
}

/// Takes a copy apart.
pub(super) struct CopyParser {
    received: BytesMut,
    /// How many bytes were taken out of `received`.
    offset: u64,
    hasher: blake3::Hasher,
    stage: Stage,
    frames: u64,
}

impl std::fmt::Debug for CopyParser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyParser").field("offset", &self.offset).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl CopyParser {
    pub fn new() -> CopyParser {
        let (received, hasher) = (BytesMut::new(), blake3::Hasher::new());
        CopyParser { received, offset: 0, hasher, stage: Stage::Header, frames: 0 }
    }

    /// How many bytes were taken in so far.
    pub fn received_bytes(&self) -> u64 {
        self.offset + self.received.len() as u64
    }

    /// Whether the header came.
    pub fn has_header(&self) -> bool {
        matches!(self.stage, Stage::Items | Stage::Done)
    }

    /// Whether all came.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Takes nothing more.
    pub fn fail(&mut self) {
        self.stage = Stage::Failed;
    }

    /// Damage, at the place up to which pieces were taken.
    pub fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Snapshot { offset: self.offset, what: what.into() }
    }

    /// Adds the bytes that follow.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next piece; none when more bytes must come first, or none may come.
    pub fn next(&mut self) -> Result<Option<Piece>, StoreError> {
        match self.stage {
            Stage::Failed => Err(self.damaged("an error came before")),
            Stage::Done if self.received.is_empty() => Ok(None),
            Stage::Done => Err(self.damaged("there are bytes behind its end")),
            Stage::Header => {
                let len = Header::len(&self.received).map_err(|what| self.damaged(what))?;
                let Some(bytes) = len.and_then(|len| self.take(len)) else { return Ok(None) };
                self.hasher.update(&bytes);
                let header = Header::decode(&bytes).map_err(|what| self.damaged(what))?;
                self.stage = Stage::Items;
                Ok(Some(Piece::Header(Box::new(header))))
            }
            Stage::Items => self.item(),
        }
    }

    fn item(&mut self) -> Result<Option<Piece>, StoreError> {
        let Some(first) = self.received.first_chunk::<4>() else { return Ok(None) };
        if let Some(len) = Special::len(*first) {
            let Some(bytes) = self.take(len) else { return Ok(None) };
            let special = Special::decode(&bytes).map_err(|what| self.damaged(what))?;
            let piece = match special {
                Special::Point(point) => Piece::Point(point),
                Special::Mark { frames, digest } => {
                    self.check_digest(frames, digest)?;
                    Piece::Mark
                }
                Special::Footer { frames, chain, digest } => {
                    self.check_digest(frames, digest)?;
                    self.stage = Stage::Done;
                    Piece::Footer(chain)
                }
            };
            self.hasher.update(&bytes);
            return Ok(Some(piece));
        }
        let len = match Frame::peek_len(&self.received) {
            Some(len) => len.map_err(|e| self.damaged(e.to_string()))?,
            None => return Ok(None),
        };
        let Some(bytes) = self.take(len) else { return Ok(None) };
        self.hasher.update(&bytes);
        self.frames += 1;
        Frame::parse(&bytes).map(|frame| Some(Piece::Frame(frame))).map_err(|e| self.damaged(e.to_string()))
    }

    fn take(&mut self, len: usize) -> Option<Bytes> {
        if self.received.len() < len {
            return None;
        }
        self.offset += len as u64;
        Some(self.received.split_to(len).freeze())
    }

    fn check_digest(&self, frames: u64, expected: [u8; 16]) -> Result<(), StoreError> {
        if frames != self.frames || expected != digest(&self.hasher) {
            return Err(self.damaged("what came is not all of what was sent"));
        }
        Ok(())
    }
}
