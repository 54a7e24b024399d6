//! What a client transaction asks of the store ([`Command`]), and what became of it ([`Outcome`]).
//!
//! A command is encoded once, at the proposal; the bytes are what the wal keeps and what peers send. The first two
//! bytes are the format's version and the kind of command. A kind that this program does not know stops the member
//! that meets it: a known kind applies identically for ever.

use bytes::{Bytes, BytesMut};

use super::codec::{DecodeError, Reader, put_bytes, put_varint, read_list};
use super::request::RequestCommand;
use super::sequence::{SequenceNumbers, SequenceRefusal};
use super::txn::TxnOutcome;
use super::{BeginTimeline, ClusterId, KeySpace, Revision, TimelineId};

const VERSION: u8 = 1;
const KIND_WRITE: u8 = 1;
const KIND_FOUND: u8 = 2;
const KIND_REQUEST: u8 = 3;
const KIND_TIMELINE: u8 = 4;

/// The feature level that [`Command::Begin`] needs.
const TIMELINES: u64 = 3;

/// What one log entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A client's transaction: if all guards hold, do all operations at one revision; else do nothing.
    Write(WriteCommand),
    /// Everything that came with feature level 1 and later: transactions, leases, requests that are remembered, sequences.
    Request(RequestCommand),
    /// The first command of a cluster: it names the cluster and its first timeline.
    Found {
        /// The leader's time in milliseconds since 1970.
        time_ms: u64,
        /// The cluster's identity.
        cluster: ClusterId,
        /// The identity of timeline 1.
        timeline: TimelineId,
    },
    /// Another timeline begins here.
    Begin(BeginTimeline),
}

/// A client's transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteCommand {
    /// The leader's time in milliseconds since 1970, set when it proposes.
    pub time_ms: u64,
    /// All must hold, in order, or nothing is done.
    pub guards: Vec<Guard>,
    /// Done in order, at one revision.
    pub ops: Vec<WriteOp>,
}

/// A condition on one user key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key, in [`KeySpace::User`].
    pub key: Bytes,
    /// What must be true of it.
    pub condition: Condition,
}

/// What must be true of a key before a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent,
    /// The key exists.
    Exists,
    /// The key exists and was last written at one of these revisions.
    ModRevisionIn(Vec<Revision>),
    /// The key does not exist, or was last written at none of these revisions.
    ModRevisionNotIn(Vec<Revision>),
}

impl Condition {
    /// Whether the condition holds for a key last written at `mod_revision` (none when it does not exist).
    pub fn holds(&self, mod_revision: Option<Revision>) -> bool {
        match (self, mod_revision) {
            (Condition::Absent, current) => current.is_none(),
            (Condition::Exists, current) => current.is_some(),
            (Condition::ModRevisionIn(list), Some(current)) => list.contains(&current),
            (Condition::ModRevisionIn(_), None) => false,
            (Condition::ModRevisionNotIn(list), Some(current)) => !list.contains(&current),
            (Condition::ModRevisionNotIn(_), None) => true,
        }
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOp {
    /// Writes a value.
    Put {
        /// Which key space.
        space: KeySpace,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// The lease the key hangs on; 0 for none.
        lease: u64,
    },
    /// Deletes a key, if it exists.
    Delete {
        /// Which key space.
        space: KeySpace,
        /// The key.
        key: Bytes,
    },
    /// Deletes every key from `start` on, up to and without `end`.
    DeleteRange {
        /// Which key space.
        space: KeySpace,
        /// The first key.
        start: Bytes,
        /// The first key that is not deleted any more; none for the end of the key space.
        end: Option<Bytes>,
    },
}

/// What became of one applied entry. A refusal is an outcome like any other: every member computes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The entry changed no keys by its nature (blank, membership, founding of the cluster).
    None,
    /// All guards held and the operations were done. `revision` is that of the store afterwards; it is a new one
    /// unless there was nothing to delete.
    Written {
        /// The store's revision after the transaction.
        revision: Revision,
        /// One result an operation.
        results: Vec<OpResult>,
    },
    /// A guard did not hold; nothing was done.
    Refused {
        /// The store's revision, unchanged.
        revision: Revision,
        /// Which guard, counted from 0.
        guard: usize,
        /// The guarded key as it is; none when it does not exist.
        current: Option<KeyMeta>,
    },
    /// A transaction with branches was executed.
    Txn {
        /// The store's revision afterwards; a new one if it wrote anything.
        revision: Revision,
        /// What its operations did.
        outcome: TxnOutcome,
    },
    /// A write or a transaction named a lease that does not exist; nothing was done.
    NoLease {
        /// The store's revision.
        revision: Revision,
        /// The lease.
        lease: u64,
    },
    /// A lease with this id exists already; nothing was done.
    LeaseExists {
        /// The store's revision.
        revision: Revision,
        /// The lease.
        lease: u64,
    },
    /// A transaction would have written this key twice; nothing was done.
    WrittenTwice {
        /// The store's revision.
        revision: Revision,
        /// The key.
        key: Bytes,
    },
    /// The idempotency key was used for another request; nothing was done.
    OtherRequest {
        /// The store's revision.
        revision: Revision,
    },
    /// The request was executed before: this came of it then.
    Replayed(Box<Outcome>),
    /// The transaction would delete more keys, or read more values, than one entry may; nothing was done.
    TooLarge {
        /// The store's revision, unchanged.
        revision: Revision,
    },
    /// A sequence gave out numbers.
    Sequence {
        /// The store's revision afterwards.
        revision: Revision,
        /// Which.
        numbers: SequenceNumbers,
    },
    /// A sequence gave out nothing.
    SequenceRefused {
        /// The store's revision, unchanged.
        revision: Revision,
        /// Why.
        why: SequenceRefusal,
    },
}

/// What one operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// A value was written.
    Put {
        /// The key as it is now.
        meta: KeyMeta,
        /// The revision of the value it replaced; none when the key did not exist.
        previous: Option<Revision>,
    },
    /// So many keys were deleted.
    Deleted {
        /// How many.
        count: u64,
        /// The revision of the deleted value, when a single key was asked for and existed.
        previous: Option<Revision>,
    },
}

/// What is known of a key besides its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyMeta {
    /// The revision at which it was created (again).
    pub create_revision: Revision,
    /// The revision of its newest value.
    pub mod_revision: Revision,
    /// How many times it was written since its creation, from 1.
    pub version: u64,
    /// The lease it hangs on; 0 for none.
    pub lease: u64,
}

impl From<WriteCommand> for Command {
    fn from(write: WriteCommand) -> Command {
        Command::Write(write)
    }
}

impl From<RequestCommand> for Command {
    fn from(request: RequestCommand) -> Command {
        Command::Request(request)
    }
}

impl Command {
    /// The bytes that the wal keeps.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        out.push(VERSION);
        match self {
            Command::Write(write) => {
                out.push(KIND_WRITE);
                out.extend_from_slice(&write.time_ms.to_le_bytes());
                write.encode(&mut out);
            }
            Command::Request(request) => {
                out.push(KIND_REQUEST);
                out.extend_from_slice(&request.time_ms.to_le_bytes());
                request.encode(&mut out);
            }
            Command::Found { time_ms, cluster, timeline } => {
                out.push(KIND_FOUND);
                out.extend_from_slice(&time_ms.to_le_bytes());
                out.extend_from_slice(&cluster.0);
                out.extend_from_slice(&timeline.0);
            }
            Command::Begin(begin) => {
                out.push(KIND_TIMELINE);
                out.extend_from_slice(&begin.time_ms.to_le_bytes());
                begin.encode(&mut out);
            }
        }
        out.into()
    }

    /// Reads back what [`Command::encode`] wrote; keys and values share memory with `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Command, DecodeError> {
        let mut reader = Reader::new(bytes.clone());
        if reader.u8("command version")? != VERSION {
            return Err(DecodeError { what: "command: unknown version" });
        }
        let command = match reader.u8("command kind")? {
            KIND_WRITE => {
                let time_ms = reader.u64("time")?;
                Command::Write(WriteCommand { time_ms, ..WriteCommand::decode(&mut reader)? })
            }
            KIND_REQUEST => Command::Request(RequestCommand::decode(&mut reader)?),
            KIND_FOUND => Command::Found {
                time_ms: reader.u64("time")?,
                cluster: read_id(&mut reader)?,
                timeline: read_id(&mut reader)?,
            },
            KIND_TIMELINE => Command::Begin(BeginTimeline::decode(&mut reader)?),
            _ => return Err(DecodeError { what: "command: unknown kind" }),
        };
        reader.finish("command: bytes after its end")?;
        Ok(command)
    }
}

/// Whether an encoded command is a request, by its first bytes.
pub(super) fn is_request(head: &[u8]) -> bool {
    head.starts_with(&[VERSION, KIND_REQUEST])
}

/// The feature level that an encoded command needs. What cannot be read needs none; apply says what is wrong with it.
pub fn feature_level_of(command: &[u8]) -> u64 {
    if command.starts_with(&[VERSION, KIND_TIMELINE]) {
        return TIMELINES;
    }
    if !is_request(command) {
        return 0;
    }
    match Command::decode(&Bytes::copy_from_slice(command)) {
        Ok(Command::Request(request)) => request.request.feature_level(),
        Ok(Command::Write(_) | Command::Found { .. } | Command::Begin(_)) | Err(_) => 0,
    }
}

/// Puts the leader's time into an encoded command; all kinds have it at the same place. Copies the bytes only when they
/// are shared.
pub fn set_time(command: Bytes, time_ms: u64) -> Bytes {
    const AT: std::ops::Range<usize> = 2..10;
    let mut bytes = command.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if let Some(place) = bytes.get_mut(AT) {
        place.copy_from_slice(&time_ms.to_le_bytes());
    }
    bytes.freeze()
}

pub(super) fn read_id(reader: &mut Reader) -> Result<super::timeline::RandomId, DecodeError> {
    let mut id = [0; 16];
    id.copy_from_slice(&reader.take(16, "identity")?);
    Ok(super::timeline::RandomId(id))
}

const CONDITION_ABSENT: u8 = 0;
const CONDITION_EXISTS: u8 = 1;
const CONDITION_IN: u8 = 2;
const CONDITION_NOT_IN: u8 = 3;

const OP_PUT: u8 = 0;
const OP_DELETE: u8 = 1;
const OP_DELETE_RANGE: u8 = 2;

impl WriteCommand {
    /// All but the time.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let payload: usize = self.ops.iter().map(WriteOp::size).sum();
        out.reserve(payload + 32 * self.guards.len());
        put_varint(out, self.guards.len() as u64);
        for guard in &self.guards {
            put_bytes(out, &guard.key);
            match &guard.condition {
                Condition::Absent => out.push(CONDITION_ABSENT),
                Condition::Exists => out.push(CONDITION_EXISTS),
                Condition::ModRevisionIn(list) => put_revisions(out, CONDITION_IN, list),
                Condition::ModRevisionNotIn(list) => put_revisions(out, CONDITION_NOT_IN, list),
            }
        }
        put_varint(out, self.ops.len() as u64);
        for op in &self.ops {
            match op {
                WriteOp::Put { space, key, value, lease } => {
                    out.extend_from_slice(&[OP_PUT, *space as u8]);
                    put_bytes(out, key);
                    put_varint(out, *lease);
                    put_bytes(out, value);
                }
                WriteOp::Delete { space, key } => {
                    out.extend_from_slice(&[OP_DELETE, *space as u8]);
                    put_bytes(out, key);
                }
                WriteOp::DeleteRange { space, start, end } => {
                    out.extend_from_slice(&[OP_DELETE_RANGE, *space as u8, u8::from(end.is_some())]);
                    put_bytes(out, start);
                    if let Some(end) = end {
                        put_bytes(out, end);
                    }
                }
            }
        }
    }

    /// All but the time.
    pub(super) fn decode(reader: &mut Reader) -> Result<WriteCommand, DecodeError> {
        let guards = read_list(reader, "guards", |reader| {
            let key = reader.bytes("guard key")?;
            let condition = match reader.u8("condition")? {
                CONDITION_ABSENT => Condition::Absent,
                CONDITION_EXISTS => Condition::Exists,
                CONDITION_IN => Condition::ModRevisionIn(read_list(reader, "revisions", |r| r.varint("revision"))?),
                CONDITION_NOT_IN => {
                    Condition::ModRevisionNotIn(read_list(reader, "revisions", |r| r.varint("revision"))?)
                }
                _ => return Err(DecodeError { what: "condition: unknown kind" }),
            };
            Ok(Guard { key, condition })
        })?;
        let ops = read_list(reader, "operations", |reader| {
            let kind = reader.u8("operation")?;
            let space = KeySpace::from_byte(reader.u8("key space")?).ok_or(DecodeError { what: "key space" })?;
            match kind {
                OP_PUT => {
                    let key = reader.bytes("key")?;
                    let lease = reader.varint("lease")?;
                    let value = reader.bytes("value")?;
                    Ok(WriteOp::Put { space, key, value, lease })
                }
                OP_DELETE => Ok(WriteOp::Delete { space, key: reader.bytes("key")? }),
                OP_DELETE_RANGE => {
                    let bounded = reader.u8("end of a range")?;
                    let start = reader.bytes("start of a range")?;
                    let end = match bounded {
                        0 => None,
                        1 => Some(reader.bytes("end of a range")?),
                        _ => return Err(DecodeError { what: "end of a range" }),
                    };
                    Ok(WriteOp::DeleteRange { space, start, end })
                }
                _ => Err(DecodeError { what: "operation: unknown kind" }),
            }
        })?;
        Ok(WriteCommand { time_ms: 0, guards, ops })
    }
}

impl WriteOp {
    /// Roughly how many bytes the operation takes when encoded.
    fn size(&self) -> usize {
        24 + match self {
            WriteOp::Put { key, value, .. } => key.len() + value.len(),
            WriteOp::Delete { key, .. } => key.len(),
            WriteOp::DeleteRange { start, end, .. } => start.len() + end.as_ref().map_or(0, Bytes::len),
        }
    }
}

fn put_revisions(out: &mut Vec<u8>, kind: u8, list: &[Revision]) {
    out.push(kind);
    put_varint(out, list.len() as u64);
    for revision in list {
        put_varint(out, *revision);
    }
}

const OUTCOME_NONE: u8 = 0;
const OUTCOME_WRITTEN: u8 = 1;
const OUTCOME_REFUSED: u8 = 2;
const OUTCOME_TOO_LARGE: u8 = 3;
const OUTCOME_TXN: u8 = 4;
const OUTCOME_NO_LEASE: u8 = 5;
const OUTCOME_LEASE_EXISTS: u8 = 6;
const OUTCOME_WRITTEN_TWICE: u8 = 7;
const OUTCOME_OTHER_REQUEST: u8 = 8;
const OUTCOME_REPLAYED: u8 = 9;
const OUTCOME_SEQUENCE: u8 = 10;
const OUTCOME_SEQUENCE_REFUSED: u8 = 11;

const RESULT_PUT: u8 = 0;
const RESULT_DELETED: u8 = 1;

impl Outcome {
    /// Appends the form in which an outcome travels from the leader to the member that forwarded the command.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Outcome::None => out.push(OUTCOME_NONE),
            Outcome::Written { revision, results } => {
                out.push(OUTCOME_WRITTEN);
                put_varint(out, *revision);
                put_varint(out, results.len() as u64);
                for result in results {
                    match result {
                        OpResult::Put { meta, previous } => {
                            out.push(RESULT_PUT);
                            meta.encode_into(out);
                            put_varint(out, previous.unwrap_or(0));
                        }
                        OpResult::Deleted { count, previous } => {
                            out.push(RESULT_DELETED);
                            put_varint(out, *count);
                            put_varint(out, previous.unwrap_or(0));
                        }
                    }
                }
            }
            Outcome::Txn { revision, outcome } => {
                out.push(OUTCOME_TXN);
                put_varint(out, *revision);
                outcome.encode(out);
            }
            Outcome::NoLease { revision, lease } => {
                out.push(OUTCOME_NO_LEASE);
                put_varint(out, *revision);
                put_varint(out, *lease);
            }
            Outcome::LeaseExists { revision, lease } => {
                out.push(OUTCOME_LEASE_EXISTS);
                put_varint(out, *revision);
                put_varint(out, *lease);
            }
            Outcome::WrittenTwice { revision, key } => {
                out.push(OUTCOME_WRITTEN_TWICE);
                put_varint(out, *revision);
                put_bytes(out, key);
            }
            Outcome::OtherRequest { revision } => {
                out.push(OUTCOME_OTHER_REQUEST);
                put_varint(out, *revision);
            }
            Outcome::Replayed(first) => {
                out.push(OUTCOME_REPLAYED);
                first.encode_into(out);
            }
            Outcome::TooLarge { revision } => {
                out.push(OUTCOME_TOO_LARGE);
                put_varint(out, *revision);
            }
            Outcome::Sequence { revision, numbers } => {
                out.push(OUTCOME_SEQUENCE);
                put_varint(out, *revision);
                numbers.encode(out);
            }
            Outcome::SequenceRefused { revision, why } => {
                out.push(OUTCOME_SEQUENCE_REFUSED);
                put_varint(out, *revision);
                why.encode(out);
            }
            Outcome::Refused { revision, guard, current } => {
                out.push(OUTCOME_REFUSED);
                put_varint(out, *revision);
                put_varint(out, *guard as u64);
                out.push(u8::from(current.is_some()));
                if let Some(meta) = current {
                    meta.encode_into(out);
                }
            }
        }
    }

    /// The store's revision after it; none for an entry that has no answer.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Outcome::None => None,
            Outcome::Written { revision, .. }
            | Outcome::Refused { revision, .. }
            | Outcome::Txn { revision, .. }
            | Outcome::NoLease { revision, .. }
            | Outcome::LeaseExists { revision, .. }
            | Outcome::WrittenTwice { revision, .. }
            | Outcome::OtherRequest { revision }
            | Outcome::Sequence { revision, .. }
            | Outcome::SequenceRefused { revision, .. }
            | Outcome::TooLarge { revision } => Some(*revision),
            Outcome::Replayed(first) => first.revision(),
        }
    }

    /// Reads what [`Outcome::encode_into`] wrote.
    pub fn decode(reader: &mut Reader) -> Result<Outcome, DecodeError> {
        // Revisions count from 1, so 0 stands for none.
        let previous = |reader: &mut Reader| Ok(Some(reader.varint("previous revision")?).filter(|r| *r != 0));
        match reader.u8("outcome")? {
            OUTCOME_NONE => Ok(Outcome::None),
            OUTCOME_WRITTEN => {
                let revision = reader.varint("revision")?;
                let results = read_list(reader, "results", |reader| match reader.u8("result")? {
                    RESULT_PUT => Ok(OpResult::Put { meta: KeyMeta::decode(reader)?, previous: previous(reader)? }),
                    RESULT_DELETED => {
                        Ok(OpResult::Deleted { count: reader.varint("count")?, previous: previous(reader)? })
                    }
                    _ => Err(DecodeError { what: "result: unknown kind" }),
                })?;
                Ok(Outcome::Written { revision, results })
            }
            OUTCOME_REFUSED => {
                let revision = reader.varint("revision")?;
                let guard = usize::try_from(reader.varint("guard")?).map_err(|_| DecodeError { what: "guard" })?;
                let current = match reader.u8("current")? {
                    0 => None,
                    1 => Some(KeyMeta::decode(reader)?),
                    _ => return Err(DecodeError { what: "current" }),
                };
                Ok(Outcome::Refused { revision, guard, current })
            }
            OUTCOME_TXN => {
                let revision = reader.varint("revision")?;
                Ok(Outcome::Txn { revision, outcome: TxnOutcome::decode(reader, 1)? })
            }
            OUTCOME_NO_LEASE => {
                let revision = reader.varint("revision")?;
                Ok(Outcome::NoLease { revision, lease: reader.varint("lease")? })
            }
            OUTCOME_LEASE_EXISTS => {
                let revision = reader.varint("revision")?;
                Ok(Outcome::LeaseExists { revision, lease: reader.varint("lease")? })
            }
            OUTCOME_WRITTEN_TWICE => {
                let revision = reader.varint("revision")?;
                Ok(Outcome::WrittenTwice { revision, key: reader.bytes("key")? })
            }
            OUTCOME_OTHER_REQUEST => Ok(Outcome::OtherRequest { revision: reader.varint("revision")? }),
            OUTCOME_REPLAYED => match Outcome::decode(reader)? {
                Outcome::Replayed(_) => Err(DecodeError { what: "outcome: replayed twice" }),
                first => Ok(Outcome::Replayed(Box::new(first))),
            },
            OUTCOME_TOO_LARGE => Ok(Outcome::TooLarge { revision: reader.varint("revision")? }),
            OUTCOME_SEQUENCE => {
                let revision = reader.varint("revision")?;
                Ok(Outcome::Sequence { revision, numbers: SequenceNumbers::decode(reader)? })
            }
            OUTCOME_SEQUENCE_REFUSED => {
                let revision = reader.varint("revision")?;
                Ok(Outcome::SequenceRefused { revision, why: SequenceRefusal::decode(reader)? })
            }
            _ => Err(DecodeError { what: "outcome: unknown kind" }),
        }
    }
}

impl KeyMeta {
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        for part in [self.create_revision, self.mod_revision, self.version, self.lease] {
            put_varint(out, part);
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<KeyMeta, DecodeError> {
        Ok(KeyMeta {
            create_revision: reader.varint("create revision")?,
            mod_revision: reader.varint("mod revision")?,
            version: reader.varint("version")?,
            lease: reader.varint("lease")?,
        })
    }
}

#[cfg(test)]
mod tests;
