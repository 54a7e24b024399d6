//! Salvage: the writes that only a member of an abandoned timeline had. The lines of a salvage file, and the replies about
//! such files.
//!
//! A salvage file is NDJSON: one [`SalvageHeader`], then one [`SalvagedWrite`] a line, in the order of their positions.
//! A member writes it before it gives up what only it has; it is never changed afterwards.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kv::{bytes_as_text, text_or_base64};
use crate::model::{ClusterId, Revision, TimelineId};

/// What the header's `format` says.
pub const SALVAGE_FORMAT: &str = "lifeboat-salvage";
/// The version that is written.
pub const SALVAGE_VERSION: u32 = 1;
/// What the names of salvage files end with.
pub const SALVAGE_SUFFIX: &str = ".ndjson";

/// The first line of a salvage file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvageHeader {
    /// `lifeboat-salvage`.
    pub format: String,
    /// 1.
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// The abandoned timeline.
    pub timeline: SalvageTimeline,
    /// The timeline that the cluster is on.
    pub onto: SalvageTimeline,
    /// Where the new timeline forked, as it says itself.
    pub fork: SalvageFork,
    /// Whose writes they are.
    pub member: SalvageMember,
    /// When the file was written, in milliseconds since 1970, by the member's clock.
    pub written_ms: u64,
    /// Where the two histories part.
    pub common: SalvageCommon,
    /// How many lines there are, and of what.
    pub counts: SalvageCounts,
    /// What could not be salvaged, because compaction had taken it.
    pub lost: SalvageLost,
}

/// A timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvageTimeline {
    /// Counts from 1.
    pub number: u64,
    /// The identity.
    pub id: TimelineId,
}

/// Where a timeline forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SalvageFork {
    /// The last position shared with its parent.
    pub position: u64,
    /// The last revision shared with its parent.
    pub revision: Revision,
}

/// A member, under the id that it had then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvageMember {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
}

/// Where two histories part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SalvageCommon {
    /// The last position that is proven to be common; none when nothing is.
    pub position: Option<u64>,
    /// The revision there.
    pub revision: Revision,
    /// From this position on nothing is common.
    pub differs_from: u64,
    /// Whether nothing lies between the two of which it is not known.
    pub exact: bool,
}

/// What a salvage file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SalvageCounts {
    /// Writes that the member had applied.
    pub applied: u64,
    /// Writes of which only the log knew.
    pub unknown: u64,
    /// Of both, those that change nothing but records of the system.
    pub system: u64,
    /// Of both, those that may be in the new timeline too.
    pub unproven: u64,
}

/// What a salvage file cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SalvageLost {
    /// Of so many writes compaction had taken a part.
    pub thinned: u64,
    /// The revisions of the first 100 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thinned_revisions: Vec<Revision>,
    /// So many positions were gone altogether: all that was written there had been overwritten since.
    pub missing: u64,
}

/// What became of a stranded write on the abandoned timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The member had applied it, so that timeline had committed it: its client may have been told that it succeeded.
    Applied,
    /// It was in the member's log. It may have been committed or not.
    Unknown,
}

/// One stranded write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvagedWrite {
    /// Its position: the index of its log entry.
    pub position: u64,
    /// The term of its log entry.
    pub term: u64,
    /// The leader that proposed it.
    pub leader: String,
    /// What became of it.
    pub fate: Fate,
    /// Whether it is proven not to be in the new timeline.
    pub proven: bool,
    /// The revision that it made; none when it is not known to have made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// The leader's time, in milliseconds since 1970.
    pub time_ms: u64,
    /// What was asked for.
    pub kind: SalvagedKind,
    /// The request's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Compaction had taken a part of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub thinned: bool,
    /// It was to be done only under conditions, which were not evaluated: what it would have done is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub conditional: bool,
    /// What it did; of an unknown fate: what it would have done.
    pub ops: Vec<SalvagedOp>,
    /// What it would have done if its conditions had not held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<SalvagedOp>,
}

impl SalvagedWrite {
    /// Whether it changes a client's key.
    pub fn is_clients(&self) -> bool {
        self.ops.iter().chain(&self.otherwise).any(|op| op.record.is_none())
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SalvagedKind {
    /// Changes of keys.
    Write,
    /// A transaction with branches.
    Txn,
    /// The grant of a lease.
    Grant,
    /// The end of a lease.
    Revoke,
    /// The next numbers of a sequence.
    Sequence,
    /// Something that the cluster does for itself.
    System,
    /// This program cannot read it.
    Unreadable,
}

/// What is done to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SalvagedAction {
    /// It is written.
    Put,
    /// It is deleted.
    Delete,
    /// All keys from `key` on, up to and without `end`, are deleted.
    DeleteRange,
}

/// One change of a stranded write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvagedOp {
    /// What is done.
    pub op: SalvagedAction,
    /// Of which kind the record of the system is; none for a client's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// The key, as text; of a record its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The end of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// The end when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_base64: Option<String>,
    /// The value of a put, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// The lease that the key hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// How many times the key was written since its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The revision of the key's version before; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Revision>,
}

/// Bytes as one of two fields.
fn fields(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match bytes_as_text(bytes) {
        Ok(text) => (Some(text), None),
        Err(base64) => (None, Some(base64)),
    }
}

impl SalvagedOp {
    /// Does something to a key.
    pub fn new(op: SalvagedAction, key: &[u8]) -> SalvagedOp {
        let (key, key_base64) = fields(key);
        let (record, end, end_base64, value, value_base64) = (None, None, None, None, None);
        let (lease, version, previous) = (None, None, None);
        SalvagedOp { op, record, key, key_base64, end, end_base64, value, value_base64, lease, version, previous }
    }

    /// The same with a value.
    pub fn with_value(mut self, value: &[u8]) -> SalvagedOp {
        (self.value, self.value_base64) = fields(value);
        self
    }

    /// The same with an end.
    pub fn with_end(mut self, end: &[u8]) -> SalvagedOp {
        (self.end, self.end_base64) = fields(end);
        self
    }

    /// The key.
    pub fn key(&self) -> Result<Bytes, String> {
        let key = text_or_base64("key", self.key.clone(), self.key_base64.clone())?;
        key.ok_or_else(|| "key: neither key nor key_base64 is given".into())
    }

    /// The value of a put.
    pub fn value(&self) -> Result<Bytes, String> {
        let value = text_or_base64("value", self.value.clone(), self.value_base64.clone())?;
        value.ok_or_else(|| "value: neither value nor value_base64 is given".into())
    }
}

/// The reply to `GET /v1/dr/salvage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvageReply {
    /// The name of the member that was asked.
    pub member: String,
    /// Its salvage files, by name.
    pub files: Vec<SalvageFile>,
}

/// A salvage file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SalvageFile {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Its first line; none when it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<SalvageHeader>,
    /// Why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Asks which requests were executed: `POST /v1/dr/salvage/known`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KnownRequest {
    /// Their idempotency keys, 10,000 at most.
    pub idempotency_keys: Vec<String>,
}

/// Which of them were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KnownReply {
    /// Those whose outcome is remembered, in the order in which they were asked.
    pub known: Vec<String>,
}
