//! Transactions that compare, branch and read, and what became of them.
//!
//! They are part of the requests of [`super::request`]; their bytes are described by the code here, and like every
//! command they mean the same for ever.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, Reader, put_bytes, put_varint, read_list};
use super::{KeyMeta, Revision};

/// Transactions may lie so deep in each other; the outermost is 1.
pub const MAX_TXN_DEPTH: usize = 3;

/// If all of `compare` holds, all of `then` is done, else all of `otherwise`; at one revision. All keys are user keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// What must hold; nothing: it holds.
    pub compare: Vec<Compare>,
    /// What is done when it holds.
    pub then: Vec<TxnOp>,
    /// What is done when it does not.
    pub otherwise: Vec<TxnOp>,
}

/// A comparison of what is with what is expected; of a range: of every key there is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Of which keys.
    pub keys: KeySet,
    /// How.
    pub op: CompareOp,
    /// What of the key, and with what.
    pub target: CompareTarget,
}

/// One key, or a range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySet {
    /// One.
    One(Bytes),
    /// From `start` up to and without `end`; none: to the last one.
    Range {
        /// The first key.
        start: Bytes,
        /// The first key that is not in it any more.
        end: Option<Bytes>,
    },
}

/// How two things are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CompareOp {
    /// `==`
    #[serde(rename = "==")]
    Equal,
    /// `!=`
    #[serde(rename = "!=")]
    NotEqual,
    /// `<`
    #[serde(rename = "<")]
    Less,
    /// `<=`
    #[serde(rename = "<=")]
    LessOrEqual,
    /// `>`
    #[serde(rename = ">")]
    Greater,
    /// `>=`
    #[serde(rename = ">=")]
    GreaterOrEqual,
}

impl CompareOp {
    /// Whether it holds of two things that compare so.
    pub fn holds(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::LessOrEqual => ordering.is_le(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::GreaterOrEqual => ordering.is_ge(),
        }
    }

    fn from_byte(byte: u8) -> Result<CompareOp, DecodeError> {
        use CompareOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        let all = [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual];
        all.get(usize::from(byte)).copied().ok_or(DecodeError { what: "comparison" })
    }
}

/// What of a key is compared, and with what. A key that does not exist has 0 in all numbers, and no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// The revision of its newest value.
    ModRevision(u64),
    /// The revision at which it was created (again).
    CreateRevision(u64),
    /// How many times it was written since.
    Version(u64),
    /// The lease it hangs on.
    Lease(u64),
    /// Its value.
    Value(Bytes),
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOp {
    /// Writes a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// The lease it hangs on; 0 for none.
        lease: u64,
        /// Whether the result holds what was replaced.
        previous: bool,
    },
    /// Deletes a key, if it exists.
    Delete {
        /// The key.
        key: Bytes,
        /// Whether the result holds what was deleted.
        previous: bool,
    },
    /// Deletes every key from `start` on, up to and without `end`.
    DeleteRange {
        /// The first key.
        start: Bytes,
        /// The first key that is not deleted any more.
        end: Option<Bytes>,
    },
    /// Reads keys.
    Read {
        /// Which keys.
        keys: KeySet,
        /// At most so many.
        limit: u64,
        /// Without values.
        keys_only: bool,
    },
    /// A transaction in the transaction.
    Txn(Txn),
}

/// What one operation of a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnResult {
    /// A value was written.
    Put {
        /// The key as it is now.
        meta: KeyMeta,
        /// The revision of the value it replaced; none when the key did not exist.
        previous: Option<Revision>,
        /// What it replaced, when that was asked for.
        replaced: Option<Option<TxnItem>>,
    },
    /// So many keys were deleted.
    Deleted {
        /// How many.
        count: u64,
        /// The revision of the deleted value, when a single key was asked for and existed.
        previous: Option<Revision>,
        /// What was deleted, when that was asked for.
        deleted: Option<Option<TxnItem>>,
    },
    /// What was read of one key.
    Item(Option<TxnItem>),
    /// What was read of a range.
    Items {
        /// The keys.
        items: Vec<TxnItem>,
        /// Whether there are more.
        more: bool,
    },
    /// A nested transaction.
    Txn(TxnOutcome),
}

/// What became of a transaction that was executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether all of `compare` held.
    pub succeeded: bool,
    /// One result an operation of the branch taken.
    pub results: Vec<TxnResult>,
}

/// A key as a transaction read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnItem {
    /// The key.
    pub key: Bytes,
    /// Its revisions, version and lease.
    pub meta: KeyMeta,
    /// The value; none when only keys were asked for.
    pub value: Option<Bytes>,
}

const TARGET_MOD: u8 = 0;
const TARGET_CREATE: u8 = 1;
const TARGET_VERSION: u8 = 2;
const TARGET_LEASE: u8 = 3;
const TARGET_VALUE: u8 = 4;

const OP_PUT: u8 = 0;
const OP_DELETE: u8 = 1;
const OP_DELETE_RANGE: u8 = 2;
const OP_READ: u8 = 3;
const OP_TXN: u8 = 4;

impl Txn {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.compare.len() as u64);
        for Compare { keys, op, target } in &self.compare {
            keys.encode(out);
            out.push(*op as u8);
            let (tag, number) = match target {
                CompareTarget::ModRevision(number) => (TARGET_MOD, *number),
                CompareTarget::CreateRevision(number) => (TARGET_CREATE, *number),
                CompareTarget::Version(number) => (TARGET_VERSION, *number),
                CompareTarget::Lease(number) => (TARGET_LEASE, *number),
                CompareTarget::Value(value) => {
                    out.push(TARGET_VALUE);
                    put_bytes(out, value);
                    continue;
                }
            };
            out.push(tag);
            put_varint(out, number);
        }
        for branch in [&self.then, &self.otherwise] {
            put_varint(out, branch.len() as u64);
            branch.iter().for_each(|op| op.encode(out));
        }
    }

    pub(super) fn decode(reader: &mut Reader, depth: usize) -> Result<Txn, DecodeError> {
        if depth > MAX_TXN_DEPTH {
            return Err(DecodeError { what: "transaction: too deep" });
        }
        let compare = read_list(reader, "comparisons", |reader| {
            let keys = KeySet::decode(reader)?;
            let op = CompareOp::from_byte(reader.u8("comparison")?)?;
            let target = match reader.u8("target")? {
                TARGET_MOD => CompareTarget::ModRevision(reader.varint("target")?),
                TARGET_CREATE => CompareTarget::CreateRevision(reader.varint("target")?),
                TARGET_VERSION => CompareTarget::Version(reader.varint("target")?),
                TARGET_LEASE => CompareTarget::Lease(reader.varint("target")?),
                TARGET_VALUE => CompareTarget::Value(reader.bytes("target")?),
                _ => return Err(DecodeError { what: "target: unknown kind" }),
            };
            Ok(Compare { keys, op, target })
        })?;
        let then = read_list(reader, "operations", |reader| TxnOp::decode(reader, depth))?;
        let otherwise = read_list(reader, "operations", |reader| TxnOp::decode(reader, depth))?;
        Ok(Txn { compare, then, otherwise })
    }
}

impl KeySet {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            KeySet::One(key) => {
                out.push(0);
                put_bytes(out, key);
            }
            KeySet::Range { start, end } => {
                out.push(1 + u8::from(end.is_some()));
                put_bytes(out, start);
                if let Some(end) = end {
                    put_bytes(out, end);
                }
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<KeySet, DecodeError> {
        Ok(match reader.u8("keys")? {
            0 => KeySet::One(reader.bytes("key")?),
            1 => KeySet::Range { start: reader.bytes("start")?, end: None },
            2 => KeySet::Range { start: reader.bytes("start")?, end: Some(reader.bytes("end")?) },
            _ => return Err(DecodeError { what: "keys: unknown kind" }),
        })
    }
}

impl TxnOp {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            TxnOp::Put { key, value, lease, previous } => {
                out.extend_from_slice(&[OP_PUT, u8::from(*previous)]);
                put_bytes(out, key);
                put_varint(out, *lease);
                put_bytes(out, value);
            }
            TxnOp::Delete { key, previous } => {
                out.extend_from_slice(&[OP_DELETE, u8::from(*previous)]);
                put_bytes(out, key);
            }
            TxnOp::DeleteRange { start, end } => {
                out.push(OP_DELETE_RANGE);
                KeySet::Range { start: start.clone(), end: end.clone() }.encode(out);
            }
            TxnOp::Read { keys, limit, keys_only } => {
                out.extend_from_slice(&[OP_READ, u8::from(*keys_only)]);
                keys.encode(out);
                put_varint(out, *limit);
            }
            TxnOp::Txn(txn) => {
                out.push(OP_TXN);
                txn.encode(out);
            }
        }
    }

    fn decode(reader: &mut Reader, depth: usize) -> Result<TxnOp, DecodeError> {
        Ok(match reader.u8("operation")? {
            OP_PUT => {
                let previous = read_flag(reader)?;
                let key = reader.bytes("key")?;
                let lease = reader.varint("lease")?;
                TxnOp::Put { key, value: reader.bytes("value")?, lease, previous }
            }
            OP_DELETE => {
                let previous = read_flag(reader)?;
                TxnOp::Delete { key: reader.bytes("key")?, previous }
            }
            OP_DELETE_RANGE => match KeySet::decode(reader)? {
                KeySet::Range { start, end } => TxnOp::DeleteRange { start, end },
                KeySet::One(_) => return Err(DecodeError { what: "operation: a range delete of one key" }),
            },
            OP_READ => {
                let keys_only = read_flag(reader)?;
                let keys = KeySet::decode(reader)?;
                TxnOp::Read { keys, limit: reader.varint("limit")?, keys_only }
            }
            OP_TXN => TxnOp::Txn(Txn::decode(reader, depth + 1)?),
            _ => return Err(DecodeError { what: "operation: unknown kind" }),
        })
    }
}

const RESULT_PUT: u8 = 0;
const RESULT_DELETED: u8 = 1;
const RESULT_ITEM: u8 = 2;
const RESULT_ITEMS: u8 = 3;
const RESULT_TXN: u8 = 4;

impl TxnOutcome {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.succeeded));
        put_varint(out, self.results.len() as u64);
        for result in &self.results {
            match result {
                TxnResult::Put { meta, previous, replaced } => {
                    out.push(RESULT_PUT);
                    meta.encode_into(out);
                    put_varint(out, previous.unwrap_or(0));
                    put_asked(out, replaced);
                }
                TxnResult::Deleted { count, previous, deleted } => {
                    out.push(RESULT_DELETED);
                    put_varint(out, *count);
                    put_varint(out, previous.unwrap_or(0));
                    put_asked(out, deleted);
                }
                TxnResult::Item(item) => {
                    out.push(RESULT_ITEM);
                    put_asked(out, &Some(item.clone()));
                }
                TxnResult::Items { items, more } => {
                    out.extend_from_slice(&[RESULT_ITEMS, u8::from(*more)]);
                    put_varint(out, items.len() as u64);
                    items.iter().for_each(|item| item.encode(out));
                }
                TxnResult::Txn(outcome) => {
                    out.push(RESULT_TXN);
                    outcome.encode(out);
                }
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader, depth: usize) -> Result<TxnOutcome, DecodeError> {
        if depth > MAX_TXN_DEPTH {
            return Err(DecodeError { what: "outcome: too deep" });
        }
        let succeeded = read_flag(reader)?;
        let results = read_list(reader, "results", |reader| {
            Ok(match reader.u8("result")? {
                RESULT_PUT => {
                    let meta = KeyMeta::decode(reader)?;
                    let previous = read_revision(reader)?;
                    TxnResult::Put { meta, previous, replaced: read_asked(reader)? }
                }
                RESULT_DELETED => {
                    let count = reader.varint("count")?;
                    let previous = read_revision(reader)?;
                    TxnResult::Deleted { count, previous, deleted: read_asked(reader)? }
                }
                RESULT_ITEM => TxnResult::Item(read_asked(reader)?.ok_or(DecodeError { what: "item" })?),
                RESULT_ITEMS => {
                    let more = read_flag(reader)?;
                    TxnResult::Items { items: read_list(reader, "items", TxnItem::decode)?, more }
                }
                RESULT_TXN => TxnResult::Txn(TxnOutcome::decode(reader, depth + 1)?),
                _ => return Err(DecodeError { what: "result: unknown kind" }),
            })
        })?;
        Ok(TxnOutcome { succeeded, results })
    }
}

impl TxnItem {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.key);
        self.meta.encode_into(out);
        out.push(u8::from(self.value.is_some()));
        if let Some(value) = &self.value {
            put_bytes(out, value);
        }
    }

    fn decode(reader: &mut Reader) -> Result<TxnItem, DecodeError> {
        let key = reader.bytes("key")?;
        let meta = KeyMeta::decode(reader)?;
        let value = if read_flag(reader)? { Some(reader.bytes("value")?) } else { None };
        Ok(TxnItem { key, meta, value })
    }
}

/// 0: not asked for, 1: there was none, 2: there was one.
fn put_asked(out: &mut Vec<u8>, asked: &Option<Option<TxnItem>>) {
    match asked {
        None => out.push(0),
        Some(None) => out.push(1),
        Some(Some(item)) => {
            out.push(2);
            item.encode(out);
        }
    }
}

fn read_asked(reader: &mut Reader) -> Result<Option<Option<TxnItem>>, DecodeError> {
    match reader.u8("item")? {
        0 => Ok(None),
        1 => Ok(Some(None)),
        2 => Ok(Some(Some(TxnItem::decode(reader)?))),
        _ => Err(DecodeError { what: "item: unknown kind" }),
    }
}

fn read_revision(reader: &mut Reader) -> Result<Option<Revision>, DecodeError> {
    Ok(Some(reader.varint("previous revision")?).filter(|revision| *revision != 0))
}

pub(super) fn read_flag(reader: &mut Reader) -> Result<bool, DecodeError> {
    match reader.u8("flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError { what: "flag" }),
    }
}
