//! The history: the append-only sequence of frames that is the content of the store.
//!
//! Place in the path of a write: `store` builds a [`Frame`] for every Raft entry it applies and keeps it in a [`Tail`]
//! in memory; a full tail is written as one immutable segment file, and a new MANIFEST then names it.
//!
//! ```text
//!   MANIFEST ─ names ─> 0000000000000001.seg, 0000000000000002.seg, …      (fsynced, immutable)
//!                       [header | frames | points | offset table | footer]
//!   memory:             tail being sealed, open tail                        (rebuilt from the wal)
//! ```
//!
//! Invariants:
//! - The position of a frame is the Raft index of its entry, from 0 on. Every applied entry has exactly one frame,
//!   whether it made a revision or not.
//! - Compaction writes segments anew: it may take operations out of a frame (the frame is *thinned* then) and drop a
//!   frame that holds nothing and lies below both floors. What is left keeps its position, its revision and its chain
//!   hash, and the chain hashes at every 4,096th position are kept for ever.
//! - Revisions never decrease along the positions, and every frame carries the chain hash up to itself.
//! - The MANIFEST is the only commit point. A file that it does not name does not exist and is removed at the next open;
//!   a file that it names must be there and valid, or the store does not open.
//! - Every frame read from a file is checked (crc32c) before any of it is used; the newest segment is checked fully,
//!   chain included, at open.
//!
//! What survives a crash: everything that the MANIFEST names. What does not: the tails, which the wal gives again.
//!
//! What this module does not do: it knows no keys, no reads at a revision and no Raft; `store` does that, and decides what
//! compaction keeps.
//!
//! Proven by the tests in [`frame`], [`manifest`] and [`segment`] (every flipped byte, every truncation), and by the
//! power cuts and the model in `store`.

mod blocks;
pub mod cache;
pub mod frame;
pub mod layout;
pub mod manifest;
pub mod sealed;
pub mod segment;
mod tail;
mod writer;

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::{ChainHash, Revision};

pub use blocks::Blocks;
pub use frame::{Frame, FrameBuilder, FrameHead, FrameOp, FrameOutcome};
pub use layout::POINT_EVERY;
pub use manifest::{Head, Manifest, Staging};
pub use sealed::Sealed;
pub use segment::{Segment, SegmentInfo, TableCache};
pub use tail::Tail;
pub use writer::SegmentWriter;

/// A place between two frames: what comes next, and what was so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The position of the frame that follows.
    pub next_position: u64,
    /// The store's revision here.
    pub revision: Revision,
    /// The chain hash here.
    pub chain: ChainHash,
}

/// What can go wrong with the files of the history.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The disk refused.
    #[error("{doing} {file}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        file: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is not what it was written as. Never treated as missing: the member stops.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Which file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

impl HistoryError {
    /// An error of the disk, with what was being done to which file.
    pub fn io(doing: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> HistoryError {
        let file = file.into();
        move |source| HistoryError::Io { doing, file, source }
    }

    /// Damage at a place in a file.
    pub fn corrupt(file: impl Into<String>, offset: u64, what: impl Into<String>) -> HistoryError {
        HistoryError::Corrupt { file: file.into(), offset, what: what.into() }
    }
}
