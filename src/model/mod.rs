//! The words that every layer shares: log ids, votes, entries, commands, outcomes, timelines.
//!
//! Nothing here does I/O, reads a clock or knows openraft. The binary forms that are defined here (see [`codec`] and
//! [`command`]) lie on disk and travel between members, so they carry version bytes and never change meaning.
//!
//! Position in the path of a request: `http` builds a [`Command`], the proposer encodes it once, `wal` and the peers
//! carry the bytes of an [`Entry`], and `store` decodes it again when it applies it.

mod chain;
pub mod codec;
pub mod command;
mod hex16;
pub mod request;
pub mod sequence;
mod timeline;
pub mod txn;

use std::fmt;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use chain::ChainHash;
pub use command::{Command, Condition, Guard, KeyMeta, OpResult, Outcome, WriteCommand, WriteOp};
pub use request::{IdempotencyKey, LeaseGrant, Request, RequestCommand, idempotency_of};
pub use sequence::{SequenceNumbers, SequenceRefusal};
pub use timeline::{
    BeginTimeline, ClusterId, Kinship, RandomId, Timeline, TimelineId, base_revision, kinship, left_behind,
    new_random_id,
};
pub use txn::{Compare, CompareOp, CompareTarget, KeySet, Txn, TxnItem, TxnOp, TxnOutcome, TxnResult};

/// The identity of a member: drawn at random at its first start, kept in its data directory, never used again by
/// another. Shown to people and in JSON as 16 hexadecimal digits (see [`format_member_id`]).
pub type MemberId = u64;

/// The newest feature level that this program knows. A cluster uses the commands of a level once all its members know
/// it: 0 is what the first release understood (plain writes), 1 brings [`request`]s, 2 sequences, canaries,
/// maintenance, and events of the cluster, 3 timelines and switchovers.
pub const FEATURE_LEVEL: u64 = 3;

/// Counts write transactions that took effect, from 1. Zero means "before the first". Not a Raft index.
pub type Revision = u64;

/// Writes a member id as people see it: 16 hexadecimal digits.
pub fn format_member_id(id: MemberId) -> String {
    format!("{id:016x}")
}

/// Reads a member id written by [`format_member_id`].
pub fn parse_member_id(text: &str) -> Option<MemberId> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The position of an entry in the Raft log. The order is that of Raft: term, then leader, then index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LogId {
    /// Raft's term.
    pub term: u64,
    /// The member that led in this term and proposed the entry.
    pub leader: MemberId,
    /// Raft's index; the first entry of a log has index 0.
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}.{}", self.term, self.leader, self.index)
    }
}

/// What Raft requires a member to remember of its vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// The member voted for.
    pub member: MemberId,
    /// Whether a quorum granted this vote, so that the member led.
    pub committed: bool,
}

/// What a member is meant to be, whoever leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Counts in the quorum and holds data.
    Voter,
    /// A Raft learner: follows asynchronously, never in the quorum.
    Mirror,
}

impl MemberRole {
    /// The word that people, files and JSON use.
    pub fn as_str(self) -> &'static str {
        match self {
            MemberRole::Voter => "voter",
            MemberRole::Mirror => "mirror",
        }
    }
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What kind of payload an entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A new leader's empty entry.
    Blank = 0,
    /// A membership of the cluster, as self-describing JSON that only `raft` reads.
    Membership = 1,
    /// An encoded [`Command`].
    Command = 2,
}

impl EntryKind {
    /// The kind that a byte on disk or on the wire stands for. An unknown kind must stop the member.
    pub fn from_byte(byte: u8) -> Option<EntryKind> {
        match byte {
            0 => Some(EntryKind::Blank),
            1 => Some(EntryKind::Membership),
            2 => Some(EntryKind::Command),
            _ => None,
        }
    }
}

/// One entry of the Raft log, its payload still encoded. Cloning is cheap: the payload is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands in the log.
    pub log_id: LogId,
    /// What the payload is.
    pub kind: EntryKind,
    /// The payload's bytes, exactly as proposed.
    pub payload: Bytes,
}

/// Which of the separate key spaces a key lives in. The id stands outside the key, so no user key can reach another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum KeySpace {
    /// Keys that clients write.
    User = 1,
    /// Records of the cluster itself (identity, timelines, settings).
    System = 2,
}

impl KeySpace {
    /// The space that a byte stands for.
    pub fn from_byte(byte: u8) -> Option<KeySpace> {
        match byte {
            1 => Some(KeySpace::User),
            2 => Some(KeySpace::System),
            _ => None,
        }
    }
}
