//! What can go wrong in the store.

use std::io;

use thiserror::Error;

use crate::history::HistoryError;
use crate::index::IndexError;
use crate::model::codec::DecodeError;
use crate::model::{LogId, Revision};

/// Why the store could not do something. Unless it says otherwise, the member must stop.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file is not what it was written as.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Which file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
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
    /// The index failed while it was in use. A restart rebuilds it.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The caller gave an entry that does not follow the last applied one; nothing of the batch was applied.
    #[error("entry {got} does not follow: position {expected} comes next, after {applied:?}")]
    NotNext {
        /// What was applied last.
        applied: Option<LogId>,
        /// The position that comes next.
        expected: u64,
        /// What was given.
        got: LogId,
    },
    /// An entry that this program does not understand; those before it in the batch were applied.
    #[error("entry {log_id} cannot be applied: {source}")]
    Entry {
        /// Which entry.
        log_id: LogId,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The bytes of a snapshot are not what they should be; the store is unchanged.
    #[error("the snapshot is damaged at byte {offset}: {what}")]
    Snapshot {
        /// Where in the stream.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A write to the disk failed before, and what is on the disk is unknown since.
    #[error("the store stopped writing after an error: {0}")]
    Stopped(String),
}

impl StoreError {
    /// Whether a new file could not be written, perhaps because the disk is full. Nobody needs that file yet, so the member
    /// goes on, unless the store has stopped over it.
    pub fn is_not_written(&self) -> bool {
        matches!(self, StoreError::Io { doing: "creating" | "writing", .. })
    }
}

impl From<HistoryError> for StoreError {
    fn from(error: HistoryError) -> StoreError {
        match error {
            HistoryError::Io { doing, file, source } => StoreError::Io { doing, file, source },
            HistoryError::Corrupt { file, offset, what } => StoreError::Corrupt { file, offset, what },
        }
    }
}

/// Why a read gave nothing.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The revision asked for is below the read floor.
    #[error("revision is below the read floor {floor}")]
    Compacted {
        /// The lowest revision that can be read.
        floor: Revision,
    },
    /// The revision asked for is newer than the newest.
    #[error("revision is newer than the newest, {current}")]
    Future {
        /// The newest revision.
        current: Revision,
    },
    /// The revision asked for belongs to a branch of history that was left behind.
    #[error("revision belongs to a branch that was left at revision {fork}; what came after begins at {base}")]
    Diverged {
        /// The last revision that both have.
        fork: Revision,
        /// The first revision behind the fork.
        base: Revision,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<HistoryError> for ReadError {
    fn from(error: HistoryError) -> ReadError {
        ReadError::Store(error.into())
    }
}

impl From<IndexError> for ReadError {
    fn from(error: IndexError) -> ReadError {
        ReadError::Store(error.into())
    }
}

/// An error that may say that the history is damaged.
pub(super) trait AsDamage {
    /// The damage; none when it is another error.
    fn as_damage(&self) -> Option<&StoreError>;
}

impl AsDamage for StoreError {
    fn as_damage(&self) -> Option<&StoreError> {
        matches!(self, StoreError::Corrupt { .. }).then_some(self)
    }
}

impl AsDamage for ReadError {
    fn as_damage(&self) -> Option<&StoreError> {
        match self {
            ReadError::Store(error) => error.as_damage(),
            ReadError::Compacted { .. } | ReadError::Future { .. } | ReadError::Diverged { .. } => None,
        }
    }
}
