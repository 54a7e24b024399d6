//! [`Tail`]: frames in memory, not yet in a segment.
//!
//! A tail grows at its end and is then frozen, written as a segment and dropped. After a crash it is applied again from
//! the wal.

use bytes::Bytes;

use super::frame::{Frame, chain_of};
use super::{ChainHash, Point};
use crate::model::Revision;

/// Frames in memory.
#[derive(Debug)]
pub struct Tail {
    start: Point,
    frames: Vec<TailFrame>,
    bytes: usize,
}

#[derive(Debug)]
struct TailFrame {
    bytes: Bytes,
    /// The store's revision after the frame.
    revision: Revision,
}

/// What a frame in memory costs besides its bytes, roughly.
const FRAME_OVERHEAD_BYTES: usize = 64;

impl Tail {
    /// An empty tail that begins at `start`.
    pub fn new(start: Point) -> Tail {
        Tail { start, frames: Vec::new(), bytes: 0 }
    }

    /// Where it begins.
    pub fn start(&self) -> Point {
        self.start
    }

    /// Where it ends.
    pub fn end(&self) -> Point {
        match self.frames.last() {
            None => self.start,
            Some(last) => Point {
                next_position: self.start.next_position + self.frames.len() as u64,
                revision: last.revision,
                chain: chain_of(&last.bytes),
            },
        }
    }

    /// Adds the frame that follows.
    pub fn push(&mut self, frame: &Frame) {
        debug_assert_eq!(frame.position(), self.end().next_position);
        self.bytes += frame.bytes().len() + FRAME_OVERHEAD_BYTES;
        self.frames.push(TailFrame { bytes: frame.bytes().clone(), revision: frame.head().revision });
    }

    /// Whether it has no frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The frame at a position.
    pub fn at_position(&self, position: u64) -> Option<&Bytes> {
        let at = usize::try_from(position.checked_sub(self.start.next_position)?).ok()?;
        self.frames.get(at).map(|frame| &frame.bytes)
    }

    /// The frame that made a revision, when it is here.
    pub fn at_revision(&self, revision: Revision) -> Option<&Bytes> {
        if revision <= self.start.revision {
            return None;
        }
        let at = self.frames.partition_point(|frame| frame.revision < revision);
        self.frames.get(at).filter(|frame| frame.revision == revision).map(|frame| &frame.bytes)
    }

    /// The frames that made a revision after `revision`, in order.
    pub fn after_revision(&self, revision: Revision) -> impl Iterator<Item = &Bytes> {
        let at = self.frames.partition_point(|frame| frame.revision <= revision);
        let mut before = revision.max(self.start.revision);
        // A frame without a revision of its own repeats the one before it.
        self.frames[at..].iter().filter_map(move |frame| {
            let made = frame.revision > before;
            before = frame.revision;
            made.then_some(&frame.bytes)
        })
    }

    /// The chain hash at a position.
    pub fn chain_at(&self, position: u64) -> Option<ChainHash> {
        self.at_position(position).map(|bytes| chain_of(bytes))
    }

    /// All frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().map(|frame| &frame.bytes)
    }
}
