//! Why a member could not start.

use std::path::PathBuf;

use thiserror::Error;

use super::seed::SeedError;
use crate::model::ClusterId;
use crate::store::StoreError;
use crate::wal::WalError;

/// A member that could not start. Nothing was changed unless the text says so.
#[derive(Debug, Error)]
pub enum StartError {
    /// A file or directory could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// `member.json` cannot be read.
    #[error("{} cannot be used: {detail}", path.display())]
    MemberFile {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The data directory belongs to a member of another name.
    #[error("the data in {} belongs to the member {theirs:?}, not {ours:?}", dir.display())]
    OtherName {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who was started.
        ours: String,
    },
    /// The member was removed from its cluster.
    #[error("member {member_id}, whose data are in {}, was removed from cluster {cluster} and cannot come back under its \
             id. Move its data directory away and let it join as a new member", dir.display())]
    Removed {
        /// The directory.
        dir: PathBuf,
        /// The member's id.
        member_id: String,
        /// The cluster.
        cluster: ClusterId,
    },
    /// Another process uses the data directory.
    #[error("the data directory {} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The wal that this member had is gone.
    #[error("{} held a log and is empty now: this member has lost its vote and its entries, and must not go on. Move \
             its data directory away and let it join anew: it is then a new member of the same name", dir.display())]
    LogLost {
        /// The directory.
        dir: PathBuf,
    },
    /// An empty member was told neither to bootstrap nor whom to join.
    #[error("{} holds no data yet: say --bootstrap for the first member of a new cluster, \
             --bootstrap-expect and --discover for all of them, or --join URL", dir.display())]
    NotTold {
        /// The directory.
        dir: PathBuf,
    },
    /// An empty member was told to bootstrap and to join.
    #[error(
        "{} holds no data yet, and a member without data founds a cluster or joins one: say --bootstrap or --join, not both",
        dir.display()
    )]
    BothTold {
        /// The directory.
        dir: PathBuf,
    },
    /// The cluster refused this member.
    #[error("{url} refused this member: {detail}")]
    JoinRefused {
        /// Who refused.
        url: String,
        /// Why.
        detail: String,
    },
    /// The wal could not be opened.
    #[error("wal: {0}")]
    Wal(#[from] WalError),
    /// The history could not be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The history turned out to be damaged while the member began; it is marked, and the next start repairs it.
    #[error("the history is damaged; the next start repairs it")]
    Damaged,
    /// The seed cannot be read, or is damaged.
    #[error("--seed: {0}. Nothing was taken from it")]
    Seed(#[from] SeedError),
    /// The seed is of another history than the member joined.
    #[error("--seed {}: {detail}. Nothing was taken from it; this member is empty still", path.display())]
    OtherSeed {
        /// The file.
        path: PathBuf,
        /// What it is of.
        detail: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}
