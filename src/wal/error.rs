//! What can go wrong in the wal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::model::{ClusterId, MemberId};

/// Why the wal refused or stopped. Cloned for everyone who was waiting.
#[derive(Debug, Clone, Error)]
pub enum WalError {
    /// The file layer failed. After a failed write or sync the wal has stopped for good.
    #[error("cannot {action} {}", file.display())]
    Io {
        /// What was being done, as a verb: "write", "sync".
        action: &'static str,
        /// The file or directory.
        file: PathBuf,
        /// What the file layer said.
        source: Arc<io::Error>,
    },
    /// Bytes that were once durable are not what was written. Never treated as the end of the log.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What was found or is missing there.
        what: String,
    },
    /// The files were written by another member, or for another cluster.
    #[error(
        "{} belongs to member {found_member:016x} of cluster {found_cluster}, not to member {member:016x} of cluster \
         {cluster}",
        file.display()
    )]
    WrongIdentity {
        /// The file that says so.
        file: PathBuf,
        /// The cluster in the file.
        found_cluster: ClusterId,
        /// The member in the file.
        found_member: MemberId,
        /// The cluster that this member belongs to.
        cluster: ClusterId,
        /// This member.
        member: MemberId,
    },
    /// The files were written by a program that is newer than this one.
    #[error("{} has format version {found}, which this program does not know", file.display())]
    UnknownVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The caller asked for what no Raft log may do: a hole, a truncation of what is committed. The wal has stopped.
    #[error("the log was misused: {0}")]
    Misuse(String),
    /// The entries asked for have been purged.
    #[error("entries below index {first} have been purged")]
    Purged {
        /// The first index that is left.
        first: u64,
    },
    /// The writer's thread panicked, which is an error in this program.
    #[error("the writer of the wal panicked")]
    Panicked,
    /// The wal has been closed.
    #[error("the wal is closed")]
    Closed,
}

impl WalError {
    /// For `map_err` on results of the file layer.
    pub(super) fn io(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> WalError {
        let file = file.to_path_buf();
        move |source| WalError::Io { action, file, source: Arc::new(source) }
    }

    pub(super) fn corrupt(file: &Path, offset: u64, what: impl Into<String>) -> WalError {
        WalError::Corrupt { file: file.to_path_buf(), offset, what: what.into() }
    }
}
