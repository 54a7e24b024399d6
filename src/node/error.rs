//! Why a request could not be done: one enum for everything that `node` refuses or loses.
//!
//! The variants keep apart what provably never reached a log from what may have been applied; `http` alone turns them
//! into statuses.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A failed request to a member.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeError {
    /// No leader is known to this member; nothing was proposed.
    #[error("member {name} knows no leader in term {term}")]
    NoLeader {
        /// This member.
        name: String,
        /// Its term.
        term: u64,
    },
    /// This member is stopping; nothing was proposed.
    #[error("the member is stopping")]
    Stopping,
    /// The leader could not be reached, or refused the request unread; nothing was proposed. Of a read: it gave no
    /// answer.
    #[error("the leader at {url} could not be reached: {detail}")]
    LeaderUnreachable {
        /// Its peer address.
        url: String,
        /// What happened.
        detail: String,
    },
    /// No quorum confirmed a read in time.
    #[error("no quorum confirmed the read: {detail}")]
    NoQuorum {
        /// What happened.
        detail: String,
    },
    /// A write was proposed or forwarded and its fate is not known.
    #[error("the write may or may not have been applied: {detail}")]
    Unknown {
        /// What happened.
        detail: String,
    },
    /// Too many writes wait to be proposed; nothing was proposed.
    #[error("too many writes are waiting")]
    QueueFull,
    /// The storage of this member failed; it serves nothing any more.
    #[error("storage failed: {detail}")]
    StorageFailed {
        /// What happened.
        detail: String,
    },
    /// No member has this name.
    #[error("no member is named {name:?}")]
    UnknownMember {
        /// The name asked for.
        name: String,
    },
    /// The member is a mirror, which cannot lead.
    #[error("{name} is not a voter, so it cannot lead")]
    NotAVoter {
        /// The member asked for.
        name: String,
    },
    /// The member lacks entries or does not answer.
    #[error("{name} cannot take over now: {detail}")]
    NotAtTip {
        /// The member asked for.
        name: String,
        /// What it lacks.
        detail: String,
    },
    /// Leadership was not handed over in time; the old leader goes on or another is elected.
    #[error("leadership did not move to {name} in time")]
    TransferTimedOut {
        /// The member asked for.
        name: String,
    },
    /// The asked member belongs to no cluster yet.
    #[error("this member does not belong to a cluster yet")]
    NotJoined,
    /// The request itself is wrong, as the member that decided says.
    #[error("{detail}")]
    Refused {
        /// What is wrong.
        detail: String,
    },
}
