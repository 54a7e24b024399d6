//! Requests that came with feature level 1: writes under a lease, transactions, leases, and any of them remembered
//! under an idempotency key. With level 2 came sequences, canaries, and records that are changed under a condition.
//!
//! A kind, once released, means the same for ever; [`Request::feature_level`] says what the members must know before one
//! is proposed.

use bytes::Bytes;

use super::codec::{DecodeError, Reader, put_bytes, put_varint};
use super::txn::{Txn, read_flag};
use super::{Guard, Revision, WriteCommand, WriteOp};

/// A request, as one log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestCommand {
    /// The leader's time in milliseconds since 1970, set when it proposes.
    pub time_ms: u64,
    /// Under which key its outcome is remembered; none: it is not.
    pub idempotency: Option<IdempotencyKey>,
    /// What is asked for.
    pub request: Request,
}

/// The name of a request that may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key that the client made up.
    pub key: Bytes,
    /// A hash of the request; another request under the same key is refused.
    pub fingerprint: [u8; 16],
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A write with conditions, like [`super::Command::Write`], which may also grant the lease that its keys hang on.
    Write {
        /// The lease to grant.
        grant: Option<LeaseGrant>,
        /// All must hold, in order, or nothing is done.
        guards: Vec<Guard>,
        /// Done in order, at one revision.
        ops: Vec<WriteOp>,
    },
    /// A transaction with branches.
    Txn(Txn),
    /// Grants a lease.
    Grant(LeaseGrant),
    /// Ends a lease: deletes up to `max_keys` of its keys, and the lease when none is left.
    Revoke {
        /// The lease.
        id: u64,
        /// Only when it was granted at this revision; 0 for whenever.
        granted: Revision,
        /// Only when the entry is of this term; 0 for any. What a leader counted means nothing in another term, in which
        /// the lease has its full span again.
        term: u64,
        /// So many keys at most.
        max_keys: u64,
    },
    /// Forgets up to `max` outcomes whose time has passed.
    Sweep {
        /// So many at most.
        max: u64,
    },
    /// Takes the next numbers of a sequence. Level 2.
    Sequence {
        /// Its name.
        name: Bytes,
        /// So many numbers.
        count: u64,
        /// By how much it jumps when the timeline changes; 0 for what it has, or for the default of a new one.
        step: u64,
    },
    /// Carries the leader's time and does nothing, so that every member can tell how old is what it shows. The leader's
    /// own. Level 2.
    Canary,
    /// Writes or deletes one record of the system, if it is still as the leader saw it. The leader's own. Level 2.
    Record {
        /// Its key in [`super::KeySpace::System`].
        key: Bytes,
        /// Only when it was last written at this revision; 0: only when it does not exist.
        written: Revision,
        /// What to write; none to delete it.
        value: Option<Bytes>,
    },
}

/// A lease and its span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Its id, not 0.
    pub id: u64,
    /// How long it lives without a keep-alive, in milliseconds.
    pub ttl_ms: u64,
}

const REQUEST_WRITE: u8 = 1;
const REQUEST_TXN: u8 = 2;
const REQUEST_GRANT: u8 = 3;
const REQUEST_REVOKE: u8 = 4;
const REQUEST_SWEEP: u8 = 5;
const REQUEST_SEQUENCE: u8 = 6;
const REQUEST_CANARY: u8 = 7;
const REQUEST_RECORD: u8 = 8;

impl Request {
    /// The feature level from which on it may be proposed.
    pub fn feature_level(&self) -> u64 {
        match self {
            Request::Write { .. }
            | Request::Txn(_)
            | Request::Grant(_)
            | Request::Revoke { .. }
            | Request::Sweep { .. } => 1,
            Request::Sequence { .. } | Request::Canary | Request::Record { .. } => 2,
        }
    }

    /// Whether only a leader proposes it, by itself: a member that forwards what clients ask never sends it.
    pub fn is_leaders_own(&self) -> bool {
        matches!(self, Request::Sweep { .. } | Request::Canary | Request::Record { .. })
    }
}

/// The idempotency key of an encoded command, without decoding the rest; none when it has none, or cannot be read.
pub fn idempotency_of(command: &[u8]) -> Option<&[u8]> {
    // Version, kind and time, then whether there is a key.
    let (head, mut rest) = command.split_at_checked(11)?;
    if !super::command::is_request(head) || head[10] != 1 {
        return None;
    }
    let mut length = 0usize;
    for shift in (0..28).step_by(7) {
        let (byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return rest.get(..length);
        }
    }
    None
}

impl RequestCommand {
    /// All but the time.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.idempotency.is_some()));
        if let Some(IdempotencyKey { key, fingerprint }) = &self.idempotency {
            put_bytes(out, key);
            out.extend_from_slice(fingerprint);
        }
        match &self.request {
            Request::Write { grant, guards, ops } => {
                out.extend_from_slice(&[REQUEST_WRITE, u8::from(grant.is_some())]);
                if let Some(grant) = grant {
                    grant.encode(out);
                }
                // Cloning shares keys and values.
                WriteCommand { time_ms: 0, guards: guards.clone(), ops: ops.clone() }.encode(out);
            }
            Request::Txn(txn) => {
                out.push(REQUEST_TXN);
                txn.encode(out);
            }
            Request::Grant(grant) => {
                out.push(REQUEST_GRANT);
                grant.encode(out);
            }
            Request::Revoke { id, granted, term, max_keys } => {
                out.push(REQUEST_REVOKE);
                put_varint(out, *id);
                put_varint(out, *granted);
                put_varint(out, *term);
                put_varint(out, *max_keys);
            }
            Request::Sweep { max } => {
                out.push(REQUEST_SWEEP);
                put_varint(out, *max);
            }
            Request::Sequence { name, count, step } => {
                out.push(REQUEST_SEQUENCE);
                put_bytes(out, name);
                put_varint(out, *count);
                put_varint(out, *step);
            }
            Request::Canary => out.push(REQUEST_CANARY),
            Request::Record { key, written, value } => {
                out.push(REQUEST_RECORD);
                put_bytes(out, key);
                put_varint(out, *written);
                out.push(u8::from(value.is_some()));
                if let Some(value) = value {
                    put_bytes(out, value);
                }
            }
        }
    }

    /// With its time.
    pub(super) fn decode(reader: &mut Reader) -> Result<RequestCommand, DecodeError> {
        let time_ms = reader.u64("time")?;
        let idempotency = if read_flag(reader)? {
            let key = reader.bytes("idempotency key")?;
            let mut fingerprint = [0; 16];
            fingerprint.copy_from_slice(&reader.take(16, "fingerprint")?);
            Some(IdempotencyKey { key, fingerprint })
        } else {
            None
        };
        let request = match reader.u8("request")? {
            REQUEST_WRITE => {
                let grant = if read_flag(reader)? { Some(LeaseGrant::decode(reader)?) } else { None };
                let WriteCommand { guards, ops, .. } = WriteCommand::decode(reader)?;
                Request::Write { grant, guards, ops }
            }
            REQUEST_TXN => Request::Txn(Txn::decode(reader, 1)?),
            REQUEST_GRANT => Request::Grant(LeaseGrant::decode(reader)?),
            REQUEST_REVOKE => Request::Revoke {
                id: reader.varint("lease")?,
                granted: reader.varint("revision of a lease")?,
                term: reader.varint("term of a leader")?,
                max_keys: reader.varint("keys")?,
            },
            REQUEST_SWEEP => Request::Sweep { max: reader.varint("outcomes")? },
            REQUEST_SEQUENCE => Request::Sequence {
                name: reader.bytes("name of a sequence")?,
                count: reader.varint("count of numbers")?,
                step: reader.varint("step of a sequence")?,
            },
            REQUEST_CANARY => Request::Canary,
            REQUEST_RECORD => {
                let key = reader.bytes("key of a record")?;
                let written = reader.varint("revision of a record")?;
                let value = if read_flag(reader)? { Some(reader.bytes("value of a record")?) } else { None };
                Request::Record { key, written, value }
            }
            _ => return Err(DecodeError { what: "request: unknown kind" }),
        };
        Ok(RequestCommand { time_ms, idempotency, request })
    }
}

impl LeaseGrant {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.id);
        put_varint(out, self.ttl_ms);
    }

    fn decode(reader: &mut Reader) -> Result<LeaseGrant, DecodeError> {
        Ok(LeaseGrant { id: reader.varint("lease")?, ttl_ms: reader.varint("span of a lease")? })
    }
}
