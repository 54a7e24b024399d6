//! [`CopyCheck`]: whether bytes are a full copy of a history, whole and undamaged, without a store to put it in.
//!
//! It makes the checks of an install: checksums, digests, the order and the chain of the frames, and that they lead to the
//! state that the header promises. So what it lets pass can be installed. It keeps one frame in memory, and nothing else.
//! Proven by `tests/copies.rs` here.

use super::StoreError;
use super::install::{follow_point, take_over_records};
use super::parse::{CopyParser, Piece};
use super::system;
use crate::history::segment::follow;
use crate::history::{Head, Point};

/// Checks a full copy, piece by piece.
#[derive(Debug)]
pub struct CopyCheck {
    parser: CopyParser,
    promised: Head,
    /// The state that the frames lead to so far.
    head: Head,
    /// Where the next frame may begin: behind the last frame, or a kept point.
    at: Point,
}

impl Default for CopyCheck {
    fn default() -> Self {
        CopyCheck::new()
    }
}

impl CopyCheck {
    /// Nothing has come yet.
    pub fn new() -> CopyCheck {
        let (promised, head, at) = (Head::default(), Head::default(), Point::default());
        CopyCheck { parser: CopyParser::new(), promised, head, at }
    }

    /// How many bytes have come.
    pub fn bytes(&self) -> u64 {
        self.parser.received_bytes()
    }

    /// The state at the end of the copy as its header says, once that came.
    pub fn meta(&self) -> Option<&Head> {
        self.parser.has_header().then_some(&self.promised)
    }

    /// Takes the bytes that follow, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.parser.push(bytes);
        while let Some(piece) = self.parser.next()? {
            match piece {
                Piece::Header(header) if header.from == Point::default() => self.promised = header.head,
                Piece::Header(_) => return Err(self.parser.damaged("it is a part of a history, not all of one")),
                Piece::Frame(frame) => {
                    follow(&mut self.at, &frame, true).map_err(|what| self.parser.damaged(what))?;
                    let advanced = system::advance(&mut self.head, &frame, true);
                    advanced.map_err(|e| self.parser.damaged(e.to_string()))?;
                }
                Piece::Point(point) => {
                    follow_point(self.at, point).map_err(|what| self.parser.damaged(what))?;
                    self.at = point;
                }
                Piece::Mark => {}
                Piece::Footer(chain) if chain == self.head.chain => {}
                Piece::Footer(_) => {
                    return Err(self.parser.damaged("its footer names another chain hash than its last frame"));
                }
            }
        }
        Ok(())
    }

    /// The state that the copy leads to, if all of it has come.
    pub fn finish(mut self) -> Result<Head, StoreError> {
        if !self.parser.is_done() {
            return Err(self.parser.damaged("it ends too early"));
        }
        take_over_records(&mut self.head, &self.promised);
        if self.head != self.promised {
            return Err(self.parser.damaged("its frames lead to another state than its header promises"));
        }
        Ok(self.head)
    }
}
